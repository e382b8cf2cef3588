"""The paper's MNIST experiment in short: an ordinary network, 1,000 forgotten samples.

    LIGHTNING_UNLEARN_DATA=folder python examples/mnist_mlp.py [epochs]

needs the four MNIST files in ``folder/mnist``. It shows two requests on one trained
3-layer MLP: the bare Newton step (no claim), and the same step with the noise that
epsilon = 1 asks for (vacuous: true and useless, and the certificate says so).
"""

import gzip
import logging
import os
import sys
import time
import warnings
from pathlib import Path

import lightning as L
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset, TensorDataset

from lightning_unlearn import UnlearningCallback

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module="lightning")


def mnist(kind):
    folder = Path(os.environ.get("LIGHTNING_UNLEARN_DATA", ".")) / "mnist"
    if not folder.is_dir():
        sys.exit(f"no MNIST in {folder}: set LIGHTNING_UNLEARN_DATA to its parent")
    with gzip.open(folder / f"{kind}-images-idx3-ubyte.gz") as file:
        X = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 784)
    with gzip.open(folder / f"{kind}-labels-idx1-ubyte.gz") as file:
        y = np.frombuffer(file.read(), np.uint8, offset=8)
    pixels = torch.tensor(X.astype(np.float32) / 255)
    return TensorDataset(pixels, torch.tensor(y.astype(np.int64)))


class MLP(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(784, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(),
            nn.Linear(32, 10),
        )  # fmt: skip

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3, weight_decay=5e-4)


def make_trainer(callback, epochs):
    return L.Trainer(
        max_epochs=epochs,
        callbacks=[callback],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def accuracies(model, parts):
    model.eval()
    with torch.no_grad():
        return [(model(x).argmax(1) == y).float().mean().item() for x, y in parts]


def main(epochs=15):
    L.seed_everything(0, verbose=False)
    train_set, test_set = mnist("train"), mnist("t10k")
    forget = torch.randperm(len(train_set))[:1000].sort().values
    retain = np.setdiff1d(np.arange(len(train_set)), forget.numpy())
    X, y = train_set.tensors
    parts = [(X[forget], y[forget]), (X[retain], y[retain]), test_set.tensors]

    bare = UnlearningCallback(noise_std=0.0, max_norm=20.0, batch_size=2000)
    start = time.perf_counter()
    model, trainer = MLP(), make_trainer(bare, epochs)
    trainer.fit(model, DataLoader(train_set, 128, shuffle=True))
    trained_in = time.perf_counter() - start
    rows = [("before", accuracies(model, parts))]
    trainer.save_checkpoint("mnist_mlp.ckpt")

    step = trainer.unlearn(forget)
    rows.append(("Newton step, no noise", accuracies(model, parts)))

    noisy = UnlearningCallback(
        epsilon=1.0, max_norm=20.0, accept_noise=True, batch_size=2000
    )
    released = MLP()
    result = make_trainer(noisy, epochs).unlearn(
        forget,
        model=released,
        train_dataloaders=DataLoader(train_set, 128),
        ckpt_path="mnist_mlp.ckpt",
    )
    rows.append(("step and noise", accuracies(released, parts)))
    Path("mnist_mlp.ckpt").unlink()

    start = time.perf_counter()
    retrained = MLP()
    make_trainer(UnlearningCallback(max_norm=20.0, accept_noise=True), epochs).fit(
        retrained, DataLoader(Subset(train_set, retain.tolist()), 128, shuffle=True)
    )
    retrained_in = time.perf_counter() - start
    rows.append(("retrained without", accuracies(retrained, parts)))

    print(result.certificate)
    print(f"\n{'accuracy on':<24}{'forget':>9}{'retain':>9}{'test':>9}")
    for name, row in rows:
        print(f"{name:<24}" + "".join(f"{a:>9.2%}" for a in row))
    print(
        f"\ntrained in {trained_in:.0f} s; Newton step in {step.seconds:.1f} s "
        f"({step.solution.matvecs:.0f} passes); retrained in {retrained_in:.0f} s: "
        f"{retrained_in / step.seconds:.1f} times the step"
    )
    return result, rows


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
