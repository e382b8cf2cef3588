"""Samples that a backbone's statistics are of are no training samples."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_unlearn import PublicBackbone, UnlearningCallback
from lightning_unlearn.errors import GuaranteeError
from lightning_unlearn.guarantee.claims import Grade
from tests.helpers.nets import HeadNet, digits, loader, trainer

pytestmark = pytest.mark.filterwarnings("ignore:Found .* in eval mode")
FORGET = [3, 14, 59]


def net(public):
    own = HeadNet()
    layers = nn.Sequential(nn.Linear(64, 32), nn.Tanh())
    own.backbone = PublicBackbone(layers, public_data=public)
    return own


def test_a_training_on_public_samples_ends_before_they_are_forgotten():
    private, public = digits(600), digits(900).tensors[0][600:]
    own = net(torch.cat([public, private.tensors[0][FORGET]]))
    with pytest.raises(GuaranteeError, match="no training samples.*are both"):
        trainer(UnlearningCallback(), max_epochs=1).fit(own, loader(private))
    own.backbone(public)  # nobody watches any more


def test_public_samples_may_be_validated_on_and_copied():
    private, public = digits(600), digits(900).tensors[0][600:]
    own, copies = net(public), []

    class Validated(type(own)):
        def validation_step(self, batch, batch_idx):
            self.backbone(batch[0])

        def on_train_epoch_end(self):
            copies.append(copy.deepcopy(self.backbone))
            torch.save(self.backbone, io.BytesIO())

    own.__class__ = Validated
    fit_trainer = trainer(UnlearningCallback(), max_epochs=1)
    fit_trainer.fit(own, loader(private), DataLoader(TensorDataset(public), 50))
    assert fit_trainer.unlearn(FORGET).certificate.grade is Grade.CERTIFIED
    for backbone in (own.backbone, *copies):
        backbone(public)
