"""Train a whole network privately, and delete at once: accuracy, epsilon, seconds.

    LIGHTNING_UNLEARN_DATA=folder python benchmarks/private_training.py [large] [small]

Two small CNNs (the large one of Papernot and others 2021, arXiv 2007.14191) on MNIST,
all weights trained by `PrivateTraining`, with several amounts of noise, and ordinarily;
and a certified head on each private network (`PrivatelyTrained`).
Settings were chosen on 10,000 of the training images; the test images were used for
nothing but this table. Finished runs are kept in ``results/private-training.json``.
"""

import functools
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import lightning as L
import torch
from common import RESULTS, accuracy, mnist, publish, table, trainer
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import lightning_unlearn as lu
from lightning_unlearn.guarantee.accounting.private_training import Mechanism, privacy
from lightning_unlearn.plugin.private import private_run

BATCH, EPOCHS, DELTA = 1000, 10, 1e-5
GROUPS = (1, 3, 10)
#: Clip and learning rate of each network; noise multipliers it is trained with.
SETTINGS = {"large": (0.1, 4.0), "small": (0.3, 2.0)}
NOISES = {"large": (1.75,), "small": (3.0, 1.75, 1.1, 0.75)}
RUNS = {"large": 3, "small": 1}
#: Of a head: where the network is read, l2, and epsilon of the callback by that of the
#: network alone, a tenth of which is the head's own.
TAPS = {"large": ["net.7", "net.9"], "small": ["net.5"]}
L2, MORE = 3e-4, 1.1
HEAD = 98.90  # of benchmarks/results/random-features-mnist.md
KEPT = RESULTS / "private-training.json"


def layers(kind: str) -> list[nn.Module]:
    """Of 26,010 or 4,258 weights; none mixes samples."""
    if kind == "large":
        return [
            nn.Conv2d(1, 16, 8, 2, padding=3), nn.Tanh(), nn.MaxPool2d(2, 1),
            nn.Conv2d(16, 32, 4, 2), nn.Tanh(), nn.MaxPool2d(2, 1),
            nn.Flatten(), nn.Linear(512, 32), nn.Tanh(), nn.Linear(32, 10),
        ]  # fmt: skip
    return [
        nn.Conv2d(1, 8, 8, 4, padding=2), nn.Tanh(),
        nn.Conv2d(8, 16, 3, 2, padding=1), nn.Tanh(),
        nn.Flatten(), nn.Linear(256, 10),
    ]  # fmt: skip


class CNN(L.LightningModule):
    """A small convolutional network."""

    def __init__(self, kind: str, lr: float) -> None:
        super().__init__()
        self.lr = lr
        self.net = nn.Sequential(nn.Unflatten(1, (1, 28, 28)), *layers(kind))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class Clock:
    """CPU seconds spent in some functions."""

    def __init__(self) -> None:
        self.spent = dict[str, float]()

    def timing(self, name: str) -> Any:
        """Have a function of the private steps timed for a while."""
        own: Callable[..., Any] = getattr(private_run, name)

        def timed(*args: Any) -> Any:
            begin = time.process_time()
            found = own(*args)
            spent = time.process_time() - begin
            self.spent[name] = self.spent.get(name, 0.0) + spent
            return found

        return mock.patch.object(private_run, name, timed)


def private(kind: str, noise: float, train: Any, test: Any) -> dict[str, Any]:
    """One private training, and two requests to it."""
    clip, lr = SETTINGS[kind]
    clock, net = Clock(), CNN(kind, lr)
    settings = lu.PrivateTraining(noise_multiplier=noise, max_grad_norm=clip)
    with tempfile.TemporaryDirectory() as folder:
        callback = lu.UnlearningCallback(
            epsilon=20.0, delta=DELTA, private=settings, ledger=Path(folder) / "l.jsonl"
        )
        fit = trainer(callback, EPOCHS)
        begin, cpu = time.perf_counter(), time.process_time()
        with clock.timing("add_noise"), clock.timing("clipped_sum"):
            fit.fit(net, DataLoader(train, BATCH, shuffle=True))
        spent = {
            "seconds": time.perf_counter() - begin,
            "cpu": time.process_time() - cpu,
            **clock.spent,
        }
        before = accuracy(net, test)
        deleted = []
        for number, forget in enumerate(([7], [70, 700]), 1):
            begin = time.process_time()
            result = fit.unlearn(forget, save_to=Path(folder) / f"{number}.ckpt")
            deleted.append(time.process_time() - begin)
            assert result.certificate.grade.value == "certified"
        assert accuracy(net, test) == before
        steps = callback.record.private
        made = Mechanism(noise, steps.sampling_rate, steps.steps)
        alone = {k: privacy(made, k, DELTA).epsilon for k in GROUPS}
        fit.save_checkpoint(Path(folder) / "private.ckpt")
        head = head_on(kind, Path(folder) / "private.ckpt", alone[1], train, test)
    head["epsilon"] = {k: privacy(made, k, DELTA, head["mu"]).epsilon for k in GROUPS}
    return {
        **spent, "accuracy": before, "deleted": deleted, "steps": steps.steps,
        "epsilon": alone, "head": head,
    }  # fmt: skip


def head_on(
    kind: str, path: Path, alone: float, train: Any, test: Any
) -> dict[str, Any]:
    """A certified head on a private network, and a request to it."""
    features = lu.PrivatelyTrained(
        CNN(kind, 0.0), path, TAPS[kind], standardize="none",
        public_data=torch.zeros(1, 784),
    )  # fmt: skip
    net = lu.CertifiedClassifier(features, 10, l2=L2)
    fit = trainer(lu.UnlearningCallback(epsilon=MORE * alone, delta=DELTA), -1)
    cpu = time.process_time()
    fit.fit(net, DataLoader(train, BATCH, shuffle=True), DataLoader(test, BATCH))
    spent = time.process_time() - cpu
    before, cpu = accuracy(net, test), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        result = fit.unlearn([7], save_to=Path(folder) / "1.ckpt")
    c = result.certificate
    assert c.grade.value == "certified", result
    return {
        "fit": spent, "deleted": time.process_time() - cpu, "before": before,
        "accuracy": accuracy(net, test), "stated": c.epsilon, "mu": c.release_mus[-1],
    }  # fmt: skip


def ordinary(kind: str, train: Any, test: Any) -> dict[str, Any]:
    """The same network, batches and epochs; nothing clipped, no noise."""
    net, fit = CNN(kind, lr=0.1), trainer(lu.UnlearningCallback(), EPOCHS)
    begin, cpu = time.perf_counter(), time.process_time()
    fit.fit(net, DataLoader(train, BATCH, shuffle=True))
    return {
        "seconds": time.perf_counter() - begin,
        "cpu": time.process_time() - cpu,
        "accuracy": accuracy(net, test),
    }


def runs(train: Any, test: Any) -> dict[str, Callable[[], dict[str, Any]]]:
    """What is measured, by name."""
    found = dict[str, Callable[[], dict[str, Any]]]()
    for kind, noises in NOISES.items():
        for noise in noises:
            for run in range(1, RUNS[kind] + 1):
                name = f"{kind}, noise {noise:g}, run {run}"
                found[name] = functools.partial(private, kind, noise, train, test)
        found[f"{kind}, ordinary"] = functools.partial(ordinary, kind, train, test)
    return found


def main() -> None:
    torch.set_num_threads(1)
    wanted = sys.argv[1:]

    def kept() -> dict[str, Any]:
        return json.loads(KEPT.read_text()) if KEPT.exists() else {}

    for name, run in runs(mnist("train"), mnist("t10k")).items():
        if name not in kept() and name.startswith(tuple(wanted or [""])):
            found = run()
            print(name, found, file=sys.stderr, flush=True)
            KEPT.write_text(json.dumps({**kept(), name: found}, indent=1) + "\n")
    show(kept())


def draw(kept: dict[str, Any]) -> str:
    """Accuracy against epsilon, for each number of forgotten samples."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(8, 4.5))
    colours = dict(zip(GROUPS, ("#4477aa", "#ee6677", "#228833"), strict=True))
    for kind, noises in NOISES.items():
        made = [kept[n] for z in noises if (n := f"{kind}, noise {z:g}") in kept]
        if not made:
            continue
        for k in GROUPS:
            axis.plot(
                [run["epsilon"][str(k)] for run in made],
                [100 * run["accuracy"] for run in made],
                "*-" if kind == "large" else "o-", color=colours[k],
                markersize=11 if kind == "large" else 5,
                label=f"{kind} network, {k} forgotten",
            )  # fmt: skip
        if f"{kind}, ordinary" in kept:
            level = 100 * kept[f"{kind}, ordinary"]["accuracy"]
            axis.axhline(
                level, color="#888888", linestyle="--" if kind == "large" else ":"
            )
            axis.annotate(f"{kind}, ordinary", (1, level), va="bottom", fontsize=8)
    axis.axhline(HEAD, color="#aa3377", linestyle="-.")
    axis.annotate("certified head, epsilon 1", (1, HEAD), va="bottom", fontsize=8)
    axis.set_ylim(top=99.9)
    axis.set(xscale="log", xlabel="epsilon at delta = 1e-5", ylabel="test accuracy, %")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8, loc="lower left")
    figure.tight_layout()
    figure.savefig(RESULTS / "private-training.png", dpi=110)
    return "![Accuracy against epsilon](private-training.png)"


def show(kept: dict[str, Any]) -> None:
    """Tables and picture of what is kept."""
    rows, costs = [], []
    for name, run in kept.items():
        told = run.get("epsilon", {})
        deleted = run.get("deleted")
        rows.append([
            name, f"{100 * run['accuracy']:.2f}",
            *(f"{told[str(k)]:g}" if told else "-" for k in GROUPS),
            "-" if deleted is None else f"{max(deleted):.2f}",
        ])  # fmt: skip
        costs.append([
            name, f"{run['seconds']:.0f}", f"{run['cpu']:.0f}",
            *(
                f"{run[part]:.1f}" if part in run else "-"
                for part in ("clipped_sum", "add_noise")
            ),
        ])  # fmt: skip
    publish(
        "private-training",
        "A network trained privately, on MNIST",
        "Command: `python benchmarks/private_training.py`.",
        f"60,000 images; batches of {BATCH:,} expected, {EPOCHS} epochs; SGD. Large: "
        "26,010 weights (Papernot and others 2021), clip 0.1, learning rate 4. Small: "
        "4,258 weights, clip 0.3, learning rate 2. Settings were chosen by a few "
        "trainings on 50,000 of the training images, tried on the other 10,000; "
        "epsilon does not count those trainings. Ordinary: same network, batches and "
        f"epochs, learning rate 0.1. One run each. Epsilon at delta = {DELTA:g} of 1, "
        "3 and 10 samples forgotten together. Deletion: the slower of two requests (of "
        "1, then of 2 more samples), clean checkpoint, certificate and ledger written; "
        "accuracy is the same before and after them.",
        table(
            ["", "test accuracy, %", *(f"epsilon, {k} forgotten" for k in GROUPS),
             "CPU seconds of a deletion"],
            rows,
        ),
        f"A certified head on 2,048 random patch features has {HEAD:.2f}% at epsilon = "
        "1, with 1,000 samples forgotten in one release that takes 26 seconds "
        "([random-features-mnist](random-features-mnist.md)): on these images it is "
        "the better way. It does not cover models that were served before.",
        draw(kept),
        "What it costs, on one thread of two cores that many other processes shared "
        "(about 20 at a time, so CPU seconds say more than seconds):",
        table(
            ["", "seconds of fit", "CPU seconds", "for gradients of single samples",
             "for noise"],
            costs,
        ),
        "The large network's private fit was made with epsilon = 1,000 in the "
        "callback: the search for how many samples that allows is in its CPU seconds. "
        "The program now has 20.",
    )  # fmt: skip


if __name__ == "__main__":
    main()
