"""Do data look scaled by their own mean and deviation?"""

from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor
from torch.utils.data import TensorDataset

from lightning_unlearn.errors import UnlearningError
from lightning_unlearn.plugin.data.subsets import flatten

_CLOSE = 1e-5  # chance does not come so near: the mean of n samples errs by n ** -0.5
_SHARE = 0.1  # of the columns at least, where there are many
_LARGEST = 1 << 28  # entries: to look at more would take seconds
_CHUNK = 1 << 22  # entries


def columns_of(dataset: Any, positions: list[int]) -> tuple[int, int]:
    """Columns of plain tensors with mean 0 and deviation 1, and how many there are.

    Args:
        dataset: A `TensorDataset`, or Subsets of one; of any other nothing is known.
        positions: Samples that are trained on. The others may have been scaled with
            them, so all together are looked at too.

    Returns:
        (found, of), both 0 if none were found.
    """
    try:
        base, places = flatten(dataset)
    except (UnlearningError, TypeError):  # a request will say what is wrong with it
        return 0, 0
    if not isinstance(base, TensorDataset) or not positions:
        return 0, 0
    chosen = torch.tensor([places[position] for position in positions])
    found = first_of(*base.tensors, rows=chosen)
    return found if found[0] else first_of(*base.tensors)


def first_of(*tensors: Tensor, rows: Tensor | None = None) -> tuple[int, int]:
    """What `columns` finds in the first of some tensors in which it finds any."""
    small = (t for t in tensors if t.is_floating_point() and t.numel() <= _LARGEST)
    every = (columns(tensor, rows) for tensor in small)
    return next((found for found in every if found[0]), (0, 0))


def columns(x: Tensor, rows: Tensor | None = None) -> tuple[int, int]:
    """Columns of a tensor (n, ...) with mean 0 and deviation 1, and how many there are.

    Of images and sequences channels and features are looked at too, and the whole.

    Args:
        x: Floating point.
        rows: Those that count; all by default.
    """
    n = len(x) if rows is None else len(rows)
    shape = x.shape[1:]
    sums = torch.zeros(2, *shape, dtype=torch.float64)
    least, most = torch.full(shape, torch.inf), torch.zeros(shape)
    step = max(1, _CHUNK // max(1, shape.numel()))
    for start in range(0, n, step):
        part = slice(start, start + step)
        some = x[part] if rows is None else x[rows[part].to(x.device)]
        some = some.detach().cpu().double()
        sums += torch.stack([some.sum(0), some.square().sum(0)])
        sizes = some.abs().float()
        least = torch.minimum(least, sizes.amin(0))
        most = torch.maximum(most, sizes.amax(0))
    # Every -1 or 1: balanced signs have mean 0 and deviation 1, and nobody scaled them.
    signs = most - least <= _CLOSE
    axes = set(range(len(shape)))
    ends = [axes - {0}, axes - {len(shape) - 1}] if len(shape) > 1 else []
    for over in ([], *ends, axes):
        found = _scaled(sums, n, signs, sorted(over))
        if found[0]:
            return found
    return 0, 0


def _scaled(sums: Tensor, n: int, signs: Tensor, over: list[int]) -> tuple[int, int]:
    """How many have mean 0 and deviation 1, if they are many, and how many there are.

    Args:
        sums: Of n samples and of their squares, (2, ...).
        n: Samples.
        signs: Which hold signs only, (...).
        over: Dimensions of a sample that are taken together.
    """
    for axis in reversed(over):
        n *= signs.shape[axis]
        sums, signs = sums.sum(axis + 1), signs.all(axis)
    mean, square = sums / max(n, 1)
    variance = square - mean.square()
    vary = variance > 1e-12 * square
    unit = torch.zeros_like(signs)
    for degrees in {n, max(n - 1, 1)}:  # both are in use
        unit |= ((variance * n / degrees).clamp_min(0).sqrt() - 1).abs() < _CLOSE
    found = int((unit & (mean.abs() < _CLOSE) & vary & ~signs).sum())
    of = int(vary.sum())
    return (found, of) if found >= max(1, _SHARE * of) else (0, 0)


def warn(found: int, of: int) -> None:
    """Warn that so many columns look scaled by the data's own mean and deviation."""
    rank_zero_warn(
        f"{found} of {of} columns of the training data have mean 0 and standard "
        "deviation 1 (to 1e-5): were they scaled by the mean and deviation of this "
        "very data? Then every row was made with the samples to be forgotten, and what "
        "a certificate takes as public is not public; scale by public constants, or "
        "write a method dataset_without(positions), with which a request compares"
    )
