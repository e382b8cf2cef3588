"""KLOM: the divergence of margins between unlearned and retrained models."""

from typing import Any

import torch
from torch import Tensor

from lightning_unlearn._base import validate
from lightning_unlearn.evaluation.metrics import arguments
from lightning_unlearn.evaluation.metrics.populations import PopulationsMetric

_BINS = 20
_CLIP = 100.0
_FLOOR = 1e-5


def _shares(phi: Tensor, edges: Tensor) -> Tensor:
    """Share of the models in each bin, the last one closed: (n, bins)."""
    bins = torch.searchsorted(edges, phi, right=True) - 1
    counts = torch.zeros(len(phi), _BINS, dtype=torch.float64)
    counts.scatter_add_(1, bins.clamp(0, _BINS - 1), torch.ones_like(phi))
    return counts / phi.shape[1]


def klom(unlearned: Tensor, retrained: Tensor | None) -> Tensor:
    """KL divergence of each sample's margins, unlearned models from oracles.

    Georgiev et al. 2024 (arXiv 2410.23232, appendix E.1), binning as in their code
    (RoyRin/data-unlearning-bench, ``src/eval.py``): phi clipped to [-100, 100], 20
    equal bins over the range of both populations of a sample, ``KL(p || q)`` in nats
    with p the unlearned, q the retrained shares, q at least 1e-5 where p is not 0, then
    made to sum to 1.

    Two sets of retrained models do not score 0: 0.35 on average with 100 of each and
    normal margins. Read a value beside that of two such sets.

    Differs from their code in one thing: the largest margin of a sample is counted, in
    the last bin; theirs drops it.

    Args:
        unlearned: phi (`logit_scaled_confidence`) in each unlearned model, floating,
            (n, models), at least 2 models.
        retrained: phi in each retrained model, the oracles, (n, models), at least 2.

    Returns:
        float64, (n,), in [0, 11.6].

    Raises:
        ArgumentError: If `retrained` is None, shapes or dtypes differ from these, or a
            value is NaN or infinite.
    """
    u, r = arguments.populations(unlearned, retrained, minimum=2)
    u = u.to("cpu", torch.float64).clamp(-_CLIP, _CLIP).contiguous()
    r = r.to("cpu", torch.float64).clamp(-_CLIP, _CLIP).contiguous()
    both = torch.cat((u, r), 1)
    low, high = both.amin(1, keepdim=True), both.amax(1, keepdim=True)
    high = torch.where(low < high, high, low + 1)
    edges = low + (high - low) / _BINS * torch.arange(_BINS + 1, dtype=torch.float64)
    p, q = _shares(u, edges), _shares(r, edges)
    q = torch.where(p > 0, q.clamp(min=_FLOOR), q)
    q = q / q.sum(1, keepdim=True)
    terms = torch.where(p > 0, p * (p / q).log(), 0.0)
    return terms.sum(1).clamp(min=0)


class Klom(PopulationsMetric):
    """`klom` of all samples, as one number.

    Args:
        quantile: None for the mean over samples; 0.95 for the 95th percentile that
            the authors report beside it.
        **kwargs: Of `torchmetrics.Metric`.

    Raises:
        ArgumentError: If the quantile is not in (0, 1).
    """

    higher_is_better = False
    minimum = 2

    def __init__(self, quantile: float | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if quantile is not None:
            validate.probability(quantile=quantile)
        self.quantile = quantile

    def compute(self) -> Tensor:
        """Over the samples of all processes: float64, a scalar >= 0."""
        each = klom(*self.populations())
        return each.mean() if self.quantile is None else each.quantile(self.quantile)
