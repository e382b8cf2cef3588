"""The sum of clipped gradients, each a function of one sample alone."""

import random
import secrets
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from lightning_unlearn.errors import DataError, ModelError, UnlearningError
from lightning_unlearn.plugin.lightning import LightningModule, isolate_rng
from lightning_unlearn.plugin.mixin import hooks, unlogged
from lightning_unlearn.weights.precision import full_float32

#: Clipped a little below the clip: room for the rounding of float32.
_SHORT = 1 - 1e-3
_BYTES = 1 << 25  # gradients of single samples that are held at once
_FEW = 64  # of them that are added in their own dtype


class _Loss(nn.Module):
    """Lets `functional_call` swap the weights that a loss sees."""

    def __init__(self, module: LightningModule) -> None:
        super().__init__()
        self.module, self.loss = module, hooks(module)[0]

    def forward(self, batch: Any) -> Tensor:
        return self.loss(batch, 0).mean()


def rows_of(batch: Any) -> tuple[list[Tensor], Any]:
    """The tensors of a batch, one row a sample, and how they are put together.

    Raises:
        DataError: If it has anything else.
    """
    leaves, spec = tree_flatten(batch)
    sizes = {len(x) if isinstance(x, Tensor) and x.dim() else None for x in leaves}
    if len(sizes) != 1 or None in sizes:
        raise DataError(
            "expected batches of tensors with one row for each sample for "
            "PrivateTraining, got others: leave ids, texts and what is not of one "
            "sample out of the batch"
        )
    return leaves, spec


def clipped_sum(
    module: LightningModule,
    batch: Any,
    names: Sequence[str],
    clip: float,
    sizes: Sequence[int] | None = None,
) -> dict[str, Tensor]:
    """Sum over a batch of the gradients of single samples, or people, each clipped.

    Each is computed from its own row and from coins of its own alone (`torch.func`):
    no other sample of the batch has a part in it. That of a person is the mean over all
    rows of theirs: the gradient of their mean loss.

    Args:
        module: In the mode it trains in.
        batch: One row a sample.
        names: Of the weights.
        clip: Largest norm of the gradient of one sample, or person.
        sizes: How many rows, one after the other, each person has; None if each row is
            one for itself.

    Returns:
        Float64, by name.

    Raises:
        ModelError: If the loss cannot be computed so.
    """
    leaves, spec = rows_of(batch)
    loss, named = _Loss(module), dict(module.named_parameters())
    weights = {f"module.{name}": named[name].detach() for name in names}

    def one(weights: dict[str, Tensor], *row: Tensor) -> Tensor:
        alone = tree_unflatten([x.unsqueeze(0) for x in row], spec)
        return torch.func.functional_call(loss, weights, (alone,))

    size = sum(w.nbytes for w in weights.values())
    chunk = max(1, _BYTES // max(1, size))
    each = torch.vmap(
        torch.func.grad(one),
        in_dims=(None, *(0 for _ in leaves)),
        randomness="different",
    )
    total = {n: torch.zeros_like(w, dtype=torch.float64) for n, w in weights.items()}
    people = None if sizes is None else _People(sizes)
    with isolate_rng(), unlogged(module):
        torch.manual_seed(secrets.randbits(63))
        shared = secrets.randbits(32)
        for start in range(0, len(leaves[0]), chunk):
            # One draw is for all samples that are computed at once: for all, then.
            np.random.seed(shared)
            random.seed(shared)
            part = [x[start : start + chunk] for x in leaves]
            found = _gradients(each, weights, part)
            if people is not None:
                found = people.whole(found)
            if found:
                _add(total, found, clip * _SHORT)
    return {name.removeprefix("module."): value for name, value in total.items()}


class _People:
    """Means over the rows of people, which come a part at a time.

    Args:
        sizes: How many rows each has, in their order.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes = torch.tensor(sizes)
        self.whose = torch.repeat_interleave(torch.arange(len(sizes)), self.sizes)
        self.read = 0
        self.open: dict[str, Tensor] = {}  # of somebody some of whose rows have come

    def whole(self, found: dict[str, Tensor]) -> dict[str, Tensor]:
        """The gradients of those whose last row has come, by name; none, if nobody.

        Args:
            found: Gradients of the next rows.
        """
        rows = len(next(iter(found.values())))
        whose = self.whose[self.read : self.read + rows]
        self.read += rows
        first, last = int(whose[0]), int(whose[-1])
        ends = self.read == len(self.whose) or int(self.whose[self.read]) != last
        done = last - first + 1 if ends else last - first
        sizes = self.sizes[whose]
        sums = dict[str, Tensor]()
        for name, g in found.items():
            share = (g.detach().flatten(1).T / sizes.to(g)).T
            sums[name] = share.new_zeros(last - first + 1, share.shape[1])
            sums[name].index_add_(0, (whose - first).to(g.device), share)
            if name in self.open:
                sums[name][0] += self.open[name]
        self.open = {} if ends else {name: g[-1].clone() for name, g in sums.items()}
        return {name: g[:done] for name, g in sums.items()} if done else {}


def _gradients(each: Any, weights: dict[str, Tensor], part: list[Tensor]) -> Any:
    try:
        return each(weights, *part)
    except (UnlearningError, RuntimeError, ValueError, TypeError) as problem:
        if isinstance(problem, torch.OutOfMemoryError):
            raise
        raise ModelError(
            "expected a loss whose gradient can be taken for one sample alone "
            f"(torch.func.vmap) for PrivateTraining, got {problem!s:.500}; keep "
            "metrics, .item() and branches on values out of it: define "
            "unlearning_loss(batch, batch_idx) that returns the loss of each sample, "
            "of torch operations alone"
        ) from problem


def _add(total: dict[str, Tensor], found: dict[str, Tensor], clip: float) -> None:
    """Add the rows of some gradients, each made no longer than a clip.

    In float32 at least, whatever the model is in, and with norms in float64: float32
    misses a hundredth of the norm of 20 million equal numbers, bfloat16 of any.
    """
    flat = {name: _single(g.detach().flatten(1)) for name, g in found.items()}
    norms = torch.stack([_norms(g) for g in flat.values()]).norm(dim=0)
    good = torch.isfinite(norms)  # of a sample without a gradient nothing is added
    factor = (clip / norms[good].clamp_min(1e-300)).clamp_max(1.0)
    whole = bool(good.all())
    device = factor.device.type
    with full_float32(), torch.autocast(device, enabled=False):
        for name, rows in flat.items():
            rows = rows if whole else rows[good]
            for few, some in zip(factor.split(_FEW), rows.split(_FEW), strict=True):
                total[name] += (few.to(rows.dtype) @ some).view_as(total[name])


def _single(rows: Tensor) -> Tensor:
    """Of float32 at least."""
    return rows if rows.dtype == torch.float64 else rows.float()


def _norms(rows: Tensor) -> Tensor:
    return torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
