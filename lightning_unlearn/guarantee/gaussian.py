r"""The Gaussian mechanism: what noise gives (epsilon, delta), and the reverse.

Everything goes through one number, ``mu = sensitivity / noise_std``: a release
with that ratio is mu-GDP (Dong, Roth, Su 2022), and its exact trade-off is

    delta(epsilon; mu) = Phi(mu/2 - epsilon/mu) - e^epsilon Phi(-mu/2 - epsilon/mu)

(Balle & Wang 2018, arXiv 1805.06530v2, Theorem 8). Functions that return a number
a guarantee rests on return the checked safe end of a bracket, never a root.
"""

import math
from collections.abc import Callable

from scipy.special import erfcx, log_ndtr, ndtr, ndtri

from lightning_unlearn._base import validate
from lightning_unlearn.errors import ArgumentError

# The evaluation of log delta is accurate to 1e-10 plus what the one subtraction
# loses; a candidate counts as safe only when it clears the target by more than that.
_LOG_SLACK = 1e-10
_SUBTRACTION = 16 * 2.0**-53
_RTOL = 1e-10


def gaussian_log_delta(epsilon: float, mu: float) -> float:
    """Logarithm of the exact delta of a mu-GDP release at `epsilon`, both > 0.

    Balle & Wang 2018, Theorem 8, in the stable form of docs/theory.md section 2; an
    upper bound where mu is too small for float64 to resolve.

    Example:
        >>> round(gaussian_log_delta(1.0, 1.0), 6)
        -2.064066
    """
    validate.positive(epsilon=epsilon, mu=mu)
    return _log_delta(epsilon, mu)[0]


def _log_delta(epsilon: float, mu: float) -> tuple[float, float]:
    """Log delta and a bound on the error of its evaluation."""
    x = epsilon / mu - mu / 2
    if x > -5:
        larger = float(erfcx(x / math.sqrt(2)))
        difference = larger - float(erfcx((x + mu) / math.sqrt(2)))
        if not difference > 0:  # mu below x u: log delta is about -x^2/2 - 36
            return -(x**2) / 2, _LOG_SLACK
        error = _LOG_SLACK + _SUBTRACTION * larger / difference
        return -(x**2) / 2 - math.log(2) + math.log(difference), error
    a = float(log_ndtr(-x))
    b = epsilon + float(log_ndtr(-(x + mu)))
    return a + math.log1p(-math.exp(b - a)), _LOG_SLACK


def gaussian_delta(epsilon: float, mu: float) -> float:
    """Exact delta of a mu-GDP release at `epsilon` (Balle & Wang 2018, Thm 8)."""
    return math.exp(gaussian_log_delta(epsilon, mu))


def _is_safe(epsilon: float, mu: float, delta: float) -> bool:
    log_delta, error = _log_delta(epsilon, mu)
    return log_delta + error <= math.log(delta)


def bisect_log(safe: float, unsafe: float, is_safe: Callable[[float], bool]) -> float:
    """Narrow [safe, unsafe] in log space and return the end that was checked."""
    while not abs(math.log(unsafe / safe)) <= _RTOL:
        middle = math.sqrt(safe) * math.sqrt(unsafe)
        if middle in (safe, unsafe):
            break
        if is_safe(middle):
            safe = middle
        else:
            unsafe = middle
    return safe


def gaussian_mu(epsilon: float, delta: float) -> float:
    """Largest mu for which a mu-GDP release is (epsilon, delta), rounded down.

    Args:
        epsilon: Privacy parameter, > 0.
        delta: Failure probability, in (0, 1).

    Example:
        >>> round(1 / gaussian_mu(1.0, 1e-5), 3)
        3.731
    """
    validate.positive(epsilon=epsilon)
    validate.probability(delta=delta)

    def is_safe(mu: float) -> bool:
        return _is_safe(epsilon, mu, delta)

    safe = unsafe = 1.0
    while not is_safe(safe):
        safe /= 2
    while is_safe(unsafe):
        unsafe *= 2
    return bisect_log(safe, unsafe, is_safe)


def gaussian_sigma(epsilon: float, delta: float, sensitivity: float) -> float:
    """Least noise standard deviation for (epsilon, delta), rounded up.

    Valid for every epsilon > 0, unlike `gaussian_sigma_classic`.

    Args:
        epsilon: Privacy parameter, > 0.
        delta: Failure probability, in (0, 1).
        sensitivity: Proved bound on the distance of the two outputs before
            noise, in units of the weights, > 0.

    Example:
        >>> round(gaussian_sigma(1.0, 1e-5, sensitivity=40.0), 1)
        149.2
    """
    validate.positive(sensitivity=sensitivity)
    return math.nextafter(sensitivity / gaussian_mu(epsilon, delta), math.inf)


def check_delta(delta: float) -> None:
    """Refuse a delta below what the noise sampler resolves.

    Each Gaussian is cut at 8.6 standard deviations, so far out in the tails the noise
    is not the one the theorem speaks of (probability about 1e-17 a draw).

    Raises:
        ArgumentError: If delta is not in [1e-12, 1).
    """
    validate.probability(delta=delta)
    if delta < 1e-12:
        raise ArgumentError(
            f"expected delta >= 1e-12, got {delta}: the noise is drawn from 52-bit "
            "uniforms, whose tails are too short for a smaller one"
        )


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Least epsilon at which a mu-GDP release has this delta, rounded up.

    Args:
        mu: Sensitivity over noise standard deviation, > 0.
        delta: Failure probability, in (0, 1).
    """
    validate.positive(mu=mu)
    validate.probability(delta=delta)

    def is_safe(epsilon: float) -> bool:
        return _is_safe(epsilon, mu, delta)

    unsafe, safe = 1e-9, 1.0
    if is_safe(unsafe):
        return unsafe
    while not is_safe(safe):
        unsafe, safe = safe, 2 * safe
    return bisect_log(safe, unsafe, is_safe)


def compose_mu(*mus: float) -> float:
    """The mu of several releases seen together: ``sqrt(sum mu_t^2)``.

    Of samples the first of them forgot; requests may depend on these releases, not on
    a model served before them (Dong, Roth, Su 2022, Corollary 3.3; theory, section 6).

    Raises:
        ArgumentError: If there is none, or one is not finite and >= 0.

    Example:
        >>> compose_mu(3.0, 4.0)
        5.0
    """
    validate.count(number_of_releases=len(mus))
    for mu in mus:
        validate.non_negative(mu=mu)
    return math.hypot(*mus)


def gaussian_power_upper(false_positive_rate: float, mu: float) -> float:
    """The most a test of a mu-GDP release finds at this rate of false alarms.

    ``1 - G_mu(alpha) = Phi(Phi^-1(alpha) + mu)`` (Dong, Roth, Su 2022, arXiv
    1905.02383, Definition 2.6): no test that raises a false alarm with probability
    alpha raises a true one more often, whatever its maker knows besides. With the
    mu of `compose_mu`, this holds for whoever sees all those releases.

    Args:
        false_positive_rate: alpha, in (0, 1).
        mu: Sensitivity over noise standard deviation, > 0.

    Example:
        >>> round(gaussian_power_upper(0.01, 1.0), 4)
        0.0924
    """
    validate.probability(false_positive_rate=false_positive_rate)
    validate.positive(mu=mu)
    power = float(ndtr(float(ndtri(false_positive_rate)) + mu))
    return min(1.0, power * (1 + 1e-9))
