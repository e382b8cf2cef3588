"""What reaches a head: every sample's row, read once and checked."""

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor

from lightning_unlearn.errors import DataError, GuaranteeError
from lightning_unlearn.step.batch_checks import width_of
from lightning_unlearn.step.head.convex_head import ConvexHead
from lightning_unlearn.step.head.rows.calls import (
    call_of,
    check_head,
    fixed_weights,
    rows_in,
    rows_of,
)
from lightning_unlearn.step.head.rows.feature_data import FeatureData
from lightning_unlearn.step.head.rows.independence import (
    Elsewhen,
    Read,
    check_independent,
    check_padding,
)
from lightning_unlearn.weights import large_arrays
from lightning_unlearn.weights.objective import Batches, LossFunction
from lightning_unlearn.weights.opaque import tensors_in

_DUST = 1e-25  # of a row's largest number


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
    check_head(head)
    seen = check_independent(loss, head, batches, elsewhen)
    rows, read = _read_all(loss, head, batches)
    if len({*seen, *(part.width for part in read)}) > 1:
        check_padding(loss, head, batches, rows, read)
    return rows


def read_rows(loss: LossFunction, head: ConvexHead, batches: Batches) -> FeatureData:
    """What reaches the head of each sample of this process: `capture`, unchecked."""
    return _read_all(loss, head, batches)[0]


def _read_all(
    loss: LossFunction, head: ConvexHead, batches: Batches
) -> tuple[FeatureData, list[Read]]:
    features, filled, read = None, 0, list[Read]()
    targets, weights = list[Tensor](), list[Tensor | None]()
    with fixed_weights(head):
        for index, (weight, batch) in enumerate(batches):
            size = len(batches.parts[index]) if weight else 0  # nobody reads a filler
            call = call_of(loss, head, batch, index, size)
            rows = _without_dust(call.features.detach())
            if features is None:
                shape = len(batches.places), *rows.shape[1:]
                features = large_arrays.empty(shape, rows.dtype, rows.device)
            features[filled : filled + weight] = rows[:weight].to(features.device)
            targets.append(call.targets[:weight])
            weights.append(
                call.weights if call.weights is None else call.weights[:weight]
            )
            read.append(Read(range(filled, filled + weight), width_of(batch)))
            filled += weight
    assert features is not None  # there is a batch: the request was checked
    data = FeatureData(features[:filled], torch.cat(targets), _joined(weights))
    return data, read


def _without_dust(rows: Tensor) -> Tensor:
    """Rows (n, ...) whose numbers that vanish beside the row's largest are 0.

    float64 does not see them in a sum. Products with them are subnormal numbers, which
    processors multiply 15 times slower: all-MiniLM-L6-v2 has features of 1e-36.
    """
    size = rows.abs()
    largest = size.flatten(1).amax(1).view(-1, *[1] * (rows.dim() - 1))
    return rows.masked_fill(size < _DUST * largest, 0)


def _joined(parts: list[Tensor | None]) -> Tensor | None:
    """The weights of all batches; None if no batch has any."""
    some = [part for part in parts if part is not None]
    if not some:
        return None
    if len(some) < len(parts) or len({part.shape[1] for part in some}) > 1:
        raise GuaranteeError(
            "expected weights of samples in every batch or in none, and of one form, "
            f"got them in {len(some)} of {len(parts)}: give weight 1 to the others"
        )
    return torch.cat(some)


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
    check_head(head)
    now = read_rows(loss, head, batches)
    same = now.features.shape == rows.features.shape and _alike(
        now.features, rows.features
    )
    pairs = zip(now.parts[1:], rows.parts[1:], strict=True)
    if not (same and all(torch.equal(a, b.to(a.device)) for a, b in pairs)):
        raise DataError(
            "expected the samples that were prepared, got others in the dataset now: "
            "prepare again, or go without"
        )


def row_difference(
    loss: LossFunction,
    head: ConvexHead,
    batches: Batches,
    solved_on: Callable[[list[int]], Tensor | None] = lambda places: None,
) -> float:
    """Largest distance of some samples' rows that are read in two companies.

    A batch is read in another order, with half of its samples taken from another batch
    where that has the same form (padded texts may be longer there). On most devices a
    row has the same bits at any place of a batch of its size: then it is 0.0.
    Must run inside `passes`, as `capture`.

    Args:
        loss: The module's loss of a batch.
        head: The head.
        batches: The retained samples (of this process).
        solved_on: The rows of samples at some places, as they were solved on: they were
            read in the company of their batch, and are not read so again. None where
            they are not known.
    """
    first, last = list(batches.parts[0]), list(batches.parts[-1])
    mixed = [pair[i % 2] for i, pair in enumerate(zip(first, last, strict=False))]
    mixed += first[len(mixed) :]
    taken, others = batches.take(first), batches.take(mixed[::-1])
    if _form(others) != _form(taken):
        mixed, others = first, batches.take(first[::-1])
    own = list(dict.fromkeys(first))
    rows = solved_on(own)
    with fixed_weights(head):
        if rows is None:
            read = rows_of(loss, head, first, taken)
            rows = _without_dust(torch.stack([read[place].features for place in own]))
        found = rows_of(loss, head, mixed[::-1], others)
    both = [place for place in own if place in found]  # every second of them is
    now = _without_dust(torch.stack([found[place].features for place in both]))
    before = rows[[own.index(place) for place in both]].to(now.device)
    return float((now.double() - before.double()).flatten(1).norm(dim=1).max())


def _form(taken: tuple[int, object]) -> list[torch.Size]:
    return [x.shape for x in tensors_in(taken[1])]


def _alike(now: Tensor, before: Tensor) -> bool:
    """Equal up to what the size of a batch does to the rounding of a network."""
    before = before.to(now.device)
    size = float(before.abs().max()) if before.numel() else 0.0
    return torch.allclose(now, before, rtol=1e-3, atol=1e-4 * size)


def rows_at_fixed_weights(
    loss: LossFunction, head: ConvexHead, batches: Batches, groups: list[list[int]]
) -> list[tuple[Tensor, ...]]:
    """Features, targets and weights of samples, read group by group, on the CPU.

    Must run inside `passes`, as `capture`; nothing is checked.
    """
    with fixed_weights(head):
        found = [rows_in(loss, head, batches, group) for group in groups]
    rows = [row for group in found for row in group.values()]
    return [tuple(part.cpu() for part in row[:3]) for row in rows]
