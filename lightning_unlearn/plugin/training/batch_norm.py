"""Batch normalisation's statistics, taken anew over the retained samples."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from lightning_unlearn.errors import DataError, ModelError
from lightning_unlearn.plugin.lightning import (
    LightningModule,
    is_overridden,
    isolate_rng,
)
from lightning_unlearn.plugin.mixin import quiet
from lightning_unlearn.weights.objective import Batches, LossFunction
from lightning_unlearn.weights.passes import passes
from lightning_unlearn.weights.scope import Scope, Vector

BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


def stale_layers(
    module: nn.Module, scope: Scope, changed: list[str], known: bool, rebuilds: bool
) -> Iterator[str]:
    """Layers whose statistics were taken of the training data; refused, or rebuilt."""
    in_scope = {id(p) for p in scope.parameters}
    for name, layer in module.named_modules():
        if not isinstance(layer, _NormBase):
            continue
        kind = type(layer).__name__
        if isinstance(layer, _BatchNorm) and layer.running_mean is None:
            raise ModelError(
                f"expected layers that treat each sample on its own, got {kind} at "
                f"{name!r} without running statistics: use GroupNorm or LayerNorm"
            )
        trained = any(id(p) in in_scope for p in layer.parameters(recurse=False))
        moved = any(entry.startswith(f"{name}.") for entry in changed)
        if layer.running_mean is None or not (moved or (trained and not known)):
            continue
        if not (rebuilds and isinstance(layer, _BatchNorm)):
            raise ModelError(
                f"expected no statistics of the training data, got {kind} at {name!r}, "
                "whose running mean and variance were computed on the forgotten "
                f"samples too: {_INSTEAD}"
            )
        yield name


_INSTEAD = (
    "replace it by GroupNorm or LayerNorm, or keep it frozen (call eval() on it in "
    "on_train_epoch_start, before any training step); BatchNorm's are taken anew for a "
    "whole network without guarantee, or with NormBall"
)
#: Hooks in which a module may still freeze its statistics.
_LATER = ("train", "on_train_start", "on_train_epoch_start", "on_train_batch_start")


def check_before_training(module: LightningModule, rebuilds: bool) -> None:
    """Raise `ModelError` if a training will move statistics that a request must refuse.

    Args:
        module: In the modes its training begins with.
        rebuilds: Whether a request may take BatchNorm's anew.
    """
    if any(is_overridden(hook, module) for hook in _LATER):
        return  # it may have thought of it: a request will see what has moved
    for name, layer in module.named_modules():
        if not (isinstance(layer, _NormBase) and layer.training):
            continue
        if layer.running_mean is None or (rebuilds and isinstance(layer, _BatchNorm)):
            continue
        raise ModelError(
            f"expected no statistics of the training data, got {type(layer).__name__} "
            f"at {name!r} in train mode, whose running mean and variance will be "
            f"computed on samples to be forgotten too: {_INSTEAD}"
        )


class _Sums:
    """Of the statistics of batches, each counted by its samples."""

    def __init__(self) -> None:
        self.batches, self.samples = 0, 0
        self.mean, self.var = torch.zeros(()), torch.zeros(())

    def add(self, x: Tensor) -> None:
        """Count a batch (batch, channels, ...)."""
        var, mean = torch.var_mean(x.double(), dim=(0, *range(2, x.dim())))
        self.mean = self.mean + len(x) * mean
        self.var = self.var + len(x) * var  # that of a sample, as BatchNorm keeps it
        self.batches, self.samples = self.batches + 1, self.samples + len(x)


def batch_size_of(n: int, size: int) -> int:
    """A batch size that leaves no sample alone: one alone has no variance.

    Args:
        n: Retained samples.
        size: What is asked for.

    Raises:
        DataError: If there is one sample only.
    """
    if n < 2:
        raise DataError(
            f"expected at least 2 retained samples for batch normalisation, got {n}"
        )
    size = max(size, 2)
    while n % size == 1:
        size += 1
    return size


def recomputed(
    scope: Scope,
    weights: Vector,
    layers: tuple[str, ...],
    loss: LossFunction,
    batches: Batches,
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    """The statistics the released weights have over the retained samples.

    Averages over batches, as `torch.optim.swa_utils.update_bn` takes them. They are a
    function of the released weights and the retained samples, and of nothing else.

    Args:
        scope: The weights in scope, and the module they are of.
        weights: The released ones (p,).
        layers: Names of the layers whose statistics are taken.
        loss: Calls them.
        batches: Of the retained samples, of `batch_size_of` each.
        dtype: Of the passes.

    Returns:
        Name of a buffer -> its new value.

    Raises:
        ModelError: If a statistic is not finite, or a layer was not called.
    """
    module: Any = scope.module
    named = {name: module.get_submodule(name) for name in layers}
    with isolate_rng(), quiet(module), passes(module, scope, dtype):
        for p, part in zip(scope.parameters, scope.cast(weights), strict=True):
            p.data = part.to(p.device)
        with torch.no_grad(), _counted(named) as sums:
            for index, (_, batch) in enumerate(batches):
                loss(batch, index)
    found: dict[str, Tensor] = {}
    for name, total in sums.items():
        found |= _buffers(name, total)
    return found


def _buffers(name: str, total: _Sums) -> dict[str, Tensor]:
    mean, var = total.mean / max(total.samples, 1), total.var / max(total.samples, 1)
    finite = bool(torch.isfinite(mean).all() and torch.isfinite(var).all())
    if not total.batches or not finite:
        raise ModelError(
            f"expected statistics of {name!r} over the retained samples, got "
            f"{'infinite ones' if total.batches else 'no call of it'}: replace it by "
            "GroupNorm or LayerNorm"
        )
    return {
        f"{name}.running_mean": mean,
        f"{name}.running_var": var,
        f"{name}.num_batches_tracked": torch.tensor(total.batches),
    }


@contextmanager
def _counted(layers: dict[str, nn.Module]) -> Iterator[dict[str, _Sums]]:
    """Layers that normalise by their batch, and count it."""
    sums = {name: _Sums() for name in layers}
    try:
        for name, layer in layers.items():
            layer.forward = partial(_by_batch, layer, sums[name])
        yield sums
    finally:
        for layer in layers.values():
            vars(layer).pop("forward", None)


def _by_batch(layer: Any, total: _Sums, x: Tensor) -> Tensor:
    total.add(x)
    return F.batch_norm(x, None, None, layer.weight, layer.bias, True, 0.0, layer.eps)
