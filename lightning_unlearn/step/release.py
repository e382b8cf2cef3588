"""The release: noise of the proved size, and the certificate that says so."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timezone

import torch

from lightning_unlearn.certificate.certificate import Certificate
from lightning_unlearn.certificate.fields import PublicPart
from lightning_unlearn.certificate.words.standing_caveats import (
    not_covered,
    versions,
    warnings_of_noise,
)
from lightning_unlearn.certificate.words.theorems import REFERENCES
from lightning_unlearn.errors import ArgumentError
from lightning_unlearn.guarantee.claims import Basis, Grade, Terms, decide
from lightning_unlearn.guarantee.constants import Origin
from lightning_unlearn.guarantee.terms import CONVEX
from lightning_unlearn.step.noise import add_noise
from lightning_unlearn.step.step import Step, project
from lightning_unlearn.weights.scope import Dot, Vector, plain_dot


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What a release is given besides the step and the terms.

    Args:
        scope: Entries of the state_dict that are the weights in scope.
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
        commitment: To the forgotten samples (`certificate.receipts`), or None.
        max_norm: C, radius of the ball of the weights, or None. Not used for a
            strongly convex scope.
        rebuilt: Entries that were made anew with the released weights.
        noise_seed: For tests only: ``terms.seeded`` says so.
        ways_checked: See `CertificateFields`.
    """

    scope: tuple[str, ...]
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
    commitment: str | None = None
    max_norm: float | None = None
    rebuilt: tuple[str, ...] = ()
    noise_seed: int | None = None
    ways_checked: bool = False


def release(
    step: Step, terms: Terms, around: Surroundings
) -> tuple[Vector, Certificate]:
    """Add the noise and write the certificate.

    Args:
        step: The weights before noise and what is proved of them.
        terms: Privacy parameters.
        around: The rest of what the certificate says.

    Returns:
        The released weights (p,) float64 and the certificate, which verifies.

    Raises:
        GuaranteeError: If epsilon is asked for and no finite sensitivity exists.
        BudgetError: If the release is beyond those announced.
        CertificateError: If the certificate could not be read again.
    """
    claim = step.claim
    if terms.seeded != (around.noise_seed is not None):
        raise ArgumentError(
            f"expected terms that say whether the noise is seeded, got seeded="
            f"{terms.seeded} with noise_seed={around.noise_seed}"
        )
    decision = decide(
        terms,
        Basis(
            bound=claim.bound,
            constants=step.constants,
            n_retain=around.n_retain,
            public_parts_enforced=all(
                part.origin is Origin.ENFORCED for part in around.public_parts
            ),
            unscrubbed=around.unscrubbed,
            release=around.release,
            earlier_mus=around.earlier_mus,
            earlier_grades=around.earlier_grades,
        ),
    )
    convex = claim.bound in CONVEX
    radius = None if convex else around.max_norm
    released = _with_noise(
        step.weights, decision.noise_std, radius, around.dot, around.noise_seed
    )
    plain = Certificate(
        **vars(decision),
        noise_by_hand=terms.noise_std is not None,
        bound=claim.bound,
        reference=REFERENCES[claim.bound],
        constants=step.constants,
        n_forget=around.n_forget,
        n_retain=around.n_retain,
        n_parameters=around.n_parameters,
        releases=terms.releases,
        release=around.release,
        public_parts=around.public_parts,
        unscrubbed=around.unscrubbed,
        not_covered=(*not_covered(claim.bound), *around.not_covered),
        warnings=(),
        weights_digest=around.digest(released),
        request_id=around.request_id,
        commitment=around.commitment,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        versions=versions(),
        scope=around.scope,
        rebuilt=around.rebuilt,
        ways_checked=around.ways_checked,
    )
    warnings = warnings_of_noise(plain)
    if convex and around.max_norm is not None:
        warnings.append("max_norm plays no role for a strongly convex scope")
    warnings += [*claim.warnings, *step.warnings, *around.warnings]
    certificate = replace(plain, warnings=tuple(warnings))
    certificate.verify()
    Certificate.from_json(certificate.to_json())  # or nobody could read it again
    return released, certificate


def _with_noise(
    weights: Vector,
    noise_std: float,
    radius: float | None,
    dot: Dot,
    seed: int | None,
) -> Vector:
    """The weights in the ball, noise added, in the ball again (post-processing)."""
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    released = weights if radius is None else project(weights, radius, dot)
    if noise_std > 0:
        released = add_noise(released.clone(), noise_std, generator)
    return released if radius is None else project(released, radius, dot)
