"""What a classifier takes as targets and as weights of classes, checked."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_unlearn._base import validate
from lightning_unlearn.errors import ArgumentError, DataError


def classes(targets: Tensor, K: int) -> Tensor:
    """Classes (n,) as int64.

    Raises:
        DataError: If they have another shape, or one is not from 0 to K - 1.
    """
    if targets.dim() != 1:
        raise DataError(
            f"expected classes of shape (n,), got {tuple(targets.shape)}: for several "
            "labels of a sample say loss='bce'; for one, drop the other dimensions"
        )
    outside = targets[(targets < 0) | (targets >= K)]
    if outside.numel():
        raise DataError(
            f"expected classes from 0 to {K - 1}, got {int(outside[0])}: set "
            "num_classes= to the number of classes, or number them from 0 on"
        )
    return targets.long()


def yes_or_no(targets: Tensor, K: int) -> Tensor:
    """Targets (n, K) from 0 to 1, float.

    Raises:
        DataError: If they have another shape, or are not from 0 to 1.
    """
    found = targets[:, None] if K == 1 and targets.dim() == 1 else targets
    if found.dim() != 2 or found.shape[1] != K:
        raise DataError(
            f"expected targets of shape (n, {K}) for loss='bce', one yes or no for "
            f"each label, got {tuple(targets.shape)}: for one class of several a "
            "sample say loss='cross_entropy'; else set num_classes= to the number of "
            "labels"
        )
    found = found if found.is_floating_point() else found.float()
    inside = (found >= 0) & (found <= 1)
    if not bool(inside.all()):
        raise DataError(
            "expected targets from 0 (no) to 1 (yes) for loss='bce', got "
            f"{float(found[~inside][0]):g}: code them so"
        )
    return found


def yes(sample_weights: object) -> bool:
    """Whether batches have weights of their samples.

    Raises:
        ArgumentError: If it is the weights themselves, or something else.
    """
    if not isinstance(sample_weights, bool):
        raise ArgumentError(
            "expected sample_weights=True or False, got "
            f"{type(sample_weights).__name__}: the weights themselves are a column of "
            "the data, the third part of each batch"
        )
    return sample_weights


def class_weights(given: Sequence[float], count: int) -> Tensor:
    """Weights of classes (count,).

    Raises:
        ArgumentError: If they are not so many numbers >= 0, or are all 0.
    """
    if isinstance(given, str):
        raise ArgumentError(
            f"expected class_weights as {count} numbers, got {given!r}: frequencies "
            "counted among the training samples remember the ones to be forgotten; "
            "state public constants"
        )
    found = [float(x) for x in given]
    validate.non_negative(**{f"class_weights_{i}": x for i, x in enumerate(found)})
    if len(found) != count or not any(found):
        raise ArgumentError(
            f"expected {count} class_weights, not all 0, got {found}: one for each "
            "class (for loss='bce' with one label, of no and of yes)"
        )
    return torch.tensor(found)
