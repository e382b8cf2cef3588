"""Rows held to what a bound takes as fixed before they were read."""

import torch

from lightning_unlearn.errors import GuaranteeError
from lightning_unlearn.step.head.rows.feature_data import FeatureData

#: Soft targets may add up to 1.01, and so may the weight that class weights make.
_SOFT = 1.01


def check_bounded(
    rows: FeatureData, bias: bool, longest: float, heaviest: float
) -> None:
    """Raise unless rows, targets and weights are what every sample's are said to be.

    Args:
        rows: As they reach the head.
        bias: Whether it has one.
        longest: Norm of a row and the 1 of a bias, at most.
        heaviest: Weight of a sample, at most.

    Raises:
        GuaranteeError: If one is beyond it.
    """
    if not rows.n:
        return
    norms = (rows.features.norm(dim=1).double().square() + bias).sqrt()
    if not float(norms.max()) <= longest:
        raise GuaranteeError(
            f"expected rows of norm at most {longest:.6g} at the head for "
            f"cover_served=, got {float(norms.max()):.6g}: what the backbone gives "
            "must reach the head as it is"
        )
    if rows.weights is not None and not float(rows.weights.max()) <= _SOFT * heaviest:
        raise GuaranteeError(
            f"expected weights of samples of at most {heaviest:g} for cover_served=, "
            f"got {float(rows.weights.max()):.4g}: how far one sample moves the head "
            "must be known before it is read; divide all weights by a public constant"
        )
    targets = rows.targets
    if targets.is_floating_point():
        inside = (targets >= 0) & (targets <= _SOFT)
        if not bool(torch.all(inside)):
            raise GuaranteeError(
                "expected targets from 0 to 1 for cover_served=, got others: how far "
                "one sample moves the head must be known before it is read"
            )
