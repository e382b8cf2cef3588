"""A CertifiedClassifier solved and unlearned in two real processes, as in one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.plugin.helpers.publics import private, solved

JOB = "tests.plugin.helpers.certified_job"
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def alone():
    """Heads on one device: solved, and after the request."""
    torch.manual_seed(0)
    net, own, _, _ = solved(dataset=private(), noise_std=0.0, tolerance=1e-8)
    before = net.head.weight.detach().clone()
    own.unlearn(range(40))
    return before, net.head.weight.detach().clone()


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "ddp_spawn", "fsdp2", "fsdp2-whole"])
def test_two_processes_solve_and_forget_as_one(strategy, alone, tmp_path):
    ended = subprocess.run(
        [sys.executable, "-m", JOB, tmp_path, strategy],
        cwd=ROOT, timeout=240, capture_output=True, text=True,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert found == ["strongly_convex", 560]
    for name, expected in zip(("solved", "clean"), alone, strict=True):
        saved = torch.load(tmp_path / f"{name}.ckpt", weights_only=True)
        found = saved["state_dict"]["head.weight"]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
