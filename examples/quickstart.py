"""Train, unlearn 50 samples with a certificate, and compare with a real retrain.

Run it with ``python examples/quickstart.py``; it takes a few seconds on two cores.
The data are the handwritten digits bundled with scikit-learn.
"""

import logging
import warnings

import lightning as L
import torch
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, Subset, TensorDataset

from lightning_unlearn import ConvexHead, UnlearnableMixin, UnlearningCallback

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module="lightning")


class DigitClassifier(UnlearnableMixin, L.LightningModule):
    def __init__(self):
        super().__init__()
        self.head = ConvexHead(64, 10, loss="cross_entropy")

    def forward(self, x):
        return self.head(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return self.head.loss(x, y).mean()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.02, weight_decay=1e-3)


def train(train_set):
    model = DigitClassifier()
    trainer = L.Trainer(
        max_epochs=30,
        callbacks=[UnlearningCallback(epsilon=1.0, delta=1e-5)],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, DataLoader(train_set, batch_size=64, shuffle=True))
    return model, trainer


def accuracies(model, parts):
    found = []
    for part in parts:
        x, y = next(iter(DataLoader(part, batch_size=len(part))))
        with torch.no_grad():
            found.append((model(x).argmax(1) == y).float().mean().item())
    return found


def main():
    L.seed_everything(0, verbose=False)
    X, y = load_digits(return_X_y=True)
    digits = TensorDataset(torch.tensor(X / 16, dtype=torch.float32), torch.tensor(y))
    order = torch.randperm(len(digits)).tolist()
    train_set, test_set = Subset(digits, order[:1440]), Subset(digits, order[1440:])

    forget = Subset(train_set, range(50))
    retain = Subset(train_set, range(50, 1440))
    parts = [forget, retain, test_set]

    model, trainer = train(train_set)
    before = accuracies(model, parts)
    result = trainer.unlearn(DataLoader(forget))  # <- the one new line
    after = accuracies(model, parts)
    retrained, _ = train(retain)

    print(result.certificate)
    print(f"\n{'accuracy on':<22}{'forget':>9}{'retain':>9}{'test':>9}")
    for name, row in (
        ("before", before),
        ("after unlearning", after),
        ("retrained without", accuracies(retrained, parts)),
    ):
        print(f"{name:<22}" + "".join(f"{a:>9.1%}" for a in row))
    print(f"\nunlearned in {result.seconds:.2f} s")
    return result, after


if __name__ == "__main__":
    main()
