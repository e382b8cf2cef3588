"""An activation -> one row for each sample."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_unlearn.errors import ModelError
from lightning_unlearn.step.known_samples import text_mask


def pooled(
    activation: Tensor,
    pool: tuple[int, int],
    tokens: Sequence[str] = ("mean", "cls"),
    inputs: Any = None,
    even: bool = False,
) -> Tensor:
    """One row for each sample of an activation, float32.

    Args:
        activation: Vectors (n, c), kept as they are; sequences of tokens (n, t, c); or
            maps (n, c, h, w), averaged over a grid.
        pool: Rows and columns of that grid, at most h and w of them.
        tokens: What is taken of sequences, of `TOKENS`.
        inputs: Of the model. If it is a mapping with an ``attention_mask`` (n, t), only
            the tokens it marks count.
        even: Divide each part that is taken of a sequence by its own norm.

    Returns:
        (n, c), (n, len(tokens) c) or (n, c pool[0] pool[1]).

    Raises:
        ModelError: If the activation has another number of dimensions.
    """
    x = activation.float()
    if x.dim() == 2:
        return x
    if x.dim() == 3:
        mask = _mask_of(x, inputs)
        parts = [TOKENS[name](x, mask) for name in tokens]
        return torch.cat([F.normalize(p, dim=1) for p in parts] if even else parts, 1)
    if x.dim() == 4:
        grid = min(pool[0], x.shape[2]), min(pool[1], x.shape[3])
        return F.adaptive_avg_pool2d(x, grid).flatten(1)
    raise ModelError(
        "expected activations (n, c), (n, t, c) or (n, c, h, w), got "
        f"{tuple(x.shape)}: wrap the model so that it pools them itself"
    )


def _mask_of(tokens: Tensor, inputs: Any) -> Tensor | None:
    """Which tokens count (n, t), bool; None where nothing is said: all of them."""
    mask = text_mask(inputs)
    if mask is None or mask.shape != tokens.shape[:2]:
        return None
    return mask.to(tokens.device) != 0


# Which way a row is computed must not depend on the others in its batch.


def _mean(x: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return x.mean(1)
    weights = mask.to(x)[:, :, None]
    return (x * weights).sum(1) / weights.sum(1).clamp_min(1)


def _max(x: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return x.amax(1)
    largest = x.masked_fill(~mask[:, :, None], -torch.inf).amax(1)
    return largest.masked_fill(~mask.any(1)[:, None], 0)


def _first(x: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return x[:, 0]
    return x[torch.arange(len(x), device=x.device), mask.int().argmax(1)]


def _last(x: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return x[:, -1]
    at = x.shape[1] - 1 - mask.int().flip(1).argmax(1)
    return x[torch.arange(len(x), device=x.device), at]


#: Of the tokens that count: their mean, the largest value of each feature, the first of
#: them, the last of them.
TOKENS: dict[str, Callable[[Tensor, Tensor | None], Tensor]] = {
    "mean": _mean,
    "max": _max,
    "cls": _first,
    "last": _last,
}
