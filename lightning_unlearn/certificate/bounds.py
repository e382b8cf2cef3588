r"""Bounds on the distance between unlearned and retrained weights.

One theorem, one function. Letters inside are those of docs/theory.md; every number
is a plain float, no tensor and no data reaches this file.
"""

import math

from lightning_unlearn import _validate
from lightning_unlearn.errors import GuaranteeError


def damped_curvature(damping: float, lambda_min: float) -> float:
    """Lambda + lambda_min, refused unless it is > 0."""
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
    D, M, m = distance, hessian_lipschitz, damped_curvature(damping, lambda_min)
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


def forget_gradient_surcharge(
    *,
    full_gradient_norm: float,
    n_train: int,
    n_retain: int,
    damping: float,
    lambda_min: float,
) -> float:
    r"""What Theorem A gains when g comes from the forget set alone.

    ``-(n_u/n_r) grad L(w0; D_u)`` equals ``grad L(w0; D_r) - (n/n_r) grad L(w0; D)``,
    so the step uses a gradient that is off by ``(n/n_r)|grad L(w0; D)|``: one more
    residual, divided by ``lambda + lambda_min``. Zero only where training ended at a
    stationary point (Zhang et al. 2024, section 3, assumes that it did).

    Args:
        full_gradient_norm: |grad L(w0; D)| over the whole training set.
        n_train: n.
        n_retain: n_r.
        damping: lambda.
        lambda_min: Smallest eigenvalue of the Hessian at w0, or less.

    Returns:
        The surcharge, in units of the weights.

    Raises:
        ArgumentError: If an argument is outside its range.
        GuaranteeError: If damping + lambda_min is not > 0.
    """
    _validate.non_negative(full_gradient_norm=full_gradient_norm)
    _validate.count(n_retain=n_retain, n_train=n_train)
    off = n_train / n_retain * full_gradient_norm
    return off / damped_curvature(damping, lambda_min)


def newton_kantorovich_upper(
    *, hessian_lipschitz: float, inverse_norm: float, newton_step_norm: float
) -> float:
    r"""Distance to a stationary point, from one exact Newton step.

    With ``h = M |H^-1| |H^-1 g| <= 1/2`` there is a stationary point within
    ``2 |H^-1 g| / (1 + sqrt(1 - 2h))`` (Kantorovich 1948; Ortega 1968). It is THE
    minimiser where F is strictly convex.

    Args:
        hessian_lipschitz: M, in the ball the bound describes.
        inverse_norm: Bound on |H^-1|.
        newton_step_norm: |H^-1 g|.

    Returns:
        The bound, in units of the weights.

    Raises:
        ArgumentError: If an argument is outside its range.
        GuaranteeError: If h > 1/2: the theorem says nothing.
    """
    _validate.non_negative(
        hessian_lipschitz=hessian_lipschitz, newton_step_norm=newton_step_norm
    )
    _validate.positive(inverse_norm=inverse_norm)
    h = hessian_lipschitz * inverse_norm * newton_step_norm
    if not h <= 0.5:
        raise GuaranteeError(
            f"expected h = M |H^-1| |H^-1 g| <= 1/2 for Newton-Kantorovich, got {h:.3g}"
            ": take another Newton step first"
        )
    return 2 * newton_step_norm / (1 + math.sqrt(1 - 2 * h))


def softmax_hessian_lipschitz(*, feature_norm: float) -> float:
    r"""M of softmax cross-entropy over affine logits: ``sqrt(2)/(3 sqrt(3)) R^3``.

    The third derivative of log-sum-exp at z along u is the third cumulant of u under
    softmax(z). A symmetric trilinear form has its norm on the diagonal (Banach 1938);
    u with |u| = 1 spreads over an interval of length at most sqrt(2), and a third
    central moment on an interval of length r is at most ``r^3/(6 sqrt(3))``.
    Logits of a row x move by at most R |dW|; three factors of R.

    Args:
        feature_norm: R, the largest feature row (with the 1 of the bias).

    Returns:
        M, about .2722 R^3.

    Example:
        >>> round(softmax_hessian_lipschitz(feature_norm=1.0), 4)
        0.2722
    """
    _validate.positive(feature_norm=feature_norm)
    return math.sqrt(2) / (3 * math.sqrt(3)) * feature_norm**3


def logistic_hessian_lipschitz(*, feature_norm: float) -> float:
    r"""M of binary logistic regression: ``R^3/(6 sqrt(3))``, about .0962 R^3.

    The largest third derivative of ``log(1 + e^z)``, at ``s = 1/2 +- 1/(2 sqrt 3)``.

    Args:
        feature_norm: R, the largest feature row.

    Returns:
        M.

    Example:
        >>> round(logistic_hessian_lipschitz(feature_norm=1.0), 4)
        0.0962
    """
    _validate.positive(feature_norm=feature_norm)
    return feature_norm**3 / (6 * math.sqrt(3))


def lanczos_lambda_min_lower(
    *, ritz_min: float, ritz_max: float, steps: int, size: int, failure: float
) -> float:
    r"""A lower bound on lambda_min, true with probability 1 - failure.

    Lanczos from a start uniform on the sphere errs, for the largest eigenvalue of a
    positive semidefinite matrix, by more than a part e of it with probability at most
    ``1.648 sqrt(p) exp(-sqrt(e)(2k - 1))`` (Kuczynski & Wozniakowski 1992, Theorem
    4.2). Krylov spaces do not change under shifts and signs, so it holds for both
    ends with the spread S = lambda_max - lambda_min in place of the eigenvalue. With
    s the spread of the Ritz values, ``S <= s + 2 e S``, and so ``lambda_min >=
    ritz_min - e s / (1 - 2e)``; the two ends share the failure probability.

    Args:
        ritz_min: Smallest Ritz value.
        ritz_max: Largest.
        steps: k, products made.
        size: p, rows of the matrix.
        failure: Probability with which the bound may fail, over the start vector.

    Returns:
        The lower bound; minus infinity is never returned.

    Raises:
        ArgumentError: If an argument is outside its range.
        GuaranteeError: If there are too few steps to say anything.
    """
    _validate.finite(ritz_min=ritz_min, ritz_max=ritz_max)
    _validate.count(steps=steps, size=size)
    _validate.probability(failure=failure)
    if steps >= size:  # the whole space was searched
        return ritz_min
    root = math.log(2 * 1.648 * math.sqrt(size) / failure) / (2 * steps - 1)
    e = root**2
    if not 2 * e < 1:
        raise GuaranteeError(
            f"expected enough Lanczos steps for a bound on lambda_min, got {steps} for "
            f"{size} weights at failure probability {failure:.3g}: take more steps"
        )
    return ritz_min - e * (ritz_max - ritz_min) / (1 - 2 * e)
