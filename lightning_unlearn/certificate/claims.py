"""From constants to a claim: which bound applies, what grade it deserves.

This file decides what may be said. `record.Certificate` stores the answer and
`Certificate.verify` asks the same functions again, from the stored constants.
"""

import enum
import math
from collections.abc import Iterable, Mapping, Sequence

from lightning_unlearn import _validate
from lightning_unlearn.certificate import bounds
from lightning_unlearn.certificate.constants import TRUSTED, Constant, Origin
from lightning_unlearn.certificate.gaussian import (
    compose_mu,
    gaussian_epsilon,
    gaussian_mu,
    gaussian_sigma,
)
from lightning_unlearn.errors import ArgumentError, CertificateError


class Grade(str, enum.Enum):
    """What a certificate is worth (docs/theory.md section 7)."""

    CERTIFIED = "certified"
    CONDITIONAL = "conditional"
    VACUOUS = "vacuous"
    NONE = "none"


def lowest(grades: Iterable[Grade]) -> Grade:
    """The grade of several claims that are made together.

    Example:
        >>> lowest([Grade.CERTIFIED, Grade.CONDITIONAL]).value
        'conditional'
    """
    return max(grades, key=list(Grade).index)


class Bound(str, enum.Enum):
    """Which theorem the sensitivity comes from."""

    STRONGLY_CONVEX = "strongly_convex"
    NEWTON_STEP = "newton_step"
    NORM_BALL = "norm_ball"
    NO_BOUND = "no_bound"


class NoiseSource(str, enum.Enum):
    """Where the noise came from."""

    OS_ENTROPY = "os_entropy"
    SEEDED = "seeded"
    NO_NOISE = "no_noise"


#: The constants each bound needs, by their public names.
REQUIRED = {
    Bound.STRONGLY_CONVEX: ("tolerance", "strong_convexity"),
    Bound.NEWTON_STEP: (
        "max_norm",
        "hessian_lipschitz",
        "damping",
        "lambda_min",
        "retrained_gradient_norm",
        "residual",
    ),
    Bound.NORM_BALL: ("max_norm",),
    Bound.NO_BOUND: (),
}


_GIVEN = frozenset({Origin.PROVED, Origin.ASSUMED})
_ENFORCED = frozenset({Origin.ENFORCED})

#: What each constant of a bound may be. Nothing measured or estimated: the noise
#: would depend on the data, and the guarantee does not cover the size of the noise.
ALLOWED = {
    "tolerance": _ENFORCED,
    "strong_convexity": _GIVEN,
    "max_norm": _ENFORCED,
    "hessian_lipschitz": _GIVEN,
    "damping": _ENFORCED,
    "lambda_min": _GIVEN,
    "retrained_gradient_norm": _GIVEN,
    "residual": _ENFORCED,
}


def sensitivity_upper(bound: Bound, constants: Iterable[Constant]) -> float:
    """Proved bound on the distance of the two outputs before noise.

    * strongly convex: both outputs have |grad F| <= tolerance for the same F, so
      each is within tolerance/mu of the one minimiser: ``2 tolerance / mu``.
    * Newton step: Theorem A with Diam = 2C, or the diameter 2C if that is less.
    * norm ball: both outputs are projected onto the ball of radius C: ``2C``.
    * no bound: infinity.

    Args:
        bound: The theorem.
        constants: At least those `REQUIRED` by it, each name once.

    Returns:
        The sensitivity, in units of the weights.

    Raises:
        CertificateError: If a constant is missing or listed twice.
    """
    values = _values(bound, constants)
    if bound is Bound.STRONGLY_CONVEX:
        return 2 * bounds.strongly_convex_upper(
            gradient_norm=values["tolerance"],
            strong_convexity=values["strong_convexity"],
        )
    if bound is Bound.NO_BOUND:
        return math.inf
    _validate.positive(max_norm=values["max_norm"])
    trivial = 2 * values["max_norm"]
    if bound is Bound.NORM_BALL:
        return trivial
    step = bounds.newton_step_upper(
        distance=trivial,
        hessian_lipschitz=values["hessian_lipschitz"],
        damping=values["damping"],
        lambda_min=values["lambda_min"],
        retrained_gradient_norm=values["retrained_gradient_norm"],
        residual=values["residual"],
    )
    return min(step, trivial)


def noise_std_upper(
    epsilon: float, delta: float, sensitivity: float, releases: int | None
) -> float:
    """Noise that makes `releases` outputs together (epsilon, delta).

    ``sqrt(T) gaussian_sigma(epsilon, delta, sensitivity)``: T releases of ratio mu
    compose to ``mu sqrt(T)`` (`compose_mu`).

    Args:
        epsilon: Privacy parameter, > 0.
        delta: Failure probability, in (0, 1).
        sensitivity: Of one release, > 0.
        releases: T announced releases, or None for this release alone.

    Returns:
        Standard deviation per coordinate.

    Raises:
        ArgumentError: If an argument is outside its range.
    """
    T = 1 if releases is None else releases
    _validate.count(releases=T)
    check_delta(delta)
    return math.sqrt(T) * gaussian_sigma(epsilon, delta, sensitivity)


def announced_mu(epsilon: float, delta: float, releases: int) -> float:
    """The mu of each of T announced releases: ``gaussian_mu / sqrt(T)``.

    As `noise_std_upper`, whatever the sensitivity.

    Args:
        epsilon: Of all of them together, > 0.
        delta: Failure probability, in (0, 1).
        releases: T.

    Raises:
        ArgumentError: If an argument is outside its range.
    """
    _validate.count(releases=releases)
    return gaussian_mu(epsilon, delta) / math.sqrt(releases)


def composed_epsilon(
    release_mus: Sequence[float], release: int, delta: float
) -> float | None:
    """Epsilon of all releases so far seen together.

    Args:
        release_mus: Of those that had a guarantee; empty if the last had none.
        release: How many there were.
        delta: Failure probability, in (0, 1).

    Returns:
        Epsilon, or None unless every release had a guarantee.
    """
    if not release_mus or len(release_mus) != release:
        return None
    return gaussian_epsilon(compose_mu(*release_mus), delta)


def check_delta(delta: float) -> None:
    """Refuse a delta below what the noise sampler resolves.

    Each Gaussian is cut at 8.6 standard deviations, so far out in the tails the noise
    is not the one the theorem speaks of (probability about 1e-17 a draw).

    Raises:
        ArgumentError: If delta is not in [1e-12, 1).
    """
    _validate.probability(delta=delta)
    if delta < 1e-12:
        raise ArgumentError(
            f"expected delta >= 1e-12, got {delta}: the noise is drawn from 52-bit "
            "uniforms, whose tails are too short for a smaller one"
        )


def grade(
    *,
    bound: Bound,
    constants: Iterable[Constant],
    noise: NoiseSource,
    noise_by_hand: bool,
    public_parts_enforced: bool,
    unscrubbed: Iterable[str],
) -> Grade:
    """The grade of docs/theory.md section 7: the worst that applies.

    Args:
        bound: The theorem the sensitivity comes from.
        constants: The constants it rests on.
        noise: Where the noise came from.
        noise_by_hand: Whether the user chose ``noise_std``.
        public_parts_enforced: Whether every part outside the scope is known not to
            have changed in training (vacuously true if there is none).
        unscrubbed: Names of state that may still depend on the forgotten samples.

    Returns:
        The grade.
    """
    constants = tuple(constants)
    if (
        noise_by_hand
        or noise is not NoiseSource.OS_ENTROPY
        or bound is Bound.NO_BOUND
        or any(True for _ in unscrubbed)
    ):
        return Grade.NONE
    if is_trivial(bound, constants):
        return Grade.VACUOUS
    needed = set(REQUIRED[bound])
    trusted = all(c.origin in TRUSTED for c in constants if c.name in needed)
    if trusted and public_parts_enforced:
        return Grade.CERTIFIED
    return Grade.CONDITIONAL


def is_trivial(bound: Bound, constants: Iterable[Constant]) -> bool:
    """Whether the sensitivity says no more than that both outputs are in the ball."""
    if bound is Bound.NORM_BALL:
        return True
    if bound is not Bound.NEWTON_STEP:
        return False
    constants = tuple(constants)
    max_norm = _values(bound, constants)["max_norm"]
    return not sensitivity_upper(bound, constants) < 2 * max_norm


def _values(bound: Bound, constants: Iterable[Constant]) -> Mapping[str, float]:
    values: dict[str, float] = {}
    constants = tuple(constants)
    for constant in constants:
        if constant.name in values:
            raise CertificateError(f"the constant {constant.name} is listed twice")
        values[constant.name] = constant.value
    missing = [name for name in REQUIRED[bound] if name not in values]
    if missing:
        raise CertificateError(
            f"the bound {bound.value} needs the constants {', '.join(missing)}, "
            "which the certificate does not list"
        )
    for constant in constants:
        allowed = ALLOWED.get(constant.name)
        if constant.name in REQUIRED[bound] and constant.origin not in (allowed or ()):
            raise CertificateError(
                f"the constant {constant.name} cannot be {constant.origin.value} in "
                f"the bound {bound.value}: the noise would depend on the data"
            )
    return values
