"""A checkpoint to be served holds what its certificate speaks of, and nothing else."""

import warnings

import pytest
import torch
from torch.utils.data import TensorDataset

from lightning_unlearn.certificate.model_state import CHECKPOINT_KEYS
from lightning_unlearn.guarantee.claims import Grade
from tests.helpers.lightning import L
from tests.helpers.nets import (
    HeadNet,
    UnlearningCallback,
    digits,
    loader,
    trainer,
)

SECRET = "Hans-Muster-Diabetes"


class Plain(HeadNet):
    """With hyper-parameters of every plain kind, that training leaves alone."""

    def __init__(self, lr=0.01, sizes=(64, 32), names=None, limit=float("inf")):
        super().__init__(lr=lr)
        self.save_hyperparameters()


class Word(Plain):
    """Its hook writes a word of a sample, in ``place``."""

    place = staticmethod(lambda held: held)

    def on_save_checkpoint(self, checkpoint):
        type(self).place(checkpoint)


class Stateful(L.LightningDataModule):
    """Its state says how often each label is there."""

    def __init__(self, data):
        super().__init__()
        self.data = data

    def train_dataloader(self):
        return loader(self.data)

    def state_dict(self):
        return {"labels": self.data.tensors[1].bincount().tolist()}

    def load_state_dict(self, state):
        assert state["labels"]


PLACES = {
    "top": lambda held: held.update(vocabulary={SECRET: 1}),
    "known": lambda held: held.update(epoch=SECRET, hparams_name=SECRET),
    "state": lambda held: held["state_dict"].update(
        {SECRET: torch.zeros(1), "head.weight": torch.full((10, 32), 7.0)}
    ),
    "callbacks": lambda held: held["callbacks"].update(
        {"Mine": SECRET, "UnlearningCallback": {"word": SECRET}}
    ),
    "hyper": lambda held: held["hyper_parameters"].update({SECRET: 1}),
    "nested": lambda held: held["hyper_parameters"]["names"].append(SECRET),
    "optimizers": lambda held: held["optimizer_states"].append({"state": SECRET}),
    "replaced": lambda held: held.update(hyper_parameters={SECRET: 2}),
}


def released(net, path, source=None, warns=True):
    source = loader(digits(300)) if source is None else source
    given = {"datamodule": source} if isinstance(source, Stateful) else {
        "train_dataloaders": source}  # fmt: skip
    own = trainer(UnlearningCallback())
    own.fit(net, **given)
    with warnings.catch_warnings():
        if warns:
            warnings.simplefilter("ignore")
        result = own.unlearn([1, 2, 3], save_to=path)
    assert result.certificate.grade is Grade.CERTIFIED
    return torch.load(path, weights_only=False)


@pytest.mark.parametrize("place", PLACES)
def test_nothing_that_a_hook_of_the_module_adds_is_served(place, tmp_path):
    kind = type("Kind", (Word,), {"place": staticmethod(PLACES[place])})
    net = kind(names=["a"])
    held = released(net, tmp_path / "clean.ckpt")
    assert SECRET.encode() not in (tmp_path / "clean.ckpt").read_bytes()
    assert {*held} <= {*CHECKPOINT_KEYS}
    assert held["hyper_parameters"]["names"] == ["a"]
    assert held["epoch"] == 0
    for name, value in net.state_dict().items():
        assert torch.equal(held["state_dict"][name], value)


def test_what_is_left_out_is_named(tmp_path):
    kind = type("Kind", (Word,), {"place": staticmethod(PLACES["top"])})
    with pytest.warns(UserWarning, match="left out of .* served: vocab"):
        released(kind(), tmp_path / "clean.ckpt", warns=False)


def test_a_state_of_the_datamodule_is_left_out(tmp_path):
    held = []
    for world, differ in (("one", False), ("two", True)):
        X, y = digits(300).tensors
        y = y.clone()
        y[[1, 2, 3]] += (y[[1, 2, 3]] < 9) * int(differ)
        path = tmp_path / f"{world}.ckpt"
        data = Stateful(TensorDataset(X, y))
        with pytest.warns(UserWarning, match="left out .* Stateful"):
            held.append(released(Plain(), path, data, warns=False))
    for one in held:
        assert {*one} <= {*CHECKPOINT_KEYS}


def test_a_frozen_part_that_the_module_leaves_out_stays_out(tmp_path):
    class Light(Plain):
        def on_save_checkpoint(self, checkpoint):
            for name in [n for n in checkpoint["state_dict"] if "backbone" in n]:
                del checkpoint["state_dict"][name]

    held = released(Light(), tmp_path / "clean.ckpt", warns=False)
    assert sorted(held["state_dict"]) == ["head.bias", "head.weight"]


class Writes(Plain):
    """Training writes into its hyper-parameters."""

    def on_train_epoch_end(self):
        self.hparams.epochs_done = self.current_epoch + 1
        self.hparams.lr *= 0.5
        self.hparams["names"].append(f"seen {self.current_epoch}")


@pytest.mark.parametrize("fresh", [False, True])
def test_hyper_parameters_are_those_of_before_the_training(fresh, tmp_path):
    data = loader(digits(300))
    own = trainer(UnlearningCallback())
    net = Writes(names=["a"])
    own.fit(net, data)
    options = {}
    if fresh:
        own.save_checkpoint(tmp_path / "raw.ckpt")
        net = Writes.load_from_checkpoint(tmp_path / "raw.ckpt", strict=True)
        own = trainer(UnlearningCallback())
        options = {"model": net, "train_dataloaders": data,
                   "ckpt_path": tmp_path / "raw.ckpt"}  # fmt: skip
    with pytest.warns(UserWarning, match="hyper-parameters changed in training: .*lr"):
        own.unlearn([1], save_to=tmp_path / "clean.ckpt", **options)
    again = Writes.load_from_checkpoint(tmp_path / "clean.ckpt")
    assert again.hparams.lr == 0.01
    assert again.hparams["names"] == ["a"]
    assert again.hparams.sizes == (64, 32)
    assert "epochs_done" not in again.hparams


def test_ordinary_hyper_parameters_are_kept_and_nothing_is_said(tmp_path):
    held = released(Plain(lr=0.02), tmp_path / "clean.ckpt", warns=False)  # an error
    assert held["hyper_parameters"] == {
        "lr": 0.02, "sizes": (64, 32), "names": None, "limit": float("inf"),
    }  # fmt: skip
