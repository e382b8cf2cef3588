"""From constants to a claim: which bound applies, what grade it deserves.

`decide` is the one place where this is worked out: the release asks it, the preflight
asks it before the release, and `Certificate.verify` asks it again afterwards.
"""

import math
from collections.abc import Iterable
from dataclasses import replace

from lightning_unlearn._base import validate
from lightning_unlearn.errors import (
    ArgumentError,
    BudgetError,
    CertificateError,
    GuaranteeError,
)
from lightning_unlearn.guarantee import bounds
from lightning_unlearn.guarantee.accounting import private_training as private
from lightning_unlearn.guarantee.accounting.served_head import optimum_shift_upper
from lightning_unlearn.guarantee.constants import TRUSTED, Constant, Origin
from lightning_unlearn.guarantee.gaussian import (
    check_delta,
    compose_mu,
    gaussian_epsilon,
    gaussian_sigma,
)
from lightning_unlearn.guarantee.strength import MOST_FOUND, promised_mu, protects
from lightning_unlearn.guarantee.terms import (
    CONVEX,
    EXACT,
    Basis,
    Bound,
    Decision,
    Grade,
    NoiseSource,
    Terms,
    lowest,
)

#: Why a request without a finite sensitivity is refused.
NO_SENSITIVITY = (
    "expected a finite sensitivity for epsilon, got none for this model. Four ways "
    "out: retrain without the samples (how='retrain', exact for any network); put a "
    "ConvexHead on a public backbone that never saw this data (grade certified); set "
    "max_norm= (true but vacuous for ordinary networks); or set noise_std= by hand "
    "(0.0 is the bare Newton step) and claim nothing"
)

_GIVEN = frozenset({Origin.PROVED, Origin.ASSUMED})
_ENFORCED = frozenset({Origin.ENFORCED})
_PROVED = frozenset({Origin.PROVED})
_STEPS = "clip", "noise_multiplier", "sampling_rate", "steps", "forgotten"

#: The constants each bound needs, by their public names, and what each may be. Nothing
#: measured or estimated: the noise would depend on the data, and the guarantee does not
#: cover the size of the noise.
REQUIRED: dict[Bound, dict[str, frozenset[Origin]]] = {
    Bound.RETRAINED: {"drawn_besides": _ENFORCED},
    Bound.REWOUND: {"drawn_besides": _ENFORCED, "stages_kept": _ENFORCED},
    Bound.PRIVATE_TRAINING: dict.fromkeys(_STEPS, _ENFORCED) | {"most_found": _PROVED},
    Bound.STRONGLY_CONVEX: {"tolerance": _ENFORCED, "strong_convexity": _GIVEN},
    Bound.SERVED_HEAD: {
        **dict.fromkeys(("strong_convexity", "residual_norm"), _PROVED),
        **dict.fromkeys(("tolerance", "row_norm", "samples"), _ENFORCED),
        **dict.fromkeys(("covered", "forgotten", "left"), _ENFORCED),
    },
    Bound.PRIVATE_BACKBONE: {
        **dict.fromkeys(("strong_convexity", "most_found"), _PROVED),
        **dict.fromkeys(("tolerance", "head_epsilon", *_STEPS), _ENFORCED),
    },
    Bound.NEWTON_STEP: {
        "max_norm": _ENFORCED,
        "hessian_lipschitz": _GIVEN,
        "damping": _ENFORCED,
        "lambda_min": _GIVEN,
        "retrained_gradient_norm": _GIVEN,
        "residual": _ENFORCED,
    },
    Bound.NORM_BALL: {"max_norm": _ENFORCED},
    Bound.NO_BOUND: {},
}


def decide(
    terms: Terms,
    basis: Basis,
    noise_std: float | None = None,
    *,
    by_strength: bool = True,
) -> Decision:
    """Sensitivity, noise, grade and composition of one release.

    Args:
        terms: What was agreed.
        basis: What the claim rests on.
        noise_std: Of a release whose terms are not known any more, because nothing is
            claimed of it; else it follows from them.
        by_strength: False for a certificate of schema 1, whose grade did not depend on
            how strong the claim is.

    Returns:
        What may be said.

    Raises:
        GuaranteeError: If epsilon is asked for and no finite sensitivity is known.
        BudgetError: If the release is beyond the announced ones, or their total.
        CertificateError: If the constants are not those the bound needs.
        ArgumentError: If a number is outside its range.
    """
    if basis.bound is Bound.PRIVATE_TRAINING:
        return _private(terms, basis)
    if basis.bound is Bound.PRIVATE_BACKBONE:
        return _on_private(terms, basis, noise_std)
    sensitivity = sensitivity_upper(basis.bound, basis.constants)
    if basis.bound in EXACT:
        return _exact(basis)
    if noise_std is None:
        noise_std = terms.noise_std
    if noise_std is None:
        if basis.bound is Bound.NO_BOUND:
            raise GuaranteeError(NO_SENSITIVITY)
        noise_std = noise_std_upper(terms, sensitivity)
    source = NoiseSource.SEEDED if terms.seeded else NoiseSource.OS_ENTROPY
    if noise_std == 0:
        source = NoiseSource.NO_NOISE
    grade = _grade(terms, basis, source)
    claimed = grade is not Grade.NONE
    mus = (*basis.earlier_mus, sensitivity / noise_std) if claimed else ()
    composed = None
    all_claimed = len(mus) == basis.release and Grade.NONE not in basis.earlier_grades
    if claimed and all_claimed and terms.delta is not None:
        composed = gaussian_epsilon(compose_mu(*mus), terms.delta)
    if claimed:
        _check_budget(terms, basis, composed)
    together = lowest((grade, *basis.earlier_grades))
    if claimed and by_strength and terms.delta is not None:
        announced = promised_mu(sensitivity / noise_std, terms.releases)
        grade = at_strength((grade,), announced, terms.delta, basis.n_retain)
        grades = (grade, *basis.earlier_grades)
        together = at_strength(grades, compose_mu(*mus), terms.delta, basis.n_retain)
    return Decision(
        sensitivity=None if basis.bound is Bound.NO_BOUND else sensitivity,
        noise_std=noise_std,
        noise_source=source,
        grade=grade,
        epsilon=terms.epsilon if claimed else None,
        delta=terms.delta if claimed else None,
        release_mus=mus,
        composed_epsilon=composed,
        composed_grade=None if composed is None else together,
    )


def _exact(basis: Basis) -> Decision:
    """Of a function of the retained samples and of fresh coins (theory, section 10).

    What was released before is not made better by it: a composed epsilon is stated
    where all of that was exact too.
    """
    grade = Grade.EXACT if basis.public_parts_enforced else Grade.CONDITIONAL
    zero: float | None = 0.0
    if basis.unscrubbed:
        grade, zero = Grade.NONE, None
    mus = () if zero is None else (*basis.earlier_mus, 0.0)
    alone = len(mus) == basis.release and not any(mus)
    return Decision(
        sensitivity=0.0,
        noise_std=0.0,
        noise_source=NoiseSource.NO_NOISE,
        grade=grade,
        epsilon=zero,
        delta=zero,
        release_mus=mus,
        composed_epsilon=zero if alone else None,
        composed_grade=lowest((grade, *basis.earlier_grades)) if alone else None,
    )


def _private(terms: Terms, basis: Basis) -> Decision:
    """Of a training that was private: its own noise covers all of its models.

    Epsilon speaks of all samples forgotten so far, so that nothing is composed.
    """
    values = _values(basis.bound, basis.constants)
    grade = Grade.CERTIFIED if basis.public_parts_enforced else Grade.CONDITIONAL
    epsilon, delta, found = terms.epsilon, terms.delta, values["most_found"]
    if basis.unscrubbed or terms.seeded or terms.noise_std is not None:
        grade, epsilon, delta = Grade.NONE, None, None
    elif epsilon is None or delta is None:
        raise ArgumentError("expected epsilon and delta, got none: state both")
    else:
        private.check(values, epsilon, delta)
        if not found <= MOST_FOUND or not delta * basis.n_retain < 1:
            grade = Grade.VACUOUS
    return Decision(
        sensitivity=None,
        noise_std=0.0,
        noise_source=NoiseSource.SEEDED if terms.seeded else NoiseSource.OS_ENTROPY,
        grade=grade,
        epsilon=epsilon,
        delta=delta,
        release_mus=(),
        composed_epsilon=None,
        composed_grade=None,
    )


def _on_private(terms: Terms, basis: Basis, noise_std: float | None) -> Decision:
    """Of a head on a private training: that of the head, and both seen together."""
    values, own = _values(basis.bound, basis.constants), terms
    if terms.epsilon is not None:
        own = replace(terms, epsilon=values["head_epsilon"])
    head = decide(own, replace(basis, bound=Bound.STRONGLY_CONVEX), noise_std)
    if head.grade is Grade.NONE or terms.epsilon is None or terms.delta is None:
        return head
    beside = promised_mu(head.release_mus[-1], terms.releases)
    private.check(values, terms.epsilon, terms.delta, beside)
    found = () if values["most_found"] <= MOST_FOUND else (Grade.VACUOUS,)
    return replace(
        head,
        grade=lowest((head.grade, *found)),
        epsilon=terms.epsilon,
        composed_epsilon=None,
        composed_grade=None,
    )


def _grade(terms: Terms, basis: Basis, noise: NoiseSource) -> Grade:
    """The grade of docs/theory.md section 9: the worst that applies."""
    if (
        terms.noise_std is not None
        or noise is not NoiseSource.OS_ENTROPY
        or basis.bound is Bound.NO_BOUND
        or basis.unscrubbed
    ):
        return Grade.NONE
    if _is_trivial(basis):
        return Grade.VACUOUS
    needed = set(REQUIRED[basis.bound])
    trusted = all(c.origin in TRUSTED for c in basis.constants if c.name in needed)
    if trusted and basis.public_parts_enforced:
        return Grade.CERTIFIED
    return Grade.CONDITIONAL


def at_strength(
    grades: Iterable[Grade], mu: float, delta: float, n_retain: int
) -> Grade:
    """The lowest of some grades, no better than the strength of their claim allows."""
    lowered = () if protects(mu, delta, n_retain) else (Grade.VACUOUS,)
    return lowest((*grades, *lowered))


def _is_trivial(basis: Basis) -> bool:
    """Whether the sensitivity says no more than that both outputs are in the ball."""
    if basis.bound is not Bound.NEWTON_STEP:
        return basis.bound is Bound.NORM_BALL
    max_norm = _values(basis.bound, basis.constants)["max_norm"]
    return not sensitivity_upper(basis.bound, basis.constants) < 2 * max_norm


def _check_budget(terms: Terms, basis: Basis, composed: float | None) -> None:
    if terms.releases is None or terms.epsilon is None:
        return
    if basis.release - basis.earlier_mus.count(0.0) > terms.releases:
        raise BudgetError(
            f"release {basis.release} of {terms.releases} announced: beyond the budget"
        )
    if composed is not None and not composed <= terms.epsilon * (1 + 1e-6):
        raise BudgetError(
            f"expected all {terms.releases} announced releases within epsilon = "
            f"{terms.epsilon:g}, but with the earlier ones this makes "
            f"{composed:.4g}: they were made with a larger epsilon or delta; set "
            "them again, or use releases=None"
        )


def sensitivity_upper(bound: Bound, constants: Iterable[Constant]) -> float:
    """Proved bound on the distance of the two outputs before noise.

    * strongly convex: both outputs have |grad F| <= tolerance for the same F, so
      each is within tolerance/mu of the one minimiser: ``2 tolerance / mu``.
    * served head: the same, and what the minimiser moves by if all that may still be
      forgotten leave: a head that is served before they do.
    * Newton step: Theorem A with Diam = 2C, or the diameter 2C if that is less.
    * norm ball: both outputs are projected onto the ball of radius C: ``2C``.
    * retrained, rewound: 0, a function of the retained samples alone.
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
    if bound in CONVEX:
        mu = values["strong_convexity"]
        near = bounds.strongly_convex_upper(
            gradient_norm=values["tolerance"], strong_convexity=mu
        )
        moved = 0.0
        if bound is Bound.SERVED_HEAD:
            moved = optimum_shift_upper(
                leaving=values["left"],
                strong_convexity=mu,
                **{k: values[k] for k in ("samples", "residual_norm", "row_norm")},
            )
        return 2 * near + moved
    if bound in EXACT:
        if values["drawn_besides"] != 0 or not values.get("stages_kept", 1.0) >= 1:
            raise CertificateError("not exact: drawn_besides > 0, or no stage was kept")
        return 0.0
    if bound is Bound.NO_BOUND:
        return math.inf
    validate.positive(max_norm=values["max_norm"])
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


def noise_std_upper(terms: Terms, sensitivity: float) -> float:
    """Noise that makes the announced outputs together (epsilon, delta).

    ``sqrt(T) gaussian_sigma(epsilon, delta, sensitivity)``: T releases of ratio mu
    compose to ``mu sqrt(T)`` (`compose_mu`).

    Args:
        terms: epsilon, delta and T; without T this release is meant alone.
        sensitivity: Of one release, > 0.

    Raises:
        ArgumentError: If a number is outside its range, or not stated.
    """
    if terms.epsilon is None or terms.delta is None:
        raise ArgumentError("expected epsilon and delta, got none: state both")
    T = 1 if terms.releases is None else terms.releases
    validate.count(releases=T)
    check_delta(terms.delta)
    return math.sqrt(T) * gaussian_sigma(terms.epsilon, terms.delta, sensitivity)


def _values(bound: Bound, constants: Iterable[Constant]) -> dict[str, float]:
    """The constants a bound needs: each there once, and of an origin it may have."""
    found: dict[str, float] = {}
    for constant in constants:
        if constant.name in found:
            raise CertificateError(f"the constant {constant.name} is listed twice")
        found[constant.name] = constant.value
        allowed = REQUIRED[bound].get(constant.name)
        if allowed is not None and constant.origin not in allowed:
            raise CertificateError(
                f"the constant {constant.name} cannot be {constant.origin.value} in "
                f"the bound {bound.value}: the noise would depend on the data"
            )
    missing = [name for name in REQUIRED[bound] if name not in found]
    if missing:
        raise CertificateError(
            f"the bound {bound.value} needs the constants {', '.join(missing)}, "
            "which the certificate does not list"
        )
    return found
