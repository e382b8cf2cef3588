"""The report as one HTML file, made of a certificate that holds.

A certificate and a ledger may come from anyone: every text of theirs is escaped where
the page is put together (`_shown` and autoescape), and the page may run and load
nothing (its Content-Security-Policy).
"""

import os
import re
from importlib.util import find_spec
from pathlib import Path

from lightning_unlearn._base.files import create_file, replace_file
from lightning_unlearn._base.text import number, printable
from lightning_unlearn.certificate.certificate import Certificate
from lightning_unlearn.certificate.ledger import Entry, Ledger
from lightning_unlearn.certificate.report import words
from lightning_unlearn.certificate.report.chart import chart
from lightning_unlearn.certificate.report.evidence import Evidence
from lightning_unlearn.certificate.report.explained import explained
from lightning_unlearn.certificate.signature import signer
from lightning_unlearn.certificate.verification import Finding, verify_text
from lightning_unlearn.certificate.words.printed import composed_worth
from lightning_unlearn.errors import CertificateError, LedgerError, SetupError
from lightning_unlearn.guarantee.claims import Grade

_NOTHING = Evidence()
_TITLE = b"<title>Unlearning report: "  # of report.html.jinja
_NO_JINJA = (
    "expected the package jinja2 to make a report, found none: in your clone of this "
    'repository, pip install -e ".[report]"'
)


def render(certificate_json: str, evidence: Evidence = _NOTHING) -> str:
    """The report as HTML: it needs no other file and no network.

    The certificate is verified first, and must be in the ledger if one is given:
    nothing is reported that does not hold.

    Args:
        certificate_json: The certificate, signed or not.
        evidence: What else was recorded of the request. If it holds anything that
            epsilon does not cover, the page says that it is internal.

    Returns:
        The page, the same for the same input.

    Raises:
        CertificateError: If the certificate does not verify.
        LedgerError: If the ledger does not hold, or has not this certificate's entry.
        SetupError: If jinja2 is missing.
    """
    _refuse(verify_text(certificate_json), CertificateError)
    findings = verify_text(certificate_json, evidence.ledger)
    _refuse(findings, LedgerError)
    certificate = Certificate.from_json(certificate_json)
    ledger = Ledger.from_text(evidence.ledger or "")
    return _fill(
        c=certificate,
        grade=explained(certificate),
        worth=composed_worth(certificate),
        findings=findings,
        signed=signer(certificate_json) is not None,
        ledger=ledger,
        entry=_entry(certificate, ledger),
        evidence=evidence,
        curve_of=chart(evidence.residuals),
        retrained=any(q.retrained is not None for q in evidence.quality),
    )


def write(
    path: Path | str,
    certificate_json: str,
    evidence: Evidence,
    overwrite: bool = False,
) -> Path:
    """Write the report to a file, which appears whole or not at all.

    Args:
        path: Ends in .html or .htm; a new one.
        certificate_json: As for `render`.
        evidence: As for `render`.
        overwrite: Whether it may take the place of another report, and of nothing else.

    Returns:
        The path.

    Raises:
        SetupError: If the path has another ending, is taken, or cannot be written.
        CertificateError: As `render`.
        LedgerError: As `render`.
    """
    path, text = check_path(path, overwrite), render(certificate_json, evidence)
    if os.path.lexists(path):
        replace_file(path, text)
    else:
        create_file(path, text)
    return path


def check_path(path: Path | str, overwrite: bool = False) -> Path:
    """The path of a report that can be written.

    Args:
        path: Of the file.
        overwrite: As for `write`.

    Raises:
        SetupError: If it has another ending, is taken, or has no folder; if jinja2 is
            missing.
    """
    path = Path(path)
    if path.suffix.lower() not in {".html", ".htm"}:
        raise SetupError(
            f"expected a report's name to end in .html or .htm, got {path.name!r}: "
            "print the page to PDF from a browser"
        )
    taken = os.path.lexists(path)
    if taken and overwrite and not _is_report(path):
        raise SetupError(
            f"expected overwrite=True to replace a report, got another file at {path}: "
            "name another, or move it away"
        )
    if (taken and not overwrite) or not path.parent.is_dir():
        raise SetupError(
            f"expected a new file in a folder that exists for the report, got {path}: "
            "name another; nothing is overwritten, unless overwrite=True asks for an "
            "earlier report to be replaced"
        )
    if find_spec("jinja2") is None:
        raise SetupError(_NO_JINJA)
    return path


def _is_report(path: Path) -> bool:
    """Whether a file is one that `write` wrote."""
    if path.is_symlink() or not path.is_file():
        return False
    with path.open("rb") as file:
        begins = file.read(4096)
    return begins.lstrip().startswith(b"<!DOCTYPE html>") and _TITLE in begins


def _refuse(
    findings: list[Finding], error: type[CertificateError] | type[LedgerError]
) -> None:
    failed = [finding.text for finding in findings if finding.holds is False]
    if failed:
        raise error(
            f"expected a certificate that verifies, got {failed[0]}: nothing is "
            "reported that does not hold"
        )


def _entry(certificate: Certificate, ledger: Ledger) -> Entry | None:
    ours = (e for e in ledger.entries if e.request_id == certificate.request_id)
    return next(ours, None)


def _fill(**values: object) -> str:
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError:
        raise SetupError(_NO_JINJA) from None
    environment = Environment(
        loader=PackageLoader("lightning_unlearn.certificate", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        number=number,
        measure=_measure,
        pieces=_pieces,
        mentions_epsilon=_mentions_epsilon,
    )
    template = environment.get_template("report.html.jinja")
    return template.render(words=words, Grade=Grade, **values)


def _shown(value: object) -> object:
    """What stands in the page for a value, before it is escaped."""
    return printable(value) if type(value) is str else value


def _measure(value: float | None, metric: str) -> str:
    if value is None:
        return ""
    return f"{value:.1%}" if metric == "accuracy" else number(value)


def _pieces(text: str) -> list[str]:
    return re.split(r"(\w+ = [\d.e+-]*\d)", text)


def _mentions_epsilon(text: str) -> bool:
    folded = text.casefold()
    return any(name in folded for name in ("epsilon", "\u03b5", "\u03f5"))
