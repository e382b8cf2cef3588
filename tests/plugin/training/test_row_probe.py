"""State that a watched training changed, wherever it is kept; and ordinary modules."""

import copy
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.preprocessing import StandardScaler
from torch import nn

from lightning_unlearn import ConvexHead
from lightning_unlearn.guarantee.claims import Grade
from lightning_unlearn.plugin.plan import row_probe
from tests.helpers.lightning import Callback
from tests.helpers.nets import (
    HeadNet,
    UnlearningCallback,
    digits,
    fitted,
    loader,
    trainer,
)


class Stateful(HeadNet):
    """Adds what `learn` found in the training data to every row."""

    def __init__(self):
        super().__init__()
        self.memory = SimpleNamespace(shift=lambda: 0.0)
        self.start()

    def start(self):
        """Before any training."""

    def shift(self):
        return 0.0

    def learn(self, X):
        """When training starts."""

    def on_train_start(self):
        self.learn(self.trainer.train_dataloader.dataset.tensors[0])

    def training_step(self, batch, batch_idx):
        rows = self.backbone(batch[0] + self.shift())
        return self.head.loss(rows, batch[1]).mean()


class IntDict(Stateful):
    def start(self):
        self.vocabulary = {}

    def learn(self, X):
        self.vocabulary = {"a": int(X.sum())}

    def shift(self):
        return self.vocabulary.get("a", 0) % 7


class Counted(Stateful):
    def start(self):
        self.counts = Counter()

    def learn(self, X):
        self.counts = Counter((X > 0.5).sum(1).tolist())

    def shift(self):
        return self.counts.most_common(1)[0][0] / 10 if self.counts else 0.0


class IntArray(Stateful):
    def start(self):
        self.seen = np.zeros(3, dtype=int)

    def learn(self, X):
        self.seen = (X[:3] * 100).sum(1).numpy().astype(int)

    def shift(self):
        return float(self.seen.sum() % 5)


class Fitted(Stateful):
    def start(self):
        self.scaler = StandardScaler().fit(np.zeros((2, 64)))

    def learn(self, X):
        self.scaler.fit(X.numpy())

    def shift(self):
        return -float(self.scaler.mean_.mean())


class Closure(Stateful):
    def learn(self, X):
        mean = float(X.mean())
        self.memory = SimpleNamespace(shift=lambda: mean)

    def shift(self):
        return self.memory.shift()


class OnTheClass(Stateful):
    peak = 0.0

    def learn(self, X):
        type(self).peak = float(X.mean())

    def shift(self):
        return type(self).peak


class AtTheEnd(Stateful):
    """A float that is set when everything is over."""

    def start(self):
        self.mean = 0.0

    def on_train_end(self):
        self.mean = float(self.trainer.train_dataloader.dataset.tensors[0].mean())

    def shift(self):
        return self.mean


class Fails(Stateful):
    """A counter, and a training that ends with an exception."""

    def start(self):
        self.batches, self.fails = 0, True

    def training_step(self, batch, batch_idx):
        if self.training:
            self.batches += int(batch[0].sum())
            if self.fails and self.batches > 3000:
                raise RuntimeError("disk full")
        return super().training_step(batch, batch_idx)

    def shift(self):
        return self.batches % 11


KINDS = [IntDict, Counted, IntArray, Fitted, Closure, OnTheClass, AtTheEnd]


@pytest.mark.parametrize("kind", KINDS)
def test_state_kept_anywhere_is_no_guarantee(kind, tmp_path):
    OnTheClass.peak = 0.0
    net, fit_trainer, _, _ = fitted(kind())
    certificate = fit_trainer.unlearn([1, 2]).certificate
    assert certificate.grade is Grade.NONE
    assert "epsilon" not in str(certificate)
    assert any("what reaches the head" in text for text in certificate.unscrubbed)


def test_what_changed_is_named_as_far_as_it_is_known():
    _, fit_trainer, _, _ = fitted(IntDict())
    (named,) = fit_trainer.unlearn([1]).certificate.unscrubbed
    assert named == "what reaches the head (it changed in training: vocabulary)"


def test_a_training_that_ends_with_an_exception():
    net, data = Fails(), digits(300)
    own = UnlearningCallback()
    fit_trainer = trainer(own)
    with pytest.raises(RuntimeError, match="disk full"):
        fit_trainer.fit(net, loader(data))
    net.fails = False
    result = fit_trainer.unlearn([1], train_dataloaders=loader(data))
    assert result.certificate.grade is Grade.NONE


def test_a_callback_s_state():
    class Keeper(Callback):
        mean = 0.0

        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            self.mean = float(batch[0].mean())

    keeper = Keeper()

    class Asks(Stateful):
        def shift(self):
            return keeper.mean

    own = UnlearningCallback()
    fit_trainer = trainer(own, callbacks=[keeper])
    fit_trainer.fit(Asks(), loader(digits(300)))
    assert fit_trainer.unlearn([1]).certificate.grade is Grade.NONE


def test_it_is_in_the_checkpoint(tmp_path):
    class Remembers(IntDict):
        def on_save_checkpoint(self, checkpoint):
            checkpoint["vocabulary"] = self.vocabulary

        def on_load_checkpoint(self, checkpoint):
            self.vocabulary = checkpoint["vocabulary"]

    _, fit_trainer, _, data = fitted(Remembers())
    fit_trainer.save_checkpoint(tmp_path / "t.ckpt")
    result = trainer(UnlearningCallback()).unlearn(
        [1], model=Remembers(), train_dataloaders=loader(data),
        ckpt_path=tmp_path / "t.ckpt",
    )  # fmt: skip
    assert result.certificate.grade is Grade.NONE


class Augments(torch.utils.data.Dataset):
    """Another view of a sample at every read."""

    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __getitem__(self, i):
        x, y = self.data[i]
        return x + 0.1 * torch.rand(64), y


def test_rows_that_cannot_be_compared_make_it_conditional():
    own, plain = UnlearningCallback(), digits(300)
    fit_trainer = trainer(own)
    fit_trainer.fit(HeadNet(), loader(Augments(plain)))
    certificate = fit_trainer.unlearn([1], train_dataloaders=loader(plain)).certificate
    assert certificate.grade is Grade.CONDITIONAL
    assert "could not be compared before and after the training" in str(
        certificate
    ).replace("\n      ", " ")


# -- controls: what is ordinary stays certified ---------------------------------------


class Ordinary(HeadNet):
    """Dropout, layer normalisation, a counter, logs, a list of losses."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Linear(64, 32), nn.LayerNorm(32), nn.Dropout(0.5), nn.Tanh()
        ).requires_grad_(False)
        self.calls, self.losses, self.best = 0, [], float("inf")

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        if self.training:
            self.calls += 1
            self.losses.append(float(loss.detach()))
        return loss


class Frozen(HeadNet):
    """Batch normalisation that is kept in evaluation mode."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.Tanh())
        self.backbone.requires_grad_(False)

    def on_train_epoch_start(self):
        self.backbone.eval()


@pytest.mark.parametrize("kind", [HeadNet, Frozen])
def test_ordinary_modules_stay_certified(kind):
    _, fit_trainer, own, _ = fitted(kind())
    assert own.record.rows_compared
    assert own.record.rows_changed is None
    assert fit_trainer.unlearn([1]).certificate.grade is Grade.CERTIFIED
    assert fit_trainer.unlearn([2]).certificate.grade is Grade.CERTIFIED


def test_counters_and_logs_change_no_row():
    _, _, own, _ = fitted(Ordinary())
    assert (own.record.rows_compared, own.record.rows_changed) == (True, None)


class ShowsRarely(Stateful):
    def start(self):
        self.words = {}

    def on_train_epoch_start(self):
        self.words = {"seen": 1}

    def training_step(self, batch, batch_idx):
        rare = batch[0][:, :1] == 5.0
        rows = self.backbone(batch[0] + rare * float(self.words.get("seen", 0)))
        return self.head.loss(rows, batch[1]).mean()


def test_rows_that_rarely_show_it_are_looked_at_where_that_is_cheap(monkeypatch):
    monkeypatch.setattr(row_probe, "_SECONDS", 60.0)
    x, y = (t.clone() for t in digits(600).tensors)
    x[5::12, 0] = 5.0
    data = torch.utils.data.TensorDataset(x, y)
    _, fit_trainer, own, _ = fitted(ShowsRarely(), dataset=data)
    assert len(own.attached.probe.positions) == 512
    assert fit_trainer.unlearn([1]).certificate.grade is Grade.NONE


# -- values that a watched training made ------------------------------------------


def privately_trained():
    """A backbone that a watched training has trained on the same data."""
    net = HeadNet()
    net.backbone.requires_grad_(True)
    net.configure_optimizers = lambda: torch.optim.Adam(net.parameters(), lr=0.01)
    own = UnlearningCallback(l2=1e-3, noise_std=0.0)
    trainer(own).fit(net, loader(digits(300)))
    return net


def by_state_dict(net):
    again = HeadNet()
    again.backbone.load_state_dict(net.backbone.state_dict())
    return again


def by_deepcopy(net):
    again = HeadNet()
    again.backbone = copy.deepcopy(net.backbone).requires_grad_(False)
    return again


def by_values(net):
    again = HeadNet()
    for p, q in zip(
        again.backbone.parameters(), net.backbone.parameters(), strict=True
    ):
        p.data = torch.from_numpy(q.detach().numpy().copy())
    return again


@pytest.mark.parametrize("copied", [by_state_dict, by_deepcopy, by_values])
def test_a_copy_of_what_was_trained_is_not_public(copied):
    net = copied(privately_trained())
    _, fit_trainer, _, _ = fitted(net, dataset=digits(300))
    certificate = fit_trainer.unlearn([1]).certificate
    assert certificate.grade is Grade.NONE
    assert any("backbone.0.weight" in text for text in certificate.unscrubbed)


def test_statistics_an_earlier_watched_fit_filled_are_not_public():
    net = HeadNet()
    net.backbone = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32, affine=False))
    net.backbone.requires_grad_(False)
    trainer(UnlearningCallback(noise_std=0.0)).fit(net, loader(digits(300)))
    net.on_train_epoch_start = net.backbone.eval
    _, fit_trainer, _, _ = fitted(net, dataset=digits(300))
    with pytest.raises(Exception, match="statistics of the training data"):
        fit_trainer.unlearn([1])


def test_the_same_initial_values_are_no_copy():
    torch.manual_seed(1)
    one = HeadNet()
    torch.manual_seed(1)
    other = HeadNet()
    trainer(UnlearningCallback()).fit(one, loader(digits(300)))
    _, fit_trainer, _, _ = fitted(other)
    assert fit_trainer.unlearn([1]).certificate.grade is Grade.CERTIFIED
    assert isinstance(other.head, ConvexHead)


class Broken(HeadNet):
    """Cannot be set up, until its author has mended it."""

    broken = True

    def on_fit_start(self):
        if self.broken:
            raise RuntimeError("a typing error")


def test_a_fit_that_never_began_has_trained_nothing():
    """As in a notebook: an error, mended, and the cell run again with one backbone."""
    net = Broken()
    with pytest.raises(RuntimeError, match="a typing error"):
        trainer(UnlearningCallback()).fit(net, loader(digits(300)))
    net.setup = lambda stage: (_ for _ in ()).throw(RuntimeError("another"))
    with pytest.raises(RuntimeError, match="another"):
        trainer(UnlearningCallback()).fit(net, loader(digits(300)))
    again = HeadNet()
    again.load_state_dict(net.state_dict())
    own = trainer(UnlearningCallback())
    own.fit(again, loader(digits(300)))
    assert own.unlearn([1]).certificate.grade is Grade.CERTIFIED
