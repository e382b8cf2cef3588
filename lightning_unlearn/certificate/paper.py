"""The bounds of Zhang et al. 2024 as published, for reproduction (names in `_paper`).

None of these is used for a guarantee: `bounds.newton_step_upper` is.
"""

import math

from lightning_unlearn import _validate
from lightning_unlearn.certificate.bounds import damped_curvature


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
    _validate.non_negative(gradient_norm=gradient_norm)
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
    _validate.non_negative(
        hessian_norm=hessian_norm,
        gradient_lipschitz=gradient_lipschitz,
        gradient_norm=gradient_norm,
    )
    _validate.positive(max_norm=max_norm)
    _validate.count(n_parameters=n_parameters)
    _validate.probability(failure=failure)
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
    _validate.count(requests=requests)
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
    _validate.positive(eigenvalue=eigenvalue, scale=scale)
    _validate.count(steps=steps)
    return 1 - (1 - eigenvalue / scale) ** (steps + 1)
