"""The bounds of Zhang et al. 2024 as published, for reproduction (names in `_paper`).

None of these is used for a guarantee: `bounds.newton_step_upper` is.
"""

import math

from lightning_unlearn._base import validate
from lightning_unlearn.errors import ArgumentError, GuaranteeError
from lightning_unlearn.guarantee.bounds import damped_curvature


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
    validate.positive(max_norm=max_norm)
    validate.non_negative(hessian_lipschitz=hessian_lipschitz)
    C, M, m = max_norm, hessian_lipschitz, damped_curvature(damping, lambda_min)
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
    validate.non_negative(gradient_norm=gradient_norm)
    stationary = newton_step_upper_paper(
        max_norm=max_norm,
        hessian_lipschitz=hessian_lipschitz,
        damping=damping,
        lambda_min=lambda_min,
    )
    return stationary + gradient_norm / damped_curvature(damping, lambda_min)


def lissa_error_upper_paper(
    *,
    hessian_norm: float,
    n_parameters: int,
    failure: float,
    damping: float,
    lambda_min: float,
    gradient_lipschitz: float,
    max_norm: float,
    gradient_norm: float,
) -> float:
    """What Theorem 3.6 of the paper adds for LiSSA, with probability 1 - failure.

    ``(16 B sqrt(ln(p/rho)) / (lambda + lambda_min) + 1/16)(2LC + G)`` (Zhang et al.
    2024, Theorem 3.6). Hundreds of times the error that is measured; a guarantee uses
    the measured residual, which is deterministic.

    Args:
        hessian_norm: B, bound on the norm of every mini-batch Hessian.
        n_parameters: p.
        failure: rho.
        damping: lambda.
        lambda_min: Smallest eigenvalue of the Hessian at the original weights.
        gradient_lipschitz: L.
        max_norm: C.
        gradient_norm: G.

    Returns:
        The addition to the bound, in units of the weights.

    Raises:
        ArgumentError: If an argument is outside its range.
        GuaranteeError: If damping + lambda_min is not > 0.
    """
    validate.non_negative(
        hessian_norm=hessian_norm,
        gradient_lipschitz=gradient_lipschitz,
        gradient_norm=gradient_norm,
    )
    validate.positive(max_norm=max_norm)
    validate.count(n_parameters=n_parameters)
    validate.probability(failure=failure)
    m = damped_curvature(damping, lambda_min)
    root = math.sqrt(math.log(n_parameters / failure))
    reach = 2 * gradient_lipschitz * max_norm + gradient_norm
    return (16 * hessian_norm * root / m + 1 / 16) * reach


def newton_step_upper_lissa_paper(
    *,
    max_norm: float,
    hessian_lipschitz: float,
    damping: float,
    lambda_min: float,
    gradient_norm: float,
    hessian_norm: float,
    n_parameters: int,
    failure: float,
    gradient_lipschitz: float,
) -> float:
    """Theorem 3.6 / Proposition 4.1 in full: the step's bound plus LiSSA's error.

    The arguments are those of `newton_step_upper_nonstationary_paper` and
    `lissa_error_upper_paper`.
    """
    return newton_step_upper_nonstationary_paper(
        max_norm=max_norm,
        hessian_lipschitz=hessian_lipschitz,
        damping=damping,
        lambda_min=lambda_min,
        gradient_norm=gradient_norm,
    ) + lissa_error_upper_paper(
        hessian_norm=hessian_norm,
        n_parameters=n_parameters,
        failure=failure,
        damping=damping,
        lambda_min=lambda_min,
        gradient_lipschitz=gradient_lipschitz,
        max_norm=max_norm,
        gradient_norm=gradient_norm,
    )


def sequential_upper_paper(
    *,
    requests: int,
    max_norm: float,
    hessian_lipschitz: float,
    damping: float,
    lambda_min: float,
    gradient_norm: float,
) -> float:
    """Proposition 4.2 of the paper: the same bound after every request of a sequence.

    It holds because every state lies in the ball of radius C, so the distance to the
    retrained weights is at most 2C before each step; it does not grow with the number
    of requests (Zhang et al. 2024, Proposition 4.2). The privacy budget does.

    Args:
        requests: Number of requests, >= 1; the bound does not depend on it.
        max_norm: C.
        hessian_lipschitz: M.
        damping: lambda.
        lambda_min: Smallest Hessian eigenvalue over the states the steps start from.
        gradient_norm: G.

    Returns:
        The bound after the last request, in units of the weights.

    Raises:
        ArgumentError: If an argument is outside its range.
        GuaranteeError: If damping + lambda_min is not > 0.
    """
    validate.count(requests=requests)
    return newton_step_upper_nonstationary_paper(
        max_norm=max_norm,
        hessian_lipschitz=hessian_lipschitz,
        damping=damping,
        lambda_min=lambda_min,
        gradient_norm=gradient_norm,
    )


def lissa_filter(*, eigenvalue: float, scale: float, steps: int) -> float:
    """The part of 1/h that LiSSA applies along an eigen-direction h of A.

    ``1 - (1 - h/scale)^(steps + 1)``: 1 is the exact inverse, 0.01 a hundredth of it.
    Proof: ``v_s = sum_{t=0..s} (I - A/scale)^t b`` is a geometric sum.

    Args:
        eigenvalue: h, in (0, 2 scale) for the series to converge.
        scale: The series' scale.
        steps: The series' length.

    Returns:
        The factor.

    Raises:
        ArgumentError: If an argument is outside its range.

    Example:
        >>> round(lissa_filter(eigenvalue=0.01, scale=1000.0, steps=1000), 3)
        0.01
    """
    validate.positive(eigenvalue=eigenvalue, scale=scale)
    validate.count(steps=steps)
    return 1 - (1 - eigenvalue / scale) ** (steps + 1)


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
    validate.non_negative(full_gradient_norm=full_gradient_norm)
    validate.count(n_retain=n_retain, n_train=n_train)
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
    validate.non_negative(
        hessian_lipschitz=hessian_lipschitz, newton_step_norm=newton_step_norm
    )
    validate.positive(inverse_norm=inverse_norm)
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
    validate.positive(feature_norm=feature_norm)
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
    validate.positive(feature_norm=feature_norm)
    return feature_norm**3 / (6 * math.sqrt(3))


def gaussian_sigma_classic(epsilon: float, delta: float, sensitivity: float) -> float:
    """Noise of Theorem 2.3 of the paper, for reproduction: epsilon <= 1 only.

    ``(sensitivity / epsilon) sqrt(2 ln(1.25 / delta))`` (Zhang et al. 2024, arXiv
    2408.00920, Theorem 2.3, after Dwork & Roth 2014, Theorem A.1, whose proof
    needs epsilon <= 1). Looser than `gaussian_sigma` wherever it is valid.

    Args:
        epsilon: Privacy parameter, in (0, 1].
        delta: Failure probability, in (0, 1).
        sensitivity: Bound on the distance of the two outputs, > 0.

    Returns:
        Standard deviation per coordinate.

    Raises:
        ArgumentError: If epsilon > 1 or an argument is outside its range.
    """
    validate.positive(epsilon=epsilon, sensitivity=sensitivity)
    validate.probability(delta=delta)
    if epsilon > 1:
        raise ArgumentError(
            f"expected epsilon <= 1, where the classic constant is proved, got "
            f"epsilon={epsilon}: use gaussian_sigma, exact for every epsilon"
        )
    return sensitivity / epsilon * math.sqrt(2 * math.log(1.25 / delta))
