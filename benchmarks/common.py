"""Data, networks, tables and figures shared by the benchmarks."""

import logging
import os
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from datetime import date
from importlib.metadata import version
from pathlib import Path

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
from mnist_mlp import MLP as MLP, mnist as mnist

import lightning_unlearn as lu

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore")
RESULTS = Path(__file__).parent / "results"


def folder(kind: str = "mnist") -> Path:
    """The folder with real data, this kind among it."""
    path = Path(os.environ.get("LIGHTNING_UNLEARN_DATA", "."))
    if not (path / kind).is_dir():
        sys.exit(f"no {kind} in {path}: set LIGHTNING_UNLEARN_DATA (README.md)")
    return path


def cifar10(n: int, part: str = "part1") -> TensorDataset:
    """The first n images of a file, three numbers a pixel in [-1, 1]."""
    file = np.load(folder("cifar10") / "cifar10" / f"{part}.npz")
    delta = file["x"][:n]
    v = np.cumsum(np.cumsum(delta, axis=2, dtype=np.uint8), axis=3, dtype=np.uint8)
    g = v[:, 0]
    images = np.stack([v[:, 1] + g, g, v[:, 2] + g], 1)
    labels = file["y"][:n]
    return TensorDataset(
        torch.tensor(images.astype(np.float32) / 127.5 - 1),
        torch.tensor(labels.astype(np.int64)),
    )


def cifar100_features() -> TensorDataset:
    """64 features of every CIFAR-100 training image from a ResNet-20 of CIFAR-10."""
    data = np.load(folder() / "cifar100" / "resnet20_features.npz")
    return TensorDataset(
        torch.tensor(data["train_h"].astype(np.float32)),
        torch.tensor(data["train_y"].astype(np.int64)),
    )


class CNN(L.LightningModule):
    """A small all-convolutional network for CIFAR-10, without normalisation."""

    def __init__(self, widths=(16, 32, 64)):
        super().__init__()
        a, b, c = widths
        self.net = nn.Sequential(
            nn.Conv2d(3, a, 3, padding=1), nn.ReLU(),
            nn.Conv2d(a, b, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(b, c, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(c, 10, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3, weight_decay=5e-4)


class Head(L.LightningModule):
    """One `ConvexHead` on the data as they are."""

    def __init__(self, d, K):
        super().__init__()
        self.head = lu.ConvexHead(d, K)

    def training_step(self, batch, batch_idx):
        return self.head.loss(*batch).mean()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 1e-3, weight_decay=1e-3)


class _Block(nn.Module):
    def __init__(self, inside, outside, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.down = None
        if stride != 1 or inside != outside:
            self.down = nn.Sequential(
                nn.Conv2d(inside, outside, 1, stride, bias=False),
                nn.BatchNorm2d(outside),
            )

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (x if self.down is None else self.down(x)))


def resnet18(classes=10) -> nn.Module:
    """ResNet-18 (He et al. 2016) with the 3x3 first layer usual for CIFAR."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU(),
    ]  # fmt: skip
    inside = 64
    for outside, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [_Block(inside, outside, stride), _Block(outside, outside, 1)]
        inside = outside
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, classes)
    )


class Tensors:
    """In-memory batches of a TensorDataset."""

    def __init__(self, X: Tensor, y: Tensor, batch_size: int = 2000):
        self.X, self.y = X, y
        self.parts = torch.arange(len(X)).split(batch_size)

    @property
    def n(self):
        return len(self.X)

    @property
    def places(self):
        return torch.arange(len(self.X))

    def __iter__(self):
        for part in self.parts:
            yield len(part), (self.X[part], self.y[part])

    def take(self, places):
        rows = torch.as_tensor(list(places))
        return len(rows), (self.X[rows], self.y[rows])


def trainer(callback, epochs: int) -> L.Trainer:
    """A Trainer that prints and writes nothing."""
    return L.Trainer(
        max_epochs=epochs, callbacks=[callback], accelerator="cpu", logger=False,
        enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip


def fitted(net, dataset, epochs: int, **options):
    """(net, trainer, seconds) after training with Lightning."""
    fit_trainer = trainer(lu.UnlearningCallback(**options), epochs)
    begin = time.perf_counter()
    fit_trainer.fit(net, DataLoader(dataset, 128, shuffle=True))
    return net, fit_trainer, time.perf_counter() - begin


def timed(action: Callable[[], object]) -> tuple[float, object]:
    """(seconds, result)."""
    begin = time.perf_counter()
    result = action()
    return time.perf_counter() - begin, result


def accuracy(net: nn.Module, dataset: TensorDataset) -> float:
    """Share of samples that a classifier gets right."""
    net.eval()
    with torch.no_grad():
        found = [(net(x).argmax(1) == y).float() for x, y in DataLoader(dataset, 1000)]
    return torch.cat(found).mean().item()


def machine() -> str:
    """Date, versions and machine, for the head of a table."""
    return (
        f"{date.today()}, lightning_unlearn {version('lightning_unlearn')}, torch "
        f"{torch.__version__}, lightning {L.__version__}, {platform.machine()}, "
        f"{os.cpu_count()} cores, {torch.get_num_threads()} thread"
    )


def spread(values: Iterable[float], digits: int = 2) -> str:
    """Median and range."""
    values = sorted(values)
    middle = statistics.median(values)
    return f"{middle:.{digits}f} ({values[0]:.{digits}f} to {values[-1]:.{digits}f})"


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A Markdown table."""
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def bars(name: str, panels: dict[str, dict[str, list[float]]], unit: str) -> str:
    """Draw medians and ranges, one panel a case, into ``results/name.png``.

    Args:
        name: Of the file.
        panels: Title -> way -> measured values, all > 0.
        unit: Of the values, for the axis.

    Returns:
        Markdown that shows the picture.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = sum(map(len, panels.values()))
    figure, axes = plt.subplots(
        len(panels), 1, figsize=(8, 1 + 0.32 * rows + 0.5 * len(panels)),
        height_ratios=[len(ways) for ways in panels.values()], squeeze=False,
    )  # fmt: skip
    for axis, (title, ways) in zip(axes[:, 0], panels.items(), strict=True):
        middle = [statistics.median(values) for values in ways.values()]
        low = [m - min(v) for m, v in zip(middle, ways.values(), strict=True)]
        high = [max(v) - m for m, v in zip(middle, ways.values(), strict=True)]
        axis.barh(list(ways), middle, xerr=[low, high], color="#4477aa", height=0.7)
        axis.bar_label(axis.containers[-1], [f" {m:.3g}" for m in middle])
        axis.invert_yaxis()
        axis.set_xlabel(unit)
        axis.set_title(title, fontsize=10)
        axis.margins(x=0.15)
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    RESULTS.mkdir(exist_ok=True)
    figure.savefig(RESULTS / f"{name}.png", dpi=110)
    plt.close(figure)
    return f"![{unit} of every way]({name}.png)"


def publish(name: str, title: str, *parts: str) -> None:
    """Print a result, and write it to ``results/name.md``."""
    text = "\n\n".join([f"# {title}", machine(), *parts]) + "\n"
    print(text, flush=True)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text(text)
