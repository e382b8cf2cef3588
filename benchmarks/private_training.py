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
import statistics
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
RUNS = {"large": 2, "small": 1}
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
        features = lu.PrivatelyTrained(
            CNN(kind, 0.0), Path(folder) / "private.ckpt", **read_at(kind)
        )
    head = head_on(features, MORE * alone[1], train, test)
    head["epsilon"] = {k: privacy(made, k, DELTA, head["mu"]).epsilon for k in GROUPS}
    return {
        **spent, "accuracy": before, "deleted": deleted, "steps": steps.steps,
        "epsilon": alone, "head": head,
    }  # fmt: skip


def head_on(
    features: lu.PublicBackbone, epsilon: float, train: Any, test: Any
) -> dict[str, Any]:
    """A certified head on a network, and a request to it."""
    net = lu.CertifiedClassifier(features, 10, l2=L2)
    fit = trainer(lu.UnlearningCallback(epsilon=epsilon, delta=DELTA), -1)
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


def read_at(kind: str) -> dict[str, Any]:
    """The options of a backbone of such a network."""
    shape = torch.zeros(1, 784)
    return {"taps": TAPS[kind], "standardize": "none", "public_data": shape}


def untrained(kind: str, train: Any, test: Any) -> dict[str, Any]:
    """What a head alone is worth: its network never saw an image."""
    features = lu.PublicBackbone(CNN(kind, 0.0), **read_at(kind))
    return {"head": {**head_on(features, 1.0, train, test), "mu": 0.0}}


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
        for run in range(1, RUNS[kind] + 1):
            name = f"{kind}, untrained, run {run}"
            found[name] = functools.partial(untrained, kind, train, test)
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


def grouped(kept: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The runs of one setting together, by its name; and those of heads on them."""
    found = dict[str, list[dict[str, Any]]]()
    for name, run in kept.items():
        setting = name.partition(", run")[0]
        if "accuracy" in run:
            found.setdefault(setting, []).append(run)
        if "head" in run:
            found.setdefault(f"{setting}, a head on it", []).append(run["head"])
    return found


def spread(values: list[float]) -> str:
    """Mean and standard deviation, or the one value there is."""
    mean = statistics.mean(values)
    if len(values) == 1:
        return f"{mean:.2f}"
    return f"{mean:.2f} ± {statistics.stdev(values):.2f}"


def draw(groups: dict[str, list[dict[str, Any]]]) -> str:
    """Accuracy against epsilon, for each number of forgotten samples."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(8, 4.5))
    colours = dict(zip(GROUPS, ("#4477aa", "#ee6677", "#228833"), strict=True))
    for name, runs_of in groups.items():
        if "epsilon" not in runs_of[0]:
            continue
        head, kind = name.endswith("head on it"), name.partition(",")[0]
        for k in GROUPS:
            axis.plot(
                [run["epsilon"][str(k)] for run in runs_of],
                [100 * run["accuracy"] for run in runs_of],
                "^" if head else "*" if kind == "large" else "o", color=colours[k],
                label=f"{kind}{', a head on it' if head else ''}, {k} forgotten",
            )  # fmt: skip
    for kind in NOISES:
        if runs_of := groups.get(f"{kind}, ordinary"):
            level = 100 * runs_of[0]["accuracy"]
            axis.axhline(level, color="#888888", linestyle="--")
            axis.annotate(f"{kind}, ordinary", (1, level), va="bottom", fontsize=8)
    axis.axhline(HEAD, color="#aa3377", linestyle="-.")
    axis.annotate("head on random patches", (1, HEAD), va="bottom", fontsize=8)
    axis.set_ylim(top=99.9)
    axis.set(xscale="log", xlabel="epsilon at delta = 1e-5", ylabel="test accuracy, %")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8, loc="center right")
    figure.tight_layout()
    figure.savefig(RESULTS / "private-training.png", dpi=110)
    return "![Accuracy against epsilon](private-training.png)"


def show(kept: dict[str, Any]) -> None:
    """Tables and picture of what is kept."""
    rows, costs, groups = [], [], grouped(kept)
    for name, found in groups.items():
        told = found[0].get("epsilon", {})
        stated = found[0].get("stated")
        epsilons = [f"{told[str(k)]:g}" if told else "-" for k in GROUPS]
        if stated is not None and not told:
            epsilons = [f"{stated:g}"] * len(GROUPS)  # whatever their number
        deleted = [s for run in found for s in _listed(run.get("deleted", []))]
        rows.append([
            name, spread([100 * run["accuracy"] for run in found]), len(found),
            *epsilons,
            f"{max(deleted):.2f}" if deleted else "-",
        ])  # fmt: skip
    for name, run in kept.items():
        if "seconds" not in run:
            continue
        costs.append([
            name, f"{run['seconds']:.0f}", f"{run['cpu']:.0f}",
            *(
                f"{run[part]:.1f}" if part in run else "-"
                for part in ("clipped_sum", "add_noise")
            ),
            f"{run['head']['fit']:.0f}" if "head" in run else "-",
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
        "epochs, learning rate 0.1. Accuracy is the mean ± standard deviation over "
        f"the runs. Epsilon at delta = {DELTA:g} of 1, 3 and 10 samples forgotten "
        "together. Deletion: the slowest request, clean checkpoint and certificate "
        "written; of the network alone accuracy is the same before and after it.",
        table(
            ["", "test accuracy, %", "runs",
             *(f"epsilon, {k} forgotten" for k in GROUPS), "CPU seconds of a deletion"],
            rows,
        ),
        f"A head on it: `PrivatelyTrained`, read at {', '.join(TAPS['large'])} (the "
        "512 numbers that its convolutions give, and the 32 of the layer after them), "
        f"l2 = {L2:g}, not chosen on any data; a callback with {MORE:g} times the "
        "epsilon of one sample, of which a tenth is the head's own. Accuracy is that "
        "after one image was forgotten; epsilon speaks of network and head together. "
        "Untrained: the same head on the network as it was made, which is public: what "
        "the private training adds is the difference.",
        f"A certified head on 2,048 random patch features has {HEAD:.2f}% at epsilon = "
        "1, with 1,000 samples forgotten in one release that takes 26 seconds "
        "([random-features-mnist](random-features-mnist.md)): on these images no "
        "network has to be trained at all.",
        draw(groups),
        "What it costs, on one thread of two cores that other processes shared, so "
        "that CPU seconds say more than seconds:",
        table(
            ["", "seconds of fit", "CPU seconds", "for gradients of single samples",
             "for noise", "CPU seconds of the head's fit"],
            costs,
        ),
    )  # fmt: skip


def _listed(found: float | list[float]) -> list[float]:
    return found if isinstance(found, list) else [found]


if __name__ == "__main__":
    main()
