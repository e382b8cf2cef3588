"""What one batch gives a head: recorded, and compared with the certified formula."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from lightning_unlearn.errors import GuaranteeError, ModelError
from lightning_unlearn.step.batch_checks import Width, width_of
from lightning_unlearn.step.head.convex_head import ConvexHead, HeadCall
from lightning_unlearn.step.head.rows.feature_data import FeatureData
from lightning_unlearn.weights.objective import Batches, LossFunction


class Row(NamedTuple):
    """Features (d,), target and weight of a sample, and the width of its batch."""

    features: Tensor
    target: Tensor
    weight: Tensor
    width: Width


Rows = dict[int, Row]  # by place


def check_head(head: ConvexHead) -> None:
    """Raise `GuaranteeError` unless a head is one whose loss nothing changes."""
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


@contextmanager
def fixed_weights(head: ConvexHead, seed: int = 0) -> Iterator[None]:
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


def rows_in(
    loss: LossFunction,
    head: ConvexHead,
    batches: Batches,
    places: list[int],
    index: int = 0,
) -> Rows:
    """What reaches the head of some samples, read in one batch."""
    return rows_of(loss, head, places, batches.take(places), index)


def rows_of(
    loss: LossFunction,
    head: ConvexHead,
    places: list[int],
    taken: tuple[int, object],
    index: int = 0,
) -> Rows:
    """`rows_in` of samples that were read: their number, and their batch."""
    count, batch = taken
    width = width_of(batch)
    call = call_of(loss, head, batch, index, count)
    data = FeatureData(call.features.detach(), call.targets, call.weights)
    rows = zip(places, *data.parts, strict=True)
    return {place: Row(x, y, weight, width) for place, x, y, weight in rows}


def call_of(
    loss: LossFunction, head: ConvexHead, batch: object, index: int, weight: int
) -> HeadCall:
    """What the head received in the loss of one batch, once that is checked.

    Args:
        loss: The module's loss of a batch.
        head: The head.
        batch: The batch.
        index: Of the batch.
        weight: Its samples; 0 for a filler, of which nothing is checked.

    Raises:
        GuaranteeError: If the loss is not ``head.loss`` of these rows, or its mean.
        ModelError: If one is not finite.
    """
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
    losses = head.link.loss(logits, call.targets, call.weights)
    expected = losses.mean() if out.dim() == 0 else losses
    same = out.shape == expected.shape and torch.allclose(
        out, expected, rtol=1e-4, atol=1e-6
    )
    if not same:
        raise GuaranteeError(
            "expected the loss to be head.loss(features, targets) or its mean, got "
            f"{_difference(out, expected)}: put the regulariser into l2= and leave "
            "other terms out; "
            "weights of samples or classes go into head.loss(features, targets, "
            "weights), whose mean is over samples and not divided by the sum of the "
            "weights; or use guarantee=NormBall()"
        )


def _difference(out: Tensor, expected: Tensor) -> str:
    """What a loss is that is not the head's, in words."""
    if out.shape != expected.shape:
        return f"shape {tuple(out.shape)}"
    out, expected = out.detach(), expected.detach()
    more = float((out - expected).mean())
    mean = float(expected.mean())
    return (
        f"another value, {mean + more:.6g} where the head's own is {mean:.6g} "
        f"({abs(more):.2g} {'more' if more > 0 else 'less'}, of a regulariser, class "
        "weights or another term)"
    )
