"""Retrained models are distributed as models that never saw the samples."""

import pytest
import torch
from scipy.stats import ks_2samp
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset, TensorDataset

from lightning_unlearn import UnlearningCallback
from lightning_unlearn.guarantee.claims import Grade
from lightning_unlearn.plugin.retrain import retained, watch
from tests.helpers.lightning import L
from tests.helpers.nets import trainer

RUNS, FORGET = 30, [0, 1, 2]


class Line(L.LightningModule):
    """One neuron: its loss on the canaries says whether it has seen them."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def training_step(self, batch, batch_idx):
        return F.mse_loss(self.layer(batch[0])[:, 0], batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def data():
    generator = torch.Generator().manual_seed(1)
    X = torch.randn(24, 2, generator=generator)
    y = X @ torch.tensor([1.0, -1.0])
    y[FORGET] += 5.0  # nothing else explains them
    return TensorDataset(X, y)


def training(samples):
    own = trainer(UnlearningCallback(retrain=training), 3)
    return own, Line(), DataLoader(samples, 8, shuffle=True)


def loss(net):
    X, y = (t[FORGET] for t in data().tensors)
    with torch.no_grad():
        return float(F.mse_loss(net.layer(X)[:, 0], y))


def retrained(seed):
    torch.manual_seed(seed)
    own, net, loader = training(data())
    own.fit(net, loader)
    assert own.unlearn(FORGET, how="retrain").certificate.grade is Grade.EXACT
    return loss(net)


def never_saw(seed):
    torch.manual_seed(10_000 + seed)
    own, net, loader = training(Subset(data(), range(3, 24)))
    own.fit(net, loader)
    return loss(net)


@pytest.mark.slow
def test_thirty_of_each_and_a_planted_leak_is_found(monkeypatch):
    without = [never_saw(seed) for seed in range(RUNS)]
    assert ks_2samp([retrained(s) for s in range(RUNS)], without).pvalue > 1e-3
    # A forgotten sample that is still drawn is caught by the guard. Without the guard
    # the test finds it.
    real = retained.Retained.__init__

    def leaking(self, dataset, positions, token):
        real(self, dataset, [*FORGET, *positions], token)

    monkeypatch.setattr(retained.Retained, "__init__", leaking)
    monkeypatch.setattr(watch, "given", lambda loader, token: list(range(21)))
    leaked = [retrained(s) for s in range(RUNS)]
    assert ks_2samp(leaked, without).pvalue < 1e-6
