"""What reaches a head: every sample's row, read once and checked."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from lightning_unlearn.errors import DataError, GuaranteeError, ModelError
from lightning_unlearn.step.head.convex_head import ConvexHead, HeadCall
from lightning_unlearn.weights import large_arrays
from lightning_unlearn.weights.objective import Batches, LossFunction

_CHUNK = 4096


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


def capture(loss: LossFunction, head: ConvexHead, batches: Batches) -> FeatureData:
    """Read every sample once and keep what reaches the head.

    Must run inside `scope.passes` with exactly the head's weights in scope. The
    head is given fixed weights that depend on no data, so that nothing captured can
    depend on the weights to be unlearned, whatever the module does; that the captured
    rows do not depend on the head at all is then checked against the real weights.

    Args:
        loss: The module's loss of a batch.
        head: The head.
        batches: The retained samples (of this process).

    Returns:
        The rows, on the head's device, in the dtype of the passes.

    Raises:
        GuaranteeError: If the loss is not exactly ``head.loss(features, targets)`` of
            rows that depend neither on the head nor on the rest of the batch: strong
            convexity would not be proved.
        ModelError: If a feature, target or loss is not finite.
    """
    _check_head(head)
    _check_independent(loss, head, batches)
    features, targets, filled = None, [], 0
    with _fixed_weights(head):
        for index, (weight, batch) in enumerate(batches):
            call = _call(loss, head, batch, index, weight)
            rows = call.features.detach()
            if features is None:
                shape = len(batches.places), *rows.shape[1:]
                features = large_arrays.empty(shape, rows.dtype, rows.device)
            features[filled : filled + weight] = rows[:weight].to(features.device)
            targets.append(call.targets[:weight])
            filled += weight
    assert features is not None  # there is a batch: the request was checked
    return FeatureData(features[:filled], torch.cat(targets))


def check_rows(
    loss: LossFunction, head: ConvexHead, batches: Batches, rows: FeatureData
) -> None:
    """Read some samples afresh and compare them with rows captured earlier.

    Must run inside `scope.passes`, as `capture`.

    Args:
        loss: The module's loss of a batch.
        head: The head.
        batches: Some samples.
        rows: What was captured of the same samples, in the same order.

    Raises:
        DataError: If they differ.
        GuaranteeError: As `capture`.
    """
    now = capture(loss, head, batches)
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
def _fixed_weights(head: ConvexHead) -> Iterator[None]:
    """Weights of the head that everybody knows, for the length of a block."""
    generator = torch.Generator().manual_seed(0)
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


def _check_independent(loss: LossFunction, head: ConvexHead, batches: Batches) -> None:
    """The rows of the first samples: the same at other weights, in another batch."""
    count, batch = batches.take(range(min(16, batches.n)))
    own = _call(loss, head, batch, 0, count)
    with _fixed_weights(head):
        fixed = _call(loss, head, batch, 0, count)
    if not (
        torch.equal(own.features, fixed.features)
        and torch.equal(own.targets, fixed.targets)
    ):
        raise GuaranteeError(
            "expected features and targets that do not depend on the head's weights, "
            "got others at other weights (self-distillation, pseudo-labels, attention "
            "from the head?): the objective would remember the forgotten samples"
        )
    half, part = batches.take(range(max(1, count // 2)))
    alone = _call(loss, head, part, 0, half)
    if not (
        _alike(alone.features, own.features[:half])
        and torch.allclose(alone.targets, own.targets[:half])
    ):
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
