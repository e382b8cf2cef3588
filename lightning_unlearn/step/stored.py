"""Tensors of a file that anybody may have written: each is looked at before use."""

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_unlearn.errors import DataError

_PART = 1 << 24  # numbers at once


def check(
    name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    """Raise `DataError` unless a tensor has a type and a shape."""
    if tensor.dtype != dtype or tensor.shape != shape:
        raise DataError(
            f"its {name} is {tensor.dtype} of shape {tuple(tensor.shape)}, not {dtype} "
            f"of {shape}"
        )


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raise `DataError` if a number is NaN or infinite."""
    for name, tensor in tensors.items():
        parts = tensor.flatten().split(_PART)
        if not all(bool(part.isfinite().all()) for part in parts):
            raise DataError(f"its {name} is not finite")


def check_positions(positions: Tensor) -> None:
    """Raise `DataError` unless they are int64 (n,) and increasing."""
    check("positions", positions, torch.int64, (len(positions),))
    if not bool((positions.diff() > 0).all()):
        raise DataError("its positions are not increasing")
