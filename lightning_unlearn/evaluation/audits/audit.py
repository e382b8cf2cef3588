"""``audit``: attack a user's own training and requests; compare with what is proved."""

import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from lightning_unlearn._base import validate
from lightning_unlearn._base.text import number
from lightning_unlearn.certificate.certificate import Certificate
from lightning_unlearn.errors import ArgumentError, SetupError
from lightning_unlearn.evaluation.audits import repeat
from lightning_unlearn.evaluation.audits.added_noise import NoiseSize, noise_size
from lightning_unlearn.evaluation.audits.experiment import Experiment, RunRecord
from lightning_unlearn.evaluation.audits.finding import Audit, asked_delta
from lightning_unlearn.evaluation.audits.one_run import check_guesses, one_run_audit
from lightning_unlearn.evaluation.audits.two_sample import two_sample_audit
from lightning_unlearn.evaluation.audits.white_box import WhiteBox, held_to

LEAST_CANARIES = 20  # with fewer, coins too often leave every one out
_REFERENCE = "reference"


@dataclass(frozen=True, kw_only=True)
class AuditReport:
    """What all attacks found; none of it above what is certified. Secret.

    Attributes:
        one_run: Guessing which canaries were in, over all runs.
        two_sample: Telling both worlds apart by many draws of the noise, or None.
        white_box: The largest true mu of the runs, from the points before the noise,
            or None where they were not computed. Exact: no confidence is involved.
        noise: The smallest noise of the runs beside what is certified, or None. It was
            not too small, or `AuditError` would have been raised.
        runs: Trainings with a request.
        kept: How many of the trainings were taken from the folder.
    """

    one_run: Audit
    two_sample: Audit | None
    white_box: WhiteBox | None
    noise: NoiseSize | None
    runs: int
    kept: int = 0

    @property
    def found(self) -> Mapping[str, float]:
        """What was tried -> what it found, for ``result.report(path, audit=...)``."""
        rows = {}
        for audit in (self.one_run, self.two_sample):
            if audit is not None:
                rows[f"{audit.attack}: lower bound of epsilon"] = audit.epsilon_lower
                rows[f"{audit.attack}: the largest it could show"] = audit.ceiling
        if self.white_box is not None:
            rows["points before noise: true mu"] = self.white_box.mu_true
        if self.noise is not None:
            rows["noise that was added: noise_std"] = self.noise.std
        return rows

    def __str__(self) -> str:
        parts = [str(a) for a in (self.one_run, self.two_sample) if a is not None]
        if self.kept:
            parts.insert(0, f"{self.kept} trainings were kept from an earlier call")
        if self.white_box is not None:
            true, stated, _ = self.white_box
            claim = "nothing" if stated is None else f"mu = {number(stated)}"
            parts.append(
                f"points before noise: true mu {number(true)} (exact; the largest of "
                f"the runs), certified: {claim}"
            )
        if self.noise is not None:
            std, stated = map(number, self.noise)
            parts.append(f"noise that was added: noise_std {std}, certified: {stated}")
        return "\n".join(parts)


def audit(
    experiment: Experiment,
    *,
    runs: int = 1,
    draws: int = 0,
    guesses: int | None = None,
    confidence: float = 0.95,
    delta: float | None = None,
    calibrate: bool = True,
    folder: Path | str | None = None,
    workers: int = 1,
) -> AuditReport:
    """Attack a training and its requests with canaries, and hold the certificate to it.

    Every run tosses a coin for each canary, trains with those that are in, has them
    forgotten by one request and scores all of them with what was released
    (`one_run_audit`). With the points before the noise it also computes the true mu
    (`white_box_mu`), tests that the noise that was added is as large as certified
    and, from `draws`, tells both worlds apart (`two_sample_audit`).

    It costs `runs` trainings and requests, and one training more to calibrate. Decide
    on the numbers beforehand: to go on until something is found is another test.

    Args:
        experiment: What to repeat; `lightning_unlearn.TrainerExperiment` makes one of
            your own training.
        runs: Trainings with a request; they are independent.
        draws: Of the noise in each world, from the first run's request. 0 leaves the
            two-sample audit out; it needs the points before the noise.
        guesses: Of how many canaries of a run to guess; all by default.
        confidence: Of the whole: an honest certificate is refuted with probability
            ``1 - confidence`` at most.
        delta: At which to state epsilon; the certificate's by default, which is 0 for
            grade ``exact``.
        calibrate: Subtract from each canary's score that of a model trained without
            any: one more training, and a much stronger attack.
        folder: Where finished runs are kept, so that an audit that is stopped goes on
            where it was. As secret as the training data: delete it afterwards.
        workers: Runs at a time, each in a process of its own with its share of the
            CPU's threads; what your Trainer uses is up to your training. More than one
            needs ``if __name__ == "__main__":`` around a script's own code.

    Returns:
        What was found. That nothing was found proves nothing.

    Raises:
        AuditError: If a lower bound is above what is certified.
        ArgumentError: If an argument or an outcome is not what it should be.
        SetupError: If the folder holds runs of another experiment, or a worker ended.
    """
    r = _checked(experiment, runs, draws, workers)
    guesses = r if guesses is None else guesses
    validate.probability(confidence=confidence)
    validate.probability_or_zero(delta=0 if delta is None else delta)
    check_guesses(guesses, r)
    place = None if folder is None else Path(folder)
    names = [f"run-{i:03d}" for i in range(runs)]
    wanted = [*names, _REFERENCE] if calibrate else names
    done = repeat.done(place, wanted, experiment.identity, r)
    earlier, first = len(done), done.get(names[0])
    if draws and first is not None and len(first.draws[0]) != draws:
        raise ArgumentError(
            f"expected {draws} draws of the noise in each world, got "
            f"{len(first.draws[0])} from the first run, which was kept: ask for as "
            "many, or take a new folder"
        )
    todo: dict[str, repeat.Trial] = {
        name: (repeat.tossed(r), draws if name == names[0] else 0)
        for name in names
        if name not in done
    }
    if calibrate and _REFERENCE not in done:
        todo[_REFERENCE] = [False] * r, 0
    with tqdm(
        total=len(todo) + len(done), initial=len(done), desc="audit", unit="training",
        disable=None,
    ) as bar:  # fmt: skip
        for name, run in repeat.carried_out(experiment, todo, workers, place):
            done[name] = run
            if run.certificate is not None:
                asked_delta(Certificate.from_json(run.certificate), delta)
            bar.update()
    kept = [done[name] for name in names]
    scores = _tensor([run.scores for run in kept])
    if calibrate:
        scores -= _tensor(done[_REFERENCE].scores)
    report = _judged(kept, scores, draws, guesses, confidence, delta)
    return replace(report, kept=earlier)


def _judged(
    kept: list[RunRecord],
    scores: Tensor,
    draws: int,
    guesses: int,
    confidence: float,
    delta: float | None,
) -> AuditReport:
    certificates = [Certificate.from_json(run.certificate or "") for run in kept]
    boxes = [
        held_to(c, run.distance, run.norms)
        for c, run in zip(certificates, kept, strict=True)
        if run.distance is not None
    ]
    both = zip(certificates, kept, strict=True)
    noises = [(c, k, k.noise) for c, k in both if k.noise is not None and c.noise_std]
    share = 1 - (1 - confidence) / (1 + bool(draws) + bool(noises))
    alone = 1 - (1 - share) / max(1, len(noises))
    sizes = [noise_size(c, norm, k.rounding, alone) for c, k, norm in noises]
    two = None
    if draws:
        u, r = (_tensor(world) for world in kept[0].draws)
        two = two_sample_audit(certificates[0], u, r, share, delta=delta)
        two = replace(two, attack="draws of the noise at both points")
    included = torch.tensor([run.included for run in kept])
    return AuditReport(
        one_run=one_run_audit(
            certificates, included, scores, share, guesses=guesses, delta=delta
        ),
        two_sample=two,
        white_box=max(boxes, key=lambda box: box.mu_true, default=None),
        noise=min(sizes, key=lambda size: size.std / size.std_certified, default=None),
        runs=len(kept),
    )


def _checked(experiment: Experiment, runs: int, draws: int, workers: int) -> int:
    """The number of canaries, or `ArgumentError`."""
    validate.count(runs=runs, workers=workers)
    grouped = torch.distributed.is_available() and torch.distributed.is_initialized()
    if grouped or "LOCAL_RANK" in os.environ:
        raise SetupError(
            "expected one process that calls audit, got one of several (LOCAL_RANK is "
            "set, or a process group is): each would toss coins of its own; train on "
            "one device or with ddp_spawn, and call audit outside torchrun"
        )
    if draws == 1 or draws < 0:
        raise ArgumentError(
            "expected draws of 2 or more in each world, half to choose the test and "
            f"half to be tested, or 0 for none, got {draws}"
        )
    r = experiment.n_canaries
    if r < LEAST_CANARIES:
        raise ArgumentError(
            f"expected at least {LEAST_CANARIES} canaries, got {r}: with so few the "
            "coins may leave all of them out, and the attack finds little"
        )
    if workers > 1:
        try:
            pickle.dumps(experiment)
        except Exception as problem:  # whatever cannot be pickled raises
            raise ArgumentError(
                "expected an experiment that can be pickled for several workers, got "
                f"{type(problem).__name__} ({problem}): define its functions at the "
                "top of a module, or use workers=1"
            ) from None
    return r


def _tensor(rows: object) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)
