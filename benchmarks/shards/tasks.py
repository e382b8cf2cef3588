"""The two tasks: images from a public network, texts from random weights."""

import csv
import sys
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

sys.path.insert(0, str(Path(__file__).parent.parent / "public"))
import world

from lightning_unlearn import PublicBackbone

SAMPLES_A_PERSON = 5
_BUCKETS, _PUBLIC, _WIDTH, _HIDDEN = 2**14, 2**11, 64, 256


@dataclass
class Setting:
    """Of a training, the same for every number of shards; chosen on other data."""

    epochs: int
    batch: int
    lr: float
    strengths: tuple[float, ...]  # l2 of heads; of texts the default, they take longer


IMAGES = Setting(20, 32, 0.02, (1e-3, 3e-3, 1e-2))
TEXTS = Setting(15, 32, 3e-3, (1e-3,))


@dataclass(frozen=True)
class Plain:
    """A head on public features alone.

    Args:
        backbone: Of the features.
        train: What it reads of the private samples.
        x_test: And of the test samples.
        strengths: l2 that are tried.
        views: Rows of each sample, one after the other.
    """

    backbone: PublicBackbone
    train: TensorDataset
    x_test: Tensor
    strengths: tuple[float, ...]
    views: int = 1


@dataclass(frozen=True)
class Task:
    """Training and test samples, and how a network is trained on some of them.

    Args:
        train: All private samples.
        test: For the accuracies.
        train_on: (positions, seed) -> features and last layer in a row.
        public: Inputs for the statistics of features; None where there are none.
        strengths: l2 of the heads on features of shards.
        plain: Heads on public features alone, by name.
    """

    train: TensorDataset
    test: TensorDataset
    train_on: Callable[[Tensor, int], nn.Module]
    public: Tensor | None
    strengths: tuple[float, ...]
    plain: dict[str, Plain]


def keyed(key: bytes, value: int, choices: int) -> int:
    """A choice that follows from a fixed key and a name alone."""
    digest = blake2b(str(value).encode(), key=key, digest_size=8).digest()
    return int.from_bytes(digest, "big") % choices


def persons(n: int) -> Tensor:
    """The person of each sample, some five samples each."""
    return torch.tensor([keyed(b"person", i, n // SAMPLES_A_PERSON) for i in range(n)])


def shards(persons: Tensor, S: int) -> Tensor:
    """The shard of each sample: all of a person's in one."""
    return torch.tensor([keyed(b"shard", p, S) for p in persons.tolist()])


class Stage(nn.Module):
    """The last stage of a ResNet-20: it is fine-tuned, the other two stay public."""

    def __init__(self):
        super().__init__()
        self.layer3 = world.resnet20().layer3.requires_grad_(True)

    def forward(self, x):
        return self.layer3(x).mean((2, 3))


def images(group: int) -> Task:
    """20 classes of CIFAR-100, as the second stage of a ResNet-20 of CIFAR-10 has them.

    Trained on ten views of each image (mirrored, shifted), which are read once.
    """
    (train, test), model = world.private(group), world.resnet20()
    read = nn.Sequential(model.conv1, model.bn1, nn.ReLU(), model.layer1, model.layer2)

    @torch.no_grad()
    def stage_two(x):
        return torch.cat([read(part) for part in x.split(250)])

    views, viewed = len(world.VIEWS), world.viewed(train)
    seen = stage_two(viewed.tensors[0])
    x, y = seen[::views].clone(), train.tensors[1]

    def train_on(positions, seed):
        torch.manual_seed(seed)
        net = nn.Sequential(Stage(), nn.Linear(64, world.N_CLASSES))
        groups = [{"params": net[0].parameters()},
                  {"params": net[1].parameters(), "lr": 5 * IMAGES.lr}]  # fmt: skip
        optimizer = torch.optim.SGD(
            groups, IMAGES.lr, 0.9, weight_decay=5e-4, nesterov=True
        )

        def batch(part):
            drawn = views * positions[part] + torch.randint(views, (len(part),))
            return seen[drawn], y[positions[part]]

        return _trained(net, len(positions), batch, optimizer, IMAGES)

    public, x_test = world.public_images(), test.tensors[0]
    last = PublicBackbone(model, ["layer3.2"], (1, 1), public_data=public)
    several = PublicBackbone(model, public_data=public)
    blocks = ["layer2.1", "layer2.2", "layer3.0", "layer3.1", "layer3.2"]
    five = PublicBackbone(model, blocks, (3, 3), public_data=public)
    plain = {
        "last layer": Plain(last, train, x_test, IMAGES.strengths),
        "several depths": Plain(several, train, x_test, IMAGES.strengths),
        # One l2, that of public-backbone.md: it takes longer.
        "five blocks, ten views": Plain(five, viewed, x_test, (3e-3,), views),
    }
    return Task(
        TensorDataset(x, y),
        TensorDataset(stage_two(x_test), test.tensors[1]),
        train_on, stage_two(public), IMAGES.strengths, plain,
    )  # fmt: skip


class Texts(nn.Module):
    """Hashed words and pieces of words, a mean of their vectors, and a hidden layer."""

    def __init__(self):
        super().__init__()
        self.bag = nn.EmbeddingBag(_BUCKETS + 1, _WIDTH, padding_idx=_BUCKETS)
        self.hidden = nn.Linear(_WIDTH, _HIDDEN)

    def forward(self, ids):
        most = int((ids != _BUCKETS).sum(1).max())
        return F.relu(self.hidden(self.bag(ids[:, :most])))


def texts(seed: int, tuning: bool = False) -> Task:
    """Banking77; a network from random weights.

    Args:
        seed: Unused by the data, which are the same for all.
        tuning: Test on 2,003 of the training questions, which are left out.
    """
    x, y, public = _questions("train")
    x_test, y_test, public_test = _questions("test")
    if tuning:
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
        left, kept = order[:2003], order[2003:]
        x_test, y_test, public_test = x[left], y[left], public[left]
        x, y, public = x[kept], y[kept], public[kept]
    train = TensorDataset(x, y)

    def train_on(positions, seed):
        torch.manual_seed(seed)
        net = nn.Sequential(Texts(), nn.Dropout(0.3), nn.Linear(_HIDDEN, 77))
        optimizer = torch.optim.Adam(net.parameters(), TEXTS.lr, fused=True)

        def batch(part):
            return x[positions[part]], y[positions[part]]

        _trained(net, len(positions), batch, optimizer, TEXTS)
        return nn.Sequential(net[0], net[2])

    rows = PublicBackbone(nn.Sequential(nn.Identity()), ["0"], standardize="none",
                          public_data=public[:1])  # fmt: skip
    words = Plain(rows, TensorDataset(public, y), public_test, TEXTS.strengths)
    return Task(
        train, TensorDataset(x_test, y_test), train_on, None, TEXTS.strengths,
        {"hashed words": words},
    )  # fmt: skip


def _questions(part: str) -> tuple[Tensor, Tensor, Tensor]:
    """(ids of hashed n-grams, intents, counts in fewer buckets)."""
    from scipy.sparse import hstack
    from sklearn.feature_extraction.text import HashingVectorizer

    folder = world.folder("banking77") / "banking77"
    with (folder / f"{part}.csv").open(encoding="utf-8") as file:
        rows = list(csv.reader(file))[1:]
    with (folder / "train.csv").open(encoding="utf-8") as file:
        names = sorted({row[1] for row in list(csv.reader(file))[1:]})
    said = [row[0] for row in rows]

    def hashed(buckets, **options):
        kinds = ({"ngram_range": (1, 2)},
                 {"analyzer": "char_wb", "ngram_range": (3, 5)})  # fmt: skip
        return hstack([
            HashingVectorizer(n_features=buckets // 2, binary=True, norm=None,
                              alternate_sign=False, **kind).transform(said)
            for kind in kinds
        ]).tocsr()  # fmt: skip

    found = hashed(_BUCKETS)
    most = int(np.diff(found.indptr).max())
    ids = torch.full((len(said), most), _BUCKETS)
    for i in range(len(said)):
        mine = found.indices[found.indptr[i] : found.indptr[i + 1]]
        ids[i, : len(mine)] = torch.tensor(mine.astype(np.int64))
    public = torch.tensor(hashed(_PUBLIC).toarray(), dtype=torch.float32)
    return ids, torch.tensor([names.index(row[1]) for row in rows]), public


def _trained(net, n, batch, optimizer, setting):
    """The network after one cycle of the learning rate, in eval mode."""
    most = [group["lr"] for group in optimizer.param_groups]
    steps = setting.epochs * -(-n // setting.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, most, total_steps=steps)
    net.train()
    for _ in range(setting.epochs):
        for part in torch.randperm(n).split(setting.batch):
            x, y = batch(part)
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            optimizer.step()
            schedule.step()
    return net.eval()
