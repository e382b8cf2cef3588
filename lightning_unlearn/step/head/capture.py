"""What reaches a head: every sample's row, read once and checked."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from lightning_unlearn.errors import DataError, GuaranteeError, ModelError
from lightning_unlearn.step.batch_checks import spread_places
from lightning_unlearn.step.head.convex_head import ConvexHead, HeadCall
from lightning_unlearn.weights import large_arrays
from lightning_unlearn.weights.objective import Batches, LossFunction

_CHUNK = 4096
_CHECKED, _GROUPS = 32, 4  # samples that are checked, and batches they are read in
_ANOTHER_BATCH = 1_000_003


@dataclass(frozen=True)
class FeatureData:
    """Captured rows, as the head received them.

    Args:
        features: (n, d).
        targets: (n,) or (n, K).
        weights: Of each sample's loss (n, 1), or of each output's (n, K); None is 1.
    """

    features: Tensor = field(repr=False)
    targets: Tensor = field(repr=False)
    weights: Tensor | None = field(repr=False, default=None)

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
        targets = self.targets[places.to(self.targets.device)].to(device)
        weights = self.weights
        if weights is not None:
            weights = weights[places.to(weights.device)].to(device)
        return FeatureData(features, targets, weights)

    def split(self, size: int) -> Iterator["FeatureData"]:
        """The rows, at most `size` at a time; one empty part if there are none."""
        for start in range(0, max(self.n, 1), size):
            yield self[start : start + size]

    def __getitem__(self, rows: slice | Tensor) -> "FeatureData":
        """Some of the rows, where they are."""

        def of(held: Tensor) -> Tensor:
            return held[rows.to(held.device) if isinstance(rows, Tensor) else rows]

        weights = None if self.weights is None else of(self.weights)
        return FeatureData(of(self.features), of(self.targets), weights)


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
    _check_independent(loss, head, batches, elsewhen)
    return _read_all(loss, head, batches)


def _read_all(loss: LossFunction, head: ConvexHead, batches: Batches) -> FeatureData:
    features, filled = None, 0
    targets, weights = list[Tensor](), list[Tensor | None]()
    with _fixed_weights(head):
        for index, (weight, batch) in enumerate(batches):
            call = _call(loss, head, batch, index, weight)
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
    _check_head(head)
    now = _read_all(loss, head, batches)
    same = now.features.shape == rows.features.shape and _alike(
        now.features, rows.features
    )
    pairs = ((now.targets, rows.targets), (_told(now), _told(rows)))
    if not (same and all(torch.equal(a, b.to(a.device)) for a, b in pairs)):
        raise DataError(
            "expected the samples that were prepared, got others in the dataset now: "
            "prepare again, or go without"
        )


def _alike(now: Tensor, before: Tensor) -> bool:
    """Equal up to what the size of a batch does to the rounding of a network."""
    before = before.to(now.device)
    size = float(before.abs().max()) if before.numel() else 0.0
    return torch.allclose(now, before, rtol=1e-3, atol=1e-4 * size)


def _told(rows: FeatureData) -> Tensor:
    """The weights, 1 where there are none."""
    if rows.weights is None:
        return rows.features.new_ones(rows.n, 1)
    return rows.weights


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

    def read(groups: list[list[int]], index: int = 0) -> _Rows:
        found = (_rows(loss, head, batches, group, index) for group in groups)
        return {place: row for rows in found for place, row in rows.items()}

    own = read(groups)
    with _fixed_weights(head):
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
    with _fixed_weights(head):
        found = [_rows(loss, head, batches, group) for group in groups]
    rows = [row for group in found for row in group.values()]
    return [tuple(part.cpu() for part in row) for row in rows]


_Rows = dict[int, tuple[Tensor, ...]]  # place -> features (d,), target, weight


def _rows(
    loss: LossFunction,
    head: ConvexHead,
    batches: Batches,
    places: list[int],
    index: int = 0,
) -> _Rows:
    """What reaches the head of some samples, read in one batch."""
    count, batch = batches.take(places)
    call = _call(loss, head, batch, index, count)
    data = FeatureData(call.features.detach(), call.targets, call.weights)
    rows = zip(data.features, data.targets, _told(data), strict=True)
    return dict(zip(places, rows, strict=True))


def _equal(found: _Rows, known: _Rows) -> bool:
    """Whether some rows are as before, to the last bit."""
    return all(
        torch.equal(one, two)
        for place, row in found.items()
        for one, two in zip(row, known[place], strict=True)
    )


def _same_rows(found: _Rows, known: _Rows) -> bool:
    """Whether some rows are as before, up to what a batch's size does to rounding."""
    size = max(float(row.abs().max()) for row, *_ in known.values())
    return all(
        torch.allclose(row, known[place][0], rtol=1e-3, atol=1e-4 * size)
        and all(map(torch.allclose, rest, known[place][1:]))
        for place, (row, *rest) in found.items()
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


def _difference(out: Tensor, expected: Tensor) -> str:
    """What a loss is that is not the head's, in words."""
    if out.shape != expected.shape:
        return f"shape {tuple(out.shape)}"
    more = float((out - expected).mean())
    mean = float(expected.mean())
    return (
        f"another value, {mean + more:.6g} where the head's own is {mean:.6g} "
        f"({abs(more):.2g} {'more' if more > 0 else 'less'}, of a regulariser, class "
        "weights or another term)"
    )


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
