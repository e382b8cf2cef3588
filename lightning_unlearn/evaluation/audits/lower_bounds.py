"""What the errors of a test between two worlds refute: lower bounds of epsilon and mu.

Unlearned is "positive", retrained "negative". All bounds rest on the same two ends, a
lower one of the true positive rate and an upper one of the false positive rate, each
of which fails with probability at most ``(1 - confidence) / 2``. The other direction
of the claim uses the same two: ``tnr >= 1 - fpr_high`` and ``fnr <= 1 - tpr_low``. So
whatever is said of one test holds together, with `confidence`.
"""

import math

import torch
from scipy.special import ndtri
from scipy.stats import beta
from torch import Tensor

from lightning_unlearn._base import validate
from lightning_unlearn.evaluation.attacks.roc import clopper_pearson
from lightning_unlearn.guarantee.gaussian import gaussian_epsilon

_CANDIDATES = 1000


def _ends(
    fp: int, negatives: int, tp: int, positives: int, confidence: float
) -> tuple[float, float]:
    """The two ends (tpr_low, fpr_high), which hold together with `confidence`."""
    tpr_low = clopper_pearson(tp, positives, confidence).low
    return tpr_low, clopper_pearson(fp, negatives, confidence).high


def epsilon_lower_bound(
    false_positives: int,
    n_negatives: int,
    true_positives: int,
    n_positives: int,
    delta: float,
    confidence: float = 0.95,
) -> float:
    """The largest epsilon that a test refutes at this delta, for any mechanism.

    (epsilon, delta) demands ``tpr <= e^epsilon fpr + delta`` and, of the complement in
    the other direction, ``tnr <= e^epsilon fnr + delta``; the bound is the larger of
    ``log((tpr_low - delta) / fpr_high)`` and ``log((tnr_low - delta) / fnr_high)``
    (Kairouz, Oh, Viswanath 2015; Jagielski, Ullman, Oprea 2020, with ends of Clopper &
    Pearson 1934). Both use the same two ends: no more error is spent on the second.

    It audits the claim (epsilon, delta), whatever the noise. For the claim of a
    Gaussian mechanism `mu_lower_bound` is never weaker.

    Args:
        false_positives: Retrained models called unlearned.
        n_negatives: Retrained models tested, independent, >= 1.
        true_positives: Unlearned models called unlearned.
        n_positives: Unlearned models tested, independent, >= 1. The test must have
            been fixed before any of the tested models was looked at.
        delta: In [0, 1); 0 for a claim of epsilon alone, such as that of grade
            ``exact``: any difference of the two rates then counts.
        confidence: In (0, 1): the bound is above the truth in at most ``1 -
            confidence`` of audits.

    Returns:
        A lower bound >= 0; 0.0 if nothing is refuted, which proves nothing.

    Raises:
        ArgumentError: If an argument is outside its range.

    Example:
        >>> round(epsilon_lower_bound(0, 128, 128, 128, delta=1e-5), 2)  # all right
        3.53
    """
    validate.probability_or_zero(delta=delta)
    tpr_low, fpr_high = _ends(
        false_positives, n_negatives, true_positives, n_positives, confidence
    )
    odds = max((tpr_low - delta) / fpr_high, (1 - fpr_high - delta) / (1 - tpr_low))
    return math.log(odds) if odds > 1 else 0.0


def mu_lower_bound(
    false_positives: int,
    n_negatives: int,
    true_positives: int,
    n_positives: int,
    confidence: float = 0.95,
) -> float:
    """The largest mu that a test refutes, for a claim of mu-GDP.

    mu-GDP demands ``tpr <= Phi(Phi^-1(fpr) + mu)`` (Dong, Roth, Su 2022, Definition
    2.6), so ``mu >= Phi^-1(tpr_low) - Phi^-1(fpr_high)`` (Nasr et al. 2023, arXiv
    2302.07956, "Tight Auditing of Differentially Private Machine Learning"); the other
    direction gives the same number.

    It audits what a certificate of this package claims of a release: Gaussian noise
    of ratio mu. It is no bound of a claim of (epsilon, delta) alone, which other
    mechanisms can meet with a larger one: use `epsilon_lower_bound` for that.

    Args:
        false_positives: Retrained models called unlearned.
        n_negatives: Retrained models tested, independent, >= 1.
        true_positives: Unlearned models called unlearned.
        n_positives: Unlearned models tested, as for `epsilon_lower_bound`.
        confidence: In (0, 1).

    Returns:
        A lower bound >= 0; 0.0 if nothing is refuted, which proves nothing.

    Raises:
        ArgumentError: If an argument is outside its range.

    Example:
        >>> round(mu_lower_bound(160, 1000, 840, 1000), 2)  # of mu = 2
        1.8
    """
    tpr_low, fpr_high = _ends(
        false_positives, n_negatives, true_positives, n_positives, confidence
    )
    return max(0.0, float(ndtri(tpr_low)) - float(ndtri(fpr_high)))


def epsilon_of_mu_lower(mu: float, delta: float) -> float:
    """The epsilon that a release with no less than this mu >= 0 needs, rounded down.

    Infinite at delta = 0: noise that is Gaussian proves nothing there.
    """
    if mu <= 0:
        return 0.0
    if delta == 0:
        return math.inf
    rounded_up = gaussian_epsilon(mu, delta)
    return rounded_up * (1 - 1e-6) if rounded_up > 1e-9 else 0.0


def best_cut(
    positives: Tensor, negatives: Tensor, confidence: float
) -> tuple[float, float]:
    """The test ``sign * score > cut`` with the largest `mu_lower_bound` on these.

    Scores are float64 (n,). The bound on them is no bound of anything: the test was
    chosen with them. It is for others.
    """
    found = [
        (*_cut(sign * positives, sign * negatives, confidence), sign)
        for sign in (1.0, -1.0)
    ]
    _, cut, sign = max(found, key=lambda each: each[0])
    return sign, cut


def _cut(u: Tensor, r: Tensor, confidence: float) -> tuple[float, float]:
    """The largest bound, below 0 too, and where to cut for it."""
    ordered = torch.cat((u, r)).unique()
    cuts = ordered[:-1] / 2 + ordered[1:] / 2 if len(ordered) > 1 else ordered
    if len(cuts) > _CANDIDATES:
        cuts = cuts[torch.linspace(0, len(cuts) - 1, _CANDIDATES).long()]
    tail = (1 - confidence) / 2
    tp, fp = (
        len(x) - torch.searchsorted(x.sort().values, cuts, right=True) for x in (u, r)
    )
    low = beta.ppf(tail, tp.clamp(min=1).numpy(), (len(u) - tp + 1).numpy())
    high = beta.ppf(1 - tail, (fp + 1).numpy(), (len(r) - fp).clamp(min=1).numpy())
    least = torch.where(tp > 0, torch.as_tensor(ndtri(low)), -math.inf)
    most = torch.where(fp < len(r), torch.as_tensor(ndtri(high)), math.inf)
    bounds = least - most
    best = int(bounds.argmax())
    return float(bounds[best]), float(cuts[best])
