"""The certificate as a notebook shows it: what the printed form says, in tables."""

from lightning_unlearn._base.notebook import box, folded, listed, table
from lightning_unlearn._base.text import number
from lightning_unlearn.certificate.fields import CertificateFields
from lightning_unlearn.certificate.words import printed


def certificate_html(c: CertificateFields) -> str:
    """The claim and its numbers; what it rests on and its limits, folded.

    Args:
        c: The certificate. As with the printed form, nothing is verified here.
    """
    constants = [
        (k.name, number(k.value), k.origin.value, k.reason) for k in c.constants
    ]
    parts = [
        (p.name, p.digest[:8], printed.why_left(c, p), p.note) for p in c.public_parts
    ]
    old = [printed.SCHEMA_1] if c.schema == 1 else []
    compared = [("compared with", c.reference)] if c.reference else []
    known = ("constant", "value", "origin", "why")
    return box(
        printed.headline(c),
        listed(old),
        table([*printed.facts(c), *compared]),
        listed(c.warnings),
        folded(
            "what it rests on",
            table(constants, known, ends=4) if constants else "",
        ),
        folded(
            printed.left_as_it_was(c),
            table(parts, ("part", "sha256", "origin", ""), ends=4) if parts else "",
        ),
        folded("not covered", listed(printed.limits(c))),
    )
