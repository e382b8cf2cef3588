"""A private training from a LightningCLI configuration, and a request to it."""

import json
import sys

import pytest
import torch
import yaml
from torch.utils.data import DataLoader, TensorDataset

from lightning_unlearn import CertifiedClassifier, PrivateTraining
from lightning_unlearn.cli import LightningCLI
from lightning_unlearn.plugin.request.stage import callback_of
from tests.helpers.lightning import LightningDataModule, pl
from tests.helpers.nets import MLP, digits

pytest.importorskip("dp_accounting")


class Digits(LightningDataModule):
    def setup(self, stage):
        self.train = digits(600)
        self.train.user_id = [f"p{i % 200}" for i in range(600)]

    def train_dataloader(self):
        return DataLoader(self.train, 30, shuffle=True)


class Net(MLP):
    def __init__(self):
        super().__init__()


def run(*arguments):
    return LightningCLI(Net, Digits, args=list(arguments), save_config_callback=None)


def config(private, callback):
    """Private training in the group of options, or of a callback of one's own."""
    saver = {"class_path": f"{pl.__name__}.callbacks.ModelCheckpoint",
             "init_args": {"dirpath": ".", "filename": "run"}}  # fmt: skip
    options = {"epsilon": 4.0, "delta": 1e-4, "private": private}
    own = {"class_path": "lightning_unlearn.UnlearningCallback", "init_args": options}
    described = {
        "seed_everything": 0,
        "trainer": {
            "accelerator": "cpu", "logger": False, "max_epochs": 1,
            "callbacks": [saver, own] if callback else [saver],
            "enable_model_summary": False, "enable_progress_bar": False,
        },
    }  # fmt: skip
    return described if callback else {**described, "unlearning": options}


@pytest.mark.filterwarnings("ignore:.*exists and is not empty")
@pytest.mark.parametrize(
    ("callback", "private", "forget"),
    [
        (False, {"noise_multiplier": 4.0, "max_grad_norm": 0.5}, "[1, 2]"),
        (True, {"epsilon": 1.0, "by": "user_id"}, '["p3", "p4"]'),
    ],
)
def test_fit_and_unlearn(tmp_path, capsys, monkeypatch, callback, private, forget):
    monkeypatch.setattr(sys, "argv", ["train.py"])
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config(private, callback)))
    fit = run("fit", "--config", "config.yaml")
    steps = callback_of(fit.trainer, None).record.private
    assert steps.done == 20
    assert steps.by == private.get("by")
    people = ("--by", "user_id") if steps.by else ()
    run(
        "unlearn", "--config", "config.yaml", "--ckpt_path", "run.ckpt",
        "--forget", forget, *people, "--save_to", "clean.ckpt",
    )  # fmt: skip
    assert capsys.readouterr().out.startswith("CERTIFIED")
    written = json.loads((tmp_path / "clean.certificate.json").read_text())
    values = {c["name"]: c["value"] for c in written["constants"]}
    assert (values["forgotten"], written["bound"]) == (2, "private_training")
    before = torch.load(tmp_path / "run.ckpt", weights_only=True)["state_dict"]
    after = torch.load(tmp_path / "clean.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(before[name], after[name]) for name in before)


class Watched(Digits):
    def val_dataloader(self):
        return DataLoader(digits(600), 300)


class Shape(TensorDataset):
    """What samples look like; none of them."""

    def __init__(self):
        super().__init__(torch.zeros(2, 64))


@pytest.mark.filterwarnings("ignore:.*exists and is not empty")
def test_a_head_on_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py"])
    private = {"noise_multiplier": 4.0, "max_grad_norm": 0.5}
    (tmp_path / "private.yaml").write_text(yaml.safe_dump(config(private, False)))
    run("fit", "--config", "private.yaml")
    (tmp_path / "run.ckpt").rename(tmp_path / "private.ckpt")

    here = "tests.test_cli_private"
    features = {"model": {"class_path": f"{here}.Net"}, "checkpoint": "private.ckpt",
                "taps": ["net.1"], "standardize": "none",
                "public_data": {"class_path": f"{here}.Shape"}}  # fmt: skip
    named = {"class_path": "lightning_unlearn.PrivatelyTrained", "init_args": features}
    described = config(None, False)
    described["model"] = {"backbone": named, "num_classes": 10, "l2": 1e-2}
    described["unlearning"]["accept_noise"] = True
    (tmp_path / "head.yaml").write_text(yaml.safe_dump(described))

    def head(*arguments):
        return LightningCLI(
            CertifiedClassifier, Watched, args=[*arguments], save_config_callback=None
        )

    head("fit", "--config", "head.yaml")
    head(
        "unlearn", "--config", "head.yaml", "--ckpt_path", "run.ckpt",
        "--forget", "[1, 2]", "--save_to", "clean.ckpt",
    )  # fmt: skip
    assert capsys.readouterr().out.startswith("CERTIFIED: this head and its privately")
    written = json.loads((tmp_path / "clean.certificate.json").read_text())
    assert written["bound"] == "private_backbone"


def test_a_class_path_names_it(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py"])
    named = {
        "class_path": "lightning_unlearn.PrivateTraining",
        "init_args": {"noise_multiplier": 4.0},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config(named, False)))
    fit = run("fit", "--config", "config.yaml")
    settings = callback_of(fit.trainer, None).options.private
    assert settings == PrivateTraining(noise_multiplier=4.0)
