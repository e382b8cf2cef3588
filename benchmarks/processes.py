"""The same request on one process and on two, one thread each.

    LIGHTNING_UNLEARN_DATA=folder python benchmarks/processes.py

1,000 of 60,000 MNIST images out of an MLP of 26,506 weights (3 epochs), a head on
MNIST pixels, and an MLP of 535,818 weights, where what travels is larger. Every round
starts one process, then two under ddp; each makes three requests on fresh copies of
the model and reports the seconds of the shorter of the last two (the first reads the
data).
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from common import MLP, Head, bars, fitted, mnist, publish, spread, table
from torch import nn
from torch.utils.data import DataLoader

import lightning_unlearn as lu
from lightning_unlearn.plugin.verbs.unlearn import Trainer

ROUNDS = 3
FORGET = list(range(0, 60_000, 60))


class Wide(MLP):
    """The same with two layers of 512."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Flatten(), nn.Linear(784, 512), nn.Tanh(), nn.Linear(512, 256),
            nn.Tanh(), nn.Linear(256, 10),
        )  # fmt: skip


CASES = {"MLP": MLP, "wide MLP": Wide, "head": lambda: Head(784, 10)}


def data(name):
    train = mnist("train")
    if name == "head":
        train.tensors = train.tensors[0].flatten(1), train.tensors[1]
    return train


def work(folder, name, devices):
    """Run by `measure` in processes of their own."""
    torch.set_num_threads(1)
    seconds = []
    for _ in range(3):
        own = Trainer(
            callbacks=[lu.UnlearningCallback(noise_std=0.0, tolerance=1e-6)],
            accelerator="cpu", devices=devices, logger=False,
            strategy="ddp" if devices > 1 else "auto", enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        result = own.unlearn(
            FORGET, model=CASES[name](), ckpt_path=folder / "c.ckpt",
            train_dataloaders=DataLoader(data(name), 128, shuffle=True),
        )  # fmt: skip
        seconds.append(result.seconds)
    if own.is_global_zero:
        told = [seconds[1:], result.solution.matvecs, float(result.solution.x.norm())]
        (folder / f"{devices}.json").write_text(json.dumps(told))


def measure(folder, name, devices):
    """(seconds of two requests, passes, length of the step)."""
    command = [sys.executable, __file__, "work", str(folder), name, str(devices)]
    subprocess.run(command, check=True, capture_output=True)
    return json.loads((folder / f"{devices}.json").read_text())


def main(cases):
    rows, panels = [], {}
    for name in cases:
        torch.manual_seed(0)
        with tempfile.TemporaryDirectory() as made:
            folder = Path(made)
            net, own, _ = fitted(CASES[name](), data(name), 3, noise_std=0.0)
            own.save_checkpoint(folder / "c.ckpt")
            found = {1: [], 2: []}
            ratios, steps = [], {}
            for _ in range(ROUNDS):
                for devices in (1, 2):
                    seconds, passes, steps[devices] = measure(folder, name, devices)
                    found[devices].append(min(seconds))
                ratios.append(found[1][-1] / found[2][-1])
        apart = abs(steps[1] - steps[2]) / steps[1]
        size = sum(p.numel() for p in net.parameters())
        taken = [spread(values) for values in (found[1], found[2], ratios)]
        rows.append([name, f"{size:,}", f"{passes:.1f}", *taken, f"{apart:.0e}"])
        panels[f"{name}, {size:,} weights"] = {
            "one process": found[1], "two processes": found[2],
        }  # fmt: skip
        print(rows[-1], flush=True)
    head = ["model", "weights", "passes", "one, s", "two, s", "ratio", "steps apart"]
    publish(
        "processes", "One process and two", table(head, rows),
        bars("processes", panels, "seconds"),
    )  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1:2] == ["work"]:
        work(Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
    else:
        main(sys.argv[1:] or list(CASES))
