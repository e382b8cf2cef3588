"""The bounds of Zhang et al. 2024 as published, for reproduction (names in `_paper`).

None of these is used for a guarantee: `bounds.newton_step_upper` is.
"""

import math

from lightning_unlearn._base import validate
from lightning_unlearn.errors import ArgumentError
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
    the *retrained* weights; it cannot be measured at the original ones. Proposition
    4.2: the same holds after every request of a sequence, for every state lies in the
    ball of radius C; the privacy budget does grow.

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
