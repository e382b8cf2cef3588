"""Audits of private trainings: honest ones hold, and planted faults are refuted."""

import pytest
import torch

from benchmarks import private_faults as faults
from lightning_unlearn import TrainerExperiment
from lightning_unlearn.errors import AuditError, GuaranteeError
from lightning_unlearn.evaluation import audit
from lightning_unlearn.plugin.data.drawn import PoissonBatches

pytest.importorskip("dp_accounting")
FOUND = ["noise a tenth", "no clipping", "one layer unclipped"]


def once():
    return audit(faults.experiment(), calibrate=False, guesses=faults.GUESSES)


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


def sizes(batches=400):
    sampler = PoissonBatches(list(range(200)), 0.1, batches)
    return torch.tensor([float(len(drawn)) for drawn in sampler])


def deviations(found):
    """How far mean and variance of batch sizes are from those of coins."""
    mean, variance, n = 20.0, 18.0, len(found)
    return (
        float((found.mean() - mean).abs() / (variance / n) ** 0.5),
        float((found.var() - variance).abs() / (variance * (2 / n) ** 0.5)),
    )


def test_batch_sizes_are_those_of_coins_and_shuffled_ones_are_not():
    """What an audit of guesses does not see (benchmarks/results/private-audit.md)."""
    assert max(deviations(sizes())) < 6
    drawn = torch.stack([sizes() for _ in range(5)])
    assert (drawn[:, 1:] != drawn[:, :-1]).any(1).all()
    with faults.planted("shuffled batches"):
        assert deviations(sizes(10))[1] > 2
        assert (sizes(10) == 20).all()
    sampler = PoissonBatches(list(range(50)), 0.5, 60)
    together = torch.zeros(60, 50)
    for row, batch in zip(together, sampler, strict=True):
        row[batch] = 1
    pairs = torch.corrcoef(together.T)[torch.ones(50, 50).triu(1).bool()]
    assert float(pairs.mean().abs()) < 0.03  # of shuffled halves: -1/49 and more


def test_points_before_noise_are_refused_of_it():
    of = faults.samples()
    asked = TrainerExperiment(faults.train, of, range(30), white_box=True)
    with pytest.raises(GuaranteeError, match="got one of PrivateTraining"):
        audit(asked, calibrate=False)
