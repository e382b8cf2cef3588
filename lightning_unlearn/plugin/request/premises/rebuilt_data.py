"""``dataset_without``: were samples read in ways that the forgotten ones had a part in?

A scaler, a vocabulary or a filter that was fitted on all samples changes the retained
ones. Who can build the data again without the forgotten ones lets a request see it.
"""

import hashlib
from dataclasses import dataclass, replace
from types import FunctionType, ModuleType
from typing import Any

import numpy as np
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor
from torch.utils._pytree import tree_flatten
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from lightning_unlearn.errors import DataError
from lightning_unlearn.plugin.data.exact_batches import ExactBatches, over
from lightning_unlearn.plugin.data.subsets import flatten
from lightning_unlearn.plugin.data.training_data import rebuilder
from lightning_unlearn.plugin.files.prepared_file import BoundState
from lightning_unlearn.plugin.lightning import isolate_rng
from lightning_unlearn.plugin.mixin import quiet
from lightning_unlearn.plugin.plan.head_plan import HeadPlan
from lightning_unlearn.plugin.plan.plan import Plan
from lightning_unlearn.plugin.request.stage import StageContext
from lightning_unlearn.plugin.training.public_backbones import reading_private
from lightning_unlearn.step.batch_checks import check_repeatable
from lightning_unlearn.step.head.capture import read_rows
from lightning_unlearn.step.head.prepared_head import PreparedHead
from lightning_unlearn.step.head.rows.feature_data import FeatureData
from lightning_unlearn.weights.digests import tensors_digest
from lightning_unlearn.weights.passes import passes

_HOOK = "dataset_without"
_NOTHING_FITTED = (Tensor, type, FunctionType, ModuleType)


def with_ways_checked(
    context: StageContext, plan: Plan, state: BoundState | None
) -> Plan:
    """The plan, which says whether every retained row was compared.

    Nothing is compared where no `dataset_without` is offered, or nothing is claimed.

    Args:
        context: The Trainer's run.
        plan: The request.
        state: What was prepared and will be used, or None.

    Raises:
        DataError: If a row is another without the forgotten samples, or the data cannot
            be rebuilt.
    """
    owner = rebuilder(context.trainer, plan.loader.dataset)
    if owner is None or plan.options.noise_std is not None:
        return plan
    prepared = None if state is None else state.state
    kept = None
    if isinstance(prepared, PreparedHead):
        kept = prepared.share(plan.processes)
    with (
        isolate_rng(),
        quiet(plan.module, restore=True),
        passes(plan.module, plan.scope, plan.dtype),
        reading_private(plan.module),
        plan.processes.summed(1) as (total,),
    ):
        total += _different(plan, owner, kept)
    if int(total) > 0:
        raise DataError(
            "expected every retained sample to be the same when the data is built "
            f"without the forgotten ones, got {int(total):,} of "
            f"{len(plan.retained):,} that differ from {_HOOK}(positions): how they are "
            "read and preprocessed was computed with the forgotten samples (a scaler, "
            "a vocabulary, a filter); train again on what it returns, or compute it on "
            "public data"
        )
    return replace(plan, ways_checked=True)


def _different(plan: Plan, owner: Any, kept: PreparedHead | None) -> int:
    """How many of this process's retained samples differ in the rebuilt data."""
    check_repeatable(_batches(plan, plan.loader, plan.retained))
    before = _Sweep.of(plan, plan.loader)
    loader = _rebuilt(plan, owner)
    now = _Sweep.of(plan, plan.loader)
    if not now.is_as(before):
        raise DataError(
            f"expected {_HOOK} to leave the training data as it is, got other samples "
            "from it after the call: fit new objects there (a new scaler, a new "
            "vocabulary) in place of those that the training data uses"
        )
    try:
        found = _Sweep.of(plan, loader).different(now)
        return found or (0 if kept is None else _different_rows(plan, loader, kept))
    except Exception as problem:  # whatever samples of another shape provoke
        raise DataError(
            f"expected retained samples that the module can read from {_HOOK}, got "
            f"{type(problem).__name__}: {problem!s:.300}: it must return them as the "
            "training dataset does; if they have another width without the forgotten "
            "samples, train again on what it returns"
        ) from None


def _rebuilt(plan: Plan, owner: Any) -> DataLoader:
    """A loader in which the retained samples have their old positions."""
    dataset: Any = plan.loader.dataset
    n, gone = len(dataset), set(plan.removed)
    there = [
        d
        for d in (dataset, *getattr(owner, "__dict__", {}).values())
        if isinstance(d, Dataset)
    ]
    old = [flatten(d)[0] for d in there if hasattr(d, "__len__")]
    try:
        found = owner.dataset_without(list(plan.removed))
        length = len(found)
    except Exception as problem:  # the user's own code
        raise DataError(
            f"expected {_HOOK}(positions) to return the retained data, got "
            f"{type(problem).__name__}: {problem!s:.300}"
        ) from problem
    if isinstance(found, IterableDataset) or not hasattr(found, "__getitem__"):
        raise DataError(
            f"expected a map-style dataset from {_HOOK}, got {type(found).__name__}: "
            "return what train_dataloader() would read, with __len__ and __getitem__"
        )
    if length != n - len(gone):
        raise DataError(
            f"expected {n - len(gone):,} samples from {_HOOK}(positions), those of the "
            f"training dataset that are not among {len(gone):,} positions, in their "
            f"order, got {length:,}: a filter may drop others without the forgotten "
            "samples; train again on what it returns"
        )
    if any(flatten(found)[0] is base for base in old):
        raise DataError(
            f"expected {_HOOK} to build the data anew, got a part of a dataset that "
            "was there before: to compare it with itself would check nothing; compute "
            "what is fitted again, on the retained samples, or leave the method out"
        )
    own = _objects(found)
    kept = own.keys() & {**_objects(dataset), **_objects(owner)}.keys()
    if kept:
        names = sorted({type(own[i]).__name__ for i in kept})
        rank_zero_warn(
            f"{_HOOK} returned data that use old objects ({', '.join(names)}): if "
            "these were fitted on the forgotten samples, equal rows show nothing; make "
            "new ones there, on the retained samples"
        )
    left = iter(range(length))  # a place past the end for those that are never read
    places = [length if i in gone else next(left) for i in range(n)]
    return over(plan.loader, Subset(found, places))


def _objects(root: object, depth: int = 3) -> dict[int, object]:
    """By identity, what an object holds that may have been fitted."""
    found: dict[int, object] = {}
    for value in getattr(root, "__dict__", {}).values():
        inside = value if isinstance(value, (list, tuple)) else [value]
        for part in inside:
            if isinstance(part, _NOTHING_FITTED) or not getattr(part, "__dict__", None):
                continue
            if not isinstance(part, Dataset):
                found[id(part)] = part
            if depth > 0:
                found |= _objects(part, depth - 1)
    return found


@dataclass(frozen=True)
class _Sweep:
    """One reading of the retained samples, as the module gets them.

    Args:
        plan: The request.
        batches: The samples (of this process).
        digests: Of each batch; None where it holds what cannot be compared.
        rows: What reaches the head, if a digest is missing.
    """

    plan: Plan
    batches: ExactBatches
    digests: list[str | None]
    rows: FeatureData | None

    @staticmethod
    def of(plan: Plan, loader: DataLoader) -> "_Sweep":
        """Read them from a loader.

        Raises:
            DataError: If they cannot be compared.
        """
        batches = _batches(plan, loader, plan.retained)
        digests = [_digest(batch) for weight, batch in batches if weight]
        rows = None
        if None in digests:
            if not isinstance(plan, HeadPlan):
                raise DataError(
                    "expected batches of tensors, arrays and plain values, which can "
                    f"be compared, got others: leave {_HOOK} out"
                )
            rows = read_rows(plan.loss, plan.head, batches)
        return _Sweep(plan, batches, digests, rows)

    def is_as(self, other: "_Sweep") -> bool:
        """Whether this reading gave what another did."""
        if self.rows is None or other.rows is None:
            return None not in self.digests and self.digests == other.digests
        return self.digests == other.digests and not self.rows.different(other.rows)

    def different(self, other: "_Sweep") -> int:
        """How many samples differ: in what reaches the head, or in what is read."""
        if self.is_as(other):
            return 0
        plan = self.plan
        if isinstance(plan, HeadPlan):
            own, its = (
                read_rows(plan.loss, plan.head, sweep.batches)
                if sweep.rows is None
                else sweep.rows
                for sweep in (self, other)
            )
            return own.different(its)
        pairs = zip(self.digests, other.digests, strict=True)
        changed = sum(own != its for own, its in pairs)
        single = sum(
            _digest(self.batches.take([place])[1])
            != _digest(other.batches.take([place])[1])
            for place in self.batches.places.tolist()
        )
        return max(changed, single)


def _batches(plan: Plan, loader: DataLoader, positions: list[int]) -> ExactBatches:
    """As the plan reads them: each sample in the same company."""
    return plan.batches(
        loader, positions, plan.batch_size(), by_position=isinstance(plan, HeadPlan)
    )


def _different_rows(plan: Plan, loader: DataLoader, kept: PreparedHead) -> int:
    """How many of the rows that a request will use again are other in the new data."""
    assert isinstance(plan, HeadPlan)
    own = plan.own(plan.retained)
    again = set(kept.stale(own))  # those are read afresh
    used = [position for position in own if position not in again]
    if not used:
        return 0
    rows = read_rows(plan.loss, plan.head, _batches(plan, loader, used))
    return rows.different(kept.of(used))


def _digest(batch: Any) -> str | None:
    """SHA-256 of all that a batch holds, or None if some of it cannot be compared."""
    leaves, form = tree_flatten(batch)
    sha = hashlib.sha256(repr(form).encode())
    for leaf in leaves:
        if isinstance(leaf, Tensor) and not leaf.is_sparse:
            sha.update(tensors_digest([("", leaf)]).encode())
        elif isinstance(leaf, np.ndarray) and not leaf.dtype.hasobject:
            sha.update(f"{leaf.dtype}|{leaf.shape}|".encode() + leaf.tobytes())
        elif isinstance(leaf, (str, bytes, int, float, bool, type(None))):
            sha.update(f"{type(leaf).__name__}|{leaf!r}|".encode())
        else:
            return None
    return sha.hexdigest()
