r"""Bounds on the distance between unlearned and retrained weights.

One theorem, one function. Letters inside are those of docs/theory.md; every number
is a plain float, no tensor and no data reaches this file.
"""

import math

from lightning_unlearn import _validate
from lightning_unlearn.errors import GuaranteeError


def _curvature(damping: float, lambda_min: float) -> float:
    _validate.non_negative(damping=damping)
    _validate.finite(lambda_min=lambda_min)
    m = damping + lambda_min
    if not m > 0:
        raise GuaranteeError(
            f"expected damping + lambda_min > 0, got {damping} + {lambda_min} = {m}: "
            f"raise damping above {-lambda_min}"
        )
    return m


def newton_step_terms(
    *,
    distance: float,
    hessian_lipschitz: float,
    damping: float,
    lambda_min: float,
    retrained_gradient_norm: float,
    residual: float,
) -> dict[str, float]:
    r"""The four terms of Theorem A, whose sum bounds the distance to retraining.

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
        The terms "damping", "hessian_change", "retrained_gradient" and "residual",
        in units of the weights.

    Raises:
        ArgumentError: If an argument is negative or not finite.
        GuaranteeError: If damping + lambda_min is not > 0.
    """
    _validate.non_negative(
        distance=distance,
        hessian_lipschitz=hessian_lipschitz,
        retrained_gradient_norm=retrained_gradient_norm,
        residual=residual,
    )
    D, M, m = distance, hessian_lipschitz, _curvature(damping, lambda_min)
    return {
        "damping": damping * D / m,
        "hessian_change": M / 2 * D**2 / m,
        "retrained_gradient": retrained_gradient_norm / m,
        "residual": residual / m,
    }


def newton_step_upper(
    *,
    distance: float,
    hessian_lipschitz: float,
    damping: float,
    lambda_min: float,
    retrained_gradient_norm: float,
    residual: float,
) -> float:
    """Upper bound on |unlearned - retrained| after one damped Newton step.

    The sum of `newton_step_terms`, which states the theorem and its arguments.
    """
    terms = newton_step_terms(
        distance=distance,
        hessian_lipschitz=hessian_lipschitz,
        damping=damping,
        lambda_min=lambda_min,
        retrained_gradient_norm=retrained_gradient_norm,
        residual=residual,
    )
    return math.fsum(terms.values())


def newton_step_upper_paper(
    *, max_norm: float, hessian_lipschitz: float, damping: float, lambda_min: float
) -> float:
    """Theorem 3.4 of the paper: ``2C(MC + lambda) / (lambda + lambda_min)``.

    Zhang et al. 2024 (arXiv 2408.00920), Theorem 3.4. It assumes that the retrained
    weights are stationary, which fails where the norm constraint binds, and that
    the linear system is solved exactly.

    Args:
        max_norm: C, the radius of the ball both weight vectors lie in.
        hessian_lipschitz: M.
        damping: lambda.
        lambda_min: Smallest eigenvalue of the Hessian at the original weights.

    Returns:
        The bound, in units of the weights.

    Raises:
        ArgumentError: If an argument is outside its range.
        GuaranteeError: If damping + lambda_min is not > 0.
    """
    _validate.positive(max_norm=max_norm)
    _validate.non_negative(hessian_lipschitz=hessian_lipschitz)
    C, M, m = max_norm, hessian_lipschitz, _curvature(damping, lambda_min)
    return 2 * C * (M * C + damping) / m


def newton_step_upper_nonstationary_paper(
    *,
    max_norm: float,
    hessian_lipschitz: float,
    damping: float,
    lambda_min: float,
    gradient_norm: float,
) -> float:
    """Proposition 4.1 of the paper, first term: Theorem 3.4 plus ``G / m``.

    ``(2C(MC + lambda) + G) / (lambda + lambda_min)`` where G bounds the gradient at
    the *retrained* weights; it cannot be measured at the original ones.

    Args:
        max_norm: C.
        hessian_lipschitz: M.
        damping: lambda.
        lambda_min: Smallest eigenvalue of the Hessian at the original weights.
        gradient_norm: G.

    Returns:
        The bound, in units of the weights.

    Raises:
        ArgumentError: If an argument is outside its range.
        GuaranteeError: If damping + lambda_min is not > 0.
    """
    _validate.non_negative(gradient_norm=gradient_norm)
    stationary = newton_step_upper_paper(
        max_norm=max_norm,
        hessian_lipschitz=hessian_lipschitz,
        damping=damping,
        lambda_min=lambda_min,
    )
    return stationary + gradient_norm / _curvature(damping, lambda_min)


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
    _validate.non_negative(gradient_norm=gradient_norm)
    _validate.positive(strong_convexity=strong_convexity)
    return gradient_norm / strong_convexity


UNIT_ROUNDOFF = 2.0**-53  # u of IEEE double precision, round to nearest


def _gamma(k: float) -> float:
    ku = k * UNIT_ROUNDOFF
    if not ku < 0.01:
        raise GuaranteeError(
            f"expected sums short enough for float64 (k u < 0.01), got k u = {ku}"
        )
    return ku / (1 - ku)


def gradient_rounding_upper(
    *,
    n_retain: int,
    n_features: int,
    n_outputs: int,
    row_norm: float,
    weight_norm: float,
    link_residual_norm: float,
    link_lipschitz: float,
    link_norm: float,
    l2: float,
) -> float:
    r"""Bound on |computed - exact gradient| of an affine head in float64.

    The gradient is ``(1/n) sum_i D_i x_i^T + l2 W`` with ``D_i = s(z_i) - y_i``,
    ``z_i = W x_i`` and s the link of the loss. With ``gamma_k = ku/(1 - ku)``
    (Higham 2002, section 3.1), in any order of summation:

    * logits: ``|dz| <= gamma_{d+2} R |W|``, which moves D by at most L times that;
    * the link itself (exponentials of arguments up to R|W|, sums of K terms):
      relative error at most ``(2 R |W| + K + 10) u`` of |s|;
    * the sum over n samples: ``gamma_{n+4} B R``;
    * the regulariser and the last addition: ``4u (l2 |W| + B R)``.

    One percent is added for products of these small terms. theory.md's shorter
    ``(n + 50) u R_g`` leaves out the first item, which grows with R |W|.

    Args:
        n_retain: n, samples summed.
        n_features: d, length of a row x_i (with the 1 of the bias).
        n_outputs: K.
        row_norm: R >= |x_i| for every i.
        weight_norm: |W|.
        link_residual_norm: B >= |D_i| for every i.
        link_lipschitz: L, Lipschitz constant of s where the logits lie.
        link_norm: Bound on |s(z_i)|; 0 where the link is the identity.
        l2: Coefficient of (l2/2)|W|^2.

    Returns:
        The bound, in units of the gradient.

    Raises:
        ArgumentError: If an argument is outside its range.
        GuaranteeError: If n or d is so large that float64 sums prove nothing.
    """
    _validate.count(n_retain=n_retain, n_features=n_features, n_outputs=n_outputs)
    _validate.non_negative(
        row_norm=row_norm,
        weight_norm=weight_norm,
        link_residual_norm=link_residual_norm,
        link_lipschitz=link_lipschitz,
        link_norm=link_norm,
        l2=l2,
    )
    u, R, W, B = UNIT_ROUNDOFF, row_norm, weight_norm, link_residual_norm
    logits = link_lipschitz * _gamma(n_features + 2) * R * W
    link = (2 * R * W + n_outputs + 10) * u * link_norm
    total = R * (logits + link + _gamma(n_retain + 4) * B) + 4 * u * (l2 * W + B * R)
    return 1.01 * total
