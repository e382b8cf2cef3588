"""What the weights are worth on some samples: accuracy, or the loss."""

import math
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_unlearn.certificate.report.evidence import Quality
from lightning_unlearn.errors import DataError, StrategyError
from lightning_unlearn.plugin.lightning import MisconfigurationException
from lightning_unlearn.plugin.plan.head_rows import logits_of, right_in
from lightning_unlearn.plugin.plan.plan import Plan
from lightning_unlearn.plugin.plan.sharded_plan import ShardedPlan
from lightning_unlearn.step.head.inputs import split_batch
from lightning_unlearn.step.head.reading.keywords import call, known_keywords
from lightning_unlearn.weights.passes import held, passes
from lightning_unlearn.weights.scope import Vector

Samples = dict[str, tuple[DataLoader, list[int]]]
Values = dict[str, tuple[str, float]]


def measure(plan: Plan, batches: Iterable[tuple[int, Any]]) -> tuple[str, float]:
    """Inside `passes`: the metric of the weights as they are now.

    The accuracy where a `ConvexHead` in scope is given classes, or a batch is (inputs,
    class indices), or a mapping with "labels", and the module maps inputs to logits;
    else the unlearning loss, a sample. Several processes each give their part.

    Args:
        plan: The request.
        batches: (samples that count, batch).

    Returns:
        "accuracy" or "loss", and its value.
    """
    with plan.processes.summed(4) as (sums,), torch.no_grad():
        for index, (weight, batch) in enumerate(batches):
            right, loss = _of_batch(plan, batch, index) if weight else (None, 0.0)
            loss *= weight
            found = (float(right or 0), float(weight if right is None else 0))
            sums += torch.tensor([*found, loss, weight]).to(sums)
    right, without, loss, n = sums.tolist()
    return ("loss", loss / n) if without else ("accuracy", right / n)


def _of_batch(plan: Plan, batch: Any, index: int) -> tuple[int | None, float]:
    """How many are classified correctly, None if nothing is, and the mean loss."""
    head = plan.head
    if head is None:
        return _right(plan, batch), float(plan.loss(batch, index).mean())
    with head.recording() as calls:
        loss = float(plan.loss(batch, index).mean())
    if len(calls) != 1:
        return None, loss
    return right_in(head, calls[0], logits_of(head, calls[0])), loss


def _right(plan: Plan, batch: Any) -> int | None:
    if not isinstance(batch, Mapping) and not (
        isinstance(batch, (list, tuple)) and len(batch) == 2
    ):
        return None
    try:
        x, y = split_batch(batch)
    except DataError:  # a mapping of another form
        return None
    if not isinstance(y, Tensor) or y.is_floating_point() or y.dim() != 1:
        return None
    try:
        logits = call(plan.module, known_keywords(plan.module, x))
    except (TypeError, NotImplementedError):  # forward takes something else
        return None
    if isinstance(logits, Mapping):  # as transformers return them
        logits = logits.get("logits")
    if not isinstance(logits, Tensor) or logits.dim() != 2 or logits.shape[1] < 2:
        return None
    return int((logits.argmax(1) == y).sum())


def loader_of(plan: Plan, stage: str) -> DataLoader | None:
    """The user's own loader of another stage, ``test`` or ``val``, if there is one.

    One loader of a dataset with a length, that ``setup("fit")`` has made.
    """
    datamodule = getattr(plan.trainer, "datamodule", None)
    source: Any = datamodule or plan.module
    try:
        loader = getattr(source, f"{stage}_dataloader")()
    except (AttributeError, NotImplementedError, MisconfigurationException):
        return None
    known = isinstance(loader, DataLoader) and hasattr(loader.dataset, "__len__")
    return loader if known and loader.batch_sampler is not None else None


def _samples(plan: Plan) -> Samples:
    """What to measure on: the forgotten, the retained and the user's test samples.

    Args:
        plan: The request.

    Returns:
        "forget", "retain" and "test" or "validation" -> a loader and its positions.

    Raises:
        StrategyError: If the weights are in shards.
    """
    if isinstance(plan, ShardedPlan):
        raise StrategyError(
            "expected whole weights with evaluate=True, got shards: leave it out, and "
            "evaluate with trainer.test"
        )
    found = {
        "forget": (plan.loader, plan.chosen),
        "retain": (plan.loader, plan.retained),
    }
    with plan.processes.together():
        for stage, name in (("test", "test"), ("val", "validation")):
            loader = loader_of(plan, stage)
            if loader is not None:
                n = len(loader.dataset)  # type: ignore[arg-type]
                found[name] = (loader, list(range(n)))
                break
    return found


def _everywhere(
    plan: Plan,
    where: Samples,
    weights: Vector | None = None,
    buffers: Mapping[str, Tensor] = MappingProxyType({}),
) -> Values:
    """The metric on each set of samples.

    Args:
        plan: The request.
        where: Of `_samples`.
        weights: To measure in place of the module's own, (p,); nothing is moved.
        buffers: Likewise.

    Returns:
        Name of the set -> (metric, value).
    """
    with passes(plan.module, plan.scope, plan.dtype):
        if weights is not None:
            plan.scope.assign(weights)
        named = held(plan.module)
        for name, value in buffers.items():
            named[name].copy_(value)
        return {
            name: measure(plan, plan.batches(loader, indices))
            for name, (loader, indices) in where.items()
        }


class BeforeAndAfter:
    """What the weights are worth before a request, and with those it releases.

    Args:
        plan: The request; the metric of the weights as they are is taken now.

    Attributes:
        metric: What is measured.
        lines: One for each set of samples, once both are known.

    Raises:
        StrategyError: If the weights are in shards.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan, self._where = plan, _samples(plan)
        self._before = _everywhere(plan, self._where)
        self.metric = self._before["retain"][0]
        self.lines: tuple[Quality, ...] = ()

    def measure_after(self, weights: Vector, buffers: Mapping[str, Tensor]) -> None:
        """Take the metric with other weights (p,) and buffers; nothing is moved."""
        after, lines = _everywhere(self._plan, self._where, weights, buffers), []
        for name, (kind, value) in self._before.items():
            other, end = after[name]
            same = kind == self.metric == other
            if same and math.isfinite(value) and math.isfinite(end):
                lines.append(Quality(data=name, before=value, after=end))
            else:
                rank_zero_warn(
                    f"the {name} samples are left out of the comparison: {kind} "
                    f"{value:.4g} before, {other} {end:.4g} after"
                )
        self.lines = tuple(lines)
