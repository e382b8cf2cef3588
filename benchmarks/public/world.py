"""Private classes of CIFAR-100 in groups of 20, and public backbones of CIFAR-10."""

import sys
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent.parent.parent / "examples"))
from common import cifar10, folder
from finetune_head import MEAN, STD, public_backbone
from public_backbone import images

ROOT = Path(__file__).parent.parent
#: Which settings were chosen on: not measured.
TUNING = 0
GROUPS = (1, 2, 3, 4)
N_CLASSES, N_FORGET, DELTA = 20, 500, 1e-5


@cache
def _file():
    return dict(np.load(folder("cifar100") / "cifar100" / "subset_10k_2k.npz"))


def classes(group: int) -> np.ndarray:
    """The 20 classes of a group, 0 to 4."""
    order = np.random.default_rng(0).permutation(100)
    return order[N_CLASSES * group : N_CLASSES * (group + 1)]


def private(group: int) -> tuple[TensorDataset, TensorDataset]:
    """2,000 training and 400 test images of a group."""
    place = {k: i for i, k in enumerate(classes(group))}
    parts = []
    for kind in ("train", "test"):
        labels = _file()[f"{kind}_y"]
        mine = np.isin(labels, list(place))
        y = torch.tensor([place[k] for k in labels[mine]])
        parts.append(TensorDataset(images(_file()[f"{kind}_x"][mine]), y))
    return parts[0], parts[1]


#: (mirrored, pixels to the left, pixels up): fixed, so the sum over an image's views is
#: one sample's loss, and forgetting all of them forgets the image.
VIEWS = [
    (mirrored, *shift)
    for mirrored in (False, True)
    for shift in ((0, 0), (2, 2), (-2, -2), (2, -2), (-2, 2))
]


def viewed(dataset: TensorDataset) -> TensorDataset:
    """Each image as its ten views, one after the other."""
    x, y = dataset.tensors
    around = F.pad(x, (2, 2, 2, 2), mode="replicate")
    found = []
    for mirrored, left, up in VIEWS:
        view = around[:, :, 2 + up : 34 + up, 2 + left : 34 + left]
        found.append(view.flip(3) if mirrored else view)
    return TensorDataset(
        torch.stack(found, dim=1).flatten(0, 1), y.repeat_interleave(len(VIEWS))
    )


@cache
def public_images() -> torch.Tensor:
    """2,000 test images of CIFAR-10.

    Not the first: number 1492 is one of CIFAR-100's training images too, and a request
    refuses it.
    """
    return images(np.load(folder("cifar10") / "cifar10" / "test.npz")["x"][2000:4000])


def resnet20() -> nn.Module:
    """The published network, without its last layer."""
    return public_backbone(folder() / "weights" / "resnet20-12fca82f.th")


class _Block(nn.Module):
    def __init__(self, inside, outside):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inside, outside, 3, padding=1, bias=False),
            nn.GroupNorm(8, outside), nn.ReLU(), nn.MaxPool2d(2),
        )  # fmt: skip

    def forward(self, x):
        return self.body(x)


class PlainCNN(nn.Module):
    """Four blocks without shortcuts, with GroupNorm: as unlike a ResNet as may be."""

    def __init__(self):
        super().__init__()
        widths = (32, 64, 128, 128)
        self.blocks = nn.Sequential(
            *(_Block(a, b) for a, b in zip((3, *widths), widths, strict=False))
        )

    def forward(self, x):
        return self.blocks(x).mean((2, 3))


_CNN = Path(tempfile.gettempdir()) / "lightning_unlearn_benchmark" / "cnn.pt"


def plain_cnn(epochs: int = 20) -> nn.Module:
    """Trained here on 25,000 images of CIFAR-10 (a GPU helps); its weights are kept."""
    net = PlainCNN()
    if _CNN.exists():
        net.load_state_dict(torch.load(_CNN, weights_only=True))
        return net
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    net, last = PlainCNN().to(device), nn.Linear(128, 10).to(device)
    x, y = cifar10(25_000).tensors
    x, y = (((x + 1) / 2 - MEAN) / STD).to(device), y.to(device)
    steps = epochs * (len(x) // 128 + 1)
    weights = [*net.parameters(), *last.parameters()]
    optimizer = torch.optim.SGD(weights, 0.1, 0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps)
    for _ in range(epochs):
        for part in torch.randperm(len(x)).split(128):
            batch = x[part].flip(3) if torch.rand(()) < 0.5 else x[part]
            optimizer.zero_grad()
            F.cross_entropy(last(net(batch)), y[part]).backward()
            optimizer.step()
            schedule.step()
    _CNN.parent.mkdir(parents=True, exist_ok=True)
    net = net.cpu()
    torch.save(net.state_dict(), _CNN)
    return net


def accuracy(logits: torch.Tensor, y: torch.Tensor) -> float:
    """In percent."""
    return 100 * (logits.argmax(1) == y).float().mean().item()
