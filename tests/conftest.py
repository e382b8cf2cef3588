"""Every test: two threads at most, a fixed seed, no Lightning chatter."""

import logging

import pytest
import torch


@pytest.fixture(autouse=True)
def _calm():
    torch.set_num_threads(2)
    torch.manual_seed(0)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Whatever Lightning writes by default lands in the test's own folder."""
    monkeypatch.chdir(tmp_path)
