"""Every test: one thread (small tensors), a fixed seed, no Lightning chatter.

Where LIGHTNING_UNLEARN_LIGHTNING says pytorch_lightning, `lightning` cannot be
imported: whatever the package and its tests need must be in the one it names.
"""

import logging
import os
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)  # fixtures of modules run before `_calm`

# How long an example takes is the machine's affair.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

if os.environ.get("LIGHTNING_UNLEARN_LIGHTNING") == "pytorch_lightning":
    sys.modules["lightning"] = None  # type: ignore[assignment]


def pytest_addoption(parser):
    parser.addoption(
        "--first-cases",
        action="store_true",
        help="of each test one case, and all that are given a strategy by name or "
        "something of Lightning's: enough where the package's names are what differs",
    )


def _of_lightning(value):
    kind = value if isinstance(value, type) else type(value)
    packages = {base.__module__.split(".")[0] for base in kind.__mro__}
    return bool(packages & {"lightning", "pytorch_lightning"})


def pytest_collection_modifyitems(config, items):
    if not config.getoption("first_cases"):
        return
    seen, kept, left = set(), [], []
    for item in items:
        test = (item.parent.nodeid, getattr(item, "originalname", item.name))
        given = item.callspec.params if hasattr(item, "callspec") else {}
        wanted = "strategy" in given or any(map(_of_lightning, given.values()))
        (kept if wanted or test not in seen else left).append(item)
        seen.add(test)
    items[:] = kept
    config.hook.pytest_deselected(items=left)


@pytest.fixture(autouse=True)
def _calm():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for name in (
        *("lightning.pytorch", "lightning.fabric"),
        *("pytorch_lightning", "lightning_fabric"),
    ):
        logging.getLogger(name).setLevel(logging.ERROR)
    return


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Whatever Lightning writes by default lands in the test's own folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def real_data():
    """The folder with real data, or a skip that says how to get it."""
    folder = os.environ.get("LIGHTNING_UNLEARN_DATA")
    if not folder:
        pytest.skip("needs real data: set LIGHTNING_UNLEARN_DATA to its folder")
    return Path(folder)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """The example's folder, and ``python train.py`` for the current process."""
    from tests.helpers.cli_project import copy_to  # it imports torch's whole family

    copy_to(tmp_path / "cli")
    monkeypatch.chdir(tmp_path / "cli")
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path / "cli"
