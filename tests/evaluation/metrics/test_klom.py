"""KLOM: against numpy histograms and scipy's entropy, sample by sample."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import entropy

from lightning_unlearn.errors import ArgumentError
from lightning_unlearn.evaluation import Klom, klom


def drawn(*shape, seed=0):
    return torch.randn(
        *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def by_histogram(u, r):
    u, r = np.clip(u, -100, 100), np.clip(r, -100, 100)
    low, high = min(u.min(), r.min()), max(u.max(), r.max())
    edges = np.linspace(low, high if high > low else low + 1, 21)
    p, q = (np.histogram(x, edges)[0] / len(x) for x in (u, r))
    return entropy(p, np.where(p > 0, np.maximum(q, 1e-5), q))


@pytest.mark.parametrize(
    ("shift", "spread", "n_u", "n_r"),
    [
        (0, 1, 100, 100),
        (1, 1, 50, 80),
        (0, 0.1, 100, 100),
        (300, 1, 9, 9),
        (0, 90, 9, 5),
    ],
)
def test_klom_is_that_of_the_histograms(shift, spread, n_u, n_r):
    u, r = spread * drawn(30, n_u) + shift, drawn(30, n_r, seed=1)
    got = klom(u, r)
    for i in range(30):
        expected = by_histogram(u[i].numpy(), r[i].numpy())
        assert got[i].item() == pytest.approx(expected, abs=1e-12)


def test_margins_on_the_edges_belong_to_the_bin_above():
    u, r = torch.arange(21.0)[None], torch.arange(20, -1, -1.0)[None].square() / 20
    expected = by_histogram(u[0].double().numpy(), r[0].double().numpy())
    assert klom(u.double(), r.double()).item() == pytest.approx(expected, abs=1e-12)


def test_two_known_normals():
    """With many models, near KL(N(1, 1) || N(0, 1)) = 1/2, up to the bins."""
    n = 400_000
    assert klom(drawn(1, n) + 1, drawn(1, n, seed=1)).item() == pytest.approx(
        0.5, abs=0.02
    )


def test_margins_apart_give_the_cap():
    got = klom(drawn(3, 50) * 0.01 + 50, drawn(3, 50, seed=1) * 0.01)
    assert got.tolist() == pytest.approx([math.log(1e5 + 1)] * 3)


def test_the_same_margins_give_nothing():
    u = drawn(10, 20)
    assert klom(u, u.flip(1)).tolist() == pytest.approx([0.0] * 10, abs=1e-15)
    assert klom(torch.ones(2, 5), torch.ones(2, 9)).tolist() == [0.0, 0.0]
    assert klom(torch.full((1, 3), 5e30), torch.full((1, 3), 2e30)).item() == 0.0


def test_direction_is_unlearned_from_retrained():
    """Mass of oracles where no unlearned model is costs less than the reverse."""
    u, r = 0.3 * drawn(200, 100), drawn(200, 100, seed=1)
    assert klom(u, r).mean() < klom(r, u).mean()


def test_two_sets_of_oracles_do_not_score_zero():
    got = klom(drawn(500, 100), drawn(500, 100, seed=1)).mean()
    assert got.item() == pytest.approx(0.35, abs=0.05)  # as the docstring says


def test_metric_is_mean_or_quantile_of_the_samples_and_merges():
    u, r = drawn(40, 20), drawn(40, 20, seed=1)
    each = klom(u, r)
    first, second = Klom(), Klom()
    first.update(u[:15], r[:15])
    second.update(u[15:], r[15:])
    first.merge_state(second)
    assert first.compute().item() == pytest.approx(each.mean().item())
    assert Klom(0.95)(u, r).item() == pytest.approx(np.quantile(each.numpy(), 0.95))


@pytest.mark.parametrize(
    ("unlearned", "retrained", "message"),
    [
        (torch.zeros(1, 2), None, "of a model retrained without.*got None"),
        (torch.zeros(1, 1), torch.zeros(1, 2), "at least 2 unlearned models, got 1"),
        (torch.zeros(1, 2), torch.zeros(2, 2), "unlearned: 1, retrained: 2"),
        (torch.full((1, 2), torch.inf), torch.zeros(1, 2), "2 of 2 values NaN or inf"),
    ],
)
def test_what_cannot_be_compared_is_refused(unlearned, retrained, message):
    with pytest.raises(ArgumentError, match=message):
        klom(unlearned, retrained)
    with pytest.raises(ArgumentError, match=message):
        Klom().update(unlearned, retrained)


def test_quantiles_lie_between_0_and_1():
    with pytest.raises(ArgumentError, match="quantile strictly between 0 and 1"):
        Klom(1.0)
