"""Per-sample U-LiRA: can unlearned models be told from retrained ones by a sample?"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_unlearn._base import validate
from lightning_unlearn.evaluation.attacks.roc import rate_at
from lightning_unlearn.evaluation.metrics.populations import PopulationsMetric

_PAIRS_AT_ONCE = 2_000_000  # doubles a tensor holds, 16 MB


class ULiRAResult(NamedTuple):
    """How well held-out models are told apart, one half being not at all.

    One half is no convention here: two sets of retrained models score it exactly, in
    expectation, whatever their distribution.

    Attributes:
        auc: Mean of `per_sample_auc`.
        accuracy: Mean of `per_sample_accuracy`: the accuracy Hayes et al. report.
        per_sample_auc: float64, (n,): probability that, of one unlearned and one
            retrained model, the test picks the right one by this sample.
        per_sample_accuracy: float64, (n,): of the test at likelihood ratio 1.
        tpr: Share of unlearned models found, over models and samples together, at each
            false positive rate asked for. No interval: samples share models, so the
            trials are not independent.
        n_unlearned: Unlearned models.
        n_retrained: Retrained models.
    """

    auc: float
    accuracy: float
    per_sample_auc: Tensor
    per_sample_accuracy: Tensor
    tpr: tuple[float, ...]
    n_unlearned: int
    n_retrained: int


def _fits_without_each(phi: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of all models but one, for each one: (n, models) twice."""
    models = range(phi.shape[1])
    others = [torch.cat((phi[:, :i], phi[:, i + 1 :]), 1) for i in models]
    mean = torch.stack([o.mean(1) for o in others], 1)
    variance = torch.stack([o.var(1) for o in others], 1)
    # Models that all agree: a peak far narrower than phi, but of finite density.
    floor = 1e-9 * (1 + mean.abs())
    return mean, torch.maximum(variance, floor**2)


def _log_density(x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    return -((x - mean) ** 2) / (2 * variance) - variance.log() / 2


def _won(ratio: Tensor) -> Tensor:
    """1 where positive, 0 where negative, one half at 0."""
    return (ratio.sign() + 1) / 2


def _log_ratios(u: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    """Log likelihood ratios of unlearned i and retrained j, both held out.

    Both of shape (n, unlearned i, retrained j).
    """
    mean_u, var_u = _fits_without_each(u)
    mean_r, var_r = _fits_without_each(r)
    as_u = (mean_u[:, :, None], var_u[:, :, None])
    as_r = (mean_r[:, None, :], var_r[:, None, :])
    i, j = u[:, :, None], r[:, None, :]
    of_u = _log_density(i, *as_u) - _log_density(i, *as_r)
    of_r = _log_density(j, *as_u) - _log_density(j, *as_r)
    return of_u, of_r


class ULiRA(PopulationsMetric):
    """The likelihood ratio test of unlearned against retrained models, by sample.

    Hayes et al. 2024 (arXiv 2403.01218v3), per-example U-LiRA: for each forgotten
    sample a normal distribution is fitted to phi (`logit_scaled_confidence`) of the
    unlearned models, another to that of the retrained models, and a held-out model is
    judged by the ratio of the two densities. Retrained models are trained without the
    sample; unlearned models were trained with it and made to forget it.

    Each unlearned model is held out together with each retrained one: both fits then
    lack one model of their own kind, and exchangeable models give one half exactly.
    Holding out one alone, as published code does, leaves one fit larger than the
    other, and then they do not.

    Args:
        fprs: False positive rates to report at, each in (0, 1).
        **kwargs: Of `torchmetrics.Metric`.

    Raises:
        ArgumentError: If a rate is outside its range.
    """

    higher_is_better = False

    def __init__(self, fprs: Sequence[float] = (0.001, 0.01), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for fpr in fprs:
            validate.probability(fpr=fpr)
        self.fprs = tuple(fprs)

    def compute(self) -> ULiRAResult:
        """The test of every held-out model by every sample, of all processes.

        Time and memory grow as samples x unlearned x retrained models; memory is
        bounded by working through the samples in blocks.
        """
        u, r = self.populations()
        n_u, n_r = u.shape[1], r.shape[1]
        block = math.ceil(_PAIRS_AT_ONCE / (n_u * n_r))
        aucs, accuracies, members, others = [], [], [], []
        pairs = torch.arange(max(n_u, n_r))
        i, j = pairs % n_u, pairs % n_r
        for first, second in zip(u.split(block), r.split(block), strict=True):
            of_u, of_r = _log_ratios(first, second)
            aucs.append(_won(of_u - of_r).mean((1, 2)))
            accuracies.append((_won(of_u) + _won(-of_r)).mean((1, 2)) / 2)
            members.append(of_u[:, i, j].flatten())
            others.append(of_r[:, i, j].flatten())
        auc, accuracy = torch.cat(aucs), torch.cat(accuracies)
        found = torch.cat(members), torch.cat(others)
        return ULiRAResult(
            auc=float(auc.mean()),
            accuracy=float(accuracy.mean()),
            per_sample_auc=auc,
            per_sample_accuracy=accuracy,
            tpr=tuple(rate_at(*found, fpr, 0.95).tpr.value for fpr in self.fprs),
            n_unlearned=n_u,
            n_retrained=n_r,
        )
