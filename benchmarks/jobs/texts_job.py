"""Texts: Banking77, questions of bank customers, on all-MiniLM-L6-v2."""

import sys
import tempfile
from functools import cache
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, Sampler, Subset
from transformers import AutoModel
from ways import (
    Private,
    Rows,
    Tuned,
    audited_head,
    audited_private,
    certified,
    choose,
    choose_private,
    network_trainer,
    percent,
    private,
    refit,
    retrained,
    told,
)

sys.path.insert(0, str(Path(__file__).parent.parent))
from stream_project import Banking77

from lightning_unlearn import PublicBackbone

CLASSES, PEOPLE = 77, (2711, 1371, 8675)
STRENGTHS = (1e-4, 3e-4, 1e-3)
SETTINGS = [Private(lr, 6, 1000) for lr in (0.2, 1.0)]
FEATURES = "mean and max of the last layer"
_FOLDER = Path(tempfile.gettempdir()) / "lightning_unlearn_benchmark"


class Texts:
    """Training and test questions.

    Args:
        model: Folder of the language model.
        most: Samples of each part at most, evenly spaced; 0 for all.
    """

    def __init__(self, model: str, most: int):
        self.model, self.data = model, Banking77(model, most)
        self.train, test = self.data.read("train"), self.data.part("test")
        step = -(-len(test) // most) if most else 1
        self.test = Subset(test, range(0, len(test), step))
        self.most = most

    def backbone(self) -> PublicBackbone:
        """Mean and largest of the last layer's tokens, the default for texts."""
        return PublicBackbone(AutoModel.from_pretrained(self.model))

    def loader(self, data, **options) -> DataLoader:
        return DataLoader(data, 64, collate_fn=self.data.collate, **options)

    def read(self, net, data):
        """(outputs, intents) of a network on questions in their order."""
        found = []
        with torch.no_grad():
            for batch in self.loader(data):
                y = batch.pop("labels")
                found.append((net(batch), y))
        outputs, y = zip(*found, strict=True)
        return torch.cat(outputs), torch.cat(y)

    def rows(self) -> Rows:
        """Read once, and kept for other runs in a folder of the system's."""
        file = _FOLDER / f"banking77-{self.most}.pt"
        if not file.exists():
            backbone = self.backbone()
            file.parent.mkdir(parents=True, exist_ok=True)
            parts = self.read(backbone, self.train), self.read(backbone, self.test)
            torch.save([t for part in parts for t in part], file)
        return Rows(*torch.load(file, weights_only=True))


def choice(task: Texts):
    """On a fifth of the training questions."""
    return told(**choose({FEATURES: task.rows().split()}, STRENGTHS))


def private_choice(task: Texts):
    """Likewise."""
    return told(**choose_private({FEATURES: task.rows().split()}, SETTINGS))


def head(task: Texts, person: int, l2: float):
    """The first request is on rows that the fit has read, as every later one is."""

    def rate(net):  # test questions were read before
        return percent(net.head, task.rows().x_test, task.rows().y_test)

    loader = task.loader(task.train, shuffle=True)
    return certified(task.backbone(), CLASSES, l2, loader, [person], rate)


class ByLength(Sampler):
    """Questions of like length together; they stand sorted.

    Args:
        n: How many.
        batch: Of how many a batch is.
    """

    def __init__(self, n: int, batch: int):
        self.n, self.batch = n, batch

    def __len__(self):
        return self.n

    def __iter__(self):
        near = (torch.arange(self.n) + 300 * torch.rand(self.n)).argsort()
        batches = near.split(self.batch)
        for k in torch.randperm(len(batches)):
            yield from batches[k].tolist()


class Whole(nn.Module):
    """The language model, the mean of its tokens, a linear layer."""

    def __init__(self, model: str):
        super().__init__()
        self.body = AutoModel.from_pretrained(model)
        self.last = nn.Sequential(nn.Dropout(0.1), nn.Linear(384, CLASSES))

    def forward(self, batch):
        tokens = self.body(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(2)
        return self.last((tokens * mask).sum(1) / mask.sum(1))


def network(task: Texts, epochs: int):
    """(how the whole network is made and trained)."""

    def adam(module, steps):
        groups = [
            {"params": module.net.body.parameters(), "lr": 2e-4},
            {"params": module.net.last.parameters(), "lr": 2e-3},
        ]
        optimizer = torch.optim.AdamW(groups, weight_decay=1e-2)
        return optimizer, torch.optim.lr_scheduler.OneCycleLR(
            optimizer, [2e-4, 2e-3], total_steps=steps
        )

    def inputs(batch):
        batch = dict(batch)
        return batch, batch.pop("labels")

    def make(data):
        own = network_trainer(make, epochs, "bf16-mixed")
        loader = DataLoader(data, 32, sampler=ByLength(len(data), 32),
                            collate_fn=task.data.collate)  # fmt: skip
        return own, Tuned(Whole(task.model), adam, inputs), loader

    return make


def fine_tuned(task: Texts, person: int, epochs: int):
    def rate(net):
        outputs, y = task.read(net.eval(), task.test)
        return 100 * (outputs.argmax(1) == y).float().mean().item()

    return retrained(network(task, epochs), task.train, [person], rate, person)


def cells(known, quick: bool, model: str):
    """(name of a cell, how to measure it); `known` gives what was measured before."""
    people, most = ((3,), 300) if quick else (PEOPLE, 0)
    lazily = cache(lambda: Texts(model, most))

    def chosen():
        return known("texts | choice | 0")

    def settings():
        return Private(*known("texts | private choice | 0")["private"])

    yield (
        f"texts | network | {people[0]}",
        lambda: fine_tuned(lazily(), people[0], 1 if quick else 5),
    )
    yield "texts | choice | 0", lambda: choice(lazily())
    yield "texts | private choice | 0", lambda: private_choice(lazily())
    for p in people:
        yield f"texts | certified | {p}", lambda p=p: head(lazily(), p, chosen()["l2"])
        yield (
            f"texts | private | {p}",
            lambda p=p: private(lazily().rows(), [p], settings()),
        )
        yield (
            f"texts | refit | {p}",
            lambda p=p: refit(lazily().rows(), [p], chosen()["l2"]),
        )
    yield (
        "texts | audit certified | 0",
        lambda: audited_head(lazily().rows(), chosen()["l2"], 20 if quick else 100),
    )
    yield (
        "texts | audit private | 0",
        lambda: audited_private(
            lazily().rows(), settings(),
            known(f"texts | private | {people[0]}")["noise_multiplier"],
            20 if quick else 50,
        ),
    )  # fmt: skip
