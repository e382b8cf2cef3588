"""Prepared state bound to what it was made from, in memory or in a file."""

import hashlib
import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data import ConcatDataset, Subset, default_collate

from lightning_unlearn._base.files import check_writable
from lightning_unlearn._base.strict_json import canonical_digest, strict_object
from lightning_unlearn.errors import DataError, ModelError, SetupError
from lightning_unlearn.plugin.data.exact_batches import Pick, plain_batches
from lightning_unlearn.plugin.data.training_data import fingerprint
from lightning_unlearn.plugin.files.secret_file import SecretFile
from lightning_unlearn.plugin.plan.head_plan import HeadPlan
from lightning_unlearn.plugin.plan.plan import Plan
from lightning_unlearn.plugin.training.outside_digests import outside_digests, settings
from lightning_unlearn.step.head.capture import check_rows
from lightning_unlearn.step.head.prepared_head import PreparedHead
from lightning_unlearn.step.head.rows.gathering import gathered
from lightning_unlearn.step.head.stored_head import head_from
from lightning_unlearn.step.network.prepared_network import (
    PreparedNetwork,
    network_from,
)
from lightning_unlearn.step.step import places
from lightning_unlearn.weights.digests import tensors_digest
from lightning_unlearn.weights.environment import changes, environment
from lightning_unlearn.weights.passes import passes

_FILE = SecretFile(
    "lightning_unlearn prepared state, 2", "what was prepared", "prepared="
)
_CHUNK = 4096  # samples


@dataclass(frozen=True, kw_only=True)
class BoundState:
    """Prepared state, and what it is true of. Secret: it remembers every sample.

    Args:
        state: What was prepared.
        made_from: Digest of the model's parts it depends on.
        salt: Random key of `data`.
        data: Fingerprints of the samples (`data_digest`), or None if they have none.
        environment: In which it was computed; empty if that is not known.
        asked: Whether somebody asked for it, and so is told if the samples are others;
            what a request keeps by itself is left out then.
    """

    state: PreparedHead | PreparedNetwork = field(repr=False)
    made_from: str
    salt: str = field(repr=False)
    data: str | None
    environment: dict[str, str]
    asked: bool = True

    @property
    def positions(self) -> list[int]:
        """Where the samples stand in the training dataset."""
        return self.state.positions.tolist()

    @property
    def nbytes(self) -> int:
        """Size of its tensors."""
        return sum(t.nbytes for t in self.state.tensors.values())

    def fits(self, plan: Plan) -> bool:
        """Whether it is true of this request's model, and of use for its samples."""
        if self.made_from != made_from(plan):
            return False
        if isinstance(self.state, PreparedHead):  # what is not there is read
            last = max(self.positions, default=0)
            return last < len(plan.loader.dataset)  # type: ignore[arg-type]
        return set(self.positions).issuperset(plan.retained)

    def elsewhere(self, plan: Plan) -> str:
        """How this environment differs from its own, in words; "" if it does not."""
        if not self.environment:
            return "in which one is not known"
        return changes(self.environment, environment(plan.device))

    def check_data(self, plan: Plan) -> None:
        """Raise `DataError` if the dataset holds other samples now.

        All are compared if they are plain tensors; else some, and of a head what some
        blocks of them give, those of the samples to be forgotten among them: what is
        taken out must be theirs, and they may have moved to another's place.
        """
        every = _of_all(self.data)
        now = data_digest(plan, self.positions, self.salt, every)
        if not _same(self.data, now):
            raise DataError(
                "expected the samples that were prepared, got others in the dataset "
                "now: call lightning_unlearn.prepare(trainer) again, or delete the "
                "file of prepared= (all samples are read again then)"
            )
        state = self.state
        if not self.positions:  # of another process
            return
        if not (isinstance(state, PreparedHead) and isinstance(plan, HeadPlan)):
            return
        blocks = sorted({position // state.block for position in self.positions})
        # Not the ends: where samples are sorted by length, the last block is dear.
        some = {blocks[len(blocks) * sixth // 6] for sixth in (1, 3, 5)}
        if not every:
            some |= {position // state.block for position in plan.chosen}
        known = [p for p in self.positions if p // state.block in some]
        with passes(plan.module, plan.scope, plan.dtype):
            batches = plan.batches(plan.loader, known, by_position=True, alone=True)
            check_rows(plan.loss, plan.head, batches, state.of(known))


def bind(
    plan: Plan, state: PreparedHead | PreparedNetwork, asked: bool = True
) -> BoundState:
    """Bind prepared state to the model and the data it was made from.

    Args:
        plan: The request, or one that forgets nothing.
        state: Its state.
        asked: See `BoundState`.

    Raises:
        ModelError: If a network's samples have no fingerprint: nothing would show that
            its gradient is theirs.
    """
    salt = secrets.token_hex(16)
    digest = data_digest(plan, state.positions.tolist(), salt)
    if digest is None and isinstance(state, PreparedNetwork):
        raise ModelError(
            "expected samples that are the same at every read and of tensors, arrays, "
            "images or plain values, got others: what is prepared could not be bound "
            "to them; run requests without prepare"
        )
    return BoundState(
        state=state,
        made_from=made_from(plan),
        salt=salt,
        data=digest,
        environment=environment(plan.device),
        asked=asked,
    )


def data_digest(
    plan: Plan, positions: list[int], salt: str, every: bool = False
) -> str | None:
    """Salted digests of some samples, in words: of 32, and of all if these are plain.

    Args:
        plan: The request, or one that forgets nothing.
        positions: Increasing.
        salt: Random key.
        every: Read all of them one by one if they are not plain: they were.

    Returns:
        None if they have no fingerprint, or there are none.
    """
    dataset: Any = plan.loader.dataset
    if not positions:
        return None
    some = fingerprint(Subset(dataset, positions), salt)
    pick = _picked(dataset, positions)
    if pick is None and every:
        pick = partial(_one_by_one, dataset)
    if some is None or pick is None:
        return some
    sha = hashlib.sha256(salt.encode())
    for start in range(0, len(positions), _CHUNK):
        part = pick(positions[start : start + _CHUNK])
        sha.update(tensors_digest((str(i), t) for i, t in enumerate(part)).encode())
    return f"{some} {sha.hexdigest()}"


def _picked(dataset: Any, positions: list[int]) -> Pick | None:
    """How plain samples are picked, of a `ConcatDataset` of such too."""
    if type(dataset) is not ConcatDataset:
        return plain_batches(dataset, positions[:1] + positions[-2:])
    picks, ends = [], dataset.cumulative_sizes
    begins = [0, *ends[:-1]]
    for part, begin, end in zip(dataset.datasets, begins, ends, strict=True):
        probe = sorted({0, end - begin - 1}) if end > begin else []
        picks.append(plain_batches(part, probe) if probe else list)
    if None in picks:
        return None

    def pick(some: Sequence[int]) -> list[Tensor]:
        found = []
        for one, begin, end in zip(picks, begins, ends, strict=True):
            own = [p - begin for p in some if begin <= p < end]
            found += [one(own)] if own else []  # type: ignore[misc]
        return [t for own in zip(*found, strict=False) for t in _joined(own)]

    return pick


def _joined(parts: Sequence[Tensor]) -> list[Tensor]:
    """One tensor, if they are of one form."""
    if len({(t.dtype, t.shape[1:]) for t in parts}) > 1:
        return list(parts)
    return [torch.cat([t.cpu() for t in parts])]


def _one_by_one(dataset: Any, some: Sequence[int]) -> list[Tensor]:
    """Samples as `default_collate` puts them together; none if it does not."""
    try:
        leaves = tree_leaves(default_collate([dataset[i] for i in some]))
    except (TypeError, RuntimeError):  # of samples that are of no one form
        return []
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def _same(before: str | None, now: str | None) -> bool:
    """Whether two digests are of the same samples, as far as the first one knows."""
    if before is None or now is None:
        return before is now
    words, others = before.split(), now.split()
    return words == others[: len(words)]


def _of_all(digest: str | None) -> bool:
    """Whether a digest is of every sample."""
    return digest is not None and len(digest.split()) > 1


def made_from(plan: Plan) -> str:
    """Digest of all that prepared state depends on, besides the samples.

    Of a head that is what stands before it and its loss, for a network its weights too.
    """
    scope, head = plan.scope, plan.head if isinstance(plan, HeadPlan) else None
    weights, n = None, len(plan.loader.dataset)  # type: ignore[arg-type]
    if head is None:
        weights = tensors_digest(zip(scope.names, scope.parameters, strict=True))
    else:  # others may come; what is read together has this size
        n = min(n, plan.batch_size())
    return canonical_digest(
        {
            "outside": outside_digests(plan.module, scope.parameters),
            "settings": settings(plan.module, plan.loader.collate_fn),
            "scope": [
                [name, *p.shape]
                for name, p in zip(scope.names, scope.parameters, strict=True)
            ],
            "head": None if head is None else [head.loss_name, plan.batch_size()],
            "weights": weights,
            "l2": plan.l2,
            "dtype": str(plan.dtype),
            "n": n,
        }
    )


def whole(plan: HeadPlan, bound: BoundState) -> BoundState | None:
    """The rows of all processes, bound together; the first process has them, only.

    Args:
        plan: The request.
        bound: The rows of this process.
    """
    state, processes = bound.state, plan.processes
    if processes.world == 1:
        return bound
    assert isinstance(state, PreparedHead)
    every = torch.tensor(plan.retained, dtype=torch.int64)
    at = places(every, state.positions.tolist())
    rows = gathered(state.rows, at, len(every), processes)
    with processes.together():
        if rows is None:
            return None
        data = data_digest(plan, plan.retained, bound.salt)
        state = replace(state, rows=rows, positions=every)
        return replace(bound, state=state, data=data)


def keep(path: Path, plan: Plan, bound: BoundState) -> None:
    """Write what is prepared, of all processes, to a file; the first one writes it.

    It is on the disk when this returns, and what stood there before is gone.

    Raises:
        UnlearningError: As `write`, in every process.
    """
    found = whole(plan, bound) if isinstance(plan, HeadPlan) else bound
    with plan.processes.together():
        if found is not None and plan.processes.rank == 0:
            write(path, found)


def check_target(path: Path) -> None:
    """Raise if prepared state cannot be written there, or would replace other things.

    Raises:
        DataError: If something else stands there.
        SetupError: If the folder is missing, or cannot be written.
    """
    if not path.parent.is_dir():
        raise SetupError(
            f"expected the folder of prepared={path} to exist, got none at "
            f"{path.parent}: create it"
        )
    _FILE.check_free(path)
    check_writable(path, f"prepared={path}")


def delete(path: Path) -> None:
    """Delete a file of prepared state; see `SecretFile.delete`."""
    _FILE.delete(path)


def write(path: Path, bound: BoundState) -> None:
    """Write prepared state to a file that only its owner can read.

    Args:
        path: The file; one that holds prepared state already is replaced.
        bound: The state.

    Raises:
        DataError: If something else stands there.
        SetupError: If the folder is missing, or the disk is full.
    """
    check_target(path)
    text = {"made_from": bound.made_from, "salt": bound.salt}
    text["environment"] = json.dumps(bound.environment, sort_keys=True)
    if bound.data is not None:
        text["data"] = bound.data
    try:
        _FILE.write(path, text, bound.state.tensors)
    except OSError as problem:
        raise SetupError(
            f"expected room for {bound.nbytes / 2**20:,.0f} MiB at prepared={path}, "
            f"got {problem!s:.200}: free some, or name a place on another disk"
        ) from None


def read(path: Path) -> BoundState:
    """Read prepared state; no pickled object is ever made.

    Args:
        path: What `write` wrote.

    Returns:
        The state, on the CPU.

    Raises:
        DataError: If the file is not such a file, or is damaged.
    """
    try:
        text, tensors = _FILE.read(path)
        known = {"made_from", "salt"}
        if not known <= set(text) <= known | {"data", "environment"}:
            raise DataError(f"its head has {sorted(text)}")
        made_in = strict_object(text.get("environment", "{}"), DataError, "its head")
        if not all(isinstance(value, str) for value in made_in.values()):
            raise DataError("its environment is not in words")
        head = "features" in tensors
        state = head_from(tensors) if head else network_from(tensors)
    except Exception as problem:  # whatever a damaged or forged file provokes
        raise DataError(
            f"expected prepared state in {path}, got something else ({problem!s:.300}):"
            " name another file in prepared=, or delete this one and prepare again"
        ) from None
    return BoundState(
        state=state,
        made_from=text["made_from"],
        salt=text["salt"],
        data=text.get("data"),
        environment=made_in,
    )
