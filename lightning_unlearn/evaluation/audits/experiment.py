"""What an audit repeats, and the file that keeps a run of it."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from lightning_unlearn._base import files, strict_json
from lightning_unlearn.certificate.certificate import Certificate
from lightning_unlearn.errors import ArgumentError, SetupError
from lightning_unlearn.evaluation.audits.white_box import apart
from lightning_unlearn.evaluation.metrics import arguments
from lightning_unlearn.step.noise import add_noise

SCHEMA = 2


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one training with a request came to.

    Attributes:
        certificate: Of the request; None where nothing was to be forgotten.
        scores: Of every canary, shape (canaries,), floating: higher, more likely in.
        unlearned: Weights in scope before the noise, (p,) float64, where asked for.
        retrained: The same in the retrained world, such as the exact minimiser.
        released: The weights in scope after the noise, (p,) in the model's own dtype,
            where asked for.
    """

    certificate: Certificate | None
    scores: Tensor
    unlearned: Tensor | None = None
    retrained: Tensor | None = None
    released: Tensor | None = None


class Experiment(Protocol):
    """A training that can be repeated with other canaries in it.

    Attributes:
        n_canaries: How many there are.
        identity: Tells this experiment from others: runs kept in a folder are used
            only for the one that made them.
    """

    n_canaries: int
    identity: str

    def __call__(self, included: Tensor) -> Outcome:
        """Train with the canaries that are in, have them forgotten, score them all.

        Args:
            included: Boolean, (canaries,). With none in, nothing is to be forgotten:
                the scores are then those of a model that never met a canary.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """A run as it is kept: as secret as the training data.

    Attributes:
        included: Of every canary, whether the coin put it in.
        scores: Of every canary.
        certificate: Its JSON, or None.
        distance: Between both worlds' points before the noise, or None.
        norms: Sum of the norms of both.
        draws: Of each world, released models along the line between both points.
        noise: Norm of what was added to the point before noise, or None.
        rounding: Of the cast of the released weights, a bound in the same units.
    """

    included: list[bool]
    scores: list[float]
    certificate: str | None
    distance: float | None
    norms: float
    draws: tuple[list[float], list[float]]
    noise: float | None = None
    rounding: float = 0.0


def carried_out(experiment: Experiment, included: list[bool], draws: int) -> RunRecord:
    """Run it once, and draw the noise of so many releases in both worlds.

    Raises:
        ArgumentError: If the outcome is not what `Outcome` says.
    """
    some = any(included)
    found = experiment(torch.tensor(included))
    scores = arguments.values("scores", found.scores, 1).cpu()
    if len(scores) != len(included) or (found.certificate is None) == some:
        got = "none" if found.certificate is None else "one"
        raise ArgumentError(
            f"expected scores of {len(included)} canaries and a certificate exactly "
            f"where some were in, got {len(scores)} scores, {got} with "
            f"{sum(included)} in"
        )
    u, r = found.unlearned, found.retrained
    if draws and (u is None or r is None):
        raise ArgumentError(
            f"expected the points before the noise for {draws} draws in each world, "
            "got none from the experiment: white_box=True gives them for a ConvexHead"
        )
    distance, norms, drawn = None, 0.0, ([], [])
    noise, rounding = None, 0.0
    if found.certificate is not None and u is not None and r is not None:
        u, r, distance, norms = apart(found.certificate, u, r)
        sigma = found.certificate.noise_std
        drawn = _drawn(u, u - r, r, sigma, draws), _drawn(r, u - r, r, sigma, draws)
        if found.released is not None:
            released = arguments.values("released", found.released, 1).cpu()
            noise = float((released.double() - u).norm())
            rounding = torch.finfo(released.dtype).eps * float(released.norm())
    return RunRecord(
        noise=noise,
        rounding=rounding,
        included=included,
        scores=scores.double().tolist(),
        certificate=None if found.certificate is None else found.certificate.to_json(),
        distance=distance,
        norms=norms,
        draws=drawn,
    )


def _drawn(
    point: Tensor, along: Tensor, origin: Tensor, noise_std: float, draws: int
) -> list[float]:
    """So many releases from a point, projected: the rest is the same in both worlds."""
    size = float(along.norm())
    direction = along / size if size > 0 else along
    released = (add_noise(point.clone(), noise_std) for _ in range(draws))
    return [float((w - origin) @ direction) for w in released]


def write(path: Path, identity: str, run: RunRecord) -> None:
    """Keep a run, for its owner's eyes: it is as secret as the data."""
    fields = {"schema": SCHEMA, "identity": _digest(identity), **vars(run)}
    text = json.dumps(fields, allow_nan=False)
    files.create_file(path, text, mode=0o600)


def read(path: Path, identity: str, r: int) -> RunRecord:
    """A run that was kept.

    Raises:
        SetupError: If it is of another experiment, or no such file.
    """
    fields = strict_json.strict_object(
        path.read_text("utf-8", errors="replace"), SetupError, f"a run in {path}"
    )
    own = fields.pop("schema", None), fields.pop("identity", None)
    if own != (SCHEMA, _digest(identity)):
        raise SetupError(
            f"expected runs of this experiment in {path.parent}, got {path.name} of "
            f"another one (its digest is {own[1]}): choose another folder, or remove "
            "it if you have changed the training"
        )
    run = strict_json.from_plain(RunRecord, fields, SetupError, f"a run in {path}")
    coins = len(run.included) == len(run.scores) == r
    if not coins or (run.certificate is not None) != any(run.included):
        raise SetupError(
            f"expected {r} coins and scores in {path}, and a certificate exactly where "
            f"some were in, got {len(run.included)} and {len(run.scores)}: remove the "
            "file, and the run is made anew"
        )
    return run


def _digest(identity: str) -> str:
    return hashlib.sha256(identity.encode()).hexdigest()[:16]
