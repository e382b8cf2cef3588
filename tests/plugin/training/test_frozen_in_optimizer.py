"""An optimizer may hold what is frozen; only what it can move, or has, is trained."""

import pytest
import torch
from torch.utils.data import DataLoader

from lightning_unlearn import UnlearningCallback
from lightning_unlearn.guarantee.claims import Grade
from tests.helpers.nets import HeadNet, digits, trainer


class AllGiven(HeadNet):
    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2, weight_decay=1e-3)


class Thawing(AllGiven):
    """Its features are trained for a batch, whatever they are at the end."""

    def on_train_batch_start(self, batch, batch_idx):
        self.backbone.requires_grad_(batch_idx == 0)

    def on_train_end(self):
        self.backbone.requires_grad_(False)
        self.zero_grad(set_to_none=True)


class ByHand(AllGiven):
    def on_train_batch_end(self, outputs, batch, batch_idx):
        with torch.no_grad():
            self.backbone[0].weight.add_(batch[0].mean())


def grade(net):
    own = trainer(UnlearningCallback(), 2)
    own.fit(net, DataLoader(digits(300), 50, shuffle=True))
    record = own.callbacks[-1].record
    return own.unlearn([1]).certificate.grade, record.trained


class PretrainedInPublic(HeadNet):
    """Gradients of its public training are still there; nothing takes a step."""

    def __init__(self):
        super().__init__()
        for p in self.backbone.parameters():
            p.grad = torch.ones_like(p)


@pytest.mark.parametrize("net", [AllGiven, PretrainedInPublic])
def test_frozen_features_that_an_optimizer_holds_stay_public(net):
    found, trained = grade(net())
    assert found is Grade.CERTIFIED
    assert trained == ["head.bias", "head.weight"]


@pytest.mark.parametrize("net", [Thawing, ByHand])
def test_what_moved_in_between_was_trained(net):
    found, trained = grade(net())
    assert found is Grade.NONE
    assert "backbone.0.weight" in trained
