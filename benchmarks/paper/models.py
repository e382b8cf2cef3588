"""Networks and data, made so that a step costs the network and not its loader."""

import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).parent.parent))
from common import MLP, cifar10, mnist
from gpu import Net, ResNet18 as GroupResNet18
from settings import Setting


class Fast(TensorDataset):
    """A TensorDataset that gives a whole batch at once."""

    def __getitems__(self, rows: list[int]) -> list[Tensor]:
        chosen = torch.tensor(rows, device=self.tensors[0].device)
        return [t[chosen] for t in self.tensors]


def as_it_is(batch: list[Tensor]) -> list[Tensor]:
    """Collate function of a batch that is one already."""
    return batch


def loader(dataset: TensorDataset, batch_size: int = 128, shuffle=False) -> DataLoader:
    """Batches of a dataset, read at once."""
    fast = Fast(*dataset.tensors)
    return DataLoader(fast, batch_size, shuffle=shuffle, collate_fn=as_it_is)


def adam(parameters) -> torch.optim.Optimizer:
    """As in the paper."""
    return torch.optim.Adam(parameters, lr=1e-3, weight_decay=5e-4)


class AllCNN(Net):
    """All-CNN-C (Springenberg et al. 2015, arXiv 1412.6806, table 1).

    Without dropout, and with GroupNorm after each convolution but the last: the
    original has no normalisation and needs 350 epochs.
    """

    def __init__(self, width: int = 96) -> None:
        super().__init__()
        a, b = width, 2 * width
        # (channels, kernel, stride)
        plan = [
            (a, 3, 1), (a, 3, 1), (a, 3, 2), (b, 3, 1), (b, 3, 1), (b, 3, 2),
            (b, 3, 1), (b, 1, 1),
        ]  # fmt: skip
        layers: list[nn.Module] = []
        inside = 3
        for outside, kernel, stride in plan:
            layers += [
                nn.Conv2d(inside, outside, kernel, stride, kernel // 2, bias=False),
                nn.GroupNorm(8, outside),
                nn.ReLU(),
            ]
            inside = outside
        self.net = nn.Sequential(*layers, nn.Conv2d(inside, 10, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).mean((2, 3))

    def configure_optimizers(self):
        return adam(self.parameters())


class ResNet18(GroupResNet18):
    """ResNet-18 with GroupNorm: BatchNorm's statistics remember forgotten samples."""

    def configure_optimizers(self):
        return adam(self.parameters())


def make(setting: Setting) -> nn.Module:
    """A new network, initialised from torch's generator."""
    if setting.model == "mlp":
        return MLP()
    return {"allcnn": AllCNN, "resnet18": ResNet18}[setting.model](setting.width)


def load(setting: Setting, device: str) -> tuple[TensorDataset, TensorDataset]:
    """(training, test) images on the device: a batch is one index away."""
    n, m = setting.n_train, setting.n_test
    if setting.data == "mnist":
        both = mnist("train"), mnist("t10k")
    else:
        both = cifar10(n), cifar10(m, "test")
    train, test = (
        TensorDataset(*(t[:k].to(device) for t in dataset.tensors))
        for dataset, k in zip(both, (n, m), strict=True)
    )
    if len(train) < n or len(test) < m:
        sys.exit(f"only {len(train)} training and {len(test)} test images are there")
    return train, test


def loss(model: nn.Module, batch) -> Tensor:
    """Mean cross-entropy of a batch."""
    return F.cross_entropy(model(batch[0]), batch[1])
