"""What stands in a certificate: its fields, in the order they are written."""

from dataclasses import dataclass

from lightning_unlearn.guarantee.claims import Bound, Grade, NoiseSource
from lightning_unlearn.guarantee.constants import Constant, Origin

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
class CertificateFields:
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
        ways_checked: Whether the data was rebuilt without the forgotten samples, and
            every retained row compared: how samples are read is then no premise.
        schema: Number of this format.
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
    ways_checked: bool = False
    schema: int = SCHEMA
