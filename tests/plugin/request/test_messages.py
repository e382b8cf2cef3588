"""What people are told: all at once, by name, before the work."""

import os
import signal
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from lightning_unlearn import UnlearningCallback, prepare
from lightning_unlearn._base import files
from lightning_unlearn.certificate import console
from lightning_unlearn.errors import (
    ArgumentError,
    ForgetSetError,
    GuaranteeError,
    ModelError,
    SetupError,
)
from lightning_unlearn.guarantee.claims import Grade
from tests.helpers.lightning import ModelCheckpoint, ModelPruning
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
from tests.plugin.request.test_refusals import refused


class ThreeFaults(HeadNet):
    """Statistics that move, decay that is decoupled, and (below) no such sample."""

    def __init__(self):
        super().__init__()
        self.backbone.append(nn.BatchNorm1d(32)).requires_grad_(False)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters())


@pytest.mark.filterwarnings("default:trainer.unlearn would be refused")
def test_all_problems_are_told_at_once_and_before_the_training():
    callback = UnlearningCallback()
    pruning = ModelPruning("l1_unstructured", amount=0.5, apply_pruning=False)
    fit_trainer = trainer(callback, callbacks=[pruning])
    net = ThreeFaults()
    told = r"(?s)got \d:\n  1\. .*zero, got ModelPruning.*\n  2\. .*AdamW.*BatchNorm"
    with pytest.warns(UserWarning, match=told):
        fit_trainer.fit(net, loader(digits(300)))
    told = (
        r"got 4:\n  1\. .* got 999\n  2\. .*Pruning.*\n  3\. .*AdamW.*\n  4\. .*Batch"
    )
    refused(ForgetSetError, told, net, fit_trainer, callback, [999])


def test_one_problem_is_told_as_it_is():
    net, fit_trainer, callback, _ = fitted()
    refused(
        ForgetSetError, "^expected indices from 0", net, fit_trainer, callback, [999]
    )


def damaged(kind, folder):
    path = folder / f"{kind}.ckpt"
    if kind == "text":
        path.write_text("hello")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "weights alone":
        torch.save(MLP().state_dict(), path)
    elif kind == "a module":
        torch.save(MLP(), path)
    elif kind == "a folder":
        path.mkdir()
    else:
        _, own, _, _ = fitted(MLP(hidden=9 if kind == "other" else 8), noise_std=0.0)
        own.save_checkpoint(path)
        if kind == "cut":
            path.write_bytes(path.read_bytes()[:5000])
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("text", "got one that is damaged, or no checkpoint"),
        ("empty", "got one that is damaged, or no checkpoint"),
        ("cut", "got one that is damaged, or no checkpoint"),
        ("weights alone", "a file that is not Lightning's"),
        (
            "a module",
            "Python objects.* weights_only=False if you trust it|or no checkpoint",
        ),
        ("a folder", "what cannot be read: name the file"),
        ("other", "one of another model: make the module as it was"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*weights_only. was not set")
def test_wrong_checkpoints_are_named(kind, message, tmp_path):
    path = damaged(kind, tmp_path)
    net, callback = MLP(), UnlearningCallback(noise_std=0.0)
    refused(
        SetupError, f"checkpoint of this model at .*{message}", net, trainer(callback),
        callback, [1], model=net, train_dataloaders=loader(digits(600)),
        ckpt_path=path,
    )  # fmt: skip


def test_a_place_that_cannot_be_written_is_refused_before_the_work(
    tmp_path, monkeypatch
):
    net, fit_trainer, callback, _ = fitted()
    passes = []
    monkeypatch.setattr(
        "lightning_unlearn.plugin.request.execution.resolve", passes.append
    )
    long = tmp_path / f"{'clean' * 60}.ckpt"
    refused(
        SetupError, "save_to=.* place that can be written, got OSError", net,
        fit_trainer, callback, [1], save_to=long,
    )  # fmt: skip

    def denied(dir):
        raise PermissionError(13, "Permission denied", str(dir))

    monkeypatch.setattr(files.tempfile, "TemporaryFile", denied)
    refused(
        SetupError, "got PermissionError.*change its permissions", net, fit_trainer,
        callback, [1], save_to=tmp_path / "clean.ckpt",
    )  # fmt: skip
    assert not passes
    other = trainer(UnlearningCallback(prepared=tmp_path / "p"))
    with pytest.raises(SetupError, match="prepared=.* got PermissionError"):
        prepare(other, HeadNet(), loader(digits(60)))


def test_remote_paths_are_refused_by_name():
    net, fit_trainer, callback, _ = fitted()
    for forget, error, options in (
        ([1], "expected save_to= on a disk", {"save_to": "memory://clean.ckpt"}),
        ([1], "expected ckpt_path= on a disk", {"ckpt_path": "s3://bucket/run.ckpt"}),
        ("s3://bucket/forget.txt", "expected a forget file on a disk", {}),
    ):
        with pytest.raises((SetupError, ForgetSetError), match=error):
            fit_trainer.unlearn(forget, **options)
    for name in ("ledger", "prepared", "state_file"):
        with pytest.raises(ArgumentError, match=f"expected {name}= on a disk"):
            UnlearningCallback(**{name: "gs://bucket/file"})
    found = [files.is_remote(p) for p in ("s3://b", Path("s3://b"), "C:/x", "/a:b/c")]
    assert found == [True, True, False, False]


@pytest.mark.filterwarnings("ignore:.*Checkpoint directory")
def test_checkpoints_in_a_remote_store_are_told_and_left(tmp_path):
    saves = ModelCheckpoint(dirpath="memory://runs", save_last=True)
    callback = UnlearningCallback()
    fit_trainer = trainer(callback, callbacks=[saves], enable_checkpointing=True)
    fit_trainer.fit(HeadNet(), loader(digits(300)))
    remote = saves.best_model_path
    assert remote.startswith("memory://")
    clean = tmp_path / "clean.ckpt"
    with pytest.warns(UserWarning, match="has left memory://.*it is in a remote store"):
        result = fit_trainer.unlearn([1], save_to=clean, delete_stale=True)
    assert remote in result.stale.checkpoints
    assert "older checkpoints of" in " ".join(result.certificate.not_covered)
    assert result.certificate.grade is Grade.CERTIFIED


def test_the_console_says_what_a_checkpoint_is_not(tmp_path, capsys):
    _, fit_trainer, _, _ = fitted()
    fit_trainer.unlearn([1], save_to=tmp_path / "clean.ckpt")
    assert console.main(["show", str(tmp_path / "clean.ckpt")]) == 1
    told = capsys.readouterr().err
    assert "no text" in told
    assert f"beside it is {tmp_path / 'clean.certificate.json'}" in told


@pytest.mark.parametrize("label", [10, -100, -1])
def test_labels_out_of_range_are_named(label):
    X, y = digits(600).tensors
    y = y.clone()
    y[5] = label
    with pytest.raises(ArgumentError, match=f"indices from 0 to 9, got {label} .1 of"):
        trainer(UnlearningCallback()).fit(HeadNet(), loader(TensorDataset(X, y)))


def test_an_ignored_label_with_weight_zero_is_certified():
    class Ignores(HeadNet):
        def training_step(self, batch, batch_idx):
            x, y = self.backbone(batch[0]), batch[1]
            return self.head.loss(x, y.clamp(min=0), (y >= 0).float()).mean()

    X, y = digits(600).tensors
    data = TensorDataset(X, torch.where(y == 3, -100, y))
    _, fit_trainer, _, _ = fitted(Ignores(), data)
    assert fit_trainer.unlearn([1]).certificate.grade is Grade.CERTIFIED


CLASS_WEIGHTS = torch.linspace(0.1, 2, 10)


class Lossy(MLP):
    def __init__(self, loss):
        super().__init__()
        self.own = loss

    def training_step(self, batch, batch_idx):
        return self.own(self(batch[0]), batch[1])


def shuffled(y):
    return y[torch.randperm(len(y))]


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (
            lambda z, y: F.cross_entropy(z, y, weight=CLASS_WEIGHTS.to(z)),
            "divided by class weights",
        ),
        (
            lambda z, y: F.cross_entropy(z, torch.where(y == 3, -100, y)),
            "or by the samples that ignore_index leaves",
        ),
        (
            lambda z, y: F.cross_entropy(z, y, reduction="sum"),
            "its two parts: a sum in place of a mean",
        ),
        (
            lambda z, y: F.cross_entropy(z, y) + F.cross_entropy(z, shuffled(y)),
            "random in eval mode .mixup",
        ),
        (
            lambda z, y: F.cross_entropy(F.dropout(z, 0.5), y),
            "functional dropout.* only if self.training",
        ),
    ],
    ids=["weights", "ignore_index", "sum", "mixup", "dropout"],
)
def test_losses_of_networks_are_blamed_for_what_they_do(loss, message):
    net, fit_trainer, callback, _ = fitted(Lossy(loss), noise_std=0.0)
    refused(ModelError, message, net, fit_trainer, callback, [1])


class LossyHead(HeadNet):
    def __init__(self, loss):
        super().__init__()
        self.own = loss

    def training_step(self, batch, batch_idx):
        return self.own(self.head, self.backbone(batch[0]), batch[1])


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (
            lambda head, h, y: head.loss(h, y).mean() + 0.5,
            r"where the head's own is .* \(0.5 more, of a regulariser",
        ),
        (
            lambda head, h, y: head.loss((h + h[torch.randperm(len(h))]) / 2, y).mean(),
            "got others the second time.*mixup",
        ),
        (
            lambda head, h, y: head.loss(F.dropout(h, 0.5), y).mean(),
            "functional dropout.* only if self.training",
        ),
        (
            lambda head, h, y: head.loss(h, head(h).argmax(1)).mean(),
            "self-distillation",
        ),
    ],
    ids=["regulariser", "mixup", "dropout", "distillation"],
)
def test_losses_of_heads_are_blamed_for_what_they_do(loss, message):
    net, fit_trainer, callback, _ = fitted(LossyHead(loss))
    refused(GuaranteeError, message, net, fit_trainer, callback, [1])


def test_mixup_in_training_alone_is_certified():
    class Mixes(HeadNet):
        def training_step(self, batch, batch_idx):
            h = self.backbone(batch[0])
            if self.training:
                h = (h + h[torch.randperm(len(h))]) / 2
            return self.head.loss(h, batch[1]).mean()

    _, fit_trainer, _, _ = fitted(Mixes())
    assert fit_trainer.unlearn([1]).certificate.grade is Grade.CERTIFIED


def test_an_interrupt_says_that_nothing_was_changed(monkeypatch, capsys):
    net, fit_trainer, _, _ = fitted()
    before, handler = weights(net), signal.getsignal(signal.SIGINT)

    def interrupt(*args):
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("lightning_unlearn.plugin.request.execution._step", interrupt)
    try:
        with pytest.raises(SystemExit):
            fit_trainer.unlearn([1])
    finally:  # Lightning ignores further interrupts while it shuts down
        signal.signal(signal.SIGINT, handler)
    assert "Interrupted: nothing was changed" in capsys.readouterr().err
    assert same(weights(net), before)
