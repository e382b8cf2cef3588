"""Digits 0 to 4 are public, 5 to 9 private: a backbone of those, data of these."""

from functools import cache

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_unlearn import CertifiedClassifier, PublicBackbone, UnlearningCallback
from tests.helpers.nets import digits, trainer


def split():
    """(public images and classes, private images and classes 0 to 4)."""
    x, y = digits().tensors
    x = x.reshape(-1, 1, 8, 8)
    return (x[y < 5], y[y < 5]), (x[y >= 5], y[y >= 5] - 5)


def network():
    """Three layers of convolutions, the classes' own layer left out."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 16, 3, padding=1, stride=2), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1, stride=2), nn.BatchNorm2d(32), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip


@cache
def _trained():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the same to the last bit in every process
    torch.manual_seed(0)
    (x, y), _ = split()
    net, last = network(), nn.Linear(32, 5)
    optimizer = torch.optim.Adam([*net.parameters(), *last.parameters()], 1e-2)
    for _ in range(8):
        for part in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(last(net(x[part])), y[part]).backward()
            optimizer.step()
    torch.set_num_threads(threads)
    return net.state_dict()


def backbone(**options):
    net = network()
    net.load_state_dict(_trained())
    (x, _), _ = split()
    return PublicBackbone(net, **{"public_data": x, **options})


def private(n=600):
    _, (x, y) = split()
    return TensorDataset(x[:n], y[:n])


def held_out(n=600):
    _, (x, y) = split()
    return x[n:], y[n:]


def loader(dataset, batch_size=64):
    return DataLoader(dataset, batch_size, shuffle=True)


def solved(net=None, dataset=None, trainer_options=None, **options):
    """(net, trainer, callback, dataset) after a fit."""
    net = CertifiedClassifier(backbone(), 5) if net is None else net
    dataset = private() if dataset is None else dataset
    callback = UnlearningCallback(**options)
    own = trainer(callback, **{"max_epochs": -1, **(trainer_options or {})})
    own.fit(net, loader(dataset), DataLoader(dataset, 256))
    return net, own, callback, dataset


def accuracy(net, data):
    x, y = data
    with torch.no_grad():
        return (net(x).argmax(1) == y).float().mean().item()


class Extra(CertifiedClassifier):
    """With a layer of its own between backbone and head."""

    def __init__(self, made):
        super().__init__(made, 5)
        self.extra = nn.Linear(made.n_features, made.n_features)

    def unlearning_loss(self, batch, batch_idx):
        x, y = batch
        return self.head.loss(self.extra(self.backbone(x)), y)
