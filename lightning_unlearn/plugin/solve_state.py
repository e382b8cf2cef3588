"""A file that says where a long solve stands, so that another process can go on.

One line of JSON, then the numbers: nothing in it is ever unpickled. It is as secret as
the data, for no noise has been added, and it can prove nothing: what a certificate
rests on is computed afresh at the end of a solve.
"""

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn

from lightning_unlearn import storage
from lightning_unlearn._files import new_file, part_of
from lightning_unlearn._records import canonical_digest, strict_object
from lightning_unlearn.errors import DataError, SetupError
from lightning_unlearn.ledger import forget_digest
from lightning_unlearn.scope import state_digest
from lightning_unlearn.solvers.watch import State, Watch

if TYPE_CHECKING:
    from lightning_unlearn.plugin.resolved import Resolved

_FORMAT = "lightning_unlearn solve 1"
_HEADER = 1 << 16  # bytes
_FIELDS = {"format": str, "made_from": str, "label": (int, float), "sizes": dict}


@dataclass
class Saved:
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
class Keeper(Watch):
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
    saved: Saved | None = None
    label: float = 0.0

    def of(self, label: float) -> "Keeper":
        """See `Watch`."""
        return replace(self, label=label)

    def start(self) -> State | None:
        """See `Watch`."""
        if self.saved is None or self.saved.label != self.label:
            return None
        return self.saved.state

    def step(self, number: int, residual: float, state: Callable[[], State]) -> None:
        """See `Watch`."""
        if number % self.every == 0:
            self.milestone(residual, state)

    def milestone(self, residual: float, state: Callable[[], State]) -> None:
        """See `Watch`."""
        del residual
        if self.path is not None:
            write(self.path, Saved(self.made_from, self.label, state()))


def watched(ready: "Resolved", key: str, resume_from: Path | None) -> "Resolved":
    """A request whose solve is kept in a file, and goes on from one, if wanted.

    Args:
        ready: The request.
        key: Secret of the record.
        resume_from: Where a solve of the same request stood, or None.

    Raises:
        SetupError: If two files are named.
        DataError: If the state is not of this request.
    """
    options, processes = ready.options, ready.processes
    file = options.state_file or resume_from
    if file is None:
        return ready
    if resume_from is not None and file.resolve() != resume_from.resolve():
        raise SetupError(
            f"expected resume_from= to be the callback's state_file={file}, got "
            f"{resume_from}: name one file"
        )
    made_from, saved = binding(ready, key), None
    if resume_from is not None:
        saved = processes.first(lambda: read(resume_from, made_from))
    mine = file if processes.rank == 0 else None
    return replace(ready, watch=Keeper(made_from, mine, options.state_every, saved))


def files(watch: Watch) -> list[Path]:
    """The file a solve is kept in, if there is one."""
    path = watch.path if isinstance(watch, Keeper) else None
    return [] if path is None else [path]


def delete(watch: Watch) -> None:
    """Delete the file of a solve that is done; what cannot be deleted is named."""
    for path in files(watch):
        try:
            part_of(path).unlink(missing_ok=True)
            if path.exists():
                _check_ours(path)
                path.unlink()
        except (OSError, DataError) as problem:
            rank_zero_warn(
                f"could not delete {path} ({problem!s:.200}), which says where the "
                "solve stood and is as secret as the samples: delete it"
            )


def write(path: Path, saved: Saved) -> None:
    """Write a state to a file that only its owner can read, in place of an older one.

    Args:
        path: The file.
        saved: What to write.

    Raises:
        DataError: If something else stands there.
    """
    if path.exists():
        _check_ours(path)
    tensors = {k: t.to("cpu", torch.float64) for k, t in saved.state.items()}
    header = {
        "format": _FORMAT,
        "made_from": saved.made_from,
        "label": saved.label,
        "sizes": {name: t.numel() for name, t in tensors.items()},
    }
    with (
        storage.whole(path) as temporary,
        os.fdopen(new_file(temporary, 0o600), "wb") as file,
    ):
        file.write(json.dumps(header).encode() + b"\n")
        for tensor in tensors.values():
            file.write(tensor.contiguous().numpy().data)


def binding(ready: "Resolved", key: str) -> str:
    """Digest of all a solve depends on; nobody can test guesses without the key.

    Args:
        ready: The request.
        key: Hexadecimal secret of the record.
    """
    options = ready.options
    return canonical_digest(
        {
            "weights": state_digest(ready.module.state_dict()),
            "forget": forget_digest(key, ready.chosen),
            "removed": forget_digest(key, ready.removed),
            "n": len(ready.retained),
            "scope": ready.scope.names,
            "l2": ready.l2,
            "guarantee": repr(ready.guarantee),
            "options": [
                repr(value)
                for value in (
                    options.solver,
                    options.damping,
                    options.curvature,
                    options.tolerance,
                    options.low_memory,
                    ready.dtype,
                )
            ],
        }
    )


def _check_ours(path: Path) -> None:
    with path.open("rb") as file:
        lead = file.read(len(_LEAD))
    if lead != _LEAD:
        raise DataError(
            f"expected a new file, or one of an earlier solve, for state_file=, got "
            f"{path}, which holds something else: name another; it was not touched"
        )


_LEAD = json.dumps({"format": _FORMAT}).encode()[:-1]


def read(path: Path, made_from: str) -> Saved:
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
        with path.open("rb") as file:
            line = file.readline(_HEADER)
            header = strict_object(line.decode(), DataError, "the head of a solve")
            _check(header, len(line), os.fstat(file.fileno()).st_size)
            state = {
                name: torch.frombuffer(bytearray(file.read(8 * n)), dtype=torch.float64)
                for name, n in header["sizes"].items()
            }
    except (OSError, UnicodeDecodeError, DataError, ValueError) as problem:
        raise DataError(
            f"expected where a solve stood in resume_from={path}, got something else "
            f"({problem!s:.200}): start without it"
        ) from None
    if not all(bool(torch.isfinite(t).all()) for t in state.values()):
        raise DataError(f"expected finite numbers in resume_from={path}, got others")
    if header["made_from"] != made_from:
        raise DataError(
            f"expected the solve of this request in resume_from={path}, got one of "
            "another model, forget set, solver or other options: start without it"
        )
    return Saved(made_from, float(header["label"]), state)


def _check(header: dict, line: int, size: int) -> None:
    """The head of a file, against what follows it."""
    if set(header) != set(_FIELDS) or header["format"] != _FORMAT:
        raise DataError("its fields are others")
    if not all(isinstance(header[k], kind) for k, kind in _FIELDS.items()):
        raise DataError("its fields are of other types")
    counts = list(header["sizes"].values())
    if not all(type(n) is int and n >= 1 for n in counts) or not math.isfinite(
        header["label"]
    ):
        raise DataError("its sizes are no counts")
    if line + 8 * sum(counts) != size:
        raise DataError(f"it has {size} bytes, not {line + 8 * sum(counts)}")
