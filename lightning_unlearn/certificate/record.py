"""The certificate: a frozen record, its JSON form, and its verification."""

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any

from lightning_unlearn import _validate
from lightning_unlearn._records import canonical_digest, strict_object
from lightning_unlearn.certificate import claims
from lightning_unlearn.certificate.claims import Bound, Grade, NoiseSource
from lightning_unlearn.certificate.constants import Constant, Origin
from lightning_unlearn.errors import ArgumentError, CertificateError, GuaranteeError

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class PublicPart:
    """A part of the model outside the scope, assumed not to depend on private data.

    Args:
        name: Entry of the module, such as ``backbone.0.weight``, or a group of them.
        digest: SHA-256 of its bytes at the time of the request.
        origin: ENFORCED if the callback saw it unchanged from the first training
            step on, ASSUMED if nothing shows it.
        note: What in it is assumed public, in words; "" where its name says it all.
    """

    name: str
    digest: str
    origin: Origin
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """What one unlearning request proves, and every number it rests on.

    Args:
        grade: What the claim is worth (docs/theory.md section 7).
        epsilon: Proved privacy parameter, or None for grade ``none``.
        delta: Its failure probability, or None for grade ``none``.
        noise_std: Standard deviation of the noise on each weight in scope.
        noise_source: Where the noise came from.
        noise_by_hand: Whether the user chose ``noise_std``.
        sensitivity: Proved bound on the distance of the two outputs before noise,
            or None where there is none.
        bound: The theorem the sensitivity comes from.
        reference: What the output is indistinguishable from, in words.
        constants: Every constant, with origin and reason.
        n_forget: Samples forgotten by this request.
        n_retain: Samples retained.
        n_parameters: Weights in scope.
        releases: Announced number of releases, or None.
        release: Which release this is, from 1 on.
        release_mus: sensitivity / noise_std of every release so far that had one,
            this one last; empty for grade ``none``.
        composed_epsilon: Epsilon of all releases so far seen together at `delta`,
            or None when an earlier one had no guarantee, or this one has none. It
            speaks of what the first of them forgot.
        public_parts: Parts outside the scope, assumed public.
        unscrubbed: State that may still depend on the forgotten samples.
        not_covered: What the claim does not speak about.
        warnings: What the reader must know.
        weights_digest: SHA-256 of the released model's whole state.
        request_id: Random name of the request, as in the ledger.
        created: UTC time, ISO 8601.
        versions: Software versions.
        composed_grade: What `composed_epsilon` is worth: the lowest grade of these
            releases. None where there is none, or in files from before it was stated.
        schema: Number of this format.

    Raises:
        CertificateError: If the fields contradict each other.
    """

    grade: Grade
    epsilon: float | None
    delta: float | None
    noise_std: float
    noise_source: NoiseSource
    noise_by_hand: bool
    sensitivity: float | None
    bound: Bound
    reference: str
    constants: tuple[Constant, ...]
    n_forget: int
    n_retain: int
    n_parameters: int
    releases: int | None
    release: int
    release_mus: tuple[float, ...]
    composed_epsilon: float | None
    public_parts: tuple[PublicPart, ...]
    unscrubbed: tuple[str, ...]
    not_covered: tuple[str, ...]
    warnings: tuple[str, ...]
    weights_digest: str
    request_id: str
    created: str
    versions: tuple[tuple[str, str], ...]
    composed_grade: Grade | None = None
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        _check_types(self)
        if (self.grade is Grade.NONE) != (self.epsilon is None):
            raise CertificateError(
                f"epsilon must be None exactly for grade none, got grade "
                f"{self.grade.value} with epsilon={self.epsilon}"
            )

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON of every field."""
        return canonical_digest(_to_plain(self))

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
        """Recompute the sensitivity, the noise and the grade from the constants.

        Needs neither the data nor the model. It does not show that the constants
        are true: each says why it should be believed.

        Raises:
            CertificateError: If a number is not what the constants support.
        """
        try:
            _verify(self)
        except (ArgumentError, GuaranteeError, ArithmeticError, ValueError) as error:
            if isinstance(error, CertificateError):
                raise
            raise CertificateError(f"the constants are impossible: {error}") from None

    def __str__(self) -> str:
        from lightning_unlearn.certificate.text import render

        return render(self)


def _check_types(c: Certificate) -> None:
    """Every field is what the class says, whoever wrote the JSON it came from."""
    _validate.non_negative(noise_std=c.noise_std)
    _validate.count(
        n_forget=c.n_forget,
        n_retain=c.n_retain,
        n_parameters=c.n_parameters,
        release=c.release,
    )
    if c.releases is not None:
        _validate.count(releases=c.releases)
    for name in ("epsilon", "delta", "sensitivity", "composed_epsilon"):
        if getattr(c, name) is not None:
            _validate.positive(**{name: getattr(c, name)})
    for mu in c.release_mus:
        _validate.positive(release_mus=mu)
    texts = [c.reference, *c.warnings, *c.not_covered, *c.unscrubbed]
    named = [c.weights_digest, c.request_id, c.created]
    for part in c.public_parts:
        named += [part.name, part.digest]
    for pair in c.versions:
        named += pair
    for text in (*texts, *named):
        if not (isinstance(text, str) and _is_unicode(text)):
            raise CertificateError(f"expected text, got {text!r:.60}")
    if not all(named) or not isinstance(c.noise_by_hand, bool):
        raise CertificateError(
            "expected names, digests and times that are not empty, and noise_by_hand "
            "true or false"
        )


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # a lone surrogate
        return False
    return True


def _verify(c: Certificate) -> None:
    sensitivity = claims.sensitivity_upper(c.bound, c.constants)
    stated = math.inf if c.sensitivity is None else c.sensitivity
    _require("sensitivity", stated, sensitivity)
    grade = claims.grade(
        bound=c.bound,
        constants=c.constants,
        noise=c.noise_source,
        noise_by_hand=c.noise_by_hand,
        public_parts_enforced=all(p.origin is Origin.ENFORCED for p in c.public_parts),
        unscrubbed=c.unscrubbed,
    )
    _require("grade", c.grade.value, grade.value)
    if c.epsilon is None or c.delta is None:
        _require("delta", c.delta, c.epsilon)
        _require("composed_epsilon", c.composed_epsilon, None)
        _require("composed_grade", c.composed_grade, None)
        _require("release_mus", c.release_mus, ())
        return
    noise_std = claims.noise_std_upper(c.epsilon, c.delta, sensitivity, c.releases)
    _require("noise_std", c.noise_std, noise_std)
    if c.releases is not None and c.release > c.releases:
        raise CertificateError(
            f"release {c.release} of {c.releases} announced: beyond the budget"
        )
    if not c.release_mus or len(c.release_mus) > c.release:
        raise CertificateError(
            f"release_mus lists {len(c.release_mus)} releases, release is {c.release}"
        )
    _require("release_mus[-1]", c.release_mus[-1], sensitivity / noise_std)
    composed = claims.composed_epsilon(c.release_mus, c.release, c.delta)
    _require("composed_epsilon", c.composed_epsilon, composed)
    if c.composed_grade is not None:
        lowest = claims.lowest((c.grade, c.composed_grade))
        none = c.composed_epsilon is None or c.composed_grade is Grade.NONE
        if none or lowest is not c.composed_grade:
            raise CertificateError(
                f"the composed epsilon is called {c.composed_grade.value}, with a "
                f"release of grade {c.grade.value} among its own"
            )
    beyond = composed is not None and composed > c.epsilon * (1 + 1e-6)
    if c.releases is not None and beyond:
        raise CertificateError(
            f"{c.release} of {c.releases} announced releases make epsilon = "
            f"{composed}, beyond the {c.epsilon} that was announced"
        )


def _require(name: str, stated: object, recomputed: object) -> None:
    same = stated == recomputed
    if isinstance(stated, float) and isinstance(recomputed, float):
        same = stated == recomputed or abs(stated - recomputed) <= 1e-9 * recomputed
    if not same:
        raise CertificateError(
            f"the certificate states {name}={stated}, its constants give "
            f"{recomputed}: it was changed or made by another program"
        )


def _to_plain(certificate: Certificate) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            fields = dataclasses.fields(value)
            return {f.name: plain(getattr(value, f.name)) for f in fields}
        if isinstance(value, (Grade, Bound, NoiseSource, Origin)):
            return value.value
        if isinstance(value, tuple):
            return [plain(v) for v in value]
        return value

    found = {"schema": certificate.schema, **plain(certificate)}
    if certificate.composed_grade is None:  # as in files from before it was stated
        found.pop("composed_grade")
    for part in found["public_parts"]:
        if not part["note"]:
            part.pop("note")
    return found


def _parse(text: str) -> dict[str, Any]:
    plain = strict_object(text, CertificateError, "a certificate")
    if plain.get("schema") != SCHEMA:
        raise CertificateError(
            f"expected a certificate of schema {SCHEMA}, got {plain.get('schema')!r}: "
            "a newer lightning_unlearn may read it"
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
    _check_fields(Certificate, plain)
    try:
        fields = dict(plain)
        fields["grade"] = Grade(plain["grade"])
        fields["bound"] = Bound(plain["bound"])
        fields["noise_source"] = NoiseSource(plain["noise_source"])
        if plain.get("composed_grade") is not None:
            fields["composed_grade"] = Grade(plain["composed_grade"])
        fields["constants"] = tuple(
            Constant(**{**_check_fields(Constant, c), "origin": Origin(c["origin"])})
            for c in plain["constants"]
        )
        fields["public_parts"] = tuple(
            PublicPart(
                **{**_check_fields(PublicPart, p), "origin": Origin(p["origin"])}
            )
            for p in plain["public_parts"]
        )
        fields["versions"] = tuple((str(k), str(v)) for k, v in plain["versions"])
        for name in ("release_mus", "unscrubbed", "not_covered", "warnings"):
            fields[name] = tuple(plain[name])
        return Certificate(**fields)
    except CertificateError:
        raise
    except (ArgumentError, TypeError, ValueError, KeyError) as error:
        raise CertificateError(f"malformed certificate: {error}") from None


def _check_fields(cls: type, plain: Any) -> dict[str, Any]:
    known = {field.name for field in dataclasses.fields(cls)}
    # A field added later has a default, so that older files stay readable.
    needed = {
        field.name
        for field in dataclasses.fields(cls)
        if field.default is dataclasses.MISSING
    }
    if not isinstance(plain, dict) or not needed <= set(plain) <= known:
        got = sorted(plain) if isinstance(plain, dict) else type(plain).__name__
        raise CertificateError(
            f"expected the fields {sorted(known)} of {cls.__name__}, got {got}"
        )
    return plain
