"""What stands in a certificate: its fields, in the order they are written."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from lightning_unlearn.guarantee.claims import Bound, Grade, NoiseSource
from lightning_unlearn.guarantee.constants import Constant, Origin

SCHEMA = 2

#: Fields, those of public parts included, by the schema that brought them. A file of
#: an earlier schema has none of them, one of its own schema has all.
SINCE = {2: frozenset({"scope", "rebuilt", "entries", "commitment", "ways_checked"})}
#: Fields that files of schema 1 may lack: it had them only later.
LATER_IN_SCHEMA_1 = frozenset({"composed_grade", "note"})


def fields_after(schema: int) -> frozenset[str]:
    """Fields that files of a schema do not have."""
    return frozenset().union(*(new for since, new in SINCE.items() if since > schema))


def entries_digest(entries: Iterable[tuple[str, str]]) -> str:
    """The digest of a public part, from the names and digests of its entries."""
    joined = "|".join(f"{name}={digest}" for name, digest in entries)
    return hashlib.sha256(joined.encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class PublicPart:
    """A part of the model outside the scope, assumed not to depend on private data.

    Args:
        name: Entry of the module, such as ``backbone.0.weight``, or a group of them.
        digest: SHA-256 of its bytes at the time of the request: `entries_digest` of
            its entries.
        origin: ENFORCED if the callback saw it unchanged from the first training
            step on, ASSUMED if nothing shows it.
        note: What in it is assumed public, in words; "" where its name says it all.
        entries: What it is made of: (name, SHA-256), by the names of the state_dict.
            Since schema 2.
    """

    name: str
    digest: str
    origin: Origin
    note: str = ""
    entries: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, kw_only=True)
class CertificateFields:
    """What one unlearning request proves, and every number it rests on.

    Args:
        grade: What the claim is worth (docs/theory.md section 9).
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
        commitment: Root of the hash tree over the forgotten samples that `receipts`
            open, hexadecimal; None where nobody committed to them. Since schema 2.
        scope: Entries of the state_dict that are the weights in scope. Since schema 2.
        rebuilt: Entries that were made anew from the released weights and the retained
            samples. Since schema 2.
        ways_checked: Whether the data was rebuilt without the forgotten samples, and
            every retained row compared: how samples are read is then no premise.
            Since schema 2.
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
    commitment: str | None = None
    scope: tuple[str, ...] = ()
    rebuilt: tuple[str, ...] = ()
    ways_checked: bool = False
    schema: int = SCHEMA
