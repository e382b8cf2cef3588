"""The LightningCLI project whose requests `stream.py` measures, each a fresh process.

    python benchmarks/stream_project.py CASE unlearn --config config.yaml \
        --ckpt_path 1.ckpt --forget '[17]' --save_to 2.ckpt

CASE is texts, unsorted, images, features or pixels. It is what an operator has: one
module, one DataModule, ``LightningCLI``. It imports what the request needs and nothing
else. With ``STREAM_READ=file`` it writes there how many samples went through the
backbone.
"""

import csv
import gzip
import os
import sys
from array import array
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from lightning_unlearn import CertifiedClassifier, PublicBackbone
from lightning_unlearn.cli import LightningCLI

READ = array("q", [0])  # not in the module: what it holds is put back after a look


class Counted(PublicBackbone):
    """Counts the samples that go through it."""

    def forward(self, inputs):
        rows = super().forward(inputs)
        READ[0] += len(rows)
        return rows


def folder() -> Path:
    return Path(os.environ["LIGHTNING_UNLEARN_DATA"])


class Data(LightningDataModule):
    """Training and test samples of a case.

    Args:
        rows: Training samples at most, evenly spaced; 0 for all.
        without: Places among them that are left out: for a retraining.
    """

    batch_size, collate = 64, None

    def __init__(self, rows: int = 0, without: list[int] | None = None):
        super().__init__()
        self.rows, self.left_out = rows, set(without or ())
        self.parts: dict[str, Any] = {}

    def part(self, name: str) -> Dataset:
        """The samples of "train" or "test"."""
        raise NotImplementedError

    def read(self, name: str) -> Dataset:
        """Made once a process, and "train" cut down."""
        if name not in self.parts:
            data: Any = self.part(name)
            n = len(data)
            step = -(-n // self.rows) if self.rows and name == "train" else 1
            gone = self.left_out if name == "train" else ()
            places = enumerate(range(0, n, step))
            kept = [i for place, i in places if place not in gone]
            self.parts[name] = data if len(kept) == n else Subset(data, kept)
        return self.parts[name]

    def loader(self, name: str, **options: Any) -> DataLoader:
        data = self.read(name)
        return DataLoader(data, self.batch_size, collate_fn=self.collate, **options)

    def train_dataloader(self):
        return self.loader("train", shuffle=True)

    def test_dataloader(self):
        return self.loader("test")


# -- texts -------------------------------------------------------------------


class Questions(Dataset):
    """Tokens and intents; sorted by length, batches are padded little."""

    def __init__(self, samples: list[dict[str, Any]], by_length: bool):
        if by_length:
            samples = sorted(samples, key=lambda row: len(row["input_ids"]))
        self.samples = samples

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, i):
        return self.samples[i]


class Banking77(Data):
    """Questions of bank customers.

    Args:
        model: Folder of the language model, for its tokenizer.
        rows: As of `Data`.
        without: As of `Data`.
        by_length: Sort them by length; else they stand as in the file.
    """

    def __init__(
        self,
        model: str,
        rows: int = 0,
        without: list[int] | None = None,
        by_length: bool = True,
    ):
        from transformers import AutoTokenizer, DataCollatorWithPadding

        super().__init__(rows, without)
        self.by_length = by_length
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        self.collate = DataCollatorWithPadding(self.tokenizer)

    def part(self, name):
        with open(folder() / "banking77" / f"{name}.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        names = sorted({row["category"] for row in rows})
        found = self.tokenizer([row["text"] for row in rows])
        return Questions(
            [
                {
                    "input_ids": found["input_ids"][i],
                    "attention_mask": found["attention_mask"][i],
                    "label": names.index(row["category"]),
                }
                for i, row in enumerate(rows)
            ],
            self.by_length,
        )


class MiniLM(CertifiedClassifier):
    """A head on a public language model.

    Args:
        model: Its folder.
    """

    def __init__(self, model: str):
        from transformers import AutoModel

        super().__init__(Counted(AutoModel.from_pretrained(model)), 77)


# -- images ------------------------------------------------------------------


def images(delta):
    """Pixels are delta-coded in the files; normalised as the network was trained."""
    from finetune_head import MEAN, STD

    v = np.cumsum(np.cumsum(delta, axis=2, dtype=np.uint8), axis=3, dtype=np.uint8)
    green = v[:, 0]
    rgb = torch.tensor(np.stack([v[:, 1] + green, green, v[:, 2] + green], 1))
    return (rgb / 255 - MEAN) / STD


class Cifar100(Data):
    """100 images of each class of CIFAR-100."""

    def part(self, name):
        file = np.load(folder() / "cifar100" / "subset_10k_2k.npz")
        y = torch.tensor(file[f"{name}_y"].astype(np.int64))
        return TensorDataset(images(file[f"{name}_x"]), y)


class ResNet20(CertifiedClassifier):
    """A head on four depths of a ResNet-20 of CIFAR-10."""

    def __init__(self):
        from finetune_head import public_backbone

        model = public_backbone(folder() / "weights" / "resnet20-12fca82f.th")
        public = np.load(folder() / "cifar10" / "test.npz")["x"][2000:4000]
        super().__init__(Counted(model, public_data=images(public)), 100)


# -- rows --------------------------------------------------------------------


class Features(Data):
    """64 features of every CIFAR-100 image."""

    batch_size = 256

    def part(self, name):
        file = np.load(folder() / "cifar100" / "resnet20_features.npz")
        x = torch.tensor(file[f"{name}_h"].astype(np.float32))
        return TensorDataset(x, torch.tensor(file[f"{name}_y"].astype(np.int64)))


class Pixels(Data):
    """MNIST."""

    batch_size = 256

    def part(self, name):
        def numbers(kind, head):
            start = "train" if name == "train" else "t10k"
            path = folder() / "mnist" / f"{start}-{kind}-ubyte.gz"
            return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, -1, head)

        x = numbers("images-idx3", 16).reshape(-1, 784).astype(np.float32) / 255
        y = numbers("labels-idx1", 8).astype(np.int64)
        return TensorDataset(torch.tensor(x), torch.tensor(y))


class Rows(CertifiedClassifier):
    """A head on rows as they are, but for their norm.

    Args:
        width: Of a row.
        classes: K.
    """

    def __init__(self, width: int, classes: int):
        public = torch.eye(width)[:2]
        identity = Counted(
            nn.Identity(), taps=[""], standardize="none", public_data=public
        )
        super().__init__(identity, classes)


CASES = {
    "texts": (MiniLM, Banking77),
    "unsorted": (MiniLM, Banking77),
    "images": (ResNet20, Cifar100),
    "features": (Rows, Features),
    "pixels": (Rows, Pixels),
}


def main(case, *rest):
    sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
    sys.argv[1:] = rest
    try:
        LightningCLI(*CASES[case])
    finally:
        if "STREAM_READ" in os.environ:
            Path(os.environ["STREAM_READ"]).write_text(str(READ[0]))


if __name__ == "__main__":
    main(*sys.argv[1:])
