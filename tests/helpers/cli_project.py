"""The example's LightningCLI project, for tests."""

import atexit
import os
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from lightning_unlearn.cli import LightningCLI
from tests.helpers.lightning import PACKAGE, in_package

ROOT = Path(__file__).parents[2]


def copy_to(folder, package=PACKAGE):
    """The project, as its author would have written it for a package."""
    shutil.copytree(ROOT / "examples" / "cli", folder)
    for path in (folder / "train.py", folder / "config.yaml"):
        path.write_text(in_package(path.read_text(), package))


_FOLDER = tempfile.TemporaryDirectory()
atexit.register(_FOLDER.cleanup)
copy_to(Path(_FOLDER.name) / "cli")
EXAMPLE = runpy.run_path(str(Path(_FOLDER.name) / "cli" / "train.py"))
Classifier, Digits = EXAMPLE["Classifier"], EXAMPLE["Digits"]
QUIET = ["--trainer.enable_progress_bar=false"]


def run(*arguments, kind=LightningCLI, **options):
    return kind(Classifier, Digits, args=[str(a) for a in arguments], **options)


def fit(*extra, kind=LightningCLI, config="config.yaml"):
    return run(
        "fit", "--config", config, "--trainer.max_epochs=2", *QUIET, *extra, kind=kind
    )


def verb(name, *extra, ckpt="run.ckpt", forget="forget.txt", **options):
    return run(
        name, "--config", "config.yaml", "--ckpt_path", ckpt, "--forget", forget,
        *QUIET, *extra, **options,
    )  # fmt: skip


def refused(message, *arguments, capsys, **options):
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        verb(*arguments, **options)
    assert stop.value.code == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(message, error), error
    assert error.startswith("error: ")
    assert "Traceback" not in error
    return error


def shell(*arguments, status=0):
    """A process of its own, which must end with this status."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    environment["PYTHONPATH"] = str(ROOT)
    found = subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True,
        env=environment, timeout=300,
    )  # fmt: skip
    assert found.returncode == status, found.stdout + found.stderr
    return found
