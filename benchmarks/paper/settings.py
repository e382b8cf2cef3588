"""What is run: the paper's settings as far as they are known, and where ours differ."""

import dataclasses
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: Rows are measured for a to d and g; e, f and the rest of g are runs of their own.
PARTS = ("a", "b", "c", "d", "e", "f", "g")
EPSILON, DELTA = 1.0, 1e-5
HAND_NOISE = (0.001, 0.01)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One network on one data set.

    Args:
        data: "mnist" or "cifar10".
        model: "mlp", "allcnn" or "resnet18".
        epochs: Of Adam, lr 1e-3, weight decay 5e-4, batch 128; the paper has 50.
        n_train: Training images, the first of the file.
        n_test: Test images.
        n_forget: Forgotten images, drawn anew for each seed.
        max_norm: C; the paper has 10, 20 or 21.
        damping: Of our step, or None for "auto".
        lissa: (runs, steps) of LiSSA; the paper has 10 runs of 1,000 steps.
        batch_size: Samples in a batch of passes and predictions.
        relearn_steps: Steps after which a model counts as not back.
        requests: Sequential ones of part e.
        width: Of the network's first layer.
        one_solve: Add noise by hand to the weights of one bare step, where a request
            of its own for each noise takes too long.
        quick: Only tries the code.
    """

    data: str
    model: str
    epochs: int
    n_train: int
    n_test: int = 10_000
    n_forget: int = 1000
    max_norm: float
    damping: float | None = None
    lissa: tuple[int, int] = (10, 1000)
    batch_size: int = 2000
    relearn_steps: int = 500
    requests: int = 10
    width: int
    one_solve: bool = False
    quick: bool = False

    @property
    def name(self) -> str:
        """Of the folder in the cache."""
        return f"{self.data}-{self.model}" + ("-quick" if self.quick else "")


#: What fits into a few minutes of one GPU; the ball is larger, because the weights of
#: these networks are outside one of 20 before their training begins.
CIFAR: dict[str, Any] = {
    "data": "cifar10", "n_test": 2000, "n_forget": 100, "epochs": 15, "damping": 100.0,
    "batch_size": 250, "relearn_steps": 30, "one_solve": True,
}  # fmt: skip
SETTINGS = {
    "mlp": Setting(
        data="mnist", model="mlp", epochs=50, n_train=60_000, max_norm=20.0, width=32
    ),
    "allcnn": Setting(
        **CIFAR, model="allcnn", n_train=5000, max_norm=50.0, width=96, lissa=(1, 200)
    ),
    "resnet18": Setting(
        **CIFAR, model="resnet18", n_train=2000, max_norm=100.0, width=64,
        lissa=(1, 50),
    ),
}  # fmt: skip


def quick(setting: Setting) -> Setting:
    """The same on so few samples that only the code is tried."""
    few = {"n_train": 600, "n_test": 200, "n_forget": 40, "epochs": 2, "lissa": (1, 20)}
    few |= {"relearn_steps": 5, "requests": 2, "quick": True}
    if setting.model != "mlp":
        few |= {"n_train": 60, "n_test": 30, "n_forget": 10, "epochs": 1, "width": 8}
        few |= {"lissa": (1, 3), "relearn_steps": 2, "damping": 100.0}
    return dataclasses.replace(setting, **few)


class Cache:
    """Results of one setting as JSON: ``<folder>/<data>-<model>/seed<s>/<row>.json``.

    Args:
        folder: Given by ``--cache``.
        setting: Written beside the results; another one is refused.
    """

    def __init__(self, folder: Path, setting: Setting) -> None:
        self.folder = folder / setting.name
        self.folder.mkdir(parents=True, exist_ok=True)
        file, plain = self.folder / "setting.json", dataclasses.asdict(setting)
        plain = json.loads(json.dumps(plain))
        if file.exists() and json.loads(file.read_text()) != plain:
            sys.exit(f"{file} is of another setting: name another --cache")
        write(file, plain)

    def path(self, seed: int, name: str, ending: str = "json") -> Path:
        """Of a result, or of weights."""
        file = self.folder / f"seed{seed}" / f"{slug(name)}.{ending}"
        file.parent.mkdir(exist_ok=True)
        return file

    def read(self, seed: int, name: str) -> dict:
        """A result, or nothing."""
        file = self.path(seed, name)
        return json.loads(file.read_text()) if file.exists() else {}

    def write(self, seed: int, name: str, found: dict) -> None:
        """Keep a result at once, so that what was found outlives a kill."""
        write(self.path(seed, name), found)


def stored_setting(folder: Path) -> Setting:
    """The setting the results in a folder of the cache are of."""
    plain = json.loads((folder / "setting.json").read_text())
    return Setting(**{**plain, "lissa": tuple(plain["lissa"])})


def slug(name: str) -> str:
    """A name fit for a file."""
    return "".join(c if c.isalnum() or c in "._" else "-" for c in name).strip("-")


def write(file: Path, found: object) -> None:
    """Write JSON wholly or not at all."""
    new = file.with_name(f"{file.name}.{os.getpid()}")
    new.write_text(json.dumps(found, indent=1) + "\n")
    new.replace(file)
