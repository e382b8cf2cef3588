"""The forgetting quality F of the NeurIPS 2023 unlearning challenge.

From the organisers' published metric (google-deepmind/unlearning_evaluation,
``metric.py``, commit ffae0ff; Triantafillou et al. 2024, arXiv 2406.09073v1), written
anew. What the published code leaves open is settled so that it never flatters.
"""

import math

import torch
from torch import Tensor

from lightning_unlearn._base import validate
from lightning_unlearn.evaluation.metrics import arguments
from lightning_unlearn.evaluation.metrics.populations import PopulationsMetric

DELTA = 1e-5
CAP = 50.0
_BUCKET = 0.5
_PER_UNIT = 100  # thresholds in one unit of phi
_BUFFER = 2.0
_PEAKED = 0.01


def _epsilon_of_errors(n_u: int, n_r: int) -> Tensor:
    """Epsilon of every number of errors: (errors on unlearned, errors on retrained).

    inf where there are none; -inf where exactly one is 0, which the challenge drops
    as a sign of too few models.
    """
    a = torch.arange(n_u + 1, dtype=torch.float64)[:, None] / n_u
    b = torch.arange(n_r + 1, dtype=torch.float64)[None, :] / n_r
    first = (1 - DELTA - a).log() - b.log()  # NaN where all are wrong: fmax passes
    second = (1 - DELTA - b).log() - a.log()
    epsilon = torch.fmax(first, second).clamp(min=0)
    epsilon = torch.where((a == 0) ^ (b == 0), -torch.inf, epsilon)
    epsilon[0, 0] = torch.inf
    return epsilon.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)


def _inside(sorted_phi: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """How many lie in [left, right]; none where left > right."""
    upto = torch.searchsorted(sorted_phi, right, right=True)
    before = torch.searchsorted(sorted_phi, left, right=False)
    return (upto - before).clamp(min=0)


def _grid(low: float, high: float, count: int) -> Tensor:
    return torch.linspace(low, high, count, dtype=torch.float64)


def _single(positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
    """(false negatives, false positives) of "positive if phi >= threshold"."""
    low = min(float(positive[0]), float(negative[0]))
    high = max(float(positive[-1]), float(negative[-1]))
    thresholds = _grid(low, high, math.ceil((high - low) * _PER_UNIT))
    missed = torch.searchsorted(positive, thresholds, right=False)
    wrong = len(negative) - torch.searchsorted(negative, thresholds, right=False)
    return missed, wrong


def _double(peaked: Tensor, wide: Tensor) -> tuple[Tensor, Tensor]:
    """(false negatives, false positives) of "peaked if in [left, right]"."""
    width = float(peaked[-1]) - float(peaked[0])
    low = float(peaked[0]) + width - _BUFFER
    high = float(peaked[-1]) + _BUFFER
    rights = _grid(low, high, math.ceil((high - low) * _PER_UNIT))
    steps = _grid(-_BUFFER, _BUFFER, math.ceil(2 * _BUFFER * _PER_UNIT))
    left = (rights[:, None] - width + steps[None, :]).flatten()
    right = rights[:, None].expand(-1, len(steps)).flatten()
    return len(peaked) - _inside(peaked, left, right), _inside(wide, left, right)


def _epsilon(u: Tensor, r: Tensor, of_errors: Tensor) -> float:
    """Epsilon of one sample; `u` and `r` sorted."""
    spread_u, spread_r = float(u[-1] - u[0]), float(r[-1] - r[0])
    widest = max(spread_u, spread_r)
    if not widest:
        return CAP if float(u[0]) != float(r[0]) else 0.0
    if min(spread_u, spread_r) / widest < _PEAKED:
        return CAP
    r_is_positive = float(r.quantile(0.5)) > float(u.quantile(0.5))
    if r_is_positive:
        on_r, on_u = _single(r, u)
    else:
        on_u, on_r = _single(u, r)
    best = float(of_errors[on_u, on_r].max())
    # Equal spreads: the one of the lower median counts as the peaked one.
    r_is_peaked = spread_r < spread_u or (spread_r == spread_u and not r_is_positive)
    if r_is_peaked:
        on_r, on_u = _double(r, u)
    else:
        on_u, on_r = _double(u, r)
    best = max(best, float(of_errors[on_u, on_r].max()))
    return CAP if best == -math.inf else min(best, CAP)


def example_epsilons(unlearned: Tensor, retrained: Tensor | None) -> Tensor:
    """The challenge's epsilon of each forgotten sample, by the best of its attacks.

    Of all single thresholds, and all intervals, on phi (`logit_scaled_confidence`),
    100 to a unit, with error rates a on unlearned and b on retrained models::

        epsilon = max(log(1 - delta - a) - log b, log(1 - delta - b) - log a)

    with delta = 1e-5, in [0, 50]. Thresholds with exactly one error rate of 0 are
    dropped; both 0 gives 50; and so does a population whose range is below 1% of the
    other's. The largest over thresholds counts.

    It is a point estimate of how far apart the two populations are, in units of
    epsilon; it has no confidence level and may exceed a certified epsilon by chance.

    Settled here, where the published code fails: if every threshold is dropped (both
    populations between two of them), or both populations are constant and differ, 50;
    constant and equal, 0.

    Args:
        unlearned: phi in each unlearned model, floating, (n, models), at least 3
            models; the challenge had 512.
        retrained: phi in each retrained model, (n, models), at least 3.

    Returns:
        float64, (n,), in [0, 50].

    Raises:
        ArgumentError: If `retrained` is None, shapes or dtypes differ from these, or a
            value is NaN or infinite.
    """
    u, r = arguments.populations(unlearned, retrained, minimum=3)
    u = u.to("cpu", torch.float64).sort(1).values
    r = r.to("cpu", torch.float64).sort(1).values
    of_errors = _epsilon_of_errors(u.shape[1], r.shape[1])
    each = [_epsilon(a, b, of_errors) for a, b in zip(u, r, strict=True)]
    return torch.tensor(each, dtype=torch.float64)


class ForgettingQuality(PopulationsMetric):
    """F, the mean score of the forgotten samples: 1 is the best, 0 the worst.

    A sample of epsilon e (`example_epsilons`) scores ``2^-floor(e / 0.5)``, or 0 from
    ``ceil(log(N - 1))`` on, beyond which N models of each kind measure nothing. Equal
    N are expected; of different ones the smaller counts. F compares methods only at
    the same N. The challenge's final score is F times the ratios of accuracy,
    `challenge_score`.

    Two sets of retrained models do not score 1: about 0.19 with normal phi, from 16 to
    512 of each, because the best of 160,000 attacks finds something. Read a value
    beside that of two such sets. It takes about 10 ms a sample.

    Args:
        **kwargs: Of `torchmetrics.Metric`.
    """

    higher_is_better = True

    def compute(self) -> Tensor:
        """F over the samples of all processes: float64, a scalar in [0, 1]."""
        u, r = self.populations()
        limit = math.ceil(math.log(min(u.shape[1], r.shape[1]) - 1))
        epsilons = example_epsilons(u, r)
        score = 0.5 ** (epsilons / _BUCKET).floor()
        return torch.where(epsilons < limit, score, 0.0).mean()


def challenge_score(
    quality: float,
    *,
    retain_unlearned: float,
    retain_retrained: float,
    test_unlearned: float,
    test_retrained: float,
) -> float:
    """The challenge's final score: F times the ratios of accuracy.

    ``F * (RA_u / RA_r) * (TA_u / TA_r)`` (arXiv 2406.09073v1, section 3).

    Args:
        quality: F, in [0, 1].
        retain_unlearned: Accuracy on retained samples, mean over unlearned models.
        retain_retrained: The same over retrained models, > 0.
        test_unlearned: Accuracy on test samples, mean over unlearned models.
        test_retrained: The same over retrained models, > 0.

    Returns:
        >= 0; above 1 where an unlearned model is more accurate than a retrained one.

    Raises:
        ArgumentError: If a number is outside its range.

    Example:
        >>> challenge_score(
        ...     0.5,
        ...     retain_unlearned=0.9,
        ...     retain_retrained=1.0,
        ...     test_unlearned=0.8,
        ...     test_retrained=0.8,
        ... )
        0.45
    """
    validate.non_negative(
        quality=quality,
        retain_unlearned=retain_unlearned,
        test_unlearned=test_unlearned,
    )
    validate.positive(retain_retrained=retain_retrained, test_retrained=test_retrained)
    retain = retain_unlearned / retain_retrained
    return quality * retain * (test_unlearned / test_retrained)
