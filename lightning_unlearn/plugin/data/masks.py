"""A forget set as a mask: one True or False for every sample."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from lightning_unlearn.errors import ForgetSetError

_BOOLS = (bool, np.bool_)


def column(found: Any) -> Any:
    """What `torch.nonzero`, `numpy.argwhere` and `numpy.nonzero` return, as a list.

    Args:
        found: Anything; a table of one column, or a tuple of one array, is unpacked.
    """
    if isinstance(found, tuple) and len(found) == 1 and getattr(found[0], "ndim", 0):
        found = found[0]
    if isinstance(found, (np.ndarray, Tensor)) and found.ndim == 2:
        return found.reshape(-1) if found.shape[1] == 1 else found
    return found


def positions(found: Any, values: Sequence[Any], what: str, n: int) -> list[int] | None:
    """The places at which a mask is True, or None if it is no mask.

    Args:
        found: The array, tensor, list or Series as it was passed.
        values: What it holds.
        what: Its name, for a message.
        n: Length of the dataset.

    Raises:
        ForgetSetError: If it is a mask of another number of samples, or a Series
            whose index names the samples in another order.
    """
    if not values or not all(isinstance(value, _BOOLS) for value in values):
        return None
    if len(values) != n:
        raise ForgetSetError(
            f"expected {what}, a mask, to have one True or False for each of the {n} "
            f"samples of the training dataset, got {len(values)}: make it from the "
            "data that the model was trained on"
        )
    _check_order(getattr(found, "index", None), what, n)
    return [place for place, value in enumerate(values) if value]


def _check_order(index: Any, what: str, n: int) -> None:
    """Labels that are positions must stand at their places: else either may be meant.

    Other labels (of a table that was filtered) are nobody's positions.
    """
    if index is None or callable(index):  # a list has a method of this name
        return
    labels = list(index)
    if labels != list(range(n)) and set(labels) == set(range(n)):
        raise ForgetSetError(
            f"expected {what}, a mask, in the order of the training dataset, got an "
            "index that counts its samples in another order: pass mask.sort_index() if "
            "the labels are positions, mask.to_numpy() if the order is the dataset's"
        )
