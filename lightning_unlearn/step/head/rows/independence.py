"""Is a row its sample's own: at other weights, in other company, at other times?"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch

from lightning_unlearn.errors import GuaranteeError, ModelError
from lightning_unlearn.step.batch_checks import (
    Width,
    left_alone,
    size_of,
    spread_places,
)
from lightning_unlearn.step.head.convex_head import ConvexHead
from lightning_unlearn.step.head.rows.calls import (
    Row,
    Rows,
    fixed_weights,
    rows_in,
    rows_of,
)
from lightning_unlearn.step.head.rows.feature_data import FeatureData
from lightning_unlearn.weights.objective import Batches, LossFunction

_CHECKED, _GROUPS = 32, 4  # samples that are checked, and batches they are read in
_ANOTHER_BATCH = 1_000_003
_NARROW, _WIDE = 4, 16  # samples read anew where batches are padded

#: A block in which everything that counts epochs and steps shows other numbers.
Elsewhen = Callable[[], AbstractContextManager[object]]


class Read(NamedTuple):
    """Rows that were read in one batch, and how wide it was."""

    rows: range
    width: Width


def check_independent(
    loss: LossFunction, head: ConvexHead, batches: Batches, elsewhen: Elsewhen
) -> set[Width]:
    """Some samples' rows: the same at other weights, in other company, at other times.

    And the loss leaves the batch as it is, which the next read of it would show too.
    They are spread over the data: folders are sorted by class, and what a batch does to
    a sample may show for few of them.

    Returns:
        The widths of the batches that were read.
    """
    places = spread_places(batches.n, _CHECKED)
    groups = [places[i::_GROUPS] for i in range(_GROUPS) if places[i::_GROUPS]]
    size = max(1, len(places) // (2 * _GROUPS))
    neighbours = [places[i : i + size] for i in range(0, len(places), size)]

    def read(groups: list[list[int]], index: int = 0) -> Rows:
        found = (rows_in(loss, head, batches, group, index) for group in groups)
        return {place: row for rows in found for place, row in rows.items()}

    def read_first() -> Rows:
        found = Rows()
        for group in groups:
            taken = batches.take(group)
            with left_alone(taken[1]):
                found |= rows_of(loss, head, group, taken)
        return found

    try:
        own = read_first()
    except ModelError:  # at weights that training drove too far; any others will do
        with fixed_weights(head, seed=1):
            own = read_first()
    with fixed_weights(head):
        exact = read(groups[:1])
        with elsewhen():
            other = read(neighbours, _ANOTHER_BATCH)
    if not _equal(exact, own) and not _equal(read(groups[:1]), own):
        raise GuaranteeError(
            "expected features, targets and sample weights that are the same at every "
            "read, got others the second time: something is random in eval mode "
            "(mixup, functional dropout without training=self.training, sampling, "
            "noise); do it only if self.training"
        )
    if not _equal(exact, own):
        raise GuaranteeError(
            "expected features, targets and sample weights that do not depend on the "
            "head's weights, got others at other weights (self-distillation, "
            "pseudo-labels, attention from the head?): the objective would remember "
            "the forgotten samples"
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


def check_padding(
    loss: LossFunction,
    head: ConvexHead,
    batches: Batches,
    rows: FeatureData,
    read: list[Read],
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
    places, known = batches.places.tolist(), dict[int, Row]()
    for part in (narrow, wide):
        for i in part.rows:
            x, target, weight = (held[i] for held in rows.parts)
            known[places[i]] = Row(x, target, weight, part.width)
    with fixed_weights(head):
        for group in groups:
            now = rows_in(loss, head, batches, [places[i] for i in group])
            _check_same_rows(now, known)


def _equal(found: Rows, known: Rows) -> bool:
    """Whether some rows are as before, to the last bit."""
    return all(
        all(map(torch.equal, row[:3], known[place][:3])) for place, row in found.items()
    )


def _others(found: Rows, known: Rows) -> list[int]:
    """Places whose rows differ, by more than a batch's size does to rounding."""
    size = max(float(row.features.abs().max()) for row in known.values())
    return [
        place
        for place, (x, *rest, _) in found.items()
        if not torch.allclose(
            x, known[place].features.to(x.device), rtol=1e-3, atol=1e-4 * size
        )
        or not all(
            torch.allclose(one, two.to(one.device))
            for one, two in zip(rest, known[place][1:3], strict=True)
        )
    ]


def _check_same_rows(found: Rows, known: Rows) -> None:
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
            "expected the features of a sample to be its own, as its target and its "
            "weight, got others when the rest of its batch changed: normalise over "
            "features (LayerNorm), not over the batch; divide no weight by a sum of "
            "several samples' weights"
        )
