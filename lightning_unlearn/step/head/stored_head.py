"""A `PreparedHead` from the tensors of a file."""

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_unlearn.errors import DataError
from lightning_unlearn.step.head.factor import Factor
from lightning_unlearn.step.head.prepared_head import PreparedHead
from lightning_unlearn.step.head.quadratic.gram import Gram, check_limbs
from lightning_unlearn.step.head.rows.feature_data import FeatureData
from lightning_unlearn.step.stored import check, check_finite, check_positions


def head_from(tensors: Mapping[str, Tensor]) -> PreparedHead:
    """What `PreparedHead.tensors` were made of.

    Raises:
        DataError: If a type, a shape or a number is not one of a prepared head.
        KeyError: If a tensor is missing.
    """
    found = tensors.get
    positions, gradient = tensors["positions"], found("gradient")
    n, p = len(positions), 0 if gradient is None else gradient.numel()
    check_positions(positions)
    check_finite(tensors)
    features, targets = tensors["features"], tensors["targets"]
    block, weights = tensors["block"], found("weights")
    check("block", block, torch.int64, ())
    if not int(block) >= 1:
        raise DataError(f"its block is {int(block)}")
    start, inverse = found("start"), found("factor")
    for name, tensor in (("gradient", gradient), ("start", start)):
        if tensor is not None:
            check(name, tensor, torch.float64, (p,))
    if inverse is not None:
        check("factor", inverse, torch.float32, (p, p))
    if features.dim() != 2 or len(features) != n or len(targets) != n:
        raise DataError(f"it does not have {n} rows of features and targets")
    if weights is not None and not (
        weights.dim() == 2 and len(weights) == n and bool((weights >= 0).all())
    ):
        raise DataError(f"it does not have {n} weights >= 0")
    return PreparedHead(
        rows=FeatureData(features, targets, weights),
        positions=positions,
        block=int(block),
        n=n,
        start=start,
        gradient=gradient,
        factor=None if inverse is None else Factor(inverse),
        gram=None if "gram" not in tensors else _gram(tensors),
    )


def _gram(tensors: Mapping[str, Tensor]) -> Gram:
    limbs, counts = tensors["gram"], tensors["gram_counts"]
    (n, d), K = tensors["features"].shape, tensors["targets"].shape[-1]
    bias = limbs.dim() == 3 and limbs.shape[2] == d + 2
    wrong = check_limbs(limbs, counts, d + bias, K, n)
    if wrong:
        raise DataError(wrong)
    return Gram(limbs=limbs, counts=counts, bias=bias)
