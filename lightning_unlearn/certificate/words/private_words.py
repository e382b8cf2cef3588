"""What is said of a private training that drew samples, and of one of people."""

from collections.abc import Iterable

from lightning_unlearn.errors import CertificateError
from lightning_unlearn.guarantee.constants import Constant

#: Of a private training that drew samples; and, where the words differ, people.
PRIVATE: dict[str, tuple[str, ...]] = {
    "clip": (
        "each sample's gradient is clipped to this length before it is added to the "
        "sum of a step",
        "each person's gradient, of the mean loss of all their samples, is clipped to "
        "this length before it is added to the sum of a step",
    ),
    "noise_multiplier": (
        "Gaussian noise with a standard deviation of this many times the clip was "
        "added to the sum of every step, from the operating system's entropy",
    ),
    "sampling_rate": (
        "in every step each sample was drawn with this probability, independently of "
        "all others, from the operating system's entropy",
        "in every step each person was drawn, with all their samples, with this "
        "probability, independently of all others, from the operating system's entropy",
    ),
    "steps": ("steps of the training: the most it could take",),
    "forgotten": (
        "samples of this training forgotten so far, this request's included: epsilon "
        "is that of all of them together",
        "people of this training forgotten so far, this request's included, each with "
        "all samples that have their id in the data: epsilon is that of all of them "
        "together",
    ),
    "most_found": (
        "probability that the best test with 1% false alarms tells that those "
        "forgotten were in the training, if they were: follows from the numbers above",
    ),
}


def _of_people(constants: Iterable[Constant]) -> set[bool]:
    """What the numbers say of which that depends, each for itself."""
    return {
        c.reason == PRIVATE[c.name][-1]
        for c in constants
        if len(PRIVATE.get(c.name, ())) > 1
    }


def counts_people(constants: Iterable[Constant]) -> bool:
    """Whether a private training drew, clipped and counted whole people."""
    return _of_people(constants) == {True}


def check_one_kind(constants: Iterable[Constant]) -> None:
    """Raise `CertificateError` if some numbers are of samples and some of people."""
    if len(_of_people(constants)) > 1:
        raise CertificateError(
            "expected clip, sampling_rate and forgotten to be all of samples, or all "
            "of people, got some of each: it was changed or made by another program"
        )


def how_drawn(constants: Iterable[Constant]) -> str:
    """What every step did with those who were drawn, in words."""
    whom = "each sample by a coin of its own"
    if counts_people(constants):
        whom = "each person, with all their samples, by a coin of their own"
    return (
        f"The training itself was private: every step drew {whom}, limited how much "
        "one can add, and hid that in noise. This request changed no weight: it states "
        "what that training proves about these samples."
    )
