"""A LightningCLI project that can unlearn: one import is not Lightning's own.

    python train.py fit --config config.yaml
    python train.py preflight --config config.yaml --ckpt_path run.ckpt \
        --forget forget.txt
    python train.py unlearn --config config.yaml --ckpt_path run.ckpt \
        --forget forget.txt --save_to clean.ckpt

By user, in place of positions: ``--forget '[user-07]' --by user_id``.
"""

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset, random_split

from lightning_unlearn import ConvexHead
from lightning_unlearn.cli import LightningCLI  # <- in place of lightning.pytorch.cli


class Digits(LightningDataModule):
    """Handwritten digits of 60 users (the ids are made up)."""

    def __init__(self, batch_size: int = 64):
        super().__init__()
        self.batch_size = batch_size

    def setup(self, stage: str):
        X, y = load_digits(return_X_y=True)
        data = TensorDataset(torch.tensor(X / 16, dtype=torch.float32), torch.tensor(y))
        data.user_id = [f"user-{i % 60:02d}" for i in range(len(data))]
        split = torch.Generator().manual_seed(0)
        self.train, self.val = random_split(data, [1500, 297], split)

    def train_dataloader(self):
        return DataLoader(self.train, self.batch_size, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.val, 297)


class Classifier(LightningModule):
    """A linear classifier of pixels."""

    def __init__(self, lr: float = 0.02, weight_decay: float = 1e-3):
        super().__init__()
        self.save_hyperparameters()
        self.head = ConvexHead(64, 10)

    def forward(self, x):
        return self.head(x)

    def training_step(self, batch, batch_idx):
        loss = self.head.loss(*batch).mean()
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        accuracy = (self(x).argmax(1) == y).float().mean()
        self.log("val_accuracy", accuracy, prog_bar=True)

    def configure_optimizers(self):
        lr, decay = self.hparams.lr, self.hparams.weight_decay
        return torch.optim.Adam(self.parameters(), lr=lr, weight_decay=decay)


if __name__ == "__main__":
    LightningCLI(Classifier, Digits)
