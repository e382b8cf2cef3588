"""Two worlds that differ in the forgotten samples only: nothing else may tell them."""

import itertools
import json
import re

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

from lightning_unlearn.guarantee.claims import Bound, Grade
from lightning_unlearn.plugin.files.served import Served
from tests.helpers.lightning import (
    Callback,
    CSVLogger,
    EarlyStopping,
    L,
    MixedPrecision,
    ModelCheckpoint,
)
from tests.helpers.nets import MLP, HeadNet, UnlearningCallback, digits, fitted, trainer

FORGOTTEN = [3, 17, 42]


class Watched(HeadNet):
    """With a scheduler that keeps the best loss it has seen."""

    def __init__(self):
        super().__init__(lr=0.05)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.head.loss(self.backbone(batch[0]), batch[1]).mean())

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": plateau, "monitor": "val_loss"},
        }


def world(folder, monkeypatch, *, forgotten_differ, kind=Watched, extra=()):
    """Train and unlearn where the forgotten samples are others; both checkpoints."""
    folder.mkdir()
    monkeypatch.chdir(folder)  # paths are the same in both worlds
    names = itertools.count()
    monkeypatch.setattr("secrets.token_hex", lambda n: f"{next(names):0{2 * n}x}")
    monkeypatch.setattr("uuid.uuid4", lambda: type("U", (), {"hex": "a" * 32}))
    X, y = digits(300).tensors
    X, y = X.clone(), y.clone()
    if forgotten_differ:
        X[FORGOTTEN], y[FORGOTTEN] = 1 - X[FORGOTTEN], (y[FORGOTTEN] + 5) % 10
    data = TensorDataset(X, y)
    torch.manual_seed(0)
    net = kind()
    callbacks = [
        EarlyStopping("val_loss", patience=100),
        ModelCheckpoint(dirpath="old", monitor="val_loss"),
        *[make() for make in extra],
    ]
    own = UnlearningCallback(noise_std=0.0, tolerance=1e-5)
    fit_trainer = trainer(
        own, max_epochs=3, callbacks=callbacks, enable_checkpointing=True
    )
    generator = torch.Generator().manual_seed(1)
    train = DataLoader(data, 64, shuffle=True, generator=generator)
    fit_trainer.fit(net, train, DataLoader(data, 100))
    trained = {k: v.clone() for k, v in net.state_dict().items()}
    result = fit_trainer.unlearn(FORGOTTEN, save_to="clean.ckpt")
    with pytest.warns(UserWarning, match="holds the positions of forgotten samples"):
        fit_trainer.save_checkpoint("later.ckpt")
    return trained, result.certificate, [
        torch.load(name, weights_only=True)
        for name in ("clean.ckpt", "later.ckpt")
    ]  # fmt: skip


# Digests of the weights, which agree to a distance and not to the last bit, and what
# is made of them.
DIGESTS = (
    "weights_digest",
    "commitment",  # to the samples, with new salts
    "weights_after",
    "certificate_digest",
    "hash",
    "digest",
    "time",
    "created",
)


def opened(value):
    """The ledger and the certificate are JSON in text."""
    if isinstance(value, str):  # absolute paths lie in different folders
        value = re.sub(r"/[^ ]*/(one|two)/", "", value)
    if isinstance(value, str) and value.startswith("{"):
        return [json.loads(part) for part in value.replace("}\n{", "}\0{").split("\0")]
    return value


def differences(one, two, near, path=""):
    """Where two checkpoints differ; tensors by more than `near`."""
    one, two = opened(one), opened(two)
    if isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor):
        same = one.shape == two.shape and (
            torch.equal(one, two) or float((one - two).norm()) <= near
        )
        return [] if same else [path]
    if isinstance(one, dict) and isinstance(two, dict) and set(one) == set(two):
        keys = [key for key in one if key not in DIGESTS]
        pairs = [(f"{path}/{key}", one[key], two[key]) for key in keys]
    elif isinstance(one, (list, tuple)) and len(one) == len(two):
        pairs = [
            (f"{path}[{i}]", a, b)
            for i, (a, b) in enumerate(zip(one, two, strict=True))
        ]
    else:
        same = one == two or (one != one and two != two)
        return [] if same else [f"{path}: {one!r:.80} != {two!r:.80}"]
    return [d for name, a, b in pairs for d in differences(a, b, near, name)]


def test_the_checkpoints_of_two_worlds_are_one(tmp_path, monkeypatch):
    one, certificate, first = world(
        tmp_path / "one", monkeypatch, forgotten_differ=False
    )
    two, _, second = world(tmp_path / "two", monkeypatch, forgotten_differ=True)
    apart = float((one["head.weight"] - two["head.weight"]).norm())
    values = {c.name: c.value for c in certificate.constants}
    near = 2 * values["tolerance"] / values["strong_convexity"]
    assert certificate.bound is Bound.STRONGLY_CONVEX
    assert apart > 10 * near  # training did differ
    for a, b in zip(first, second, strict=True):
        assert not differences(a, b, near)


class Counting(Watched):
    """A buffer with statistics of the data, as batch normalisation keeps them."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(64))

    def training_step(self, batch, batch_idx):
        if self.training:
            self.mean += 0.1 * (batch[0].mean(0) - self.mean)
        return super().training_step(batch, batch_idx)


class Average(Callback):
    """An average of the weights that lives in a callback's state."""

    def __init__(self):
        self.average = {}

    def on_train_batch_end(self, trainer, pl_module, *args):
        for name, value in pl_module.state_dict().items():
            old = self.average.get(name, value)
            self.average[name] = (old + 0.1 * (value - old)).clone()

    def state_dict(self):
        return self.average

    def load_state_dict(self, state):
        self.average = state


def as_they_are(trainer, callback, optimizers, path):
    callback.serves = Served({})
    trainer.save_checkpoint(path)
    callback.serves = None


@pytest.mark.parametrize(
    ("planted", "where", "named"),
    [
        ("optimizer", 0, "optimizer_states"),
        ("optimizer", 0, "lr_schedulers"),
        ("optimizer", 0, "EarlyStopping"),
        ("buffer", 0, "state_dict/mean"),
        ("average", 1, "Average"),
    ],
)
def test_a_planted_leak_is_found(planted, where, named, tmp_path, monkeypatch):
    if planted == "optimizer":
        monkeypatch.setattr(
            "lightning_unlearn.plugin.files.checkpoint._save", as_they_are
        )
    module = Counting if planted == "buffer" else Watched
    extra = [Average] if planted == "average" else []
    worlds = [
        world(
            tmp_path / name,
            monkeypatch,
            forgotten_differ=differ,
            kind=module,
            extra=extra,
        )
        for name, differ in (("one", False), ("two", True))
    ]
    files = [found[2][where] for found in worlds]
    assert any(named in d for d in differences(*files, near=1e-3))
    certificate = worlds[0][1]
    if planted == "buffer":  # what is not scrubbed is said
        assert certificate.unscrubbed == ("mean",)
        assert certificate.grade is Grade.NONE
    if planted == "average":
        assert any("Average" in text for text in certificate.not_covered)


@pytest.mark.parametrize("kind", ["head", "network"])
def test_no_file_holds_a_forgotten_sample_its_position_or_a_seed(kind, tmp_path):
    """By default, but in the two files that are for the controller alone."""
    X, y = digits(300).tensors
    X = X.clone()
    secret = 1234
    X[123] = torch.linspace(0.123, 0.321, 64)
    head = kind == "head"
    net = Watched() if head else MLP(nn.Tanh)
    options = {} if head else {"max_norm": 20.0, "accept_noise": True, "state_every": 1}
    own = UnlearningCallback(
        ledger=tmp_path / "ledger.jsonl", state_file=tmp_path / "solve.state", **options
    )
    logs = CSVLogger(tmp_path / "logs")
    fit_trainer = trainer(own, callbacks=[], logger=logs)
    data = TensorDataset(X, y)
    fit_trainer.fit(net, DataLoader(data, 64), *([DataLoader(data, 100)] * head))
    L.seed_everything(secret, verbose=False)
    result = fit_trainer.unlearn([123], save_to=tmp_path / "clean.ckpt")
    result.certificate.verify()
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    names = {p.name for p in files}
    assert {"clean.ckpt", "clean.certificate.json", "ledger.jsonl"} <= names
    assert "solve.state" not in names
    secret_files = {"clean.private.json", "clean.receipts.jsonl"}
    assert secret_files <= names
    for name in secret_files:
        assert (tmp_path / name).stat().st_mode & 0o077 == 0
    raw = X[123].numpy()
    wide = X[123].double().numpy()
    for path in files:
        held = path.read_bytes()
        for piece in (raw[:8], wide[:8]):
            assert piece.tobytes() not in held, path
        if path.name not in secret_files and path.suffix in (".json", ".jsonl"):
            assert not re.search(rb"\b(123|1234)\b", held), path
    saved = torch.load(tmp_path / "clean.ckpt", weights_only=True)
    served = saved["callbacks"]["UnlearningCallback"]
    assert set(served) == {"lineage", "certificate", "whole"}
    assert json.loads((tmp_path / "clean.private.json").read_text())["removed"] == [123]
    assert saved["optimizer_states"] == []
    assert saved["lr_schedulers"] == []


def test_the_scale_of_mixed_precision_is_forgotten(tmp_path):
    """It halves when a gradient overflows, which a forgotten sample may have caused."""
    net, own = HeadNet(), UnlearningCallback()

    def half():
        scaler = torch.amp.GradScaler("cpu")
        return {"plugins": MixedPrecision("16-mixed", "cpu", scaler=scaler)}

    fit_trainer = trainer(own, **half())
    fit_trainer.fit(net, DataLoader(digits(300), 64))
    scaler = fit_trainer.precision_plugin.scaler
    scaler.load_state_dict(
        {**scaler.state_dict(), "scale": 512.0, "_growth_tracker": 4}
    )
    result = fit_trainer.unlearn([1], save_to=tmp_path / "clean.ckpt")
    with pytest.warns(UserWarning, match="a checkpoint to be served is what"):
        fit_trainer.save_checkpoint(tmp_path / "later.ckpt")
    assert result.certificate.grade is Grade.CERTIFIED
    clean = torch.load(tmp_path / "clean.ckpt", weights_only=True)
    assert "MixedPrecision" not in clean
    later = torch.load(tmp_path / "later.ckpt", weights_only=True)["MixedPrecision"]
    assert (later["scale"], later["_growth_tracker"]) == (65536.0, 0)
    again = trainer(UnlearningCallback(), max_epochs=3, **half())
    rest = Subset(digits(300), own.retained_indices)
    again.fit(net, DataLoader(rest, 64), ckpt_path=tmp_path / "clean.ckpt")
    assert again.global_step > 0


class Scaled(HeadNet):
    """Makes a number of its first batch, and computes with it."""

    scale = None

    def __init__(self):
        super().__init__()
        self.scale = None

    def training_step(self, batch, batch_idx):
        if self.scale is None and self.training:
            self.scale = float(batch[0].sum())
        features = self.backbone(batch[0] / (self.scale or 1.0))
        return self.head.loss(features, batch[1]).mean()


def test_a_number_that_training_makes_is_seen():
    _, fit_trainer, _, _ = fitted(Scaled())
    certificate = fit_trainer.unlearn([1]).certificate
    assert certificate.unscrubbed == (
        "scale (number)",
        "what reaches the head (it changed in training: scale)",
    )
    assert certificate.grade is Grade.NONE


class Averaging(ModelCheckpoint):
    """A checkpoint callback with a state of its own."""

    def state_dict(self):
        return {"average": 1.0}


def test_states_of_checkpoint_callbacks_of_other_classes_are_named(tmp_path):
    own = UnlearningCallback()
    fit_trainer = trainer(
        own, callbacks=[Averaging(dirpath=tmp_path)], enable_checkpointing=True
    )
    fit_trainer.fit(HeadNet(), DataLoader(digits(300), 64))
    told = " ".join(fit_trainer.unlearn([1]).certificate.not_covered)
    assert "the state kept by Averaging" in told
