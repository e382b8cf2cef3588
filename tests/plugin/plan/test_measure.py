"""``evaluate=True``: the metric before and after, measured once and independently."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_unlearn import ConvexHead, UnlearningCallback, preflight
from lightning_unlearn.plugin.plan import measure
from tests.helpers.lightning import L
from tests.helpers.nets import (
    MLP,
    HeadNet,
    digits,
    fitted,
    loader,
    same,
    trainer,
    weights,
)

FORGET = [3, 14, 15, 92, 65]


def accuracy(net, dataset, indices):
    X, y = (t[indices] for t in dataset.tensors)
    net.eval()
    with torch.no_grad():
        return float((net(X).argmax(1) == y).double().mean())


class WithTestData(HeadNet):
    """Has test and validation data of its own."""

    def test_dataloader(self):
        return DataLoader(TensorDataset(*(t[-300:] for t in digits().tensors)), 128)


@pytest.mark.parametrize("make", [WithTestData, MLP])
def test_accuracy_before_and_after_is_what_anyone_would_measure(make):
    options = {"noise_std": 0.05}
    net, fit_trainer, _, data = fitted(net=make(), **options)
    retain = [i for i in range(len(data)) if i not in FORGET]
    expected = [(accuracy(net, data, s)) for s in (FORGET, retain)]
    result = fit_trainer.unlearn(FORGET, evaluate=True)
    after = [accuracy(net, data, s) for s in (FORGET, retain)]
    lines = {q.data: (q.before, q.after) for q in result.quality}
    assert result.metric == "accuracy"
    assert lines["forget"] == (expected[0], after[0])
    assert lines["retain"] == (expected[1], after[1])
    if make is WithTestData:
        rest = list(range(len(digits()) - 300, len(digits())))
        assert lines["test"][1] == accuracy(net, digits(), rest)
    else:
        assert set(lines) == {"forget", "retain"}
    assert all(q.retrained is None for q in result.quality)


def test_evaluation_moves_nothing():
    ends = []
    for evaluate in (False, True):
        torch.manual_seed(0)
        net, fit_trainer, _, _ = fitted(net=HeadNet(), noise_std=0.0)
        result = fit_trainer.unlearn(FORGET, evaluate=evaluate)
        ends.append(weights(net))
        assert bool(result.quality) is evaluate
    assert same(*ends)


class Regression(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.head = ConvexHead(64, 1, loss="mse")

    def training_step(self, batch, batch_idx):
        return self.head.loss(batch[0], batch[1]).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, weight_decay=1e-2)


def test_without_classes_the_loss_is_measured():
    X, y = digits(300).tensors
    data = TensorDataset(X, y.float()[:, None] / 10)
    net, fit_trainer, _, _ = fitted(net=Regression(), dataset=data, noise_std=0.0)

    def loss(indices):
        with torch.no_grad():
            return float(net.head.loss(X[indices], data.tensors[1][indices]).mean())

    before = loss(FORGET)
    result = fit_trainer.unlearn(FORGET, evaluate=True)
    assert result.metric == "loss"
    line = next(q for q in result.quality if q.data == "forget")
    assert (line.before, line.after) == pytest.approx((before, loss(FORGET)), rel=1e-5)


class Binary(L.LightningModule):
    """One logit for two classes: argmax over it would always say the first."""

    def __init__(self):
        super().__init__()
        self.head = ConvexHead(64, 1, loss="bce")

    def forward(self, x):
        return self.head(x)

    def training_step(self, batch, batch_idx):
        return self.head.loss(batch[0], batch[1].float()[:, None]).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, weight_decay=1e-2)


def test_one_logit_is_no_classification():
    X, y = digits(300).tensors
    data = TensorDataset(X, (y > 4).long())
    _, fit_trainer, _, _ = fitted(net=Binary(), dataset=data, noise_std=0.0)
    result = fit_trainer.unlearn(FORGET, evaluate=True)
    assert result.metric == "loss"
    assert "accuracy" not in str(preflight(fit_trainer, [1]))


class Endless(IterableDataset):
    def __iter__(self):
        return iter(digits(10))


class WithOddTestData(HeadNet):
    def test_dataloader(self):
        return [DataLoader(digits(10)), DataLoader(digits(10))]

    def val_dataloader(self):
        return DataLoader(Endless(), 5)

    def validation_step(self, batch, batch_idx):
        pass


def test_data_without_a_length_are_left_out():
    _, fit_trainer, _, _ = fitted(net=WithOddTestData())
    result = fit_trainer.unlearn(FORGET, evaluate=True)
    assert [q.data for q in result.quality] == ["forget", "retain"]


def test_an_infinite_loss_is_left_out_and_told(monkeypatch):
    before = {"forget": ("loss", 1.0), "retain": ("loss", 2.0)}
    after = {"forget": ("loss", float("inf")), "retain": ("loss", 3.0)}
    taken = iter([before, after])
    monkeypatch.setattr(measure, "_samples", lambda plan: {})
    monkeypatch.setattr(measure, "_everywhere", lambda *args: next(taken))
    found = measure.BeforeAndAfter(None)
    with pytest.warns(UserWarning, match="forget samples are left out .* inf after"):
        found.measure_after(None, {})
    assert (found.metric, [line.data for line in found.lines]) == ("loss", ["retain"])


class Normed(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(64, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 10)
        )

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_new_statistics_of_batch_normalisation_are_measured():
    net, fit_trainer, _, data = fitted(net=Normed(), noise_std=0.0, damping=1.0)
    result = fit_trainer.unlearn(list(range(300)), evaluate=True)
    line = next(q for q in result.quality if q.data == "retain")
    assert line.after == accuracy(net, data, list(range(300, 600)))


def test_an_evaluation_that_fails_changes_nothing(monkeypatch):
    net, fit_trainer, callback, _ = fitted(net=HeadNet())
    before, calls = weights(net), []

    def once(*args):
        calls.append(args)
        if len(calls) > 2:  # of the noisy weights
            raise RuntimeError("out of memory")
        return "accuracy", 0.5

    monkeypatch.setattr(measure, "measure", once)
    with pytest.raises(RuntimeError, match="out of memory"):
        fit_trainer.unlearn(FORGET, evaluate=True)
    assert same(weights(net), before)
    assert callback.record.removed == []


def test_a_report_of_a_request(tmp_path):
    net, callback = WithTestData(), UnlearningCallback(ledger=tmp_path / "ledger.jsonl")
    fit_trainer = trainer(callback)
    fit_trainer.fit(net, loader(digits(600)))
    result = fit_trainer.unlearn(
        FORGET, evaluate=True, find_duplicates=True, save_to=tmp_path / "clean.ckpt"
    )
    assert result.ledger == (tmp_path / "ledger.jsonl").read_text()
    page = result.report(tmp_path / "report.html", retrained={"test": 0.9})
    text = page.read_text()
    for said in ("Internal", "<svg", "forget", "retain", "90.0%", "certified"):
        assert said in text
