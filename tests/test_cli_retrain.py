"""``python train.py unlearn --how retrain``: the config is all that it needs."""

import json

import pytest
import torch

from tests.helpers.cli_project import QUIET, fit, refused, shell, verb

RETRAIN = ("--how", "retrain", "--trainer.max_epochs=1")


def state(path):
    return torch.load(path, weights_only=True)["state_dict"]


def test_what_the_config_describes_is_trained_anew(project, capsys):
    fit()
    verb("unlearn", "--save_to", "clean.ckpt", *RETRAIN)
    out = capsys.readouterr().out
    assert out.startswith("EXACT: retrained by this tool")
    assert "\nwrote clean.ckpt, clean.certificate.json\n" in out
    certificate = json.loads((project / "clean.certificate.json").read_text())
    assert (certificate["grade"], certificate["epsilon"]) == ("exact", 0)
    old, new = state("run.ckpt"), state("clean.ckpt")
    assert old.keys() == new.keys()
    assert not torch.equal(old["head.weight"], new["head.weight"])
    # A later request goes on from it, by id, with a step.
    verb("unlearn", "--save_to", "two.ckpt", "--by", "user_id", ckpt="clean.ckpt",
         forget='["user-07"]')  # fmt: skip
    out = capsys.readouterr().out
    assert out.startswith("CERTIFIED")
    assert "release               2 of 10 announced" in out


def test_what_is_refused_changes_nothing(project, capsys):
    fit()
    files = {p: p.read_bytes() for p in project.rglob("*") if p.is_file()}
    new = ("unlearn", "--save_to", "clean.ckpt")
    refused("checkpoint of this retraining", *new, *RETRAIN,
            "--resume_from", "run.ckpt", capsys=capsys)  # fmt: skip
    after = {p: p.read_bytes() for p in project.rglob("*") if p.is_file()}
    assert after == files


@pytest.mark.slow
def test_two_processes(project):
    fit()
    both = shell(
        "train.py", "unlearn", "--config", "config.yaml", "--ckpt_path", "run.ckpt",
        "--forget", "forget.txt", "--save_to", "two.ckpt", *RETRAIN, *QUIET,
        "--trainer.devices=2", "--trainer.strategy=ddp",
    )  # fmt: skip
    assert both.stdout.count("EXACT: retrained") == 1
    assert both.stdout.count("wrote two.ckpt") == 1
    assert not torch.equal(
        state("run.ckpt")["head.weight"], state("two.ckpt")["head.weight"]
    )
