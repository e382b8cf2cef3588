"""How many samples may be forgotten together of a private training.

The accountant is asked of few numbers of samples: those that a rough estimate points
at. What it says alone decides.
"""

import functools
import math
from typing import Any

from scipy import stats
from scipy.special import logsumexp

from lightning_unlearn._base import validate
from lightning_unlearn.guarantee.accounting.drawn_step import drawn_together
from lightning_unlearn.guarantee.accounting.private_training import (
    Mechanism,
    privacy,
)

#: Samples, and epsilon, up to which a capacity is counted. An epsilon of 50 promises
#: nothing any more, and to look at as many samples as it takes is slow.
_MOST, _COUNTED_TO = 4095, 50.0
_GUESSES = 8  # after so many the range is halved


def capacity(mechanism: Mechanism, epsilon: float, delta: float) -> int:
    """How many samples may be forgotten together within an epsilon; 0 if not one.

    Counted to 4,095 samples, and to an epsilon of 50; beyond, `is_at_least` is true of
    the number.

    Args:
        mechanism: The steps of the training.
        epsilon: At most, > 0.
        delta: Failure probability.
    """
    validate.positive(epsilon=epsilon)
    epsilon = min(epsilon, _COUNTED_TO)
    fits, too_many, k, tries = 0, _MOST + 1, 1, 0
    while True:
        found = privacy(mechanism, k, delta).epsilon
        fits, too_many = (k, too_many) if found <= epsilon else (fits, k)
        if too_many - fits == 1:
            return fits
        tries += 1
        if tries > _GUESSES:
            k = (fits + too_many) // 2
        else:
            told = epsilon / found * _roughly(mechanism, k, delta)
            k = _last_within(told, mechanism, delta, fits + 1, too_many - 1)


def is_at_least(counted: int, epsilon: float) -> bool:
    """Whether so many may be forgotten, and perhaps more.

    Args:
        counted: What `capacity` has said.
        epsilon: For which.
    """
    return counted >= _MOST or epsilon > _COUNTED_TO


def _last_within(
    told: float, mechanism: Mechanism, delta: float, low: int, high: int
) -> int:
    """The most samples, from `low` to `high`, of which no more is told, roughly."""
    while low < high:
        middle = (low + high + 1) // 2
        fits = _roughly(mechanism, middle, delta) <= told
        low, high = (middle, high) if fits else (low, middle - 1)
    return low


@functools.lru_cache(maxsize=256)
def _roughly(mechanism: Mechanism, k: int, delta: float) -> float:
    """About epsilon, by mean and variance of the loss of one step: where to look."""
    import numpy as np

    z = mechanism.noise_multiplier
    pairs = [p for p in drawn_together(k, mechanism.sampling_rate, 1e-6) if p[1] > 0]
    shifts, weights = (np.array(column, float) for column in zip(*pairs, strict=True))
    x = np.linspace(-8 * z, shifts.max() + 8 * z, 1_001)
    terms = np.outer(x, shifts) - shifts**2 / 2
    loss: Any = logsumexp(terms / z**2, axis=1, b=weights)
    mass = np.exp(loss - (x / z) ** 2 / 2)
    mass /= mass.sum()
    mean = float(mass @ loss)
    variance = float(mass @ (loss - mean) ** 2)
    spread = math.sqrt(variance * mechanism.steps)
    return mean * mechanism.steps + spread * float(stats.norm.isf(delta))
