"""How far one step of a private training tells two worlds apart, at each loss.

Of k samples ``j ~ Bin(k, q)`` are drawn, and move the sum by at most j clips
(`guarantee.accounting.private_training`).
"""

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from scipy import stats
from scipy.special import log_ndtr, ndtr

#: Points of the grid on which the loss of one step is written down, at most.
_POINTS = 200_000


def drawn_together(k: int, q: float, rest: float) -> Iterator[tuple[int, float]]:
    """How many of k samples are drawn, each with probability q, and how probable it is.

    What is less probable than `rest` together counts as all k of them.

    Args:
        k: Samples.
        q: Sampling rate.
        rest: Probability of what need not be told apart.
    """
    most = min(k, int(stats.binom.isf(rest, k, q)) + 1)
    if stats.binom.pmf(most, k, q) == 0:  # q = 1
        most = k
    yield from ((j, float(stats.binom.pmf(j, k, q))) for j in range(most + 1))
    if most < k:
        yield k, float(stats.binom.sf(most, k, q))


def gaussian_divergences(interval: float, far: int, mu: float) -> Any:
    """Delta of two Gaussians at a distance of mu, at each loss of a grid."""
    import numpy as np

    losses = np.arange(-far, far + 1) * interval
    x = losses / mu
    found = ndtr(mu / 2 - x) - np.exp(losses + log_ndtr(-mu / 2 - x))
    found = np.clip(found, 0.0, 1.0)
    return np.maximum.accumulate(found[::-1])[::-1]


@dataclass(frozen=True)
class DrawnStep:
    """One step: N(0, z^2) against a mixture of N(-s, z^2), and the other way round.

    Args:
        z: Noise multiplier.
        shifts: s, in clips.
        weights: Their probabilities.
        cut: Probability that may be put on an infinite loss.
        spread: About the standard deviation of the loss.
    """

    z: float
    shifts: Any
    weights: Any
    cut: float
    spread: float

    @classmethod
    def of(cls, z: float, q: float, k: int, cut: float) -> "DrawnStep":
        """A step with noise of z clips that draws each of k samples with rate q."""
        import numpy as np

        pairs = [(j, p) for j, p in drawn_together(k, q, cut / 4) if p > 0]
        shifts, weights = (
            np.array(column, float) for column in zip(*pairs, strict=True)
        )
        spread = min(1.0, k * q) * math.sqrt(math.expm1(min(1 / z**2, 20.0)))
        return cls(z, shifts, weights / weights.sum(), cut, spread)

    def loss(self, x: Any, back: bool) -> Any:
        """Ln(upper/lower) at points x: decreasing in x, whichever way round."""
        import numpy as np

        sign = 1.0 if back else -1.0
        terms = (
            math.log(p) + (sign * s * x - s * s / 2) / self.z**2
            for s, p in zip(self.shifts, self.weights, strict=True)
        )
        return -sign * functools.reduce(np.logaddexp, terms)

    def mixture_below(self, x: Any) -> Any:
        """Probability that the mixture (of N(-s, z^2)) is at most x."""
        terms = (
            p * ndtr((x + s) / self.z)
            for s, p in zip(self.shifts, self.weights, strict=True)
        )
        return sum(terms)

    def mixture_above(self, x: Any) -> Any:
        """Ln of the probability that the mixture of N(+s, z^2) is at most x."""
        import numpy as np

        terms = (
            math.log(p) + log_ndtr((x - s) / self.z)
            for s, p in zip(self.shifts, self.weights, strict=True)
        )
        return functools.reduce(np.logaddexp, terms)

    def grid(self, back: bool, beside: float = 0.0) -> tuple[float, int, int]:
        """Width of the grid of losses, and its first and last place.

        Another loss, of width `beside`, is to be written down on it too.
        """
        far = -self.z * float(stats.norm.ppf(self.cut))
        low = -far
        if not back:  # the mixture reaches further
            low = -far - float(self.shifts.max())
            high = -far + self.z
            while high - low > 1e-3 * self.z:
                middle = (low + high) / 2
                above = self.mixture_below(middle) > self.cut
                low, high = (low, middle) if above else (middle, high)
        top, bottom = float(self.loss(low, back)), float(self.loss(far, back))
        interval = min(1e-3, max(1e-6, self.spread / 50))
        interval = max(interval, (top - bottom) / _POINTS, beside / _POINTS)
        return interval, math.floor(bottom / interval), math.ceil(top / interval)

    def divergences(self, interval: float, low: int, high: int, back: bool) -> Any:
        """Delta of one step at each loss of the grid."""
        import numpy as np

        losses = np.arange(low, high + 1) * interval
        x = self._where(losses, back)
        none = self.weights[self.shifts == 0].sum()  # nobody is drawn
        limit = math.log(none) if none > 0 else -math.inf
        with np.errstate(over="ignore"):
            if back:
                found = ndtr(x / self.z) - np.exp(losses + self.mixture_above(x))
                found = np.where(losses >= -limit, 0.0, found)
            else:
                found = self.mixture_below(x) - np.exp(losses + log_ndtr(x / self.z))
                found = np.where(losses <= limit, -np.expm1(losses), found)
        found = np.clip(found, 0.0, 1.0)
        return np.maximum.accumulate(found[::-1])[::-1]

    def _where(self, losses: Any, back: bool) -> Any:
        """The points at which one step has these losses."""
        import numpy as np

        edge = 60 * self.z + float(self.shifts.max())
        table = np.linspace(-edge, edge, 40_001)
        known = self.loss(table, back)
        x = np.interp(losses, known[::-1], table[::-1])
        width = table[1] - table[0]
        for _ in range(4):  # Newton's method, near the answer already
            slope = (self.loss(x + width / 64, back) - self.loss(x, back)) * 64 / width
            move = np.divide(
                losses - self.loss(x, back), slope, np.zeros_like(x), where=slope < 0
            )
            x = x + np.clip(move, -width, width)
        return x
