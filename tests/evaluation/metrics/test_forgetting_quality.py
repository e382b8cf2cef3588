"""Forgetting quality F: against a slow transcription of its definition, in numpy."""

import math

import numpy as np
import pytest
import torch

from lightning_unlearn.errors import ArgumentError
from lightning_unlearn.evaluation import (
    ForgettingQuality,
    challenge_score,
    example_epsilons,
)


def drawn(*shape, seed=0):
    return torch.randn(
        *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def epsilon_of(fpr, fnr, delta=1e-5):
    """Step 3: None where the threshold is dropped."""
    if fpr == 0 and fnr == 0:
        return math.inf
    if fpr == 0 or fnr == 0:
        return None
    bounds = [
        math.log(1 - delta - x) - math.log(y)
        for x, y in ((fpr, fnr), (fnr, fpr))
        if 1 - delta - x > 0
    ]
    return max(0.0, *bounds) if bounds else None


def by_definition(u, r):
    """Epsilon of one sample: all thresholds of both kinds, one at a time."""
    positive, negative = (r, u) if np.median(r) > np.median(u) else (u, r)
    small, large = sorted([np.ptp(positive), np.ptp(negative)])
    if small / large < 0.01:
        return 50.0
    found = []
    low, high = min(u.min(), r.min()), max(u.max(), r.max())
    for t in np.linspace(low, high, math.ceil((high - low) * 100)):
        found.append(epsilon_of((negative >= t).mean(), (positive < t).mean()))
    inner, outer = positive, negative
    if np.ptp(positive) >= np.ptp(negative):
        inner, outer = negative, positive
    low, high = inner.min() + np.ptp(inner) - 2, inner.max() + 2
    for right in np.linspace(low, high, math.ceil((high - low) * 100)):
        middle = right - np.ptp(inner)
        for left in np.linspace(middle - 2, middle + 2, 400):
            fpr = ((left <= outer) & (outer <= right)).mean()
            fnr = 1 - ((left <= inner) & (inner <= right)).mean()
            found.append(epsilon_of(fpr, fnr))
    kept = [e for e in found if e is not None]
    return min(50.0, max(kept))


@pytest.mark.parametrize(
    ("seed", "shift", "spread", "n_u", "n_r"),
    [
        (0, 0.0, 1.0, 12, 12),
        (1, 1.0, 1.0, 24, 24),
        (2, -1.5, 2.0, 24, 24),
        (3, 0.0, 0.2, 32, 32),  # only an interval tells them apart
        (4, 0.5, 3.0, 8, 20),
    ],
)
def test_epsilon_is_that_of_the_definition(seed, shift, spread, n_u, n_r):
    u = spread * drawn(1, n_u, seed=seed) + shift
    r = drawn(1, n_r, seed=seed + 100)
    expected = by_definition(u[0].numpy(), r[0].numpy())
    assert example_epsilons(u, r).item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_thresholds_are_a_hundred_to_a_unit(seed):
    """Populations as narrow as a few thresholds: another grid finds another epsilon."""
    u, r = 0.01 * drawn(1, 10, seed=seed) + 0.01, 0.01 * drawn(1, 10, seed=seed + 50)
    expected = by_definition(u[0].numpy(), r[0].numpy())
    assert example_epsilons(u, r).item() == pytest.approx(expected, abs=1e-9)


def test_of_different_numbers_of_models_the_smaller_counts():
    u, r = drawn(30, 8) + 1.5, drawn(30, 100, seed=1)
    epsilons = example_epsilons(u, r)
    assert ((epsilons >= 2) & (epsilons < 4.5)).sum() > 10  # beyond ceil(ln(7)) = 2
    scores = 0.5 ** (epsilons[epsilons < 2] / 0.5).floor()
    assert ForgettingQuality()(u, r).item() == pytest.approx(scores.sum().item() / 30)


def test_score_of_known_epsilons():
    """F from the epsilons: buckets of 0.5, halved each, none from ceil(ln(N - 1))."""
    u, r = drawn(40, 16) + torch.linspace(-1.5, 1.5, 40)[:, None], drawn(40, 16, seed=1)
    metric = ForgettingQuality()
    metric.update(u, r)
    limit = math.ceil(math.log(15))
    epsilons = example_epsilons(u, r).tolist()
    scores = [2.0 ** -math.floor(e / 0.5) if e < limit else 0.0 for e in epsilons]
    assert len(set(scores)) > 3
    assert metric.compute().item() == pytest.approx(sum(scores) / 40)


def test_errors_worked_out_by_hand():
    """One error in four on both sides: eps = log(3/4 - 1e-5) - log(1/4)."""
    u = torch.tensor([[0.0, 1.0, 2.0, 10.0]])
    r = torch.tensor([[8.0, 9.0, 11.0, 1.5]])
    assert example_epsilons(u, r).item() == pytest.approx(math.log(3 - 4e-5))


def test_populations_apart_are_capped_and_score_nothing():
    u, r = drawn(5, 16) + 20, drawn(5, 16, seed=1)
    assert example_epsilons(u, r).tolist() == [50.0] * 5
    metric = ForgettingQuality()
    assert metric(u, r) == 0


def test_exchangeable_populations_score_better_than_ones_apart():
    u, r = drawn(60, 32), drawn(60, 32, seed=1)
    near, shifted = ForgettingQuality()(u, r), ForgettingQuality()(u + 1, r)
    assert 0.1 < near < 0.3  # not 1, as the docstring says
    assert shifted < near / 2
    assert ForgettingQuality()(r, r) > near


def test_populations_that_are_exchanged_or_turned_around_are_as_far_apart():
    u, r = drawn(10, 16) + 0.7, 1.3 * drawn(10, 16, seed=1)
    epsilons = example_epsilons(u, r)
    torch.testing.assert_close(example_epsilons(r, u), epsilons)


@pytest.mark.parametrize(
    ("u", "r", "expected"),
    [
        ([0, 0, 0], [0, 0, 0], 0.0),
        ([1, 1, 1], [0, 0, 0], 50.0),
        ([0, 0.001, 0], [-1, 0, 1], 50.0),  # peaked: below 1% of the other's range
        ([0, 5e-4, 1e-3], [2e-4, 7e-4, 1.2e-3], 50.0),  # between two thresholds
    ],
)
def test_what_the_published_code_cannot_do_never_flatters(u, r, expected):
    u, r = (torch.tensor([x], dtype=torch.float64) for x in (u, r))
    assert example_epsilons(u, r).item() == expected


def test_halves_merged_are_the_whole():
    u, r = drawn(20, 8), drawn(20, 8, seed=1)
    first, second, whole = (ForgettingQuality() for _ in range(3))
    first.update(u[:7], r[:7])
    second.update(u[7:], r[7:])
    first.merge_state(second)
    assert first.compute().item() == pytest.approx(whole(u, r).item())


@pytest.mark.parametrize(
    ("unlearned", "retrained", "message"),
    [
        (torch.zeros(1, 3), None, "of a model retrained without.*got None"),
        (torch.zeros(1, 2), torch.zeros(1, 2), "at least 3 unlearned models, got 2"),
        (torch.zeros(1, 3), torch.full((1, 3), torch.nan), "retrained models.*finite"),
    ],
)
def test_what_cannot_be_compared_is_refused(unlearned, retrained, message):
    with pytest.raises(ArgumentError, match=message):
        example_epsilons(unlearned, retrained)
    with pytest.raises(ArgumentError, match=message):
        ForgettingQuality().update(unlearned, retrained)


def test_final_score_wants_accuracies_of_the_retrained_model():
    accuracies = {
        "retain_unlearned": 0.9,
        "retain_retrained": 0.8,
        "test_unlearned": 0.6,
        "test_retrained": 0.75,
    }
    assert challenge_score(0.5, **accuracies) == pytest.approx(0.45)
    for name in ("retain_retrained", "test_retrained"):
        with pytest.raises(ArgumentError, match=f"{name} to be a finite number > 0"):
            challenge_score(0.5, **{**accuracies, name: 0.0})
    with pytest.raises(ArgumentError, match="quality to be a finite number >= 0"):
        challenge_score(math.nan, **accuracies)
