"""Small problems every floor is tested on."""

import torch
from torch import nn
from torch.nn import functional as F

from lightning_unlearn.step.network.empirical_objective import EmpiricalObjective
from lightning_unlearn.step.network.products import PRODUCTS
from lightning_unlearn.weights.scope import Scope


class ListBatches:
    """In-memory batches of (X, y)."""

    def __init__(self, X, y, batch_size=7):
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


def classification(n=37, d=5, K=3, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    X = torch.randn(n, d, generator=generator, dtype=dtype)
    y = torch.randint(K, (n,), generator=generator)
    return X, y


def mlp(d=5, hidden=4, K=3, activation=nn.Tanh, dtype=torch.float64):
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(d, hidden), activation(), nn.Linear(hidden, K)).to(
        dtype
    )


def objective_of(net, X, y, l2=0.01, curvature="hessian", batch_size=7, mean=False):
    """EmpiricalObjective of cross-entropy; per-sample or batch-mean losses."""
    reduction = "mean" if mean else "none"

    def loss(batch, index):
        return F.cross_entropy(net(batch[0]), batch[1], reduction=reduction)

    return EmpiricalObjective(
        loss,
        Scope(net, net.parameters()),
        ListBatches(X, y, batch_size),
        l2,
        PRODUCTS[curvature],
    )


def value_of_weights(net, X, y, l2=0.01):
    """F as a function of one flat vector, for the dense oracle."""
    names = [name for name, _ in net.named_parameters()]
    shapes = [p.shape for p in net.parameters()]

    def value(w):
        parts = w.split([s.numel() for s in shapes])
        weights = {n: p.view(s) for n, p, s in zip(names, parts, shapes, strict=True)}
        out = torch.func.functional_call(net, weights, (X,))
        return F.cross_entropy(out, y) + l2 / 2 * w @ w

    return value
