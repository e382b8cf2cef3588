"""How strong a claim is, in words: they follow what the best test finds, not the grade.

Certificates of every schema are put in these words: one of schema 1 may be graded
`certified` and be worth nothing.
"""

import enum
import math

from lightning_unlearn._base.text import number
from lightning_unlearn.certificate.fields import CertificateFields
from lightning_unlearn.guarantee.claims import EXACT, Bound, Grade
from lightning_unlearn.guarantee.strength import (
    FALSE_ALARMS,
    MOST_FOUND,
    power_upper,
    promised_mu,
)


class Level(str, enum.Enum):
    """What the best test with 1% false alarms finds of a hundred true cases."""

    STRONG = "strong"  # at most 5
    MODERATE = "moderate"  # at most 20
    WEAK = "weak"  # at most 50
    WORTHLESS = "worthless"  # more, or delta would allow publishing a sample


_UP_TO = ((0.05, Level.STRONG), (0.2, Level.MODERATE))


def level(c: CertificateFields) -> Level | None:
    """How strong a claim is, whatever its grade; None where no noise carries it."""
    if c.grade is Grade.NONE or c.bound in EXACT:
        return None  # there is no noise to see through
    power = found_upper(c)
    if c.delta is None or power is None:  # does not verify
        return Level.WORTHLESS
    if not (power <= MOST_FOUND and c.delta * c.n_retain < 1):
        return Level.WORTHLESS
    return next((word for most, word in _UP_TO if power <= most), Level.WEAK)


def found_upper(c: CertificateFields) -> float | None:
    """The share of true cases that the best test finds of all a claim speaks of."""
    if c.bound in (Bound.PRIVATE_TRAINING, Bound.PRIVATE_BACKBONE):
        return {k.name: k.value for k in c.constants}.get("most_found")
    if not c.release_mus:
        return None
    return power_upper(promised_mu(c.release_mus[-1], c.releases))


def worth(c: CertificateFields) -> Grade:
    """The grade that words may go by: none better than the strength allows."""
    claimed = c.grade in (Grade.CERTIFIED, Grade.CONDITIONAL)
    return Grade.VACUOUS if claimed and level(c) is Level.WORTHLESS else c.grade


def in_100(mu: float) -> str:
    """How many of a hundred true cases the best test finds at most, rounded up."""
    return _hundreds(power_upper(mu))


def _hundreds(share: float) -> str:
    return f"{math.ceil(share * 1000) / 10:g}"


def most_in_100(c: CertificateFields) -> str:
    """`in_100` of everything the claim's epsilon speaks of; something is claimed."""
    share = found_upper(c)
    return _hundreds(1.0 if share is None else share)


def finding(c: CertificateFields) -> str:
    """What the best test finds of everything the claim's epsilon speaks of."""
    alarms = f"{FALSE_ALARMS:.0%} false alarms"
    return f"a test with {alarms} finds at most {most_in_100(c)} of 100"


def is_capped(c: CertificateFields) -> bool:
    """Whether a claim says no more than that both outputs are in the norm ball."""
    radii = [k.value for k in c.constants if k.name == "max_norm"]
    if c.sensitivity is None or not radii:
        return False
    return not c.sensitivity < 2 * radii[0] * (1 - 1e-8)


def why_vacuous(c: CertificateFields) -> str:
    """Why a claim says nothing, if it does not."""
    if is_capped(c):
        return "the noise is sized for any two models in the norm ball"
    if c.delta is not None and not c.delta * c.n_retain < 1:
        return (
            f"delta is not below 1/n_retain = {number(1 / c.n_retain)}, which would "
            "allow publishing a sample"
        )
    if found_upper(c) is None:
        return "it lists no release"
    return finding(c).replace("at most", "up to")
