"""A CertifiedClassifier made from a LightningCLI configuration, backbone and all."""

import json
import sys

import pytest
import torch
import yaml
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from lightning_unlearn import CertifiedClassifier, PublicBackbone
from lightning_unlearn.cli import LightningCLI
from tests.helpers.lightning import LightningDataModule, pl
from tests.plugin.helpers.publics import held_out, private, split


class Net(nn.Sequential):
    """Made by the configuration: the same in every run."""

    def __init__(self, hidden: int = 32):
        own = torch.Generator().manual_seed(0)
        super().__init__(
            nn.Flatten(), nn.Linear(64, hidden), nn.Tanh(), nn.Linear(hidden, hidden)
        )
        for p in self.parameters():
            p.data = torch.randn(p.shape, generator=own) / 8


class Public(Dataset):
    """Digits 0 to 4."""

    def __init__(self):
        (self.x, _), _ = split()

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i]


class Private(LightningDataModule):
    """Digits 5 to 9."""

    def setup(self, stage):
        self.train, self.val = private(), TensorDataset(*held_out())

    def train_dataloader(self):
        return DataLoader(self.train, 64, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.val, 300)


def config(**init):
    here = "tests.test_cli_certified"
    backbone = {"model": {"class_path": f"{here}.Net"}, "taps": ["2", "3"],
                "public_data": {"class_path": f"{here}.Public"}}  # fmt: skip
    named = {"class_path": "lightning_unlearn.PublicBackbone", "init_args": backbone}
    saver = {"class_path": f"{pl.__name__}.callbacks.ModelCheckpoint",
             "init_args": {"dirpath": ".", "filename": "run"}}  # fmt: skip
    return {
        "seed_everything": 0,
        "trainer": {
            "accelerator": "cpu", "logger": False, "callbacks": [saver],
            "max_epochs": 1, "enable_model_summary": False,
            "enable_progress_bar": False,
        },
        "model": {"backbone": named, "num_classes": 5, **init},
        "unlearning": {"ledger": "deletions.jsonl"},
    }  # fmt: skip


class Own(CertifiedClassifier):
    """A project's own class, which makes the backbone and names the classes."""

    def __init__(self, hidden: int, l2: float = 1e-3):
        backbone = PublicBackbone(Net(hidden), taps=["2", "3"], public_data=Public())
        super().__init__(backbone, 5, l2=l2)


def run(*arguments, model=CertifiedClassifier):
    return LightningCLI(model, Private, args=list(arguments), save_config_callback=None)


@pytest.mark.filterwarnings("ignore:.*exists and is not empty")
def test_fit_and_unlearn_from_a_configuration(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py"])
    described = config(l2=3e-3)
    described["unlearning"]["prepared"] = "rows.store"
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(described))
    fit = run("fit", "--config", "config.yaml")
    assert fit.model.l2 == 3e-3
    assert fit.trainer.callback_metrics["val_acc"] > 0.8
    run(
        "unlearn", "--config", "config.yaml", "--ckpt_path", "run.ckpt",
        "--forget", "[1, 2, 3]", "--save_to", "clean.ckpt",
    )  # fmt: skip
    out = capsys.readouterr().out
    assert out.startswith("CERTIFIED")
    assert "wrote the row store, as secret as the data: " in out
    assert "rows.store (597 samples, " in out
    written = json.loads((tmp_path / "clean.certificate.json").read_text())
    (part,) = written["public_parts"]
    assert part["name"] == "backbone"
    assert part["note"].startswith("Net read at 2, 3")
    after = run("validate", "--config", "config.yaml", "--ckpt_path", "clean.ckpt")
    assert after.trainer.callback_metrics["val_acc"] > 0.8


def test_a_class_of_the_project_s_own_with_arguments_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py"])
    described = {**config(), "model": {"hidden": 16, "l2": 3e-3}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(described))
    fit = run("fit", "--config", "config.yaml", model=Own)
    assert (fit.model.l2, fit.model.hparams["l2"]) == (3e-3, 3e-3)
    run(
        "unlearn", "--config", "config.yaml", "--ckpt_path", "run.ckpt",
        "--forget", "[1, 2, 3]", "--save_to", "clean.ckpt", model=Own,
    )  # fmt: skip
    again = Own.load_from_checkpoint("clean.ckpt", hidden=16)
    assert again.l2 == 3e-3
