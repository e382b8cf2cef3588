"""Train, unlearn 50 samples with a certificate, and compare with a real retrain.

Run it with ``python examples/quickstart.py``; it takes a few seconds on two cores, and
writes ``report.html`` in the folder it is run in. The data are the handwritten digits
bundled with scikit-learn.
"""

import logging
import textwrap
import time
import warnings
from pathlib import Path

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


def main(folder="."):
    L.seed_everything(0, verbose=False)
    torch.set_num_threads(1)  # quickest for so small a model
    X, y = load_digits(return_X_y=True)
    digits = TensorDataset(torch.tensor(X / 16, dtype=torch.float32), torch.tensor(y))
    order = torch.randperm(len(digits)).tolist()
    train_set, test_set = Subset(digits, order[:1440]), Subset(digits, order[1440:])

    forget = Subset(train_set, range(50))
    retain = Subset(train_set, range(50, 1440))
    parts = [forget, retain, test_set]

    print("Training on 1,440 digits ...")
    model, trainer = train(train_set)
    before = accuracies(model, parts)

    print("Forgetting 50 of them ...")
    result = trainer.unlearn(DataLoader(forget), evaluate=True)  # <- the new line
    after = accuracies(model, parts)

    print("For comparison: training again without them ...")
    start = time.perf_counter()
    retrained = accuracies(train(retain)[0], parts)
    seconds = time.perf_counter() - start

    print(f"\n{result.certificate}\n")
    print(f"{'accuracy on':<22}{'forget':>9}{'retain':>9}{'test':>9}{'seconds':>9}")
    for name, row, took in (
        ("before", before, ""),
        ("after unlearning", after, f"{result.seconds:.2f}"),
        ("retrained without", retrained, f"{seconds:.2f}"),
    ):
        print(f"{name:<22}" + "".join(f"{a:>9.1%}" for a in row) + f"{took:>9}")

    report = result.report(
        Path(folder) / "report.html",
        retrained={"forget": retrained[0], "retain": retrained[1]},
        overwrite=True,
    )
    for said in (
        f"A model that never saw these 50 digits is right about {retrained[0]:.0%} of "
        f"them; yours now is about {after[0]:.0%}. Neither is memory: other people's "
        "digits look alike. What is proved is in the certificate above: from the "
        "weights nobody can tell the two apart by more than epsilon and delta allow.",
        f"Written: {report} (open it in a browser; for you alone: it shows what was "
        "measured on the forgotten digits)",
        "Next: docs/which-guarantee.md, what you can have on a model of your own; "
        "there print(trainer.preflight(forget)) shows it",
    ):
        print("\n" + textwrap.fill(said, 80, break_long_words=False))
    return result, after


if __name__ == "__main__":
    main()
