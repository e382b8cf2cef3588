"""AUC, true positive rates at low false positive rates, and their intervals."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from scipy.stats import binomtest, norm
from torch import Tensor

from lightning_unlearn._base import validate
from lightning_unlearn.errors import ArgumentError


class Interval(NamedTuple):
    """A value and the ends of its confidence interval.

    A tuple, not a dataclass: torchmetrics cannot return frozen dataclasses.
    """

    value: float
    low: float
    high: float


def clopper_pearson(successes: int, trials: int, confidence: float = 0.95) -> Interval:
    """Exact two-sided interval of a proportion.

    Clopper & Pearson 1934: covers the true proportion with at least `confidence`, for
    every number of trials.

    Args:
        successes: How often it happened, 0 <= successes <= trials.
        trials: Independent trials, >= 1.
        confidence: In (0, 1).

    Returns:
        ``successes / trials`` and the two ends, in [0, 1].

    Raises:
        ArgumentError: If an argument is outside its range.

    Example:
        >>> round(clopper_pearson(0, 100).high, 4)  # nothing in a hundred
        0.0362
    """
    validate.count(trials=trials)
    validate.count(0, successes=successes)
    validate.probability(confidence=confidence)
    if successes > trials:
        raise ArgumentError(
            f"expected successes <= trials, got {successes} of {trials}"
        )
    found = binomtest(successes, trials).proportion_ci(confidence, method="exact")
    return Interval(successes / trials, float(found.low), float(found.high))


class RateAt(NamedTuple):
    """How many members an attack finds at one false positive rate.

    Attributes:
        target: The false positive rate asked for.
        threshold: A sample is called a member if its score is above (not at) it; the
            lowest at which at most ``target * n_non_members`` others are.
        tpr: Share of members found at this threshold; Clopper-Pearson, exact because
            the threshold is chosen on the non-members alone. It says nothing of how
            far the threshold is from the rate asked for: `fpr` does.
        fpr: Share of non-members called members, and what it is on new ones: the
            upper end is exact for a threshold that is an order statistic (Wilks 1941).
        resolved: Whether there are non-members enough (``1 / target``) that one of
            them may be called a member. If not, the rate is that at no false positive,
            and `fpr.high` says how far from `target` it may be.
    """

    target: float
    threshold: float
    tpr: Interval
    fpr: Interval
    resolved: bool


class Attack(NamedTuple):
    """One attack on one model.

    Attributes:
        auc: Area under the ROC curve; ties count one half.
        rates: One `RateAt` for each false positive rate, in the order asked for.
        n_members: Members scored.
        n_non_members: Non-members scored.
    """

    auc: float
    rates: tuple[RateAt, ...]
    n_members: int
    n_non_members: int


def _twice_below(of: Tensor, among: Tensor) -> Tensor:
    """Twice how many of `among` are below each of `of`, ties one half: int64."""
    ordered = among.sort().values
    below = torch.searchsorted(ordered, of, right=False)
    return below + torch.searchsorted(ordered, of, right=True)


def _placements(of: Tensor, among: Tensor) -> Tensor:
    return _twice_below(of, among).double() / (2 * len(among))


def _auc(members: Tensor, others: Tensor) -> float:
    """Exact, and the same in whatever order the samples came."""
    twice = int(_twice_below(members, others).sum())
    return twice / (2 * len(members) * len(others))


def rate_at(members: Tensor, others: Tensor, fpr: float, confidence: float) -> RateAt:
    """The most members found with at most ``fpr * len(others)`` false positives."""
    n = len(others)
    allowed = math.floor(fpr * n * (1 + 1e-12))  # 0.001 * 3000 is 3
    threshold = others.sort(descending=True).values[min(allowed, n - 1)]
    found = int((members > threshold).sum())
    wrong = int((others > threshold).sum())
    high = clopper_pearson(min(allowed, n - 1), n, confidence).high
    return RateAt(
        target=fpr,
        threshold=float(threshold),
        tpr=clopper_pearson(found, len(members), confidence),
        fpr=clopper_pearson(wrong, n, confidence)._replace(high=high),
        resolved=allowed >= 1,
    )


def attack(
    members: Tensor, others: Tensor, fprs: Sequence[float], confidence: float
) -> Attack:
    """What scores of members and of others, higher for members, give an attacker."""
    return Attack(
        auc=_auc(members, others),
        rates=tuple(rate_at(members, others, fpr, confidence) for fpr in fprs),
        n_members=len(members),
        n_non_members=len(others),
    )


def auc_difference(
    first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor], confidence: float
) -> Interval:
    """AUC of the first less that of the second, on the same samples in both.

    DeLong, DeLong & Clarke-Pearson 1988: paired, asymptotic. With fewer than two
    members or others nothing is known: (-1, 1).
    """
    by_member = _placements(first[0], first[1]) - _placements(second[0], second[1])
    by_other = _placements(second[1], second[0]) - _placements(first[1], first[0])
    value = _auc(*first) - _auc(*second)
    if min(len(by_member), len(by_other)) < 2:
        return Interval(value, -1.0, 1.0)
    variance = by_member.var() / len(by_member) + by_other.var() / len(by_other)
    reach = float(norm.ppf((1 + confidence) / 2)) * math.sqrt(float(variance))
    return Interval(value, max(-1.0, value - reach), min(1.0, value + reach))
