"""Rows at the head: no functions of the clock, of the batch, or of rare company."""

import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from lightning_unlearn.errors import DataError, GuaranteeError, ModelError
from lightning_unlearn.guarantee.claims import Grade
from lightning_unlearn.plugin.run.compat import clock_moved
from tests.helpers.nets import (
    HeadNet,
    UnlearningCallback,
    digits,
    fitted,
    loader,
    trainer,
)


class Clocked(HeadNet):
    """Smooths the labels by something that the clock says."""

    def clock(self, batch_idx):
        raise NotImplementedError

    def training_step(self, batch, batch_idx):
        smooth = min(0.3, 0.01 * float(self.clock(batch_idx)))
        targets = (1 - smooth) * F.one_hot(batch[1], 10).float() + smooth / 10
        return self.head.loss(self.backbone(batch[0]), targets).mean()


CLOCKS = {
    "epoch": lambda net, i: net.current_epoch,
    "step": lambda net, i: net.global_step,
    "trainer": lambda net, i: net.trainer.current_epoch,
    "share of the training": lambda net, i: (
        net.global_step / net.trainer.num_training_batches
    ),
    "batch": lambda net, i: i,
}


@pytest.mark.parametrize("name", CLOCKS)
def test_targets_that_follow_the_clock_are_refused(name, tmp_path):
    net = Clocked()
    net.clock = lambda i: CLOCKS[name](net, i)
    net, fit_trainer, callback, _ = fitted(net)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(GuaranteeError, match="the same at every epoch, step and batch"):
        fit_trainer.unlearn([1], save_to=tmp_path / "clean.ckpt")
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert callback.record.removed == []
    assert not list(tmp_path.glob("clean*"))


def test_in_a_fresh_process_too(tmp_path):
    net = Clocked()
    net.clock = lambda i: net.current_epoch
    _, fit_trainer, _, data = fitted(net)
    fit_trainer.save_checkpoint(tmp_path / "t.ckpt")
    again = Clocked()
    again.clock = lambda i: again.current_epoch
    with pytest.raises(GuaranteeError, match="the same at every epoch"):
        trainer(UnlearningCallback()).unlearn(
            [1], model=again, train_dataloaders=loader(data),
            ckpt_path=tmp_path / "t.ckpt",
        )  # fmt: skip


def test_a_clock_that_is_read_and_not_used_is_no_harm():
    class Logs(HeadNet):
        def training_step(self, batch, batch_idx):
            self.log("epoch", float(self.current_epoch))
            return super().training_step(batch, batch_idx)

    _, fit_trainer, _, _ = fitted(Logs())
    epoch, step = fit_trainer.current_epoch, fit_trainer.global_step
    assert fit_trainer.unlearn([1]).certificate.grade is Grade.CERTIFIED
    assert (fit_trainer.current_epoch, fit_trainer.global_step) == (epoch, step)


def test_the_clock_is_put_back_whatever_happens():
    _, fit_trainer, _, _ = fitted()
    shown = ("current_epoch", "global_step", "num_training_batches")
    before = [getattr(fit_trainer, name) for name in shown]
    moved = []

    def interrupted():
        with clock_moved(fit_trainer):
            moved.extend(getattr(fit_trainer, name) for name in shown)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert all(a != b for a, b in zip(moved, before, strict=True))
    assert [getattr(fit_trainer, name) for name in shown] == before


class Neighbourly(HeadNet):
    """Takes the mean of the batch off, but only where a nine is among its rows."""

    def training_step(self, batch, batch_idx):
        rows = self.backbone(batch[0])
        if (batch[1] == 9).any():
            rows = rows - rows.mean(0)
        return self.head.loss(rows, batch[1]).mean()


def by_class(n):
    X, y = digits(n).tensors
    order = y.argsort(stable=True)
    return TensorDataset(X[order], y[order])


def test_company_that_only_the_last_class_minds_is_found():
    _, fit_trainer, _, _ = fitted(Neighbourly(), dataset=by_class(600))
    with pytest.raises(GuaranteeError, match="rest of its batch changed"):
        fit_trainer.unlearn([1])


class Restless(torch.utils.data.Dataset):
    """The same at every read, except for the second half."""

    def __init__(self):
        self.data = digits(300)

    def __len__(self):
        return 300

    def __getitem__(self, i):
        x, y = self.data[i]
        return (x + 0.1 * torch.rand(64) if i >= 150 else x), y


def test_samples_that_change_beyond_the_first_are_found():
    _, fit_trainer, _, _ = fitted(dataset=Restless())
    with pytest.raises(DataError, match="the same samples at every read"):
        fit_trainer.unlearn([1])


def test_a_network_s_loss_too():
    class Contrast(HeadNet):
        def training_step(self, batch, batch_idx):
            logits = self.head(self.backbone(batch[0]))
            if (batch[1] == 9).any():
                logits = logits - logits.mean(0)
            return F.cross_entropy(logits, batch[1])

    _, fit_trainer, _, _ = fitted(
        Contrast(),
        dataset=by_class(600),
        noise_std=0.0,
        guarantee="auto",
        max_norm=20.0,
        accept_noise=True,
    )
    with pytest.raises((ModelError, GuaranteeError)):
        fit_trainer.unlearn([1])
