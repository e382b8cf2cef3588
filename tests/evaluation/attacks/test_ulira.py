"""U-LiRA: against a loop, at chance for exchangeable models, and on a planted leak."""

import pytest
import torch
from scipy.stats import norm

from lightning_unlearn.errors import ArgumentError
from lightning_unlearn.evaluation import ULiRA


def computed(unlearned, retrained, **options):
    metric = ULiRA(**options)
    metric.update(unlearned, retrained)
    return metric.compute()


def drawn(*shape, seed=0):
    return torch.randn(
        *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def by_loop(u, r):
    """AUC and accuracy of one sample: every pair held out, fits with scipy."""
    u, r = u.numpy(), r.numpy()
    wins = right = 0.0
    for i in range(len(u)):
        for j in range(len(r)):
            rest_u = [x for k, x in enumerate(u) if k != i]
            rest_r = [x for k, x in enumerate(r) if k != j]
            ratios = []
            for x in (u[i], r[j]):
                p, q = (
                    norm.logpdf(x, sum(rest) / len(rest), torch.tensor(rest).std())
                    for rest in (rest_u, rest_r)
                )
                ratios.append(p - q)
            wins += ratios[0] > ratios[1]
            right += (float(ratios[0] > 0) + float(ratios[1] < 0)) / 2
    pairs = len(u) * len(r)
    return wins / pairs, right / pairs


@pytest.mark.parametrize(("n_u", "n_r"), [(5, 5), (4, 7), (3, 3)])
def test_every_held_out_pair_is_judged(n_u, n_r):
    u, r = drawn(6, n_u) + 0.5, 1.5 * drawn(6, n_r, seed=1)
    got = computed(u, r)
    for sample in range(6):
        auc, accuracy = by_loop(u[sample], r[sample])
        assert got.per_sample_auc[sample] == pytest.approx(auc, abs=1e-12)
        assert got.per_sample_accuracy[sample] == pytest.approx(accuracy, abs=1e-12)
    assert got.auc == pytest.approx(got.per_sample_auc.mean().item())
    assert got.accuracy == pytest.approx(got.per_sample_accuracy.mean().item())
    assert (got.n_unlearned, got.n_retrained) == (n_u, n_r)


@pytest.mark.parametrize("n_models", [3, 8, 40])
def test_exchangeable_models_are_at_chance(n_models):
    """Skewed ones too, which no normal fits."""
    n = 40_000 // n_models
    u, r = (drawn(n, n_models, seed=s).exp() for s in (0, 1))
    got = computed(u, r)
    spread = got.per_sample_auc.std().item() / n**0.5
    assert abs(got.auc - 0.5) < 4 * spread < 0.02
    assert abs(got.accuracy - 0.5) < 0.01
    assert got.tpr[1] == pytest.approx(0.01, abs=0.003)


def test_a_planted_leak_is_found_where_it_is():
    u, r = drawn(200, 16), drawn(200, 16, seed=1)
    u[:5] += 4
    got = computed(u, r)
    assert got.per_sample_auc[:5].min() > 0.95
    assert 0.45 < got.per_sample_auc[5:].mean() < 0.55
    # The average hides it: that is why the samples are reported.
    assert got.auc < 0.55


def test_a_leak_in_the_spread_alone_is_found():
    got = computed(0.1 * drawn(50, 30), drawn(50, 30, seed=1))
    assert got.auc > 0.85


def test_power_of_two_known_normals():
    """With many models the fits are exact: AUC = Phi(d / sqrt 2), accuracy Phi(d/2)."""
    got = computed(drawn(300, 60) + 1, drawn(300, 60, seed=1))
    assert got.auc == pytest.approx(norm.cdf(2**-0.5), abs=0.015)
    assert got.accuracy == pytest.approx(norm.cdf(0.5), abs=0.015)


def test_models_that_all_agree():
    constant = torch.zeros(4, 5)
    assert computed(constant, constant).auc == 0.5
    assert computed(constant + 1, constant).auc == 1.0
    assert computed(1e30 * (constant + 1), -1e30 * (constant + 1)).accuracy == 1.0


def test_blocks_of_samples_give_the_same(monkeypatch):
    u, r = drawn(50, 6), drawn(50, 7, seed=1)
    whole = computed(u, r)
    monkeypatch.setattr(
        "lightning_unlearn.evaluation.attacks.ulira._PAIRS_AT_ONCE", 100
    )
    blocks = computed(u, r)
    torch.testing.assert_close(blocks.per_sample_auc, whole.per_sample_auc)
    assert blocks.tpr == whole.tpr


def test_halves_merged_are_the_whole():
    u, r = drawn(30, 6), drawn(30, 6, seed=1)
    whole = computed(u, r)
    first, second = ULiRA(), ULiRA()
    first.update(u[:11], r[:11])
    second.update(u[11:], r[11:])
    second.merge_state(first)
    assert second.compute().auc == pytest.approx(whole.auc)
    assert torch.equal(
        second.compute().per_sample_auc.sort().values,
        whole.per_sample_auc.sort().values,
    )


@pytest.mark.parametrize(
    ("unlearned", "retrained", "message"),
    [
        (torch.zeros(2, 3), None, "margins of retrained models.*got None: retrain one"),
        (torch.zeros(2, 2), torch.zeros(2, 3), "at least 3 unlearned models, got 2"),
        (torch.zeros(2, 3), torch.zeros(2, 1), "at least 3 retrained models, got 1"),
        (torch.zeros(2, 3), torch.zeros(1, 3), "unlearned: 2, retrained: 1"),
        (torch.full((2, 3), torch.nan), torch.zeros(2, 3), "6 of 6 values NaN"),
    ],
)
def test_what_cannot_be_compared_is_refused(unlearned, retrained, message):
    with pytest.raises(ArgumentError, match=message):
        ULiRA().update(unlearned, retrained)


def test_updates_with_different_models_are_refused():
    metric = ULiRA()
    metric.update(torch.zeros(2, 3), torch.zeros(2, 3))
    metric.update(torch.zeros(2, 4), torch.zeros(2, 3))
    with pytest.raises(
        ArgumentError, match=r"same numbers of models, got from \[3, 3\] to \[4, 3\]"
    ):
        metric.compute()


def test_rates_lie_between_0_and_1():
    with pytest.raises(ArgumentError, match="fpr strictly between 0 and 1"):
        ULiRA(fprs=(1.0,))
