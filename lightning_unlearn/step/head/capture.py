"""What reaches a head: every sample's row, read once and checked."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from lightning_unlearn.errors import DataError, GuaranteeError, ModelError
from lightning_unlearn.step.batch_checks import (
    Width,
    size_of,
    spread_places,
    width_of,
)
from lightning_unlearn.step.head.convex_head import ConvexHead, HeadCall
from lightning_unlearn.weights import large_arrays
from lightning_unlearn.weights.objective import Batches, LossFunction

_CHUNK = 4096
_CHECKED, _GROUPS = 32, 4  # samples that are checked, and batches they are read in
_ANOTHER_BATCH = 1_000_003
_NARROW, _WIDE = 4, 16  # samples read anew where batches are padded


@dataclass(frozen=True)
class FeatureData:
    """Captured rows: features (n, d) and targets, as the head received them."""

    features: Tensor = field(repr=False)
    targets: Tensor = field(repr=False)

    @property
    def n(self) -> int:
        """Number of rows."""
        return len(self.features)

    def select(self, places: Tensor, device: torch.device) -> "FeatureData":
        """A copy of some rows (m,), on a device if they fit there."""
        shape = len(places), *self.features.shape[1:]
        features = large_arrays.empty(shape, self.features.dtype, device)
        places = places.to(self.features.device)
        for start in range(0, len(places), _CHUNK):
            part = slice(start, start + _CHUNK)
            features[part] = self.features[places[part]].to(features.device)
        targets = self.targets[places.to(self.targets.device)]
        return FeatureData(features, targets.to(device))


#: A block in which everything that counts epochs and steps shows other numbers.
Elsewhen = Callable[[], AbstractContextManager[object]]


def capture(
    loss: LossFunction,
    head: ConvexHead,
    batches: Batches,
    elsewhen: Elsewhen = nullcontext,
) -> FeatureData:
    """Read every sample once and keep what reaches the head.

    Must run inside `passes` with exactly the head's weights in scope. The
    head is given fixed weights that depend on no data, so that nothing captured can
    depend on the weights to be unlearned, whatever the module does; that the captured
    rows do not depend on the head at all is then checked against the real weights.

    Args:
        loss: The module's loss of a batch.
        head: The head.
        batches: The retained samples (of this process).
        elsewhen: At another epoch and step rows must be the same.

    Returns:
        The rows, on the head's device, in the dtype of the passes.

    Raises:
        GuaranteeError: If the loss is not exactly ``head.loss(features, targets)`` of
            rows that depend neither on the head nor on the rest of the batch: strong
            convexity would not be proved.
        ModelError: If a feature, target or loss is not finite.
    """
    _check_head(head)
    seen = _check_independent(loss, head, batches, elsewhen)
    rows, read = _read_all(loss, head, batches)
    if len({*seen, *(part.width for part in read)}) > 1:
        _check_padding(loss, head, batches, rows, read)
    return rows


class _Read(NamedTuple):
    """Rows that were read in one batch, and how wide it was."""

    rows: range
    width: Width


def _read_all(
    loss: LossFunction, head: ConvexHead, batches: Batches
) -> tuple[FeatureData, list[_Read]]:
    features, targets, filled = None, [], 0
    read: list[_Read] = []
    with _fixed_weights(head):
        for index, (weight, batch) in enumerate(batches):
            call = _call(loss, head, batch, index, weight)
            rows = call.features.detach()
            if features is None:
                shape = len(batches.places), *rows.shape[1:]
                features = large_arrays.empty(shape, rows.dtype, rows.device)
            features[filled : filled + weight] = rows[:weight].to(features.device)
            targets.append(call.targets[:weight])
            read.append(_Read(range(filled, filled + weight), width_of(batch)))
            filled += weight
    assert features is not None  # there is a batch: the request was checked
    return FeatureData(features[:filled], torch.cat(targets)), read


def check_rows(
    loss: LossFunction, head: ConvexHead, batches: Batches, rows: FeatureData
) -> None:
    """Read some samples afresh and compare them with rows captured earlier.

    Must run inside `passes`, as `capture`.

    Args:
        loss: The module's loss of a batch.
        head: The head.
        batches: Some samples.
        rows: What was captured of the same samples, in the same order.

    Raises:
        DataError: If they differ.
        GuaranteeError: As `capture`.
    """
    _check_head(head)
    now, _ = _read_all(loss, head, batches)
    same = now.features.shape == rows.features.shape and _alike(
        now.features, rows.features
    )
    if not (same and torch.equal(now.targets, rows.targets.to(now.targets.device))):
        raise DataError(
            "expected the samples that were prepared, got others in the dataset now: "
            "prepare again, or go without"
        )


def _alike(now: Tensor, before: Tensor) -> bool:
    """Equal up to what the size of a batch does to the rounding of a network."""
    before = before.to(now.device)
    size = float(before.abs().max()) if before.numel() else 0.0
    return torch.allclose(now, before, rtol=1e-3, atol=1e-4 * size)


@contextmanager
def _fixed_weights(head: ConvexHead, seed: int = 0) -> Iterator[None]:
    """Weights of the head that everybody knows, for the length of a block."""
    generator = torch.Generator().manual_seed(seed)
    own = [p.detach().clone() for p in head.parameters()]
    try:
        with torch.no_grad():
            for p in head.parameters():
                drawn = torch.randn(p.shape, generator=generator)
                p.copy_(drawn / head.in_features**0.5)
        yield
    finally:
        with torch.no_grad():
            for p, value in zip(head.parameters(), own, strict=True):
                p.copy_(value)


def _check_head(head: ConvexHead) -> None:
    kind = type(head)
    if kind.__bases__ == (FSDPModule, ConvexHead) and kind.loss is ConvexHead.loss:
        kind = ConvexHead  # as fully_shard makes it
    hooks = [
        hook
        for found in (
            head._forward_hooks,
            head._forward_pre_hooks,
            head._backward_hooks,
        )
        for hook in found.values()
        if not getattr(hook, "__module__", "").startswith("torch.distributed.fsdp")
    ]
    if kind is not ConvexHead or hooks:
        raise GuaranteeError(
            f"expected a plain ConvexHead, got {type(head).__name__} with "
            f"{len(hooks)} hooks: a subclass, parametrization or hook can "
            "change its loss; remove it"
        )


def _check_independent(
    loss: LossFunction, head: ConvexHead, batches: Batches, elsewhen: Elsewhen
) -> set[Width]:
    """Some samples' rows: the same at other weights, in other company, at other times.

    They are spread over the data: folders are sorted by class, and what a batch does to
    a sample may show for few of them.

    Returns:
        The widths of the batches that were read.
    """
    places = spread_places(batches.n, _CHECKED)
    groups = [places[i::_GROUPS] for i in range(_GROUPS) if places[i::_GROUPS]]
    size = max(1, len(places) // (2 * _GROUPS))
    neighbours = [places[i : i + size] for i in range(0, len(places), size)]

    def read(groups: list[list[int]], index: int = 0) -> _Rows:
        found = (_rows(loss, head, batches, group, index) for group in groups)
        return {place: row for rows in found for place, row in rows.items()}

    try:
        own = read(groups)
    except ModelError:  # at weights that training drove too far; any others will do
        with _fixed_weights(head, seed=1):
            own = read(groups)
    with _fixed_weights(head):
        exact = read(groups[:1])
        with elsewhen():
            other = read(neighbours, _ANOTHER_BATCH)
    if not all(
        torch.equal(row.features, own[place].features)
        and torch.equal(row.target, own[place].target)
        for place, row in exact.items()
    ):
        raise GuaranteeError(
            "expected features and targets that do not depend on the head's weights, "
            "got others at other weights (self-distillation, pseudo-labels, attention "
            "from the head?): the objective would remember the forgotten samples"
        )
    if _others(other, own):
        _check_same_rows(read(neighbours), own)
        raise GuaranteeError(
            "expected features and targets that are the same at every epoch, step and "
            "batch, got others when these counters had other values (current_epoch, "
            "global_step, num_training_batches, batch_idx) and the head other weights: "
            "the objective would depend on when training stopped; leave them out of "
            "unlearning_loss"
        )
    return {row.width for row in (*own.values(), *other.values())}


def _check_padding(
    loss: LossFunction,
    head: ConvexHead,
    batches: Batches,
    rows: FeatureData,
    read: list[_Read],
) -> None:
    """Where batches are as wide as their longest sample, rows must not show it.

    Long samples may be rare, so the widest batch is looked for: some of its samples are
    read in pairs, which are narrower, and some of the narrowest batch together with it.
    """
    read = [part for part in read if len(part.rows)]
    narrow, wide = (end(read, key=lambda x: size_of(x.width)) for end in (min, max))
    some = [wide.rows[i] for i in spread_places(len(wide.rows), _WIDE)]
    groups = [some[i : i + 2] for i in range(0, len(some), 2)]
    if narrow is not wide:
        beside = spread_places(len(narrow.rows), _NARROW)
        groups.append([*(narrow.rows[i] for i in beside), *wide.rows])
    places, known = batches.places.tolist(), dict[int, _Row]()
    for part in (narrow, wide):
        for i in part.rows:
            known[places[i]] = _Row(rows.features[i], rows.targets[i], part.width)
    with _fixed_weights(head):
        for group in groups:
            now = _rows(loss, head, batches, [places[i] for i in group])
            _check_same_rows(now, known)


def rows_at_fixed_weights(
    loss: LossFunction, head: ConvexHead, batches: Batches, groups: list[list[int]]
) -> list[tuple[Tensor, Tensor]]:
    """Features and targets of some samples, read group by group, on the CPU.

    Must run inside `passes`, as `capture`; nothing is checked.
    """
    with _fixed_weights(head):
        found = [_rows(loss, head, batches, group) for group in groups]
    rows = [row for group in found for row in group.values()]
    return [(row.features.cpu(), row.target.cpu()) for row in rows]


class _Row(NamedTuple):
    """Features (d,) and target of a sample, and the width of the batch it was in."""

    features: Tensor
    target: Tensor
    width: Width


_Rows = dict[int, _Row]


def _rows(
    loss: LossFunction,
    head: ConvexHead,
    batches: Batches,
    places: list[int],
    index: int = 0,
) -> _Rows:
    """Place -> row of its sample, read in one batch."""
    count, batch = batches.take(places)
    width = width_of(batch)
    call = _call(loss, head, batch, index, count)
    pairs = zip(call.features.detach(), call.targets, strict=True)
    return {
        place: _Row(x, y, width) for place, (x, y) in zip(places, pairs, strict=True)
    }


def _others(found: _Rows, known: _Rows) -> list[int]:
    """Places whose rows differ, by more than a batch's size does to rounding."""
    size = max(float(row.features.abs().max()) for row in known.values())
    return [
        place
        for place, (x, target, _) in found.items()
        if not torch.allclose(
            x, known[place].features.to(x.device), rtol=1e-3, atol=1e-4 * size
        )
        or not torch.allclose(target, known[place].target.to(target.device))
    ]


def _check_same_rows(found: _Rows, known: _Rows) -> None:
    """Raise `GuaranteeError` if other company gave other rows."""
    others = _others(found, known)
    padded = [place for place in others if found[place].width != known[place].width]
    if padded:
        raise GuaranteeError(
            "expected the features of a sample to be its own, got others when its "
            f"batch was padded to another length: {len(padded)} of {len(found)} "
            "samples that were read again; give the model the attention_mask (and "
            "pool over the tokens it marks), or pad every sample to one length in the "
            "dataset"
        )
    if others:
        raise GuaranteeError(
            "expected the features of a sample to be its own, got others when the rest "
            "of its batch changed: normalise over features (LayerNorm), not over the "
            "batch"
        )


def _call(
    loss: LossFunction, head: ConvexHead, batch: object, index: int, weight: int
) -> HeadCall:
    with head.recording() as calls:
        out = loss(batch, index)
    if len(calls) != 1:
        raise GuaranteeError(
            "expected the loss to call head.loss(features, targets) exactly once, "
            f"got {len(calls)} calls: return self.head.loss(...).mean() from "
            "training_step, or use guarantee=NormBall()"
        )
    if weight:
        _check_call(head, calls[0], out, weight)
    return calls[0]


def _check_call(head: ConvexHead, call: HeadCall, out: Tensor, weight: int) -> None:
    for name in ("features", "targets", "losses"):
        if not bool(torch.isfinite(getattr(call, name)).all()):
            raise ModelError(
                f"expected finite {name} at the head, got NaN or infinite values: look "
                "for NaN in the data or a diverged model"
            )
    if call.features.requires_grad:
        raise GuaranteeError(
            "expected features that do not depend on the weights in scope, got "
            "features with a gradient: the head's weights are used before the head"
        )
    if len(call.losses) != weight:
        raise GuaranteeError(
            f"expected one loss for each of the {weight} samples of a batch, got "
            f"{len(call.losses)}"
        )
    # From the recorded rows alone, by the formula that will be certified.
    logits = torch.nn.functional.linear(call.features, head.weight, head.bias)
    losses = head.link.loss(logits, call.targets)
    expected = losses.mean() if out.dim() == 0 else losses
    same = out.shape == expected.shape and torch.allclose(
        out, expected, rtol=1e-4, atol=1e-6
    )
    if not same:
        raise GuaranteeError(
            "expected the loss to be head.loss(features, targets) or its mean, got "
            "another value: put the regulariser into l2= and leave other terms out, "
            "or use guarantee=NormBall()"
        )
