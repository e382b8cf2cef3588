"""What is checked before anything is claimed.

How a step is searched for is not here and need not be reviewed: a claim
(`certificate.theorems`) rests on what these functions are given at its end, and on
nothing else.
"""

from lightning_unlearn.errors import GuaranteeError, SolverError
from lightning_unlearn.guarantee.kinds import NewtonStep


def is_stationary(
    gradient_norm: float, size: int, rounding: float, tolerance: float
) -> bool:
    """The stop test of a convex head: |exact gradient| <= tolerance, proved.

    Args:
        gradient_norm: |g| of the computed gradient (size,), in float64.
        size: Its length: the norm is a sum of so many squares.
        rounding: Bound on |computed - exact gradient| (`gradient_rounding_upper`).
        tolerance: tau, fixed before the data was seen.
    """
    slack = 1 + (size + 8) * 2.0**-52
    return gradient_norm * slack + rounding <= tolerance


def check_start(weight_norm: float, max_norm: float) -> None:
    """Raise `GuaranteeError` unless Theorem A may start from weights of this norm."""
    if not weight_norm <= max_norm * (1 + 1e-6):
        raise GuaranteeError(
            f"expected weights in the ball of max_norm={max_norm}, got norm "
            f"{weight_norm:.4g}: train with the same max_norm in the callback, which "
            "projects"
        )


def check_residual(measured: float, guarantee: NewtonStep) -> None:
    """Raise `SolverError` unless a solve is as good as Theorem A was told."""
    if not measured <= guarantee.residual:
        raise SolverError(
            f"expected a residual of at most {guarantee.residual} (NewtonStep), got "
            f"{measured:.3g}: lower the solver's rtol or raise residual="
        )
