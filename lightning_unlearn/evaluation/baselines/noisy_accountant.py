r"""Accountant of noisy fine-tuning: clip the weights, then noisy steps, clipped too.

The procedure (Koloskova et al., ICML 2025, gradient clipping), from weights w:

    x_0     = w scaled to |x_0| <= C0
    x_(t+1) = (1 - lr l2) x_t - lr c_t(x_t) + N(0, noise_std^2 I),  |c_t(x)| <= C1

with the same c_t whatever w is: it may depend on x_t, on the retained samples and on
coins, not on the forgotten samples. What is bounded is how far the law of x_T from one
w is from that from any other w', one trained without the forgotten samples included.
Nothing is assumed of the loss, so nothing of what w knew is kept for certain either.

Derivation. Let rho = 1 - lr l2, in [0, 1], and s = 2 lr C1. Two points at distance z
have images at most rho z + s apart (two clipped gradients differ by 2 C1), and the
same image if z = 0. Removing a part a of the distance costs alpha a^2 / (2 noise_std^2)
in Renyi divergence of order alpha (the shift-reduction lemma, Feldman et al. 2018,
arXiv 1808.06651, Lemma 20). Starting at most 2 C0 apart and removing all within t
steps costs at least, by Cauchy-Schwarz, and at most, by the choice that attains it,

    RDP(alpha) = alpha mu_t^2 / 2,    mu_t = R_t / (noise_std sqrt(S_t)),
    R_t = rho^t 2 C0 + s sum_(k<t) rho^k,    S_t = sum_(k<t) rho^(2k).

(Should that choice ever remove more than is there, stopping at distance 0 is cheaper.)
The steps after t see equal laws and add nothing, so every t <= T gives a bound, and the
least counts. With rho < 0 all this fails: the map stretches by |rho|, while R_t would
subtract.
"""

import math

from lightning_unlearn._base import validate
from lightning_unlearn.errors import ArgumentError
from lightning_unlearn.guarantee.gaussian import bisect_log

_UNIT = 2.0**-53


def noisy_fine_tuning_sensitivity(
    *, max_norm: float, gradient_norm: float, l2: float, lr: float, steps: int
) -> float:
    """What the whole procedure costs, as the sensitivity of one Gaussian release.

    ``min over t <= steps of R_t / sqrt(S_t)``, rounded up; the RDP of order alpha is
    ``alpha / 2`` times the square of this over the noise. It falls with the number of
    steps until about ``max_norm / (lr gradient_norm)`` (without l2) and then stays at
    ``4 sqrt(max_norm lr gradient_norm)``: further steps buy nothing.

    Args:
        max_norm: C0, the radius the weights are scaled into at the start, > 0.
        gradient_norm: C1, the norm each step's gradient is clipped to, > 0.
        l2: Weight decay, >= 0, applied after clipping.
        lr: Step size, > 0, with ``lr * l2 <= 1``.
        steps: T, >= 1.

    Returns:
        In units of the weights.

    Raises:
        ArgumentError: If an argument is outside its range.

    Example:
        >>> options = {"max_norm": 1.0, "gradient_norm": 1.0, "l2": 0.0, "lr": 0.01}
        >>> round(noisy_fine_tuning_sensitivity(**options, steps=1), 6)
        2.02
        >>> round(noisy_fine_tuning_sensitivity(**options, steps=100), 6)
        0.4
        >>> round(noisy_fine_tuning_sensitivity(**options, steps=1000), 6)
        0.4
    """
    validate.positive(max_norm=max_norm, gradient_norm=gradient_norm, lr=lr)
    validate.non_negative(l2=l2)
    validate.count(steps=steps)
    if not lr * l2 <= 1:
        raise ArgumentError(
            f"expected lr * l2 <= 1, where a step does not overshoot zero, got "
            f"{lr * l2}: take a lower lr or l2"
        )
    rho, shift = 1 - lr * l2, 2 * lr * gradient_norm
    reach, noise, least = 2 * max_norm, 0.0, math.inf
    for t in range(1, steps + 1):
        reach = rho * reach + shift
        noise = rho * rho * noise + 1
        # R and S are sums of positive terms: each step adds a few roundings at most.
        bound = reach / math.sqrt(noise) * (1 + 8 * (t + 1) * _UNIT)
        if bound >= least:  # in t it falls, then rises
            break
        least = bound
    validate.positive(sensitivity=least)
    return least


def rdp_epsilon(mu: float, delta: float) -> float:
    """Epsilon at `delta` of a procedure with RDP ``alpha mu^2 / 2`` at every alpha > 1.

    ``min over alpha of RDP(alpha) + ln((alpha - 1) / alpha) - (ln delta + ln alpha) /
    (alpha - 1)`` (Canonne, Kamath, Steinke 2020, arXiv 2004.00010, Proposition 12;
    Balle et al. 2020, arXiv 1905.09982, Theorem 21). Looser than `gaussian_epsilon`,
    which asks for more than RDP.

    Args:
        mu: > 0.
        delta: Failure probability, in (0, 1).

    Returns:
        Epsilon >= 0, rounded up.

    Raises:
        ArgumentError: If an argument is outside its range.

    Example:
        >>> round(rdp_epsilon(1.0, 1e-5), 3)
        4.728
    """
    validate.positive(mu=mu)
    validate.probability(delta=delta)
    # With u = alpha - 1 the derivative is mu^2 / 2 + ln(delta (1 + u)) / u^2: it has
    # one root. Any u gives a valid epsilon, so the root need not be exact.
    log_delta = math.log(delta)
    low, high = 0.0, min(math.sqrt(-2 * log_delta) / mu, 1 / delta, 1e300)
    while (u := (low + high) / 2) not in (low, high):
        if mu * u * mu * u / 2 + log_delta + math.log1p(u) < 0:
            low = u
        else:
            high = u
    u = high
    terms = (
        (1 + u) * mu * mu / 2,
        -math.log1p(1 / u),
        -log_delta / u,
        -math.log1p(u) / u,
    )
    epsilon = sum(terms) + 16 * _UNIT * sum(map(abs, terms))
    return math.inf if math.isnan(epsilon) else max(0.0, epsilon)


def noisy_fine_tuning_epsilon(
    delta: float,
    *,
    noise_std: float,
    max_norm: float,
    gradient_norm: float,
    l2: float,
    lr: float,
    steps: int,
) -> float:
    """Epsilon of the last weights against those from any other start, rounded up.

    Of the last weights alone, with the noise of an honest source and in exact
    arithmetic: the weights between the steps must not be seen.

    Args:
        delta: Failure probability, in (0, 1).
        noise_std: Of the noise added to every weight at each step, > 0.
        max_norm: As for `noisy_fine_tuning_sensitivity`.
        gradient_norm: As for `noisy_fine_tuning_sensitivity`.
        l2: As for `noisy_fine_tuning_sensitivity`.
        lr: As for `noisy_fine_tuning_sensitivity`.
        steps: As for `noisy_fine_tuning_sensitivity`.

    Returns:
        Epsilon >= 0.

    Raises:
        ArgumentError: If an argument is outside its range.
    """
    validate.positive(noise_std=noise_std)
    sensitivity = noisy_fine_tuning_sensitivity(
        max_norm=max_norm, gradient_norm=gradient_norm, l2=l2, lr=lr, steps=steps
    )
    return rdp_epsilon(_mu(sensitivity, noise_std), delta)


def noisy_fine_tuning_noise_std(
    epsilon: float,
    delta: float,
    *,
    max_norm: float,
    gradient_norm: float,
    l2: float,
    lr: float,
    steps: int,
) -> float:
    """Least noise a step for (epsilon, delta): the checked safe end of a bracket.

    Args:
        epsilon: Privacy parameter, > 0.
        delta: Failure probability, in (0, 1).
        max_norm: As for `noisy_fine_tuning_sensitivity`.
        gradient_norm: As for `noisy_fine_tuning_sensitivity`.
        l2: As for `noisy_fine_tuning_sensitivity`.
        lr: As for `noisy_fine_tuning_sensitivity`.
        steps: As for `noisy_fine_tuning_sensitivity`.

    Returns:
        A standard deviation for which `noisy_fine_tuning_epsilon` is <= `epsilon`.

    Raises:
        ArgumentError: If an argument is outside its range.

    Example:
        >>> options = {"max_norm": 1.0, "gradient_norm": 1.0, "l2": 0.0, "lr": 0.01}
        >>> round(noisy_fine_tuning_noise_std(1.0, 1e-5, **options, steps=100), 3)
        1.618
    """
    validate.positive(epsilon=epsilon)
    validate.probability(delta=delta)
    sensitivity = noisy_fine_tuning_sensitivity(
        max_norm=max_norm, gradient_norm=gradient_norm, l2=l2, lr=lr, steps=steps
    )

    def is_safe(noise_std: float) -> bool:
        return rdp_epsilon(_mu(sensitivity, noise_std), delta) <= epsilon

    safe = unsafe = sensitivity
    while not is_safe(safe):
        safe *= 2
        validate.positive(noise_std=safe)
    while is_safe(unsafe):
        unsafe /= 2
        validate.positive(noise_std=unsafe)
    return bisect_log(safe, unsafe, is_safe)


def _mu(sensitivity: float, noise_std: float) -> float:
    return math.nextafter(sensitivity / noise_std, math.inf)
