"""Audits of private trainings: honest ones hold, and planted faults are refuted."""

import pytest
import torch

from benchmarks import private_faults as faults
from lightning_unlearn import TrainerExperiment
from lightning_unlearn.errors import AuditError, GuaranteeError
from lightning_unlearn.evaluation import audit
from lightning_unlearn.plugin.data.drawn import Drawable, PoissonBatches

pytest.importorskip("dp_accounting")
FOUND = ["noise a tenth", "no clipping", "one layer unclipped"]


SHUFFLED = "shuffled batches"


def once(confidence=0.95, **settings):
    asked = faults.experiment(**settings)
    guesses = faults.GUESSES
    return audit(asked, calibrate=False, guesses=guesses, confidence=confidence)


@pytest.mark.parametrize("runs", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_honest_trainings_hold(runs):
    for _ in range(runs):
        found = once().one_run
        assert 0.9 < found.epsilon_certified < 1.1
        assert found.epsilon_lower < found.epsilon_certified < found.ceiling
        assert found.attack == "guessing coins, one sample at a time"


@pytest.mark.parametrize("fault", FOUND)
def test_a_planted_fault_is_refuted(fault):
    with faults.planted(fault), pytest.raises(AuditError, match="code is wrong"):
        once()


@pytest.mark.slow
@pytest.mark.parametrize("fault", FOUND)
def test_it_is_refuted_in_nine_of_ten(fault):
    refuted = 0
    with faults.planted(fault):
        for _ in range(10):
            try:
                once()
            except AuditError:
                refuted += 1
    assert refuted >= 9


def test_shuffled_batches_are_refuted_by_guesses_of_who_was_out():
    # So little noise that chance fails neither: all 50 guesses are right of a shuffle.
    quiet = {**faults.QUIET, "noise": 0.2, "epsilon": 200.0}
    found = once(0.9999, **quiet).one_run  # control: honest draws of the same training
    assert found.epsilon_lower < found.epsilon_certified
    with faults.planted(SHUFFLED), pytest.raises(AuditError, match="who was out"):
        once(**quiet)


@pytest.mark.slow
def test_they_are_refuted_in_nine_of_ten_and_honest_ones_are_not():
    refuted = {None: 0, SHUFFLED: 0}
    for fault in refuted:
        with faults.planted(fault):
            for _ in range(10):
                try:
                    once(**faults.QUIET)
                except AuditError:
                    refuted[fault] += 1
    assert refuted[SHUFFLED] >= 9
    assert refuted[None] <= 2  # one in twenty may be


def drawn(samples=200, rate=0.1, epochs=20):
    """(batches, samples): who was drawn for which batch of some epochs."""
    sampler = PoissonBatches(Drawable([*range(samples)]), rate, round(1 / rate))
    rows = []
    for _ in range(epochs):
        for batch in sampler:
            rows.append(torch.zeros(samples))
            rows[-1][batch] = 1
    return torch.stack(rows)


def like_coins(found, rate=0.1):
    """Whether sizes of batches, and draws of samples, vary as those of coins do.

    Within six standard deviations, so that honest coins fail once in a million times.
    """
    within = []
    for counts, n in ((found.sum(1), found.shape[1]), (found.sum(0), len(found))):
        variance = n * rate * (1 - rate)
        error = variance * (2 / len(counts)) ** 0.5
        within.append(abs(float(counts.var()) - variance) < 6 * error)
    return within


def test_batches_are_those_of_coins_and_shuffled_ones_are_not():
    """What an audit sees in few steps with little noise only (private-audit.md)."""
    assert like_coins(drawn()) == [True, True]
    with faults.planted("shuffled batches"):
        assert like_coins(drawn()) == [False, False]


def test_points_before_noise_are_refused_of_it():
    of = faults.samples()
    asked = TrainerExperiment(faults.train, of, range(30), white_box=True)
    with pytest.raises(GuaranteeError, match="got a model of PrivateTraining"):
        audit(asked, calibrate=False)
