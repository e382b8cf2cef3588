"""What is said of a head whose backbone was trained privately on the same people."""

from lightning_unlearn.certificate.fields import CertificateFields
from lightning_unlearn.guarantee.constants import Origin
from lightning_unlearn.guarantee.terms import Bound

#: How the note of a part begins whose weights a private training has made.
NOTE = "trained privately: "

REFERENCE = (
    "the same backbone trained by the same code without the forgotten samples, from "
    "the same kind of start, with the same clip, noise, sampling rate and number of "
    "steps, and on it the same head trained without them, from any start, to the same "
    "tolerance, with the same noise, computed in the same environment and blocks"
)

REASONS: dict[str, tuple[tuple[Origin, str], ...]] = {
    "forgotten": (
        (
            Origin.ENFORCED,
            "samples forgotten so far of the head's data, with this request: all are "
            "counted as samples of the backbone's training, whether they were or not",
        ),
    ),
    "head_epsilon": (
        (
            Origin.ENFORCED,
            "the head's own part, set before the request: the noise of the head "
            "follows from it; epsilon is that of the backbone and the head together",
        ),
    ),
    "most_found": (
        (
            Origin.PROVED,
            "share of true cases that the best test of both with 1% false alarms "
            "finds: follows from the numbers above",
        ),
    ),
}


def is_private(c: CertificateFields, name: str) -> bool:
    """Whether a part of the model is one that the claim covers, not a premise."""
    notes = {part.name: part.note for part in c.public_parts}
    return c.bound is Bound.PRIVATE_BACKBONE and notes.get(name, "").startswith(NOTE)
