"""Five deletion requests with one announced budget; the sixth is refused by name.

Run it with ``python examples/sequential.py [folder]``; it takes a few seconds. The
data are the handwritten digits bundled with scikit-learn. Checkpoints, certificates and
the ledger go to the folder, or to a temporary one that is removed at the end.
"""

import logging
import sys
import tempfile
import warnings
from pathlib import Path

import lightning as L
import torch
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, Subset, TensorDataset

from lightning_unlearn import ConvexHead, UnlearnableMixin, UnlearningCallback
from lightning_unlearn.errors import BudgetError

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module="lightning")

PER_REQUEST = 20


class DigitClassifier(UnlearnableMixin, L.LightningModule):
    def __init__(self):
        super().__init__()
        self.head = ConvexHead(64, 10)

    def forward(self, x):
        return self.head(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return self.head.loss(x, y).mean()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.02, weight_decay=1e-3)


def make_trainer(ledger):
    # The ledger and the number announced belong to the model: the same in all requests.
    callback = UnlearningCallback(epsilon=1.0, delta=1e-5, releases=5, ledger=ledger)
    return L.Trainer(
        max_epochs=30,
        callbacks=[callback],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def train(train_set, ledger=None):
    model, trainer = DigitClassifier(), make_trainer(ledger)
    trainer.fit(model, DataLoader(train_set, batch_size=64, shuffle=True))
    return model, trainer


def accuracy(model, part):
    x, y = next(iter(DataLoader(part, batch_size=len(part))))
    with torch.no_grad():
        return (model(x).argmax(1) == y).float().mean().item()


def five_requests(folder, train_set, test_set):
    ledger = folder / "deletions.jsonl"
    model, trainer = train(train_set, ledger)
    print(f"{'request':<9}{'forgotten':>10}{'noise_std':>11}{'epsilon':>9}{'test':>8}")
    print(f"{'before':<39}{accuracy(model, test_set):>8.1%}")
    certificates = []
    for number in range(1, 6):
        # Positions are always those of the dataset the model was first trained on.
        first = PER_REQUEST * (number - 1)
        forget = range(first, first + PER_REQUEST)
        clean = folder / f"clean{number}.ckpt"
        if number == 4:  # as in a fresh process: from the file, the data and the ledger
            model, trainer = DigitClassifier(), make_trainer(ledger)
            result = trainer.unlearn(
                forget,
                model=model,
                train_dataloaders=DataLoader(train_set, batch_size=64),
                ckpt_path=folder / f"clean{number - 1}.ckpt",
                save_to=clean,
            )
        else:
            result = trainer.unlearn(forget, save_to=clean)
        c = result.certificate
        print(
            f"{c.release} of {c.releases:<4}{c.n_forget:>10}{c.noise_std:>11.4f}"
            f"{c.composed_epsilon:>9.3f}{accuracy(model, test_set):>8.1%}"
        )
        certificates.append(c)
    try:
        trainer.unlearn([500])
    except BudgetError as error:
        print(f"\nsixth request: BudgetError: {error}\n")
        return certificates, model, str(error)
    raise AssertionError("the sixth request should have been refused")


def main(folder=None):
    L.seed_everything(0, verbose=False)
    X, y = load_digits(return_X_y=True)
    digits = TensorDataset(torch.tensor(X / 16, dtype=torch.float32), torch.tensor(y))
    order = torch.randperm(len(digits)).tolist()
    train_set, test_set = Subset(digits, order[:1440]), Subset(digits, order[1440:])
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary if folder is None else folder)
        certificates, model, refusal = five_requests(place, train_set, test_set)
    retrained, _ = train(Subset(train_set, range(5 * PER_REQUEST, 1440)))
    tested = accuracy(model, test_set), accuracy(retrained, test_set)
    print(
        f"test accuracy after five requests {tested[0]:.1%}, retrained without all "
        f"{5 * PER_REQUEST} samples {tested[1]:.1%}"
    )
    return certificates, tested, refusal


if __name__ == "__main__":
    main(*sys.argv[1:])
