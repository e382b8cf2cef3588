"""Private numbers outside the parameters: found wherever a module keeps them."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchmetrics
from torch import nn

from lightning_unlearn import UnlearningCallback
from lightning_unlearn.guarantee.claims import Grade
from tests.helpers.nets import (
    HeadNet,
    digits,
    fitted,
    loader,
    same,
    trainer,
    weights,
)


class HiddenBackbone(HeadNet):
    """Trains a backbone that no parameter list shows."""

    def __init__(self):
        super().__init__(backbone=False)
        self.hidden = [nn.Linear(64, 64)]

    def training_step(self, batch, batch_idx):
        x = self.hidden[0](batch[0])
        x = x if self.trainer.training else x.detach()
        return self.head.loss(x, batch[1]).mean()

    def configure_optimizers(self):
        every = [*self.head.parameters(), *self.hidden[0].parameters()]
        return torch.optim.Adam(every, lr=1e-2, weight_decay=1e-3)


class RunningMean(HeadNet):
    def __init__(self):
        super().__init__()
        self.mu = torch.zeros(32)

    def training_step(self, batch, batch_idx):
        features = self.backbone(batch[0])
        if self.trainer.training:
            self.mu = 0.9 * self.mu + 0.1 * features.mean(0).detach()
        return self.head.loss(features - self.mu, batch[1]).mean()


class RunningArray(HeadNet):
    start = np.zeros(32, np.float32)

    def __init__(self):
        super().__init__()
        self.mu = self.start

    def training_step(self, batch, batch_idx):
        features = self.backbone(batch[0])
        if self.trainer.training:
            self.mu = 0.9 * self.mu + 0.1 * features.mean(0).detach().numpy()
        return self.head.loss(features - torch.as_tensor(self.mu), batch[1]).mean()


class RunningNumber(HeadNet):
    def __init__(self):
        super().__init__()
        self.settings = SimpleNamespace(mu=0.0)

    def training_step(self, batch, batch_idx):
        features = self.backbone(batch[0])
        if self.trainer.training:
            self.settings.mu += float(features.mean())
        return self.head.loss(features - self.settings.mu, batch[1]).mean()


class MetricMean(HeadNet):
    def __init__(self):
        super().__init__()
        self.mean = torchmetrics.MeanMetric()

    def training_step(self, batch, batch_idx):
        features = self.backbone(batch[0])
        if self.trainer.training:
            self.mean.update(features.detach())
        shift = self.mean.compute() if self.mean.update_called else 0.0
        return self.head.loss(features - shift, batch[1]).mean()


def test_settings_may_differ_between_processes_and_statistics_may_not(tmp_path):
    for net, grade in ((HeadNet, Grade.CERTIFIED), (RunningNumber, Grade.NONE)):
        _, fit_trainer, _, dataset = fitted(net())
        fit_trainer.save_checkpoint(tmp_path / f"{grade.value}.ckpt")
        fresh = net()
        fresh.lr = 0.5
        certificate = trainer(UnlearningCallback()).unlearn(
            [1], model=fresh, train_dataloaders=loader(dataset),
            ckpt_path=tmp_path / f"{grade.value}.ckpt",
        ).certificate  # fmt: skip
        assert certificate.grade is grade


def test_metrics_are_empty_while_features_are_captured():
    heads = []
    for _ in range(2):
        torch.manual_seed(0)
        net, fit_trainer, _, dataset = fitted(MetricMean(), noise_std=0.0)
        if heads:  # the same request without anything accumulated
            net.mean.reset()
        fit_trainer.unlearn([1])
        heads.append(weights(net))
    assert same(*heads)


class ExtraState(HeadNet):
    def __init__(self):
        super().__init__()
        self.seen = 0.0

    def get_extra_state(self):
        return {"seen": self.seen}

    def set_extra_state(self, state):
        self.seen = state["seen"]

    def training_step(self, batch, batch_idx):
        if self.trainer.training:
            self.seen += float(batch[0].sum())
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize(
    ("net", "name"),
    [
        (HiddenBackbone, "hidden"),
        (RunningMean, "mu"),
        (RunningArray, "mu"),
        (RunningNumber, "settings.mu (number)"),
        (ExtraState, "_extra_state"),
    ],
)
def test_private_state_outside_parameters_is_found(net, name):
    _, fit_trainer, _, _ = fitted(net())
    certificate = fit_trainer.unlearn([1]).certificate
    assert certificate.grade is Grade.NONE
    assert name in certificate.unscrubbed


def test_a_fit_that_fails_before_it_begins_makes_nothing_private():
    """Its backbone was taken for one that had been trained, by its values."""
    torch.manual_seed(1)
    net = HeadNet()
    net.setup = lambda stage: 1 / 0
    callback = UnlearningCallback(tolerance=2e-7)
    with pytest.raises(ZeroDivisionError):
        trainer(callback).fit(net, loader(digits(600)))
    del net.setup
    _, fit_trainer, _, _ = fitted(net, tolerance=2e-7)
    assert fit_trainer.unlearn([1]).certificate.grade is Grade.CERTIFIED


class Dashboard(HeadNet):
    """Keeps something of every user under their names."""

    def __init__(self):
        super().__init__()
        self.table = {f"user{i}@mail": torch.full((2,), 1.0 + i) for i in range(3)}
        self.losses = []

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        if self.training and torch.is_grad_enabled():
            self.losses.append(loss.detach())
        return loss


def test_a_certificate_names_attributes_and_nothing_in_them():
    net = Dashboard()
    own = trainer(UnlearningCallback())
    own.fit(net, loader(digits(300)))
    certificate = own.unlearn([1]).certificate
    text = certificate.to_json()
    assert "mail" not in text
    assert "losses[" not in text
    assert "table" in [part.name for part in certificate.public_parts]
    certificate.verify()
