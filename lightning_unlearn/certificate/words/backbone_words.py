"""What is said of a head whose backbone was trained privately on the same people."""

from lightning_unlearn.certificate.fields import PublicPart
from lightning_unlearn.guarantee.constants import Origin
from lightning_unlearn.guarantee.terms import Bound

#: How the note of a part begins whose weights a private training has made.
NOTE = "trained privately: "
COVERED = "trained privately, and covered by the claim"
PREMISE = "what the backbone's training and its features use besides the samples"

REFERENCE = (
    "the same backbone trained by the same code without the forgotten samples, from "
    "the same kind of start, with the same clip, noise, sampling rate and number of "
    "steps, and on it the same head trained without them, from any start, to the same "
    "tolerance, with the same noise, computed in the same environment and blocks"
)

NOT_COVERED = (
    "samples of the head that are each made of several samples of the backbone's "
    "training (copies, or pieces of one picture that were trained on one by one): the "
    "claim counts each as one of these at most",
)

ROW_NORM = (
    Origin.ENFORCED,
    "largest norm that a row of the backbone can have, with the 1 of a bias: fixed by "
    "its options, not by data",
)

REASONS: dict[str, tuple[tuple[Origin, str], ...]] = {
    "forgotten": (
        (
            Origin.ENFORCED,
            "samples of the head's data forgotten so far, this request's included: "
            "each counts as one of the backbone's training, whether it was one or not",
        ),
    ),
    "head_epsilon": (
        (
            Origin.ENFORCED,
            "the head's own part of epsilon, set before the request: the head's noise "
            "follows from it. The epsilon above is that of the backbone "
            "and the head together",
        ),
    ),
    "most_found": (
        (
            Origin.PROVED,
            "probability that the best test of both with 1% false alarms tells that "
            "those forgotten were in the training, if they were: follows from the "
            "numbers above",
        ),
    ),
}


def is_private(bound: Bound, part: PublicPart) -> bool:
    """Whether a part of the model is one that a claim covers, not a premise."""
    return bound is Bound.PRIVATE_BACKBONE and part.note.startswith(NOTE)
