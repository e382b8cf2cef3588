"""The audit of a private training: guesses of single canaries, held to epsilon."""

import dataclasses
import math

import pytest
import torch
from scipy.stats import beta, binom

from lightning_unlearn.certificate.words import theorems
from lightning_unlearn.errors import ArgumentError, AuditError
from lightning_unlearn.evaluation import one_run_audit
from lightning_unlearn.evaluation.audits.one_by_one import lower, probable
from lightning_unlearn.guarantee.accounting.private_training import (
    Mechanism,
    epsilon_out,
    privacy,
)
from lightning_unlearn.guarantee.claims import Bound, Terms
from lightning_unlearn.step.release import release
from tests.evaluation.helpers.worlds import certificate
from tests.helpers.releases import around, step

pytest.importorskip("dp_accounting")
DELTA = 1e-5
TRAINING = Mechanism(4.0, 0.08, 100)


def chance(epsilon):
    return 1 / (1 + math.exp(-epsilon))


@pytest.mark.parametrize(("right", "guesses"), [(70, 100), (100, 100), (610, 1000)])
def test_without_delta_it_is_the_end_of_clopper_and_pearson(right, guesses):
    least = beta.ppf(0.05, right, guesses - right + 1)
    found = lower(right, guesses, 5 * guesses, 0.0, 0.95)
    assert found.epsilon == pytest.approx(math.log(least / (1 - least)), abs=1e-5)
    assert found.mu == 0


def test_guesses_no_better_than_chance_refute_nothing():
    assert lower(50, 100, 100, 0.0, 0.95) == (0, 0)
    assert lower(0, 100, 100, 1e-5, 0.95) == (0, 0)


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 3.0])
@pytest.mark.parametrize("delta", [1e-6, 1e-3, 0.05])
def test_it_covers_a_mechanism_that_sometimes_tells_all(epsilon, delta):
    """Each coin is shown with probability delta, else answered at random."""
    r = 100
    coin = delta + (1 - delta) * chance(epsilon)
    for right in range(r + 1):
        true = binom.sf(right - 1, r, coin)
        assert probable(right, r, r, epsilon, delta) >= true * (1 - 1e-9), right


@pytest.mark.parametrize("epsilon", [0.2, 1.0, 2.5])
def test_an_honest_epsilon_is_refuted_seldom(epsilon):
    r, refuted = 200, 0.0
    for right in range(r + 1):
        if lower(right, r, r, DELTA, 0.95).epsilon > epsilon:
            refuted += binom.pmf(right, r, chance(epsilon))
    assert 0.01 < refuted <= 0.05


def issued(training=TRAINING, k=5):
    found = privacy(training, k, DELTA)
    values = {
        "clip": 1.0,
        "noise_multiplier": training.noise_multiplier,
        "sampling_rate": training.sampling_rate,
        "steps": float(training.steps),
        "forgotten": float(k),
        "most_found": found.most_found,
    }
    claim = theorems.private_claim(values)
    made = step(Bound.PRIVATE_TRAINING, claim.constants)
    return release(made, Terms(epsilon=found.epsilon, delta=DELTA), around())[1]


def guessed(right, r=200):
    """Coins, and scores of which so many say the truth."""
    coins = torch.arange(r) % 2 == 0
    said = coins ^ (torch.arange(r) >= right)
    return coins, said.double() + torch.linspace(0, 0.5, r, dtype=torch.float64)


def test_each_canary_is_held_to_epsilon_of_one_sample():
    coins, scores = guessed(110)
    stated = privacy(TRAINING, 1, DELTA).epsilon
    for k in (5, 9):  # whatever the request was of
        found = one_run_audit(issued(k=k), coins, scores)
        assert found.epsilon_certified == stated
        assert found.mu_certified is None
        assert found.epsilon_lower == lower(110, 200, 200, DELTA, 0.975).epsilon
        assert "one sample at a time: 110 of 200" in str(found)
        assert f"certified (grade certified): epsilon = {stated:g}" in str(found)
        assert "Gaussian" not in str(found)
    with pytest.raises(AuditError, match=r"epsilon of at least 1\.\d+, certified 0\."):
        one_run_audit(issued(), *guessed(170))


def one_sided(right_in, right_out, r=200):
    """Coins, and scores: half is guessed in, half out, each so often right."""
    coins = torch.zeros(r, dtype=torch.bool)
    coins[r // 2 : r // 2 + right_in] = True  # of the higher scores
    coins[right_out : r // 2] = True  # of the lower ones
    return coins, torch.arange(r, dtype=torch.float64)


def test_guesses_of_who_was_out_are_held_to_that_direction():
    loud = Mechanism(0.5, 0.5, 2)  # a quarter is not drawn at all
    stated, out = privacy(loud, 1, DELTA).epsilon, epsilon_out(loud, DELTA)
    assert out < 1.4 < 10 < stated
    claim = issued(loud)
    assert one_run_audit(claim, *one_sided(100, 80)).epsilon_certified == stated
    with pytest.raises(AuditError, match=rf"certified {out:.4g}(.|\n)*who was out"):
        one_run_audit(claim, *one_sided(80, 100))


def test_an_honest_training_is_refuted_seldom_by_both_tests_together():
    """Of canaries that are each drawn or not, which is seen exactly."""
    loud = Mechanism(0.3, 0.5, 2)
    claim, made, refuted = issued(loud), torch.Generator().manual_seed(0), 0
    for _ in range(200):
        coins = torch.rand(300, generator=made) < 0.5
        drawn = torch.rand(300, 2, generator=made) < 0.5
        scores = (drawn.sum(1) * coins).double()
        scores += torch.rand(300, generator=made).double() / 10
        try:
            one_run_audit(claim, coins, scores, guesses=100)
        except AuditError:
            refuted += 1
    assert refuted <= 16  # 5% are 10


def test_so_few_that_nothing_could_be_refuted_say_so():
    few = torch.arange(20) < 10
    weak = dataclasses.replace(TRAINING, noise_multiplier=1.5)
    assert "so few could not" in str(one_run_audit(issued(weak), few, few.double()))


def test_runs_count_as_one_of_all_their_canaries():
    coins, scores = guessed(110)
    one = one_run_audit(issued(), coins, scores)
    both = one_run_audit(issued(), coins.expand(3, -1), scores.expand(3, -1))
    assert both.epsilon_lower == lower(330, 600, 600, DELTA, 0.975).epsilon
    assert both.epsilon_lower > one.epsilon_lower
    less = dataclasses.replace(TRAINING, noise_multiplier=8.0)
    mixed = one_run_audit(
        [issued(less), issued()], coins.expand(2, -1), scores.expand(2, -1)
    )
    assert mixed.epsilon_certified == one.epsilon_certified  # the larger claim


def test_it_is_not_mixed_with_other_claims():
    coins, scores = guessed(110)
    other = certificate(1.0, n_forget=200)
    with pytest.raises(ArgumentError, match="private trainings alone, or none"):
        one_run_audit([issued(), other], coins.expand(2, -1), scores.expand(2, -1))


def test_epsilon_may_be_asked_for_at_another_delta():
    found = one_run_audit(issued(), *guessed(110), delta=1e-3)
    assert found.epsilon_certified == privacy(TRAINING, 1, 1e-3).epsilon
    with pytest.raises(ArgumentError, match="delta strictly between"):
        one_run_audit(issued(), *guessed(110), delta=0.0)
