"""Audit of a whole forget set in one training: canaries put in by the toss of a coin.

Each canary is put into the training data or left out; all that are in are forgotten by
one request. Whatever the coins, the retained set is the same, so the claim compares
every outcome with one and the same retrained world, in which nothing depends on the
coins and a guess of a coin is right half of the time.

A private training claims something of each canary, whoever else is in: `one_by_one`.
"""

import math
from collections.abc import Sequence

import torch
from scipy.special import ndtri, ndtri_exp
from scipy.stats import binom
from torch import Tensor

from lightning_unlearn._base import validate
from lightning_unlearn.certificate.certificate import Certificate
from lightning_unlearn.errors import ArgumentError
from lightning_unlearn.evaluation.audits import one_by_one, worlds
from lightning_unlearn.evaluation.audits.finding import (
    Audit,
    Lower,
    asked_delta,
    compared,
)
from lightning_unlearn.evaluation.metrics import arguments


def _log_tail(right: int, guesses: int) -> float:
    """``log P[Bin(guesses, 1/2) >= right]``, which does not underflow."""
    if right <= 0:
        return 0.0
    every = binom.logpmf(range(right, guesses + 1), guesses, 0.5)
    return min(0.0, float(torch.as_tensor(every).logsumexp(0)))


def _lower(
    right: Sequence[int], guesses: int, delta: float, confidence: float
) -> Lower:
    """What runs with so many right guesses each refute.

    With mu-GDP, ``P[tail(V) <= q] <= Phi(Phi^-1(q) + mu)``: ``Z = -Phi^-1(tail(V))`` is
    stochastically below N(mu, 1), and the mean of R independent runs below N(mu, 1/R).
    With one run both bounds hold together: the curve of mu-GDP lies below the line of
    the epsilon that belongs to it. With more, either may err half as often.
    """
    tails, runs = [_log_tail(v, guesses) for v in right], len(right)
    beta = 1 - confidence if runs == 1 else (1 - confidence) / 2
    z = -sum(float(ndtri_exp(tail)) for tail in tails) / runs
    mu = z + float(ndtri(beta)) / math.sqrt(runs)
    share = beta / runs  # the best of the runs is taken
    epsilon = math.log(share - delta) - min(tails) if share > delta else 0.0
    return Lower(max(0.0, epsilon), max(0.0, mu))


def _runs(included: object, scores: object) -> tuple[Tensor, Tensor]:
    """Coins and scores, both (runs, canaries), or `ArgumentError`."""
    ndim = 2 if isinstance(scores, Tensor) and scores.ndim == 2 else 1
    s = arguments.values("scores", scores, ndim).to("cpu", torch.float64)
    if not (isinstance(included, Tensor) and included.dtype == torch.bool):
        got = included.dtype if isinstance(included, Tensor) else type(included)
        raise ArgumentError(
            f"expected included as booleans, True where the coin put a canary in, got "
            f"{got}"
        )
    if included.shape != s.shape or not s.numel():
        raise ArgumentError(
            "expected a score for each canary, both of shape (canaries,) or (runs, "
            f"canaries), got scores of shape {tuple(s.shape)} and included of "
            f"{tuple(included.shape)}"
        )
    return included.cpu().view(-1, s.shape[-1]), s.view(-1, s.shape[-1])


def check_guesses(guesses: int, r: int) -> None:
    """Raise `ArgumentError` unless so many of r canaries can be guessed."""
    validate.count(guesses=guesses)
    if guesses > r:
        raise ArgumentError(f"expected guesses of at most {r} canaries, got {guesses}")


def _guessed_right(included: Tensor, scores: Tensor, guesses: int) -> tuple[int, int]:
    """Right guesses, and those of them that a canary was out.

    The highest scores are guessed to be in, the lowest out; the middle is left.
    """
    order = scores.argsort(stable=True)
    out, inside = order[: guesses // 2], order[len(order) - (guesses + 1) // 2 :]
    right = int((~included[out]).sum())
    return right + int(included[inside].sum()), right


def _verified(
    certificate: Certificate | Sequence[Certificate], included: Tensor
) -> list[Certificate]:
    """A certificate for each run, of a request that fits its coins."""
    each = (
        [certificate] * len(included)
        if isinstance(certificate, Certificate)
        else list(certificate)
    )
    if len(each) != len(included):
        raise ArgumentError(
            f"expected a certificate for each of {len(included)} runs, got {len(each)}"
        )
    for found in each:
        found.verify()
    if one_by_one.is_private_training(each):
        return each
    for found, coins in zip(each, included, strict=True):
        if found.n_forget < int(coins.sum()):
            raise ArgumentError(
                f"expected a request that forgot all {int(coins.sum())} canaries that "
                f"were in, got a certificate of {found.n_forget} forgotten samples: "
                "one that stays makes the retained set depend on the coins"
            )
    return each


def _least_claim(each: list[Certificate]) -> Certificate:
    """The certificate that claims least."""
    stated = [worlds.stated_mu(found) for found in each]
    if None in stated:  # nothing is claimed of some run, so nothing of all
        return each[stated.index(None)]
    return each[max(range(len(each)), key=lambda i: stated[i] or 0.0)]


def one_run_audit(
    certificate: Certificate | Sequence[Certificate],
    included: Tensor,
    scores: Tensor,
    confidence: float = 0.95,
    *,
    guesses: int | None = None,
    delta: float | None = None,
) -> Audit:
    """Guess which canaries were forgotten, and compare with the certificate.

    Before training a fair coin decides of each canary whether it is among the training
    data; the request forgets all that are. The attack sees what was released and gives
    each canary a score. In the retrained world the released model has never met one,
    and V right guesses of k have the law Bin(k, 1/2), so (epsilon, delta) demands

        P[V >= v] <= e^epsilon P[Bin(k, 1/2) >= v] + delta,

    averaged over the coins, and V = v refutes every epsilon below ``ln((beta - delta)
    / P[Bin(k, 1/2) >= v])`` at confidence 1 - beta; mu-GDP demands ``P[V >= v] <=
    Phi(Phi^-1(P[Bin >= v]) + mu)`` (concave: it survives the average), which refutes
    mu below ``Phi^-1(beta) - Phi^-1(P[Bin >= v])``. Derived here, after Steinke, Nasr,
    Jagielski 2023 (arXiv 2305.08846), who audit differential privacy of one sample at
    a time and need more: here all canaries go in one request.

    With certificates of private trainings it is the audit of that paper: each canary
    is held to epsilon of one sample, which follows from the certificate's constants,
    and the runs count as one of all their canaries. The request may be of any samples,
    since no weight follows from it. The number of samples counts as public. Guesses
    that a canary was out are held to the epsilon of that direction as well, which is
    smaller where a sample is often not drawn at all (the paper's proof takes one guess
    at a time, by the ratio in its own direction): so batches that are shuffled, and
    stated as independent draws, can be refuted. Each of the two has half of ``1 -
    confidence``.

    Args:
        certificate: Of the request, or one for each run; they must verify.
        included: Boolean, (canaries,) or (runs, canaries) of independent runs: True
            where the coin put the canary in. Fair and independent coins, drawn afresh.
        scores: Floating, of the same shape: higher, more likely in. They may depend on
            the released model and on anything else that does not depend on the coins.
        confidence: In (0, 1). An honest certificate raises in at most ``1 -
            confidence`` of audits: take a larger one where many are run.
        guesses: Of how many canaries of a run to guess, chosen beforehand: half of
            them the highest scores, half the lowest. All by default.
        delta: At which to state epsilon; by default the certificate's. Grade ``none``
            has none: give it.

    Returns:
        The lower bounds, the ceiling (every guess right) and what is certified. A
        failed audit proves nothing.

    Raises:
        AuditError: If a lower bound is above what is certified of this release.
        CertificateError: If a certificate does not verify.
        ArgumentError: If shapes or dtypes differ from these, a score is NaN or
            infinite, fewer samples were forgotten than canaries put in, or there is
            no delta.

    Example:
        200 canaries of which 140 are guessed right refute every epsilon below 15.7.
    """
    validate.probability(confidence=confidence)
    coins, s = _runs(included, scores)
    each = _verified(certificate, coins)
    private = one_by_one.is_private_training(each)
    claim = _least_claim(each)
    delta = asked_delta(claim, delta)
    runs, r = coins.shape
    k = r if guesses is None else guesses
    check_guesses(k, r)
    found = [_guessed_right(c, x, k) for c, x in zip(coins, s, strict=True)]
    right, out = [both for both, _ in found], sum(out for _, out in found)
    of_runs = f" in {runs} runs" if runs > 1 else " in one run"

    def one_by_one_lower(right: int, guesses: int) -> Lower:
        shared = 1 - (1 - confidence) / 2
        return one_by_one.lower(right, guesses, runs * r, delta, shared)

    def lower(right: list[int]) -> Lower:
        if not private:
            return _lower(right, k, delta, confidence)
        return one_by_one_lower(sum(right), runs * k)

    if private and claim.epsilon is not None and (guessed := runs * (k // 2)):
        compared(
            claim,
            one_by_one_lower(out, guessed),
            one_by_one_lower(guessed, guessed),
            attack="guessing who was out, one sample at a time",
            tried=f"{out:,} of {guessed:,} guesses right, {r:,} canaries{of_runs}",
            n=runs * r,
            confidence=confidence,
            delta=delta,
            epsilon=one_by_one.of_one_out(each, delta),
        )
    return compared(
        claim,
        lower(right),
        lower([k] * runs),
        attack="guessing coins" + ", one sample at a time" * private,
        tried=f"{sum(right):,} of {runs * k:,} guesses right, {r:,} canaries{of_runs}",
        n=runs * r,
        confidence=confidence,
        delta=delta,
        epsilon=one_by_one.of_one_sample(each, delta) if private else None,
    )
