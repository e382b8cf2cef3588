"""The certificate: a frozen record, its JSON form, and its verification."""

import json
import math
from dataclasses import dataclass, fields
from enum import Enum
from typing import Any

from lightning_unlearn._base import validate
from lightning_unlearn._base.strict_json import (
    canonical_digest,
    from_plain,
    strict_object,
    to_plain,
)
from lightning_unlearn.certificate.fields import (
    LATER_IN_SCHEMA_1,
    SCHEMA,
    CertificateFields,
    fields_after,
)
from lightning_unlearn.certificate.words.derived import check_derived
from lightning_unlearn.certificate.words.in_notebook import certificate_html
from lightning_unlearn.certificate.words.printed import render
from lightning_unlearn.errors import (
    ArgumentError,
    BudgetError,
    CertificateError,
    GuaranteeError,
)
from lightning_unlearn.guarantee.claims import (
    EXACT,
    Basis,
    Bound,
    Decision,
    Grade,
    NoiseSource,
    Terms,
    decide,
)
from lightning_unlearn.guarantee.constants import Origin


@dataclass(frozen=True, kw_only=True)
class Certificate(CertificateFields):
    """What one unlearning request proves, and every number it rests on.

    Raises:
        CertificateError: If the fields contradict each other.
    """

    def __post_init__(self) -> None:
        _check_numbers(self)
        if (self.grade is Grade.NONE) != (self.epsilon is None):
            raise CertificateError(
                f"epsilon must be None exactly for grade none, got grade "
                f"{self.grade.value} with epsilon={self.epsilon}"
            )

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON of every field."""
        return canonical_digest(_to_plain(self))

    @property
    def group(self) -> int | None:
        """Number forgotten so far of what a private training made; else None."""
        private = (Bound.PRIVATE_TRAINING, Bound.PRIVATE_BACKBONE)
        if self.bound not in private or self.epsilon is None:
            return None
        return int({c.name: c.value for c in self.constants}["forgotten"])

    def to_json(self) -> str:
        """The certificate as JSON text, closed by its digest.

        Returns:
            Indented JSON; numbers round-trip exactly.
        """
        plain = _to_plain(self)
        return json.dumps({**plain, "digest": canonical_digest(plain)}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Certificate":
        """Read a certificate; its digest must match its fields.

        Args:
            text: What `to_json` returned.

        Returns:
            The certificate. It is well formed, not verified: call `verify`.

        Raises:
            CertificateError: If the text is not a certificate of a known schema, or
                a field was changed after it was written.
        """
        return _from_plain(_parse(text))

    def verify(self) -> None:
        """Recompute numbers, grade and words from the constants and the bound.

        Needs neither the data nor the model. It does not show that the constants
        are true: each says why it should be believed. In a certificate of schema 1 the
        model it compares with, reasons and limits are only what its maker wrote.

        Raises:
            CertificateError: If a number is not what the constants support, or a text
                is not what follows from the bound.
        """
        try:
            _verify(self)
        except CertificateError:
            raise
        except (BudgetError, GuaranteeError, ArithmeticError, ValueError) as error:
            raise CertificateError(f"the constants are impossible: {error}") from None

    def __str__(self) -> str:
        return render(self)

    def _repr_html_(self) -> str:
        return certificate_html(self)


def _verify(c: Certificate) -> None:
    stated = {field.name: getattr(c, field.name) for field in fields(Decision)}
    given = c.noise_std if c.epsilon is None else None
    first = c.schema == 1  # which did not ask how strong a claim is
    decision = decide(_terms(c), _basis(c), given, by_strength=not first)
    decided = dict(vars(decision))
    if first and c.composed_grade is None:  # older files do not state it
        decided.pop("composed_grade")
    for name in decided:
        _require(name, stated[name], decided[name])
    if not first:
        check_derived(c)


def _terms(c: Certificate) -> Terms:
    """What was agreed, as far as the certificate says it."""
    return Terms(
        epsilon=c.epsilon,
        delta=c.delta,
        noise_std=c.noise_std if c.noise_by_hand else None,
        seeded=c.noise_source is NoiseSource.SEEDED,
        releases=c.releases,
    )


def _basis(c: Certificate) -> Basis:
    if len(c.release_mus) > c.release:
        raise CertificateError(
            f"release_mus lists {len(c.release_mus)} releases, release is {c.release}"
        )
    return Basis(
        bound=c.bound,
        constants=c.constants,
        n_retain=c.n_retain,
        public_parts_enforced=all(p.origin is Origin.ENFORCED for p in c.public_parts),
        unscrubbed=c.unscrubbed,
        release=c.release,
        earlier_mus=c.release_mus[:-1],
        # That of the earlier ones is not written by itself: the lowest of all is.
        earlier_grades=()
        if c.composed_grade is None or c.release == 1
        else (c.composed_grade,),
    )


def _require(name: str, stated: object, recomputed: object) -> None:
    if not _same(stated, recomputed):
        raise CertificateError(
            f"the certificate states {name}={_shown(stated)}, its constants give "
            f"{_shown(recomputed)}: it was changed or made by another program"
        )


def _same(stated: object, recomputed: object) -> bool:
    """Whether two values are equal, floats up to a rounding of their evaluation."""
    if isinstance(stated, tuple) and isinstance(recomputed, tuple):
        pairs = zip(stated, recomputed, strict=False)
        return len(stated) == len(recomputed) and all(_same(a, b) for a, b in pairs)
    if isinstance(stated, float) and isinstance(recomputed, float):
        near = abs(stated - recomputed) <= 1e-9 * abs(recomputed) < math.inf
        return stated == recomputed or near
    return stated == recomputed


def _shown(value: object) -> object:
    return value.value if isinstance(value, Enum) else value


def _to_plain(certificate: Certificate) -> dict[str, Any]:
    """As a file of its schema has it."""
    absent = fields_after(certificate.schema)
    found = {"schema": certificate.schema, **to_plain(certificate)}
    for part in (found, *found["public_parts"]):
        for name in absent & {*part}:
            part.pop(name)
        for name in LATER_IN_SCHEMA_1 & {*part} if certificate.schema == 1 else ():
            if not part[name]:
                part.pop(name)
    return found


def _parse(text: str) -> dict[str, Any]:
    plain = strict_object(text, CertificateError, "a certificate")
    schema = plain.get("schema")
    if type(schema) is not int or not 1 <= schema <= SCHEMA:
        raise CertificateError(
            f"expected a certificate of schema 1 to {SCHEMA}, got {schema!r}: a newer "
            "lightning_unlearn may read it"
        )
    plain.pop("signature", None)  # of the digest: certificate.signature checks it
    stated = plain.pop("digest", None)
    if stated != canonical_digest(plain):
        raise CertificateError(
            "the certificate's digest does not match its fields: it was changed "
            "after it was written"
        )
    return plain


def _from_plain(plain: dict[str, Any]) -> Certificate:
    may_lack = fields_after(plain["schema"])
    if plain["schema"] == 1:
        may_lack |= LATER_IN_SCHEMA_1
    try:
        found = from_plain(
            Certificate, plain, CertificateError, "a certificate", may_lack
        )
    except ArgumentError as error:
        raise CertificateError(f"malformed certificate: {error}") from None
    if canonical_digest(_to_plain(found)) != canonical_digest(plain):
        raise CertificateError(
            f"expected the fields of schema {found.schema}, got others besides: it was "
            "altered; use it as it was first written"
        )
    return found


def _check_numbers(c: CertificateFields) -> None:
    """Every number is one that its field may hold, and every name is there."""
    validate.non_negative(noise_std=c.noise_std)
    validate.count(
        n_forget=c.n_forget,
        n_retain=c.n_retain,
        n_parameters=c.n_parameters,
        release=c.release,
    )
    if c.releases is not None:
        validate.count(releases=c.releases)
    exact = c.bound in EXACT
    in_range = validate.non_negative if exact else validate.positive
    for name in ("epsilon", "delta", "sensitivity", "composed_epsilon"):
        if getattr(c, name) is not None:
            in_range(**{name: getattr(c, name)})
    for mu in c.release_mus:  # 0 of an earlier retraining
        validate.non_negative(release_mus=mu)
    named = [c.weights_digest, c.request_id, c.created]
    named += [text for p in c.public_parts for text in (p.name, p.digest)]
    named += [text for pair in c.versions for text in pair]
    named += [text for p in c.public_parts for pair in p.entries for text in pair]
    named += [*c.scope, *c.rebuilt]
    if not all(named):
        raise CertificateError(
            "expected names, digests and times that are not empty, got some that are"
        )
