"""Sequences of requests on one model, their budget, and their ledger."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.data import Subset

from lightning_unlearn import Certificate, UnlearningCallback
from lightning_unlearn.certificate import ledger as ledgers
from lightning_unlearn.errors import BudgetError, LedgerError
from lightning_unlearn.guarantee.claims import Grade
from tests.helpers.nets import HeadNet, digits, fitted, loader, same, trainer, weights
from tests.helpers.oracles import retrain_softmax_head


def test_ten_announced_requests_and_the_eleventh_refused(tmp_path):
    path = tmp_path / "ledger.jsonl"
    data = digits()
    net, fit_trainer, callback, _ = fitted(
        HeadNet(backbone=False), data, max_epochs=3, releases=10, ledger=path
    )
    for request in range(10):
        certificate = fit_trainer.unlearn(
            range(20 * request, 20 * request + 20)
        ).certificate
        assert certificate.grade is Grade.CERTIFIED
        assert certificate.release == request + 1
        certificate.verify()
    assert certificate.composed_epsilon == pytest.approx(1.0, rel=1e-6)
    assert certificate.n_retain == 1597

    X, y = (t.numpy() for t in data.tensors)
    retrained = retrain_softmax_head(X[200:].astype(float), y[200:], 10, 1e-3)
    with torch.no_grad():
        ours = float((net(data.tensors[0]).argmax(1).numpy() == y).mean())
    theirs = (X @ retrained[:640].reshape(10, 64).T + retrained[640:]).argmax(1) == y
    assert abs(ours - theirs.mean()) <= 0.01

    before, record = weights(net), path.read_text()
    with pytest.raises(BudgetError, match="all 10 have been made, 0 are left: how="):
        fit_trainer.unlearn([500])
    assert same(weights(net), before)
    assert path.read_text() == record
    ledger = ledgers.read(path)
    assert ledger.to_text() == callback.record.ledger
    assert [e.n_forget for e in ledger.entries] == [20] * 10
    for one, two in zip(ledger.entries, ledger.entries[1:], strict=False):
        assert one.weights_after == two.weights_before
    assert ledger.entries[-1].certificate_digest == certificate.digest
    assert "forget_indices" in json.loads(record.splitlines()[0])
    assert not any(e.forget_indices for e in ledger.entries)


def test_unannounced_requests_compose_and_say_so():
    _, fit_trainer, _, _ = fitted()
    epsilons = [fit_trainer.unlearn([i]).certificate.composed_epsilon for i in range(3)]
    assert epsilons[0] == pytest.approx(1.0, rel=1e-6)
    assert epsilons[0] < epsilons[1] < epsilons[2] < 3  # better than adding them up


def test_the_announced_number_may_not_change(tmp_path):
    net, fit_trainer, _, dataset = fitted(releases=4)
    fit_trainer.unlearn([1], save_to=tmp_path / "one.ckpt")
    more = UnlearningCallback(releases=8)
    with pytest.raises(BudgetError, match="announced releases=4 .* got releases=8"):
        trainer(more).unlearn(
            [2], model=HeadNet(), train_dataloaders=loader(dataset),
            ckpt_path=tmp_path / "one.ckpt",
        )  # fmt: skip


def test_the_ledger_travels_and_old_checkpoints_are_refused(tmp_path):
    path = tmp_path / "ledger.jsonl"
    net, fit_trainer, _, dataset = fitted(ledger=path, ledger_indices=True)
    fit_trainer.unlearn([1], save_to=tmp_path / "one.ckpt")
    fit_trainer.unlearn([2, 3], save_to=tmp_path / "two.ckpt")
    assert [e.forget_indices for e in ledgers.read(path).entries] == [[1], [2, 3]]

    def go_on(checkpoint, forget):
        callback = UnlearningCallback(ledger=path)
        return trainer(callback).unlearn(
            forget, model=HeadNet(), train_dataloaders=loader(dataset),
            ckpt_path=tmp_path / checkpoint,
        )  # fmt: skip

    text = path.read_text()
    with pytest.raises(LedgerError, match="newest checkpoint, got one with 1 of"):
        go_on("one.ckpt", [9])
    path.write_text(text.splitlines(keepends=True)[0])
    with pytest.raises(LedgerError, match="expected 2 entries .* the file was cut off"):
        go_on("two.ckpt", [9])
    path.write_text(text.replace('"n_forget": 2', '"n_forget": 1'))
    with pytest.raises(LedgerError, match="entry 2 was changed after it was written"):
        go_on("two.ckpt", [9])
    path.write_text(text)
    result = go_on("two.ckpt", [9])
    assert result.certificate.release == 3
    assert len(ledgers.read(path).entries) == 3


def test_a_foreign_ledger_is_refused(tmp_path):
    path = tmp_path / "ledger.jsonl"
    _, first, _, _ = fitted(ledger=path)
    first.unlearn([1])
    with pytest.warns(UserWarning, match="is there already"):
        net, second, _, _ = fitted(ledger=path)
    with pytest.raises(LedgerError, match="ledger of another one"):
        second.unlearn([1])
    assert len(ledgers.read(path).entries) == 1


def test_a_failing_ledger_write_leaves_nothing_behind(tmp_path, monkeypatch):
    path = tmp_path / "ledger.jsonl"
    net, fit_trainer, callback, _ = fitted(ledger=path)
    before = weights(net)

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lightning_unlearn.certificate.ledger.write", full)
    with pytest.raises(OSError, match="No space left"):
        fit_trainer.unlearn([1], save_to=tmp_path / "clean.ckpt")
    assert same(weights(net), before)
    assert callback.record.ledger == ""
    assert callback.record.removed == []
    assert [p.name for p in tmp_path.iterdir()] == [".ledger.jsonl.lock"]


def test_an_unguaranteed_request_breaks_the_joint_claim(tmp_path):
    _, fit_trainer, _, dataset = fitted(noise_std=0.0)
    fit_trainer.unlearn([1], save_to=tmp_path / "one.ckpt")
    certificate = trainer(UnlearningCallback()).unlearn(
        [2], model=HeadNet(), train_dataloaders=loader(dataset),
        ckpt_path=tmp_path / "one.ckpt",
    ).certificate  # fmt: skip
    assert certificate.grade is Grade.CERTIFIED
    assert certificate.composed_epsilon is None
    assert Certificate.from_json(certificate.to_json()) == certificate
    assert np.isfinite(certificate.noise_std)


def test_a_ledger_of_another_training_is_told_before_the_training(tmp_path):
    path = tmp_path / "ledger.jsonl"
    _, first, callback, data = fitted(ledger=path)
    first.unlearn([1])
    first.fit_loop.max_epochs = 3
    left = Subset(data, callback.retained_indices)
    first.fit(first.lightning_module, loader(left))  # goes on: it is its own
    with pytest.warns(UserWarning, match="this training is not the one it is of"):
        fitted(ledger=path)


def test_an_announced_total_cannot_be_broken_by_a_later_epsilon(tmp_path):
    net, fit_trainer, callback, _ = fitted(releases=3, epsilon=0.1)
    fit_trainer.unlearn([1])
    before = weights(net)
    callback.options = replace(callback.options, epsilon=10.0)
    with pytest.raises(BudgetError, match="with which the earlier of 3 announced"):
        fit_trainer.unlearn([2])
    assert same(weights(net), before)
    callback.options = replace(callback.options, epsilon=0.1)
    assert fit_trainer.unlearn([2]).certificate.release == 2


def test_the_composed_epsilon_says_that_an_earlier_release_was_conditional(tmp_path):
    data, net = digits(300), HeadNet()
    unwatched = trainer(UnlearningCallback(l2=1e-3), max_epochs=1)
    one = unwatched.unlearn([1], model=net, train_dataloaders=loader(data))
    assert one.certificate.grade is Grade.CONDITIONAL
    assert one.certificate.composed_grade is Grade.CONDITIONAL
    two = unwatched.unlearn([2]).certificate
    assert two.composed_grade is Grade.CONDITIONAL
    _, watched, _, _ = fitted()
    watched.unlearn([1])
    assert watched.unlearn([2]).certificate.composed_grade is Grade.CERTIFIED
