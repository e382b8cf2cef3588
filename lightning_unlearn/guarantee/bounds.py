r"""Bounds on the distance between unlearned and retrained weights.

One theorem, one function. Letters inside are those of docs/theory.md; every number
is a plain float, no tensor and no data reaches this file.
"""

import math

from lightning_unlearn._base import validate
from lightning_unlearn.errors import GuaranteeError


def damped_curvature(damping: float, lambda_min: float) -> float:
    """Lambda + lambda_min, refused unless it is > 0."""
    validate.non_negative(damping=damping)
    validate.finite(lambda_min=lambda_min)
    m = damping + lambda_min
    if not m > 0:
        raise GuaranteeError(
            f"expected damping + lambda_min > 0, got {damping} + {lambda_min} = {m}: "
            f"raise damping above {-lambda_min}"
        )
    return m


def newton_step_upper(
    *,
    distance: float,
    hessian_lipschitz: float,
    damping: float,
    lambda_min: float,
    retrained_gradient_norm: float,
    residual: float,
) -> float:
    r"""Theorem A: upper bound on |unlearned - retrained| after one damped step.

    F twice differentiable with M-Lipschitz Hessian on the segment [w0, v], H its
    Hessian at w0, lambda + lambda_min(H) > 0, g the exact gradient at w0,
    ``w~ = w0 - x``, ``r = (H + lambda I) x - g``. Then::

        |w~ - v| <= (lambda D + (M/2) D^2 + |grad F(v)| + |r|) / (lambda + lambda_min)

    with D >= |w0 - v|. Proof: with d = w0 - v, ``g = grad F(v) + H d + E`` and
    ``|E| <= (M/2)|d|^2``; so ``w~ - v = (H + lambda I)^-1 (lambda d - E - grad F(v)
    - r)``. Generalises Lemma 3.3, Theorem 3.4 and Proposition 4.1 of Zhang et al.
    2024 (arXiv 2408.00920).

    Args:
        distance: D, a bound on the distance from w0 to the retrained weights v.
        hessian_lipschitz: M.
        damping: lambda.
        lambda_min: Smallest eigenvalue of H, or a lower bound on it.
        retrained_gradient_norm: Bound on |grad F(v)|; 0 if v is stationary.
        residual: |r| of the linear solve.

    Returns:
        The bound, in units of the weights.

    Raises:
        ArgumentError: If an argument is negative or not finite.
        GuaranteeError: If damping + lambda_min is not > 0.
    """
    validate.non_negative(
        distance=distance,
        hessian_lipschitz=hessian_lipschitz,
        retrained_gradient_norm=retrained_gradient_norm,
        residual=residual,
    )
    D, M, m = distance, hessian_lipschitz, damped_curvature(damping, lambda_min)
    terms = (damping * D, M / 2 * D**2, retrained_gradient_norm, residual)
    return math.fsum(term / m for term in terms)


def strongly_convex_upper(*, gradient_norm: float, strong_convexity: float) -> float:
    r"""Distance to the minimiser of a strongly convex F: ``|grad F(w)| / mu``.

    For mu-strongly convex, differentiable F with minimiser w* and ANY w, however
    found: ``mu |w - w*|^2 <= <grad F(w) - grad F(w*), w - w*> <= |grad F(w)| |w -
    w*|`` (strong convexity, then Cauchy-Schwarz). No smoothness, no norm bound.

    Args:
        gradient_norm: Bound on |grad F(w)|.
        strong_convexity: mu; the l2 coefficient when the data loss is convex and
            the regulariser covers every weight in scope.

    Returns:
        The bound, in units of the weights.

    Raises:
        ArgumentError: If an argument is outside its range.

    Example:
        >>> strongly_convex_upper(gradient_norm=1e-6, strong_convexity=1e-3)
        0.001
    """
    validate.non_negative(gradient_norm=gradient_norm)
    validate.positive(strong_convexity=strong_convexity)
    return gradient_norm / strong_convexity
