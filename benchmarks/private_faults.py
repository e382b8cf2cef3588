"""A small private training that remembers what it can, and faults planted in it.

Every canary has a coordinate of its own, which nothing else moves: what the weights of
that coordinate became is what the training tells of it, and the noise. Faults are put
in from outside, by replacing functions of the package for a while.
"""

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_unlearn import PrivateTraining, TrainerExperiment, UnlearningCallback
from lightning_unlearn.plugin.data.drawn import Piece, PoissonBatches
from lightning_unlearn.plugin.lightning import LightningModule, Trainer
from lightning_unlearn.plugin.private import per_sample, private_run

CANARIES, OTHERS, PLAIN = 300, 100, 8
GUESSES = 100
DELTA, EPOCHS, BATCH, NOISE = 1e-5, 10, 25, 4.0
#: Where it shows that a sample was not drawn at all: two steps of half of the samples
#: each, with little noise.
QUIET = {"noise": 0.3, "epochs": 1, "batch": 140, "epsilon": 50.0}
LOUD = 30.0  # of a canary: unclipped, its gradient is several clips long


def samples() -> TensorDataset:
    """Canaries first, then ordinary samples."""
    made = torch.Generator().manual_seed(0)
    x = torch.zeros(CANARIES + OTHERS, CANARIES + PLAIN)
    x[range(CANARIES), range(CANARIES)] = LOUD
    x[CANARIES:, CANARIES:] = torch.randn(OTHERS, PLAIN, generator=made)
    y = torch.randint(2, (len(x),), generator=made)
    return TensorDataset(x, y)


class Net(LightningModule):
    """Two layers; what canaries meet of the first one is zero at the start."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(CANARIES + PLAIN, 4, bias=False), nn.Tanh(), nn.Linear(4, 2)
        )
        made = torch.Generator().manual_seed(0)
        with torch.no_grad():
            self.net[0].weight[:, :CANARIES] = 0
            for w in (self.net[0].weight[:, CANARIES:], self.net[2].weight):
                w.copy_(torch.randn(w.shape, generator=made) / math.sqrt(w.shape[1]))
            self.net[2].bias.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.002)


def train(
    dataset: Any,
    noise: float = NOISE,
    epochs: int = EPOCHS,
    batch: int = BATCH,
    epsilon: float = 2.0,
) -> Trainer:
    """One private training of these samples."""
    private = PrivateTraining(noise_multiplier=noise, max_grad_norm=1.0)
    trainer = Trainer(
        max_epochs=epochs,
        callbacks=[UnlearningCallback(epsilon=epsilon, delta=DELTA, private=private)],
        accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Net(), DataLoader(dataset, batch, shuffle=True))
    return trainer


def towards(model: LightningModule, canaries: Any) -> torch.Tensor:
    """How far the weights of each canary's own coordinate went its way."""
    first, last = model.net[0].weight, model.net[2].weight
    _, y = canaries.dataset.tensors
    along = first[:, :CANARIES].T @ (last[1] - last[0])
    return along * (2 * y[:CANARIES] - 1)


def experiment(**settings: Any) -> TrainerExperiment:
    """To be audited."""
    make = functools.partial(train, **settings)
    return TrainerExperiment(make, samples(), range(CANARIES), score=towards)


# -- faults ---------------------------------------------------------------------

_add, _noise = per_sample._add, private_run.add_noise


def _unclipped(total: Any, found: Any, clip: float) -> None:
    _add(total, found, math.inf)


def _first_layer_unclipped(total: Any, found: Any, clip: float) -> None:
    first = next(iter(found))
    _add({first: total[first]}, {first: found[first]}, math.inf)
    rest = {name: g for name, g in found.items() if name != first}
    _add({name: total[name] for name in rest}, rest, clip)


def _tenth(vector: Any, std: float) -> Any:
    return _noise(vector, std / 10)


def _shuffled(self: PoissonBatches) -> Iterator[list[int]]:
    """Each sample once an epoch, in batches of the size that was stated."""
    self.ahead.clear()
    order = torch.randperm(len(self.positions)).tolist()
    for part in range(self.batches):
        drawn = [self.positions[i] for i in order[part :: self.batches]]
        self.ahead.append(Piece([[position] for position in drawn]))
        self.refresh()
        yield drawn


FAULTS: dict[str, Callable[[], Any]] = {
    "noise a tenth": lambda: mock.patch.object(private_run, "add_noise", _tenth),
    "no clipping": lambda: mock.patch.object(per_sample, "_add", _unclipped),
    "one layer unclipped": lambda: mock.patch.object(
        per_sample, "_add", _first_layer_unclipped
    ),
    "shuffled batches": lambda: mock.patch.object(
        PoissonBatches, "__iter__", _shuffled
    ),
}


@contextmanager
def planted(fault: str | None) -> Iterator[None]:
    """A block in which private trainings have a fault, or none."""
    if fault is None:
        yield
        return
    with FAULTS[fault]():
        yield
