"""What reaches a head: every sample's row, read once and checked."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from lightning_unlearn.errors import DataError, GuaranteeError
from lightning_unlearn.step.batch_checks import spread_places
from lightning_unlearn.step.head.convex_head import ConvexHead
from lightning_unlearn.step.head.rows.calls import (
    Rows,
    call_of,
    check_head,
    fixed_weights,
    rows_in,
    rows_of,
)
from lightning_unlearn.step.head.rows.feature_data import FeatureData
from lightning_unlearn.weights import large_arrays
from lightning_unlearn.weights.batch_tensors import tensors_in
from lightning_unlearn.weights.objective import Batches, LossFunction

_CHUNK = 4096
_CHECKED, _GROUPS = 32, 4  # samples that are checked, and batches they are read in
_ANOTHER_BATCH = 1_000_003


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
    check_head(head)
    _check_independent(loss, head, batches, elsewhen)
    return read_rows(loss, head, batches)


def read_rows(loss: LossFunction, head: ConvexHead, batches: Batches) -> FeatureData:
    """What reaches the head of each sample of this process: `capture`, unchecked."""
    features, filled = None, 0
    targets, weights = list[Tensor](), list[Tensor | None]()
    with fixed_weights(head):
        for index, (weight, batch) in enumerate(batches):
            size = len(batches.parts[index]) if weight else 0  # nobody reads a filler
            call = call_of(loss, head, batch, index, size)
            rows = call.features.detach()
            if features is None:
                shape = len(batches.places), *rows.shape[1:]
                features = large_arrays.empty(shape, rows.dtype, rows.device)
            features[filled : filled + weight] = rows[:weight].to(features.device)
            targets.append(call.targets[:weight])
            weights.append(
                call.weights if call.weights is None else call.weights[:weight]
            )
            filled += weight
    assert features is not None  # there is a batch: the request was checked
    return FeatureData(features[:filled], torch.cat(targets), _joined(weights))


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


def row_difference(loss: LossFunction, head: ConvexHead, batches: Batches) -> float:
    """Largest distance of some samples' rows that are read in two companies.

    A batch is read in another order, with half of its samples taken from another batch
    where that has the same form (padded texts may be longer there). On most devices a
    row has the same bits at any place of a batch of its size: then it is 0.0.
    Must run inside `passes`, as `capture`.

    Args:
        loss: The module's loss of a batch.
        head: The head.
        batches: The retained samples (of this process).
    """
    first, last = list(batches.parts[0]), list(batches.parts[-1])
    mixed = [pair[i % 2] for i, pair in enumerate(zip(first, last, strict=False))]
    mixed += first[len(mixed) :]
    taken, others = batches.take(first), batches.take(mixed[::-1])
    if _form(others) != _form(taken):
        mixed, others = first, batches.take(first[::-1])
    with fixed_weights(head):
        known = rows_of(loss, head, first, taken)
        found = rows_of(loss, head, mixed[::-1], others)
    return max(
        float((row.double() - known[place][0].double()).norm())
        for place, (row, *_) in found.items()
        if place in known  # every second of them is
    )


def _form(taken: tuple[int, object]) -> list[torch.Size]:
    return [x.shape for x in tensors_in(taken[1])]


def _alike(now: Tensor, before: Tensor) -> bool:
    """Equal up to what the size of a batch does to the rounding of a network."""
    before = before.to(now.device)
    size = float(before.abs().max()) if before.numel() else 0.0
    return torch.allclose(now, before, rtol=1e-3, atol=1e-4 * size)


def _check_independent(
    loss: LossFunction, head: ConvexHead, batches: Batches, elsewhen: Elsewhen
) -> None:
    """Some samples' rows: the same at other weights, in other company, at other times.

    They are spread over the data: folders are sorted by class, and what a batch does to
    a sample may show for few of them.
    """
    places = spread_places(batches.n, _CHECKED)
    groups = [places[i::_GROUPS] for i in range(_GROUPS) if places[i::_GROUPS]]
    size = max(1, len(places) // (2 * _GROUPS))
    neighbours = [places[i : i + size] for i in range(0, len(places), size)]

    def read(groups: list[list[int]], index: int = 0) -> Rows:
        found = (rows_in(loss, head, batches, group, index) for group in groups)
        return {place: row for rows in found for place, row in rows.items()}

    own = read(groups)
    with fixed_weights(head):
        exact = read(groups[:1])
        with elsewhen():
            other = read(neighbours, _ANOTHER_BATCH)
    if not all(
        torch.equal(one, two)
        for place, row in exact.items()
        for one, two in zip(row, own[place], strict=True)
    ):
        raise GuaranteeError(
            "expected features, targets and sample weights that do not depend on the "
            "head's weights, got others at other weights (self-distillation, "
            "pseudo-labels, attention from the head?): the objective would remember "
            "the forgotten samples"
        )
    if _same_rows(other, own):
        return
    if not _same_rows(read(neighbours), own):
        raise GuaranteeError(
            "expected the features of a sample to be its own, as its target and its "
            "weight, got others when the rest of its batch changed: normalise over "
            "features (LayerNorm), not over the batch; divide no weight by a sum of "
            "several samples' weights"
        )
    raise GuaranteeError(
        "expected features and targets that are the same at every epoch, step and "
        "batch, got others when these counters had other values (current_epoch, "
        "global_step, num_training_batches, batch_idx) and the head other weights: the "
        "objective would depend on when training stopped; leave them out of "
        "unlearning_loss"
    )


def rows_at_fixed_weights(
    loss: LossFunction, head: ConvexHead, batches: Batches, groups: list[list[int]]
) -> list[tuple[Tensor, ...]]:
    """Features, targets and weights of samples, read group by group, on the CPU.

    Must run inside `passes`, as `capture`; nothing is checked.
    """
    with fixed_weights(head):
        found = [rows_in(loss, head, batches, group) for group in groups]
    rows = [row for group in found for row in group.values()]
    return [tuple(part.cpu() for part in row) for row in rows]


def _same_rows(found: Rows, known: Rows) -> bool:
    """Whether some rows are as before, up to what a batch's size does to rounding."""
    size = max(float(row.abs().max()) for row, *_ in known.values())
    return all(
        torch.allclose(row, known[place][0], rtol=1e-3, atol=1e-4 * size)
        and all(map(torch.allclose, rest, known[place][1:]))
        for place, (row, *rest) in found.items()
    )
