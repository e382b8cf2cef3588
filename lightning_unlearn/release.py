"""The release: noise of the proved size, and the certificate that says so."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata

import torch

from lightning_unlearn.certificate import claims
from lightning_unlearn.certificate.claims import Bound, Grade, NoiseSource
from lightning_unlearn.certificate.constants import Origin
from lightning_unlearn.certificate.record import Certificate, PublicPart
from lightning_unlearn.errors import BudgetError, GuaranteeError
from lightning_unlearn.newton import Step, project
from lightning_unlearn.noise import add_noise
from lightning_unlearn.scope import Dot, Vector, plain_dot

NO_SENSITIVITY = (
    "expected a finite sensitivity for epsilon, got none for this model. Three ways "
    "out: put a ConvexHead on frozen features (grade certified); set max_norm= (true "
    "but vacuous for ordinary networks); or set noise_std= by hand (0.0 is the bare "
    "Newton step) and claim nothing"
)

_NOT_COVERED = (
    "models released before this request, and their difference from this one: it "
    "reveals the forgotten samples",
    "the raw data, extracted features, logs and backups",
    "hyper-parameters, classes and stopping rules chosen while looking at the "
    "forgotten samples",
)


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What was agreed before the data was seen.

    Args:
        epsilon: Privacy parameter.
        delta: Failure probability.
        noise_std: Chosen by hand, or None to follow from epsilon and delta.
        releases: T announced releases, or None.
        max_norm: C, or None.
        noise_seed: For tests only; makes the grade ``none``.
    """

    epsilon: float
    delta: float
    noise_std: float | None = None
    releases: int | None = None
    max_norm: float | None = None
    noise_seed: int | None = None


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What the certificate must say besides the step itself.

    Args:
        n_forget: Samples forgotten by this request.
        n_retain: Samples retained.
        release: Which release this is, from 1 on.
        earlier_mus: Of the earlier releases that had a guarantee.
        earlier_grades: Of the earlier releases.
        public_parts: Parts outside the scope.
        unscrubbed: State that may still depend on the forgotten samples.
        not_covered: Besides the standing list, such as known old checkpoints.
        warnings: Besides those of the step.
        digest: Digest of the model's state with a flat vector as its weights.
        n_parameters: Weights in scope, over all processes.
        dot: Inner product of vectors, of which a process may hold a part.
        request_id: Random name of the request.
    """

    n_forget: int
    n_retain: int
    release: int
    earlier_mus: tuple[float, ...]
    earlier_grades: tuple[Grade, ...]
    public_parts: tuple[PublicPart, ...]
    unscrubbed: tuple[str, ...]
    not_covered: tuple[str, ...]
    warnings: tuple[str, ...]
    digest: Callable[[Vector], str]
    request_id: str
    n_parameters: int
    dot: Dot = plain_dot


def release(
    step: Step, terms: Terms, around: Surroundings
) -> tuple[Vector, Certificate]:
    """Add the noise and write the certificate.

    Args:
        step: The weights before noise and what bounds their distance.
        terms: Privacy parameters.
        around: The rest of what the certificate says.

    Returns:
        The released weights (p,) float64 and the certificate, which verifies.

    Raises:
        GuaranteeError: If epsilon is asked for and no finite sensitivity exists.
    """
    sensitivity = claims.sensitivity_upper(step.bound, step.constants)
    by_hand = terms.noise_std is not None
    if terms.noise_std is not None:
        noise_std = terms.noise_std
    elif step.bound is Bound.NO_BOUND:
        raise GuaranteeError(NO_SENSITIVITY)
    else:
        noise_std = claims.noise_std_upper(
            terms.epsilon, terms.delta, sensitivity, terms.releases
        )
    released = _add_noise(step, noise_std, terms, around.dot)
    source = NoiseSource.OS_ENTROPY
    if terms.noise_seed is not None:
        source = NoiseSource.SEEDED
    if noise_std == 0:
        source = NoiseSource.NO_NOISE
    grade = claims.grade(
        bound=step.bound,
        constants=step.constants,
        noise=source,
        noise_by_hand=by_hand,
        public_parts_enforced=all(
            p.origin is Origin.ENFORCED for p in around.public_parts
        ),
        unscrubbed=around.unscrubbed,
    )
    claimed = grade is not Grade.NONE
    mus = (*around.earlier_mus, sensitivity / noise_std) if claimed else ()
    composed = claims.composed_epsilon(mus, around.release, terms.delta)
    total = terms.epsilon * (1 + 1e-6)
    if composed is not None and terms.releases is not None and composed > total:
        raise BudgetError(
            f"expected all {terms.releases} announced releases within epsilon = "
            f"{terms.epsilon:g}, but with the earlier ones this makes "
            f"{composed:.4g}: they were made with a larger epsilon or delta; set "
            "them again, or use releases=None"
        )
    certificate = Certificate(
        grade=grade,
        epsilon=terms.epsilon if claimed else None,
        delta=terms.delta if claimed else None,
        noise_std=noise_std,
        noise_source=source,
        noise_by_hand=by_hand,
        sensitivity=None if step.bound is Bound.NO_BOUND else sensitivity,
        bound=step.bound,
        reference=step.reference,
        constants=step.constants,
        n_forget=around.n_forget,
        n_retain=around.n_retain,
        n_parameters=around.n_parameters,
        releases=terms.releases,
        release=around.release,
        release_mus=mus,
        composed_epsilon=composed,
        composed_grade=None
        if composed is None
        else claims.lowest((grade, *around.earlier_grades)),
        public_parts=around.public_parts,
        unscrubbed=around.unscrubbed,
        not_covered=(*_not_covered(step), *around.not_covered),
        warnings=(
            *_warnings(step, grade, noise_std, terms, around),
            *step.warnings,
            *around.warnings,
        ),
        weights_digest=around.digest(released),
        request_id=around.request_id,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        versions=_versions(),
    )
    certificate.verify()
    return released, certificate


def _not_covered(step: Step) -> tuple[str, ...]:
    if step.bound is Bound.STRONGLY_CONVEX:
        return _NOT_COVERED
    return (
        *_NOT_COVERED,
        "the numbers of this certificate that are measured or estimated: they are "
        "functions of the data, and the guarantee speaks of the weights alone",
    )


def _add_noise(step: Step, noise_std: float, terms: Terms, dot: Dot) -> Vector:
    generator = None
    if terms.noise_seed is not None:
        generator = torch.Generator().manual_seed(terms.noise_seed)
    released = step.weights
    if noise_std > 0:
        released = add_noise(released.clone(), noise_std, generator)
    if terms.max_norm is not None and step.bound is not Bound.STRONGLY_CONVEX:
        released = project(released, terms.max_norm, dot)  # post-processing: free
    return released


def _warnings(
    step: Step, grade: Grade, noise_std: float, terms: Terms, around: Surroundings
) -> list[str]:
    p = around.n_parameters
    found = []
    if grade is Grade.VACUOUS and terms.max_norm is not None:
        ratio = noise_std * p**0.5 / terms.max_norm
        found.append(
            "Delta/(2C) = 1: no bound better than the norm ball is proved. The noise "
            f"is {_times(ratio)} times the largest weight norm allowed (noise_std "
            "sqrt(p) / max_norm)"
            + _what_it_costs(ratio)
            + ". For a useful guarantee freeze "
            "the backbone and train a ConvexHead; for the bare step without a claim "
            "set noise_std=0.0"
        )
    elif grade is Grade.CONDITIONAL and terms.max_norm is not None:
        ratio = noise_std * p**0.5 / terms.max_norm
        if ratio > 0.1 and step.bound is Bound.NEWTON_STEP:
            found.append(
                f"the noise is {_times(ratio)} times the largest weight norm allowed"
                + _what_it_costs(ratio)
            )
    if step.bound is Bound.STRONGLY_CONVEX and terms.max_norm is not None:
        found.append("max_norm plays no role for a strongly convex scope")
    for constant in step.constants:
        if constant.name == "feature_norm" and noise_std * constant.value > 0.1:
            found.append(
                f"the noise moves a logit by about {noise_std * constant.value:.2g} "
                "(noise_std x feature_norm), which costs accuracy: lower the "
                "tolerance, raise l2 or scale the features down"
            )
    n = around.n_retain
    if grade is not Grade.NONE and not terms.delta < 1 / n:
        found.append(
            f"delta = {terms.delta:g} is not below 1/n_retain = {1 / n:.2g}: a delta "
            "this large allows a mechanism that publishes a sample"
        )
    return found


def _times(ratio: float) -> str:
    return f"{ratio:,.0f}" if ratio >= 10 else f"{ratio:.2g}"


def _what_it_costs(ratio: float) -> str:
    if ratio >= 1:
        return ": the released model has forgotten everything, not only the forget set"
    return "" if ratio < 0.1 else ": expect a large loss of accuracy"


def _versions() -> tuple[tuple[str, str], ...]:
    found = []
    for name in ("lightning_unlearn", "torch", "scipy"):
        try:
            found.append((name, metadata.version(name)))
        except metadata.PackageNotFoundError:  # run from a source tree
            found.append((name, "not installed"))
    return tuple(found)
