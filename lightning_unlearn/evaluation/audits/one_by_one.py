"""Audit of a private training: what a model tells of single canaries, all in one run.

Nothing is moved by a request to such a training: its certificate says what every model
of it tells of the samples that were forgotten, and of one of them the same constants
say it too. That is what is held against right guesses here, of many canaries at once.
"""

import math
from collections.abc import Sequence

from scipy.stats import binom

from lightning_unlearn.certificate.certificate import Certificate
from lightning_unlearn.errors import ArgumentError
from lightning_unlearn.evaluation.audits.finding import Lower
from lightning_unlearn.guarantee.accounting.private_training import (
    Mechanism,
    epsilon_out,
    mechanism_of,
    privacy,
)
from lightning_unlearn.guarantee.terms import Bound


def is_private_training(certificates: Sequence[Certificate]) -> bool:
    """Whether they are of requests to private trainings.

    Raises:
        ArgumentError: If only some are.
    """
    found = {c.bound is Bound.PRIVATE_TRAINING for c in certificates}
    if len(found) > 1:
        raise ArgumentError(
            "expected certificates of private trainings alone, or none of them, got "
            "both: what a guess refutes differs; audit them apart"
        )
    return True in found


def of_one_sample(certificates: Sequence[Certificate], delta: float) -> float | None:
    """The largest epsilon of one sample that these trainings claim.

    Args:
        certificates: Verified, of private trainings.
        delta: At which.

    Returns:
        Epsilon, or None where one claims nothing.
    """
    if any(c.epsilon is None for c in certificates):
        return None
    return max(privacy(made, 1, delta).epsilon for made in _mechanisms(certificates))


def of_one_out(certificates: Sequence[Certificate], delta: float) -> float:
    """The largest epsilon by which guesses that a canary was out may be right.

    Args:
        certificates: Verified, of private trainings that claim something.
        delta: At which.
    """
    return max(epsilon_out(made, delta) for made in _mechanisms(certificates))


def _mechanisms(certificates: Sequence[Certificate]) -> list[Mechanism]:
    """The steps of each training."""
    values = [{k.name: k.value for k in c.constants} for c in certificates]
    return [mechanism_of(v) for v in values]


def probable(
    right: int, guesses: int, canaries: int, epsilon: float, delta: float
) -> float:
    """How probable so many right guesses are at most, if (epsilon, delta) is true.

    Steinke, Nasr, Jagielski 2023 (arXiv 2305.08846, Theorem 5.2): right guesses are
    few as those of coins that fall right with probability ``e^epsilon/(1 +
    e^epsilon)``, up to ``2 canaries delta max_i (P[v - i <= W < v])/i``.

    Args:
        right: v, of the guesses.
        guesses: As many as were made.
        canaries: All of them, for which coins were tossed.
        epsilon: Of one sample.
        delta: Of one sample.
    """
    coin = 1 / (1 + math.exp(-epsilon))
    tail = float(binom.sf(right - 1, guesses, coin))
    near = binom.pmf(range(right - 1, -1, -1), guesses, coin).cumsum()
    most = max((float(p) / i for i, p in enumerate(near, 1)), default=0.0)
    return min(1.0, tail + 2 * canaries * delta * most)


def lower(
    right: int, guesses: int, canaries: int, delta: float, confidence: float
) -> Lower:
    """What so many right guesses refute: an epsilon, and no mu, which is not claimed.

    Args:
        right: Of the guesses.
        guesses: As many as were made.
        canaries: All of them.
        delta: Of one sample.
        confidence: An honest epsilon is refuted in at most ``1 - confidence`` of runs.
    """

    def refuted(epsilon: float) -> bool:
        return probable(right, guesses, canaries, epsilon, delta) <= 1 - confidence

    if not refuted(0.0):
        return Lower(0.0, 0.0)
    low, high = 0.0, 1.0
    while refuted(high):
        low, high = high, 2 * high
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return Lower(low, 0.0)
