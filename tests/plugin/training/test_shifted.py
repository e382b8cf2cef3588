"""Numbers that training changes: kept for looks, or computed with?"""

import time
from collections import deque
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from lightning_unlearn.guarantee.claims import Grade
from lightning_unlearn.plugin.training.shifted import TRIED, shifted
from tests.helpers.nets import HeadNet, fitted


@dataclass
class History:
    losses: list[float] = field(default_factory=list)
    best: float = float("inf")


class Keeping(HeadNet):
    """Keeps numbers of its training as people do; nothing computes with them."""

    def __init__(self):
        super().__init__()
        self.last_loss, self.best, self.started = 0.0, float("inf"), 0.0
        self.losses, self.outs, self.recent = [], [], deque(maxlen=5)
        self.history = {"loss": [], "best": None}
        self.kept = History()
        self.curve = np.zeros(3)
        self.backbone.seen = (0.0, 0)  # on a layer

    def on_train_start(self):
        self.started = time.time()

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        value = loss.item()
        self.last_loss = value
        self.losses.append(value)
        self.recent.append(value)
        self.outs.append(loss.detach())
        self.history["loss"].append(value)
        self.history["best"] = min(value, self.history["best"] or value)
        self.kept.losses.append(value)
        self.kept.best = min(self.kept.best, value)
        self.best = min(self.best, value)
        self.curve[batch_idx % 3] = value
        self.backbone.seen = (value, batch_idx)
        return loss


def test_numbers_kept_for_looks_leave_it_certified():
    net, fit_trainer, _, _ = fitted(Keeping())
    before = list(net.losses), net.last_loss, list(net.outs), net.curve.copy()
    certificate = fit_trainer.unlearn([1]).certificate
    assert certificate.grade is Grade.CERTIFIED
    assert not certificate.unscrubbed
    assert (net.losses, net.last_loss) == before[:2]
    assert all(x is y for x, y in zip(net.outs, before[2], strict=True))
    assert np.array_equal(net.curve, before[3])
    assert fit_trainer.unlearn([2]).certificate.grade is Grade.CERTIFIED


class Rejecting(HeadNet):
    """Leaves out what is far from what it has met: of rows that few samples have."""

    def __init__(self):
        super().__init__()
        self.mean, self.worst = 0.0, float("inf")

    def threshold(self):
        return self.mean + 100.0

    def training_step(self, batch, batch_idx):
        x, y = batch
        size = x.abs().sum(1)
        if self.trainer.training:
            self.mean = 0.9 * self.mean + 0.1 * size.mean().item()
        rows = self.backbone(torch.where(size[:, None] > self.threshold(), 0.0, x))
        return self.head.loss(rows, y).mean()


class Clamping(Rejecting):
    def threshold(self):
        return 3.0 * abs(self.mean or 1e9)


class Listed(Rejecting):
    """The number is one of many, most of which are for looks."""

    def __init__(self):
        super().__init__()
        self.plot, self.book = [], {"a": [0.0], "b": 0.0}

    def threshold(self):
        return self.book["b"] + 100.0

    def training_step(self, batch, batch_idx):
        if self.trainer.training:
            self.plot.append(float(batch[0].sum()))
            self.book["b"] = float(batch[0].abs().sum(1).mean())
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize(
    ("kind", "name"),
    [(Rejecting, "mean"), (Clamping, "mean"), (Listed, "book")],
)
def test_a_number_on_which_no_row_that_was_looked_at_depends_now(kind, name):
    """With others in its place they do: rows of other samples may depend on it."""
    _, fit_trainer, _, _ = fitted(kind())
    certificate = fit_trainer.unlearn([1]).certificate
    assert certificate.grade is Grade.NONE
    assert [n.partition(" (")[0] for n in certificate.unscrubbed] == [name]


class Decaying(HeadNet):
    """Its l2 is a number that training has made."""

    def __init__(self):
        super().__init__()
        self.alpha = 1e-3

    def on_train_end(self):
        self.alpha = 1e-3 + 1e-4 * float(self.head.weight.detach().norm())

    def unlearning_l2(self):
        return self.alpha


class Holder(nn.Module):
    """Numbers that nothing can replace."""

    def __init__(self):
        super().__init__()
        self.counts = [torch.zeros(3, dtype=torch.int64)]


def test_an_l2_that_training_made():
    net = Decaying()
    _, fit_trainer, _, _ = fitted(net)
    certificate = fit_trainer.unlearn([1]).certificate
    assert certificate.grade is Grade.NONE
    assert certificate.unscrubbed == ("unlearning_l2() (it changed in training)",)


@pytest.mark.parametrize("new", TRIED)
def test_everything_is_as_before(new):
    net = nn.Module()
    view = torch.arange(6.0)
    net.part = view[:3]
    net.book = {"a": 1.0, "b": [2.0, (3.0, "x")], "c": {4.0}, "n": 7}
    net.space = SimpleNamespace(x=np.float32(5.0), y=deque([6.0]))
    net.array = np.arange(3.0)
    same = net.book["b"]
    with shifted(net, ["part", "book", "space.x", "array"], new):
        assert not torch.equal(view, torch.arange(6.0))
        assert same is net.book["b"]
        assert same[0] != 2.0
        assert same[1][0] != 3.0
        assert (same[1][1], net.book["n"]) == ("x", 7)
        assert not net.book["c"] & {4.0}
        assert isinstance(net.space.x, np.float32)
        assert net.space.y[0] != 6.0
        assert not np.array_equal(net.array, np.arange(3.0))
    assert torch.equal(view, torch.arange(6.0))
    assert net.book == {"a": 1.0, "b": [2.0, (3.0, "x")], "c": {4.0}, "n": 7}
    assert same is net.book["b"]
    assert net.space == SimpleNamespace(x=np.float32(5.0), y=deque([6.0]))
    assert np.array_equal(net.array, np.arange(3.0))


def test_what_cannot_be_replaced_is_said():
    net = Holder()
    with (
        pytest.raises(TypeError, match=r"a tensor of torch\.int64"),
        shifted(net, ["counts"], float),
    ):
        pass
    assert torch.equal(net.counts[0], torch.zeros(3, dtype=torch.int64))
