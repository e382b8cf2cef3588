"""What an auditor checks, without the data and without trusting whoever made it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lightning_unlearn.certificate.certificate import Certificate
from lightning_unlearn.certificate.ledger import Entry, Ledger
from lightning_unlearn.certificate.receipts import read_receipts
from lightning_unlearn.certificate.signature import signer
from lightning_unlearn.certificate.words.backbone_words import is_private
from lightning_unlearn.errors import CertificateError, LedgerError
from lightning_unlearn.guarantee.claims import at_strength, lowest
from lightning_unlearn.guarantee.gaussian import compose_mu


@dataclass(frozen=True)
class Finding:
    """One line of a verification.

    Args:
        holds: Whether the check passed; None for a remark.
        text: What was checked, or what is wrong.
    """

    holds: bool | None
    text: str

    def __str__(self) -> str:
        mark = {True: "ok     ", False: "FAILED ", None: "note   "}[self.holds]
        return mark + self.text


def verify_text(
    certificate_json: str,
    ledger_text: str | None = None,
    weights_digest: str | None = None,
    public_key: str | None = None,
    receipts: str | None = None,
) -> list[Finding]:
    """Check a certificate against itself, its ledger, its checkpoint and its signer.

    Args:
        certificate_json: The certificate.
        ledger_text: The deletion ledger, if it is to be checked too.
        weights_digest: `state_digest` of the checkpoint's weights, likewise.
        public_key: The raw Ed25519 key, in hexadecimal, that must have signed it.
        receipts: Receipts of one person, that must fit it.

    Returns:
        One finding a check; it is verified if none failed.
    """
    findings: list[Finding] = []
    try:
        certificate = Certificate.from_json(certificate_json)
        findings.append(Finding(True, "digest: no field was changed since it was made"))
        certificate.verify()
    except CertificateError as error:
        return [*findings, Finding(False, f"certificate: {error}")]
    findings.append(
        Finding(
            True,
            f"claim: sensitivity, noise and grade ({certificate.grade.value}) are what "
            "the constants give",
        )
    )
    findings.append(_words(certificate))
    findings.append(_signature(certificate_json, public_key))
    if ledger_text is not None:
        findings.append(_ledger(certificate, ledger_text))
    else:
        findings.append(_no_ledger(certificate))
    if weights_digest is not None:
        findings.append(_weights(certificate, weights_digest))
    if receipts is not None:
        findings.append(_receipts(certificate, receipts))
    return findings


def on_your_word(certificate: Certificate) -> list[str]:
    """What a certificate takes as public of a model's parts, one entry each."""
    found = []
    for part in certificate.public_parts:
        text = f"that {part.name} never saw the samples"
        if is_private(certificate.bound, part):
            text = (
                f"that what the training of {part.name} and its features used besides "
                "the samples did not depend on them"
            )
        found.append(text)
    return found


def verdict(findings: Sequence[Finding], premises: Iterable[str] = ()) -> str:
    """The last line: whether it holds, what was checked, and whose word the rest is.

    Args:
        findings: All of them.
        premises: What the certificate takes as public (`on_your_word`).
    """
    if any(finding.holds is False for finding in findings):
        return "NOT VERIFIED"
    checked = dict.fromkeys(_subject(f) for f in findings if f.holds)
    words = dict.fromkeys(_subject(f) for f in findings if f.holds is None)
    open_points = [
        *(f"the rest of {word}" if word in checked else word for word in words),
        "that the constants are true",
        "how samples were read",
        *premises,
    ]
    return (
        f"VERIFIED: {', '.join(checked)}; on the word of whoever made it: "
        f"{', '.join(open_points)}"
    )


def _subject(finding: Finding) -> str:
    return finding.text.split(":")[0]


def _words(certificate: Certificate) -> Finding:
    if certificate.schema == 1:
        return Finding(
            None,
            "words: schema 1 derives none; what it compares with, its reasons and its "
            "limits are its maker's",
        )
    return Finding(
        True, "words: what it compares with, reasons and standing limits are derived"
    )


def _no_ledger(certificate: Certificate) -> Finding:
    earlier = certificate.release - 1
    known = f"that its {earlier} earlier releases were as it says"
    if not earlier:
        known = "that no release came before it"
    return Finding(None, f"earlier releases: without a ledger, {known} is its word")


def verify_ledger(ledger_text: str, weights_digest: str | None = None) -> list[Finding]:
    """Check a ledger by itself, and that a checkpoint is of its last request.

    Args:
        ledger_text: The deletion ledger.
        weights_digest: `state_digest` of the checkpoint's weights, if it is to
            be checked too.

    Returns:
        One finding a check; it is verified if none failed.
    """
    try:
        ledger = Ledger.from_text(ledger_text)
    except LedgerError as error:
        return [Finding(False, f"chain: {error}")]
    n = len(ledger.entries)
    if not n:
        return [Finding(False, "chain: expected entries, got an empty ledger")]
    entries = "1 entry" if n == 1 else f"{n} entries"
    findings = [Finding(True, f"chain: {entries}, none changed"), _budget(ledger)]
    if weights_digest is not None:
        findings.append(_last_weights(ledger, weights_digest))
    findings.append(
        Finding(
            None,
            "that nothing was cut off at the end shows only beside the newest "
            "checkpoint or certificate",
        )
    )
    return findings


def _budget(ledger: Ledger) -> Finding:
    announced = {e.releases for e in ledger.entries if e.mu}
    if len(announced) > 1:
        found = ", ".join(sorted(str(releases) for releases in announced))
        return Finding(
            False,
            f"budget: expected one announced number of releases, got {found}: the "
            "noise of each was scaled for another",
        )
    releases = next(iter(announced), None)
    if releases is None:
        return Finding(None, "budget: no number of releases was announced")
    mus = [mu for mu in ledger.mus if mu]
    if any(later > mus[0] * (1 + 1e-6) for later in mus):
        return Finding(
            False,
            f"budget: expected no mu above the first, {mus[0]:.4g}, got "
            f"{max(mus):.4g}: the total that was announced is exceeded",
        )
    left = releases - len(ledger.noisy)
    if left < 0:
        return Finding(
            False, f"budget: expected at most {releases} releases, got {-left} more"
        )
    return Finding(True, f"budget: {left} of {releases} announced releases are left")


def _last_weights(ledger: Ledger, digest: str) -> Finding:
    for entry in reversed(ledger.entries):
        if entry.weights_after == digest:
            if entry is ledger.entries[-1]:
                return Finding(True, "checkpoint: its weights are of the last entry")
            return Finding(
                False,
                f"checkpoint: its weights are of entry {entry.index}, expected those "
                f"of the last, {ledger.entries[-1].index}: what was forgotten since is "
                "still in it",
            )
    return Finding(
        False, f"checkpoint: its weights have digest {digest[:16]}, of no entry"
    )


def _signature(text: str, expected: str | None) -> Finding:
    try:
        key = signer(text)
    except CertificateError as error:
        return Finding(False, f"signature: {error}")
    if key is None:
        unsigned = "signature: none; anyone could have made this certificate"
        return Finding(None if expected is None else False, unsigned)
    if expected is not None and key != expected.lower():
        return Finding(False, f"signature: by {key}, expected {expected}")
    return Finding(True, f"signature: Ed25519, by {key}")


def _ledger(certificate: Certificate, text: str) -> Finding:
    try:
        ledger = Ledger.from_text(text)
    except LedgerError as error:
        return Finding(False, f"ledger: {error}")
    entries = [e for e in ledger.entries if e.request_id == certificate.request_id]
    if len(entries) != 1:
        return Finding(
            False,
            f"ledger: expected one entry for request {certificate.request_id}, got "
            f"{len(entries)} among {len(ledger.entries)}",
        )
    wrong = [
        name for name, same in _agreement(certificate, entries[0], ledger) if not same
    ]
    if wrong:
        return Finding(False, f"ledger: its entry has another {', '.join(wrong)}")
    return Finding(
        True,
        f"ledger: chain of {len(ledger.entries)} entries holds; this is entry "
        f"{entries[0].index}",
    )


def _agreement(
    certificate: Certificate, entry: Entry, ledger: Ledger
) -> list[tuple[str, bool]]:
    mu = certificate.release_mus[-1] if certificate.release_mus else None
    mus = [e.mu for e in ledger.entries[: entry.index] if e.mu is not None]
    claimed = list(certificate.release_mus)
    return [
        ("certificate", entry.certificate_digest == certificate.digest),
        ("position", entry.index == certificate.release),
        ("weights", entry.weights_after == certificate.weights_digest),
        ("mu", entry.mu == mu),
        ("number forgotten so far", entry.group == certificate.group),
        ("history of releases", not claimed or mus == claimed),
        ("grade of all releases", _same_lowest(certificate, entry, ledger)),
        ("number of retained samples", entry.n_retain == certificate.n_retain),
        ("time", entry.time == certificate.created),
        ("grade", entry.grade == certificate.grade.value),
        ("number of samples", entry.n_forget == certificate.n_forget),
        ("budget", entry.releases == certificate.releases),
    ]


def _same_lowest(certificate: Certificate, entry: Entry, ledger: Ledger) -> bool:
    stated, delta = certificate.composed_grade, certificate.delta
    grades = ledger.grades[: entry.index]
    if stated is None or delta is None:
        return stated is None
    if certificate.schema == 1 or not any(certificate.release_mus):
        return stated is lowest(grades)
    mu = compose_mu(*certificate.release_mus)
    return stated is at_strength(grades, mu, delta, certificate.n_retain)


def _receipts(certificate: Certificate, text: str) -> Finding:
    try:
        found = read_receipts(text)
        for one in found:
            one.check(
                certificate.request_id, certificate.commitment, certificate.n_forget
            )
    except CertificateError as error:
        return Finding(False, f"receipt: {error}")
    if len({one.place for one in found}) < len(found):
        return Finding(False, "receipt: expected each sample once, got one repeated")
    named = ", ".join(
        f"{one.leaf.position}" + (f" of {one.leaf.person}" if one.leaf.person else "")
        for one in found
    )
    return Finding(True, f"receipt: the certificate speaks of the samples {named}")


def _weights(certificate: Certificate, digest: str) -> Finding:
    if digest != certificate.weights_digest:
        return Finding(
            False,
            f"checkpoint: its weights have digest {digest[:16]}, the certificate "
            f"speaks of {certificate.weights_digest[:16]}",
        )
    return Finding(True, "checkpoint: its weights are those the certificate speaks of")
