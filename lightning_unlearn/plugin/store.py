"""Prepared state bound to what it was made from, in memory or in a file."""

import hashlib
import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor
from torch.utils.data import default_collate

from lightning_unlearn import storage
from lightning_unlearn._files import new_file, part_of
from lightning_unlearn._records import canonical_digest
from lightning_unlearn.curvature.spectrum import Ends
from lightning_unlearn.errors import DataError, ModelError, SetupError
from lightning_unlearn.factor import Factor
from lightning_unlearn.features import FeatureData, check_rows
from lightning_unlearn.plugin import data
from lightning_unlearn.plugin.digests import outside_digests
from lightning_unlearn.plugin.resolved import Resolved
from lightning_unlearn.prepared import PreparedHead, PreparedNetwork
from lightning_unlearn.scope import passes, tensors_digest

_FORMAT = "lightning_unlearn prepared state, 1"
_CHUNK = 4096  # samples


@dataclass(frozen=True, kw_only=True)
class Stored:
    """Prepared state, and what it is true of. Secret: it remembers every sample.

    Args:
        state: What was prepared.
        made_from: Digest of the model's parts it depends on.
        salt: Random key of `data`.
        data: Fingerprint of the samples, or None if they have none.
    """

    state: PreparedHead | PreparedNetwork = field(repr=False)
    made_from: str
    salt: str = field(repr=False)
    data: str | None

    @property
    def positions(self) -> list[int]:
        """Where the samples stand in the training dataset."""
        return self.state.positions.tolist()

    @property
    def nbytes(self) -> int:
        """Size of its tensors."""
        return sum(t.nbytes for t in _tensors(self.state).values())

    def fits(self, ready: Resolved) -> bool:
        """Whether it is true of this request's model, and holds all its samples."""
        there = set(self.positions)
        return self.made_from == made_from(ready) and there.issuperset(ready.retained)

    def check_data(self, ready: Resolved) -> None:
        """Raise `DataError` if the dataset holds other samples now.

        All are compared if they are plain tensors; else some, and of a head what some
        blocks of them give.
        """
        if data_digest(ready, self.positions, self.salt) != self.data:
            raise DataError(
                "expected the samples that were prepared, got others in the dataset "
                "now: prepare again, or go without"
            )
        state = self.state
        if not isinstance(state, PreparedHead):
            return
        assert ready.head is not None  # it was made from one
        blocks = sorted({position // state.block for position in self.positions})
        some = {blocks[0], blocks[len(blocks) // 2], blocks[-1]}
        known = [p for p in self.positions if p // state.block in some]
        with passes(ready.module, ready.scope, ready.dtype):
            batches = ready.blocks(known)
            check_rows(ready.loss, ready.head, batches, state.of(known))


def stored(ready: Resolved, state: PreparedHead | PreparedNetwork) -> Stored:
    """Bind prepared state to the model and the data it was made from.

    Raises:
        ModelError: If a network's samples have no fingerprint: nothing would show that
            its gradient is theirs.
    """
    salt = secrets.token_hex(16)
    digest = data_digest(ready, state.positions.tolist(), salt)
    if digest is None and isinstance(state, PreparedNetwork):
        raise ModelError(
            "expected samples that are the same at every read and of tensors, arrays, "
            "images or plain values, got others: what is prepared could not be bound "
            "to them; run requests without prepare"
        )
    return Stored(state=state, made_from=made_from(ready), salt=salt, data=digest)


def data_digest(ready: Resolved, positions: list[int], salt: str) -> str | None:
    """Salted digest of some samples: of all if they are plain tensors, else of 32."""
    dataset: Any = ready.loader.dataset
    pick = None
    if ready.loader.collate_fn is default_collate:
        pick = data.whole_batches(dataset, positions[:1] + positions[-2:])
    if pick is None:
        gone = sorted(set(range(len(dataset))) - set(positions))
        return data.fingerprint(dataset, salt, gone)
    sha = hashlib.sha256(salt.encode())
    for start in range(0, len(positions), _CHUNK):
        part = pick(positions[start : start + _CHUNK])
        sha.update(tensors_digest((str(i), t) for i, t in enumerate(part)).encode())
    return sha.hexdigest()


def made_from(ready: Resolved) -> str:
    """Digest of all that prepared state depends on, besides the samples.

    Of a head that is what stands before it and its loss, for a network its weights too.
    """
    scope, head = ready.scope, ready.head if ready.convex else None
    weights = None
    if head is None:
        weights = tensors_digest(zip(scope.names, scope.parameters, strict=True))
    return canonical_digest(
        {
            "outside": outside_digests(ready.module, scope.parameters),
            "scope": [
                [name, *p.shape]
                for name, p in zip(scope.names, scope.parameters, strict=True)
            ],
            "head": None if head is None else [head.loss_name, ready.block],
            "weights": weights,
            "l2": ready.l2,
            "dtype": str(ready.dtype),
            "n": len(ready.loader.dataset),  # type: ignore[arg-type]
        }
    )


def _tensors(state: PreparedHead | PreparedNetwork) -> dict[str, Tensor]:
    if isinstance(state, PreparedHead):
        found = {
            "features": state.rows.features,
            "targets": state.rows.targets,
            "positions": state.positions,
            "block": torch.tensor(state.block),
            "start": state.start,
            "gradient": state.gradient,
            "factor": None if state.factor is None else state.factor.inverse,
        }
    else:
        found = {
            "positions": state.positions,
            "gradient": state.gradient,
            "importance": state.importance,
            "ends": torch.tensor(state.ends, dtype=torch.float64),
        }
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def check_target(path: Path) -> None:
    """Raise if prepared state cannot be written there, or would replace other things.

    Raises:
        DataError: If something else stands there.
        SetupError: If the folder is missing.
    """
    if not path.parent.is_dir():
        raise SetupError(
            f"expected the folder of prepared={path} to exist, got none at "
            f"{path.parent}: create it"
        )
    if path.exists():
        read(path)


def delete(path: Path) -> None:
    """Delete a file of prepared state, and what a killed write has left of one.

    Anything else that stands there is left alone, with a warning.
    """
    try:
        part_of(path).unlink(missing_ok=True)
        if path.exists():
            plain = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            if plain["format"] != _FORMAT:
                raise DataError("it is something else")
            path.resolve().unlink()
            path.unlink(missing_ok=True)
    except Exception as problem:
        rank_zero_warn(
            f"could not delete {path} ({problem!s:.200}), where what was prepared from "
            "the forgotten samples should be: delete it"
        )


def write(path: Path, kept: Stored) -> None:
    """Write prepared state to a file that only its owner can read.

    Args:
        path: The file; one that holds prepared state already is replaced.
        kept: The state.

    Raises:
        DataError: If something else stands there.
        SetupError: If the folder is missing.
    """
    check_target(path)
    tensors = {name: t.cpu().contiguous() for name, t in _tensors(kept.state).items()}
    plain = {
        "format": _FORMAT,
        "made_from": kept.made_from,
        "salt": kept.salt,
        "data": kept.data,
        "digest": tensors_digest(sorted(tensors.items())),
        "tensors": tensors,
    }
    with storage.whole(path) as temporary:
        os.close(new_file(temporary, 0o600))
        torch.save(plain, temporary)


def read(path: Path) -> Stored:
    """Read prepared state; no pickled object is ever made.

    Args:
        path: What `write` wrote.

    Returns:
        The state, on the CPU.

    Raises:
        DataError: If the file is not such a file, or is damaged.
    """
    try:
        plain = torch.load(path, map_location="cpu", weights_only=True)
        return _from_plain(plain)
    except Exception as problem:  # whatever a damaged or foreign file provokes
        raise DataError(
            f"expected prepared state in {path}, got something else ({problem!s:.200}):"
            " name another file in prepared=, or delete this one and prepare again"
        ) from None


def _from_plain(plain: Any) -> Stored:
    names = {"format", "made_from", "salt", "data", "digest", "tensors"}
    if not isinstance(plain, dict) or set(plain) != names:
        raise DataError("its fields are others")
    if plain["format"] != _FORMAT:
        raise DataError(f"its format is {plain['format']!r:.60}")
    texts = [plain["made_from"], plain["salt"], plain["data"] or ""]
    tensors = plain["tensors"]
    if not all(isinstance(text, str) for text in texts) or not all(
        isinstance(t, Tensor) for t in tensors.values()
    ):
        raise DataError("its fields are of other types")
    if tensors_digest(sorted(tensors.items())) != plain["digest"]:
        raise DataError("its tensors are damaged")
    return Stored(
        state=_state(tensors),
        made_from=plain["made_from"],
        salt=plain["salt"],
        data=plain["data"],
    )


def _state(tensors: dict[str, Tensor]) -> PreparedHead | PreparedNetwork:
    found = tensors.get
    positions, gradient = tensors["positions"], found("gradient")
    n, p = len(positions), 0 if gradient is None else gradient.numel()
    _check("positions", positions, torch.int64, (n,))
    if not bool((positions.diff() > 0).all()):
        raise DataError("its positions are not increasing")
    if gradient is not None:
        _check("gradient", gradient, torch.float64, (p,))
    if "features" not in tensors:
        assert gradient is not None
        importance, ends = found("importance"), tensors["ends"]
        if importance is not None:
            _check("importance", importance, torch.float64, (n,))
        _check("ends", ends, torch.float64, (4,))
        return PreparedNetwork(
            positions=positions,
            gradient=gradient,
            importance=importance,
            ends=Ends(float(ends[0]), float(ends[1]), int(ends[2]), int(ends[3])),
        )
    features, targets = tensors["features"], tensors["targets"]
    block = tensors["block"]
    _check("block", block, torch.int64, ())
    if not int(block) >= 1:
        raise DataError(f"its block is {int(block)}")
    start, inverse = found("start"), found("factor")
    if start is not None:
        _check("start", start, torch.float64, (p,))
    if inverse is not None:
        _check("factor", inverse, torch.float32, (p, p))
    if features.dim() != 2 or len(features) != n or len(targets) != n:
        raise DataError(f"it does not have {n} rows of features and targets")
    return PreparedHead(
        rows=FeatureData(features, targets),
        positions=positions,
        block=int(block),
        start=start,
        gradient=gradient,
        factor=None if inverse is None else Factor(inverse),
    )


def _check(
    name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    if tensor.dtype != dtype or tensor.shape != shape:
        raise DataError(
            f"its {name} is {tensor.dtype} of shape {tuple(tensor.shape)}, not {dtype} "
            f"of {shape}"
        )
