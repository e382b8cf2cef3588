"""Train on two processes, unlearn on one."""

import subprocess
import sys
from pathlib import Path

import torch

from lightning_unlearn import UnlearningCallback
from lightning_unlearn.certificate import Grade
from tests.plugin.nets import HeadNet, digits, loader, trainer

ROOT = Path(__file__).parent.parent.parent


def test_a_ddp_training_is_unlearned_on_one_device(tmp_path):
    path = tmp_path / "run.ckpt"
    subprocess.run(
        [sys.executable, "-m", "tests.plugin.ddp_train", str(path)],
        check=True, cwd=ROOT, timeout=300, capture_output=True,
    )  # fmt: skip
    state = torch.load(path, weights_only=True)
    record = state["callbacks"]["UnlearningCallback"]
    assert (record["n_train"], record["max_norm"]) == (600, 2.0)
    assert record["projections"] > 0
    head = [v for k, v in state["state_dict"].items() if k.startswith("head")]
    assert sum(float(v.square().sum()) for v in head) ** 0.5 <= 2.0
    net = HeadNet()
    certificate = (
        trainer(UnlearningCallback())
        .unlearn(
            [1, 2], model=net, train_dataloaders=loader(digits(600)), ckpt_path=path
        )
        .certificate
    )
    assert certificate.grade is Grade.CERTIFIED
    assert certificate.n_retain == 598
