"""A file that says where a long solve stands, so that another process can go on.

It is as secret as the data, for no noise has been added, and it can prove nothing: what
a certificate rests on is computed afresh at the end of a solve.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from lightning_unlearn._base.files import check_writable
from lightning_unlearn._base.strict_json import canonical_digest
from lightning_unlearn.certificate.ledger import forget_digest
from lightning_unlearn.errors import DataError, SetupError
from lightning_unlearn.plugin.files.secret_file import SecretFile
from lightning_unlearn.plugin.plan.plan import Plan
from lightning_unlearn.solvers.observer import Observer, State
from lightning_unlearn.weights.digests import state_digest

_FILE = SecretFile("lightning_unlearn solve 2", "where a solve stands", "state_file=")


@dataclass
class SolveState:
    """What a file holds.

    Args:
        made_from: Digest of the request and of all it depends on.
        label: Which solve of the request (its damping).
        state: Where it stands.
    """

    made_from: str
    label: float
    state: State


@dataclass
class FileObserver(Observer):
    """Writes where a solve stands every few steps, and begins where a file says.

    Args:
        made_from: Digest of the request.
        path: To write, or None.
        every: Steps between two writes.
        saved: To begin with, or None.
        label: Which solve of the request this is.
    """

    made_from: str
    path: Path | None
    every: int
    saved: SolveState | None = None
    label: float = 0.0

    def of(self, label: float) -> "FileObserver":
        """See `Observer`."""
        return replace(self, label=label)

    def start(self) -> State | None:
        """See `Observer`."""
        if self.saved is None or self.saved.label != self.label:
            return None
        return self.saved.state

    def step(self, number: int, residual: float, state: Callable[[], State]) -> None:
        """See `Observer`."""
        if number % self.every == 0:
            self.milestone(residual, state)

    def milestone(self, residual: float, state: Callable[[], State]) -> None:
        """See `Observer`."""
        del residual
        if self.path is not None:
            write(self.path, SolveState(self.made_from, self.label, state()))


def with_solve_file(plan: Plan, key: str, resume_from: Path | None) -> Plan:
    """A request whose solve is kept in a file, and goes on from one, if wanted.

    Args:
        plan: The request.
        key: Secret of the record.
        resume_from: Where a solve of the same request stood, or None.

    Raises:
        SetupError: If two files are named, or none can be written there.
        DataError: If the state is not of this request.
    """
    options, processes = plan.options, plan.processes
    file = options.state_path or resume_from
    if file is None:
        return plan
    if resume_from is not None and file.resolve() != resume_from.resolve():
        raise SetupError(
            f"expected resume_from= to be the callback's state_file={file}, got "
            f"{resume_from}: name one file"
        )
    made_from, saved = binding(plan, key), None
    if resume_from is not None:
        saved = processes.first(lambda: read(resume_from, made_from))
    processes.first(lambda: check_writable(file, f"state_file={file}"))
    mine = file if processes.rank == 0 else None
    return replace(
        plan, solve_file=FileObserver(made_from, mine, options.state_every, saved)
    )


def files(observer: Observer) -> list[Path]:
    """The file a solve is kept in, if there is one."""
    path = observer.path if isinstance(observer, FileObserver) else None
    return [] if path is None else [path]


def delete(observer: Observer) -> None:
    """Delete the file of a solve that is done; what cannot be deleted is named."""
    for path in files(observer):
        _FILE.delete(path)


def write(path: Path, saved: SolveState) -> None:
    """Write a state to a file that only its owner can read, in place of an older one.

    Args:
        path: The file.
        saved: What to write.

    Raises:
        DataError: If something else stands there.
    """
    text = {"made_from": saved.made_from, "label": repr(float(saved.label))}
    _FILE.write(path, text, {k: t.to(torch.float64) for k, t in saved.state.items()})


def binding(plan: Plan, key: str) -> str:
    """Digest of all a solve depends on; nobody can test guesses without the key.

    Args:
        plan: The request.
        key: Hexadecimal secret of the record.
    """
    options = plan.options
    return canonical_digest(
        {
            "weights": state_digest(plan.module.state_dict()),
            "forget": forget_digest(key, plan.chosen),
            "removed": forget_digest(key, plan.removed),
            "n": len(plan.retained),
            "scope": plan.scope.names,
            "l2": plan.l2,
            "guarantee": repr(plan.guarantee),
            "options": [
                repr(value)
                for value in (
                    options.solver,
                    options.damping,
                    options.curvature,
                    options.tolerance,
                    options.low_memory,
                    plan.dtype,
                )
            ],
        }
    )


def read(path: Path, made_from: str) -> SolveState:
    """Read a state.

    Args:
        path: What `write` wrote.
        made_from: Digest of the request it must be of.

    Returns:
        The state, on the CPU.

    Raises:
        DataError: If the file is missing, damaged, or of another request.
    """
    try:
        text, state = _FILE.read(path)
        label = float(text["label"])
        plain = all(t.dtype == torch.float64 and t.dim() == 1 for t in state.values())
        if set(text) != {"made_from", "label"} or not (plain and math.isfinite(label)):
            raise DataError("its fields are others")
    except (DataError, KeyError, ValueError) as problem:
        raise DataError(
            f"expected where a solve stood in resume_from={path}, got something else "
            f"({problem!s:.300}): start without it"
        ) from None
    if not all(bool(torch.isfinite(t).all()) for t in state.values()):
        raise DataError(f"expected finite numbers in resume_from={path}, got others")
    if text["made_from"] != made_from:
        raise DataError(
            f"expected the solve of this request in resume_from={path}, got one of "
            "another model, forget set, solver or other options: start without it"
        )
    return SolveState(made_from, label, state)
