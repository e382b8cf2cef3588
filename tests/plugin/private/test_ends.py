"""Private trainings that fail, or go on: what is claimed of what they leave."""

import pytest
import torch
from torch.utils.data import DataLoader

from lightning_unlearn import PrivateTraining, UnlearningCallback
from lightning_unlearn.errors import GuaranteeError
from lightning_unlearn.guarantee.claims import Grade
from tests.helpers.lightning import Callback, ModelCheckpoint
from tests.helpers.nets import MLP, digits, trainer

pytest.importorskip("dp_accounting")


def callback_and_loader():
    private = PrivateTraining(noise_multiplier=4.0)
    callback = UnlearningCallback(epsilon=4.0, delta=1e-4, private=private)
    return callback, DataLoader(digits(300), 30, shuffle=True)


class Fails(Callback):
    def on_train_epoch_end(self, trainer, module):
        raise RuntimeError("the disk is full")


def test_weights_that_moved_after_a_training_failed_are_others():
    net, (callback, loader) = MLP(), callback_and_loader()
    made = trainer(callback, 2, callbacks=[Fails()])
    with pytest.raises(RuntimeError, match="the disk is full"):
        made.fit(net, loader)
    assert made.unlearn([3]).certificate.grade is Grade.CERTIFIED
    with torch.no_grad():
        next(net.parameters()).add_(0.1)
    with pytest.raises(GuaranteeError, match="the private training ended with, got"):
        made.unlearn([5])


def test_a_checkpoint_in_the_middle_of_a_training_that_goes_on(tmp_path):
    net, (callback, loader) = MLP(), callback_and_loader()
    trainer(callback, 1).fit(net, loader)
    saves = ModelCheckpoint(tmp_path, every_n_train_steps=4, save_top_k=-1)
    on = trainer(callback, 2, callbacks=[saves], enable_checkpointing=True)
    on.fit(net, loader)
    assert callback.record.private.done == 30
    found = sorted(tmp_path.glob("*.ckpt"))
    assert len(found) == 5
    for path in found[:2]:
        own, loader = callback_and_loader()
        c = trainer(own, 1).unlearn([1], MLP(), loader, ckpt_path=path).certificate
        assert c.grade is Grade.CERTIFIED
        assert {k.name: k.value for k in c.constants}["steps"] == 30
