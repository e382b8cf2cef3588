"""How much a claim protects: what the best test of a release finds.

A grade says how a claim is known; this says how much it is worth if it is true.
"""

import math

from lightning_unlearn.guarantee.gaussian import gaussian_power_upper

#: The rate of false alarms of the test that strength is measured by ...
FALSE_ALARMS = 0.01
#: ... and a claim that lets it find more than this share protects nobody.
MOST_FOUND = 0.5


def promised_mu(mu: float, releases: int | None) -> float:
    """The mu that an epsilon speaks of: of all announced releases seen together.

    Args:
        mu: sensitivity / noise_std of one of them.
        releases: T, or None where each release is meant alone.
    """
    return mu * math.sqrt(releases or 1)


def power_upper(mu: float) -> float:
    """The share of true cases that a test with `FALSE_ALARMS` finds at most."""
    return gaussian_power_upper(FALSE_ALARMS, mu)


def protects(mu: float, delta: float, n_retain: int) -> bool:
    """Whether a claim is strong enough to say anything (docs/theory.md section 9).

    Args:
        mu: Of everything the claim speaks of, seen together.
        delta: Its failure probability: from 1/n_retain on, publishing a sample at
            random is allowed.
        n_retain: Samples retained.
    """
    return delta * n_retain < 1 and power_upper(mu) <= MOST_FOUND
