"""An exact release is held to epsilon = 0, and one that did not retrain is found."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_unlearn import TrainerExperiment, UnlearningCallback
from lightning_unlearn.errors import ArgumentError, AuditError, SetupError
from lightning_unlearn.evaluation import audit, two_sample_audit
from lightning_unlearn.guarantee.claims import Grade
from lightning_unlearn.plugin.retrain.retrain_plan import RetrainPlan
from tests.helpers.lightning import L
from tests.helpers.nets import digits, trainer

CANARIES = 64
# An honest audit of a claim of 0 is refuted where fair coins are guessed so well:
# 1e-6 of each, so that one of the ten here fails once in 100,000 runs of this test. A
# model that has not forgotten needs 52 of 64 right for that.
CONFIDENCE = 1 - 1e-6


def wrongly_labelled():
    """The first samples: who knows their labels has seen them."""
    x, y = digits(160).tensors
    wrong = (y + 1 + torch.arange(160) % 9) % 10
    return TensorDataset(x, torch.where(torch.arange(160) < CANARIES, wrong, y))


class ByHeart(L.LightningModule):
    """Learns every label."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def training(samples):
    own = UnlearningCallback(retrain=training)
    return trainer(own, 60), ByHeart(), DataLoader(samples, 160, shuffle=True)


def experiment(make=training, how="retrain", **options):
    return TrainerExperiment(
        make, wrongly_labelled(), range(CANARIES), how=how, **options
    )


def once(how="retrain", **options):
    return audit(experiment(how=how), calibrate=False, confidence=CONFIDENCE, **options)


@pytest.mark.parametrize("times", [1, pytest.param(10, marks=pytest.mark.slow)])
def test_ten_of_ten_are_held_to_0_and_found_without_the_retraining(times, monkeypatch):
    for _ in range(times):
        found = once().one_run
        assert found.grade is Grade.EXACT
        assert (found.epsilon_certified, found.mu_certified, found.delta) == (0, 0, 0)
        assert (found.epsilon_lower, found.mu_lower) == (0, 0)
        assert found.epsilon_lower_gaussian == 0
        assert found.ceiling > 30  # it could have found much
        assert "certified (grade exact): epsilon = 0\n" in str(found)
        assert "Gaussian" not in str(found)
    # The same request, which says that it has retrained and keeps the old weights.
    monkeypatch.setattr(RetrainPlan, "_weights", lambda plan: plan.scope.flatten())
    for _ in range(times):
        refuted = (
            r"(?s)mu of at least \d.*certified 0\..*\(grade exact\): epsilon = 0\n"
        )
        with pytest.raises(AuditError, match=refuted):
            once()


def test_several_runs_and_a_delta_of_ones_own():
    report = once(runs=3, delta=1e-3)
    assert report.one_run.delta == 1e-3
    assert report.one_run.epsilon_certified == report.one_run.epsilon_lower == 0
    assert report.white_box is report.noise is None
    assert report.found["guessing coins: lower bound of epsilon"] == 0


def test_so_few_canaries_that_nothing_could_refute_are_named():
    few = TrainerExperiment(training, wrongly_labelled(), range(20), how="retrain")
    report = audit(few, guesses=10, calibrate=False, confidence=CONFIDENCE)
    assert report.one_run.mu_ceiling == 0
    assert "so few could not have refuted this certificate: take more" in str(report)


class Data(L.LightningDataModule):
    def __init__(self, samples):
        super().__init__()
        self.samples = samples

    def train_dataloader(self):
        return DataLoader(self.samples, 160)


def with_datamodule(samples):
    own = UnlearningCallback(retrain=with_datamodule)
    return trainer(own, 2), ByHeart(), Data(samples)


def fitted(samples):
    """As for a Newton step; its callback makes the training anew."""
    own, net, loader = training(samples)
    own.fit(net, loader)
    return own


@pytest.mark.parametrize("make", [with_datamodule, fitted])
def test_what_makes_the_training(make):
    coins = torch.arange(CANARIES) % 2 == 0
    found = experiment(make)(coins)
    assert found.certificate.grade is Grade.EXACT
    assert (found.certificate.n_forget, found.certificate.n_retain) == (32, 96)


def test_what_cannot_be_is_refused():
    with pytest.raises(ArgumentError, match="white_box=False for how='retrain'"):
        experiment(white_box=True)
    with pytest.raises(ArgumentError, match="how to be one of 'auto', 'newton', 'ret"):
        experiment(how="again")
    assert experiment().identity != experiment(how="auto").identity

    def nothing_to_retrain_with(samples):
        made, net, loader = training(samples)
        made.callbacks[:] = [UnlearningCallback()]
        return made, net, loader

    def four(samples):
        return (*training(samples), None)

    def no_trainer(samples):
        return (None, *training(samples)[1:])

    coins = torch.arange(CANARIES) < 3
    with pytest.raises(SetupError, match=r"UnlearningCallback\(retrain=make_training"):
        experiment(nothing_to_retrain_with)(coins)
    for wrong, got in ((four, "tuple"), (no_trainer, "NoneType")):
        with pytest.raises(ArgumentError, match=f"the Trainer that was fit, got {got}"):
            experiment(wrong)(coins)


def test_two_samples_of_an_exact_release():
    """At delta 0, where whatever differs refutes; and at one that is asked for."""
    certificate = experiment(with_datamodule)(torch.arange(CANARIES) < 3).certificate
    generator = torch.Generator().manual_seed(0)
    one, two = torch.randn(2, 400, generator=generator)
    for delta in (None, 0.0, 1e-3):
        found = two_sample_audit(certificate, one, two, CONFIDENCE, delta=delta)
        assert found.delta == (delta or 0.0)
        assert found.epsilon_lower == found.epsilon_certified == 0
        with pytest.raises(AuditError, match="certified 0"):
            two_sample_audit(certificate, one + 1.5, two, CONFIDENCE, delta=delta)
