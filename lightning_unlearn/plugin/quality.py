"""What the weights are worth on some samples: accuracy, or the loss."""

import math
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_unlearn.errors import StrategyError
from lightning_unlearn.plugin.resolved import Resolved
from lightning_unlearn.report.evidence import Quality
from lightning_unlearn.scope import Vector, passes

Samples = dict[str, tuple[DataLoader, list[int]]]
Values = dict[str, tuple[str, float]]


def measure(ready: Resolved, batches: Iterable[tuple[int, Any]]) -> tuple[str, float]:
    """Inside `scope.passes`: the metric of the weights as they are now.

    The accuracy where a batch is (inputs, class indices) and the module maps inputs to
    logits, else the unlearning loss, a sample. Several processes each give their part.

    Args:
        ready: The request.
        batches: (samples that count, batch).

    Returns:
        "accuracy" or "loss", and its value.
    """
    with ready.processes.summed(4) as (sums,), torch.no_grad():
        for index, (weight, batch) in enumerate(batches):
            right = _right(ready, batch) if weight else None
            loss = float(ready.loss(batch, index).mean()) * weight if weight else 0.0
            found = (float(right or 0), float(weight if right is None else 0))
            sums += torch.tensor([*found, loss, weight]).to(sums)
    right, without, loss, n = sums.tolist()
    return ("loss", loss / n) if without else ("accuracy", right / n)


def _right(ready: Resolved, batch: Any) -> int | None:
    """How many are classified correctly; None if nothing is classified."""
    head = ready.head  # one logit for each of two classes, or a count, is no class
    if head is not None and head.loss_name != "cross_entropy":
        return None
    if not (isinstance(batch, (list, tuple)) and len(batch) == 2):
        return None
    x, y = batch
    if not isinstance(y, Tensor) or y.is_floating_point() or y.dim() != 1:
        return None
    try:
        logits = ready.module(x)
    except (TypeError, NotImplementedError):  # forward takes something else
        return None
    if not isinstance(logits, Tensor) or logits.dim() != 2 or logits.shape[1] < 2:
        return None
    return int((logits.argmax(1) == y).sum())


def loader_of(ready: Resolved, stage: str) -> DataLoader | None:
    """The user's own loader of another stage, ``test`` or ``val``, if there is one.

    One loader of a dataset with a length, that ``setup("fit")`` has made.
    """
    datamodule = getattr(ready.trainer, "datamodule", None)
    source: Any = datamodule or ready.module
    try:
        loader = getattr(source, f"{stage}_dataloader")()
    except (AttributeError, NotImplementedError, MisconfigurationException):
        return None
    known = isinstance(loader, DataLoader) and hasattr(loader.dataset, "__len__")
    return loader if known and loader.batch_sampler is not None else None


def samples(ready: Resolved) -> Samples:
    """What to measure on: the forgotten, the retained and the user's test samples.

    Args:
        ready: The request.

    Returns:
        "forget", "retain" and "test" or "validation" -> a loader and its positions.

    Raises:
        StrategyError: If the weights are in shards.
    """
    if ready.sharded:
        raise StrategyError(
            "expected whole weights with evaluate=True, got shards: leave it out, and "
            "evaluate with trainer.test"
        )
    found = {
        "forget": (ready.loader, ready.chosen),
        "retain": (ready.loader, ready.retained),
    }
    with ready.processes.together():
        for stage, name in (("test", "test"), ("val", "validation")):
            loader = loader_of(ready, stage)
            if loader is not None:
                n = len(loader.dataset)  # type: ignore[arg-type]
                found[name] = (loader, list(range(n)))
                break
    return found


def everywhere(
    ready: Resolved,
    where: Samples,
    weights: Vector | None = None,
    buffers: Mapping[str, Tensor] = MappingProxyType({}),
) -> Values:
    """The metric on each set of samples.

    Args:
        ready: The request.
        where: Of `samples`.
        weights: To measure in place of the module's own, (p,); nothing is moved.
        buffers: Likewise.

    Returns:
        Name of the set -> (metric, value).
    """
    with passes(ready.module, ready.scope, ready.dtype):
        if weights is not None:
            ready.scope.assign(weights)
        named = dict(ready.module.named_buffers())
        for name, value in buffers.items():
            named[name].copy_(value)
        return {
            name: measure(ready, ready.batches(loader, indices))
            for name, (loader, indices) in where.items()
        }


def compared(before: Values, after: Values) -> tuple[str, tuple[Quality, ...]]:
    """The metric's name, and a line for each set of samples it was measured on."""
    metric, lines = before["retain"][0], []
    for name, (kind, value) in before.items():
        other, end = after[name]
        if kind == metric == other and math.isfinite(value) and math.isfinite(end):
            lines.append(Quality(data=name, before=value, after=end))
        else:
            rank_zero_warn(
                f"the {name} samples are left out of the comparison: {kind} "
                f"{value:.4g} before, {other} {end:.4g} after"
            )
    return metric, tuple(lines)
