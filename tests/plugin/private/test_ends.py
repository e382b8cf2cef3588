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


def callback_and_loader(**loading):
    private = PrivateTraining(noise_multiplier=4.0)
    callback = UnlearningCallback(epsilon=4.0, delta=1e-4, private=private)
    return callback, DataLoader(digits(300), 30, shuffle=True, **loading)


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


class Skips(MLP):
    def on_train_batch_start(self, batch, batch_idx):
        return -1 if self.trainer.current_epoch == 1 and batch_idx > 4 else None


class Lowers(Callback):
    def on_train_epoch_end(self, trainer, module):
        trainer.fit_loop.max_epochs = 1


@pytest.mark.parametrize(
    ("net", "others", "done"), [(Skips, [], 15), (MLP, [Lowers()], 10)]
)
def test_a_stop_that_says_nothing_costs_the_claim(net, others, done):
    callback, loader = callback_and_loader()
    made = trainer(callback, 2, callbacks=others)
    made.fit(net(), loader)
    with pytest.raises(GuaranteeError, match=f"stopped after {done} of 20 steps"):
        made.unlearn([3])


def test_fewer_epochs_than_a_training_that_failed_had_planned():
    net, (callback, loader) = MLP(), callback_and_loader()
    with pytest.raises(RuntimeError, match="the disk is full"):
        trainer(callback, 9, callbacks=[Fails()]).fit(net, loader)
    made = trainer(callback, 1)
    made.fit(net, loader)
    assert (callback.record.private.done, callback.record.private.steps) == (20, 90)
    assert made.unlearn([3]).certificate.grade is Grade.CERTIFIED


def test_workers_that_persist_go_by_the_coins_and_then_by_their_own_sampler():
    callback, loader = callback_and_loader(num_workers=1, persistent_workers=True)
    made = trainer(callback, 2)
    made.fit(MLP(), loader)
    assert made.unlearn([3]).certificate.grade is Grade.CERTIFIED
    assert [len(x) for x, _ in loader] == [30] * 10
