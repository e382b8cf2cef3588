"""Fine-tune a public backbone on private data, and certify every deletion.

    python examples/public_backbone.py
    LIGHTNING_UNLEARN_DATA=folder python examples/public_backbone.py

With a folder that holds ``weights/resnet20-12fca82f.th`` (a ResNet-20 of CIFAR-10) and
``cifar100/subset_10k_2k.npz``, ``cifar10/test.npz``: 20 classes of CIFAR-100 are the
private data. Without it: handwritten digits, 0 to 4 public, 5 to 9 private.

A convex head on activations of several depths is compared with one on the last layer,
the better one is solved, samples are unlearned, and new ones come in.
"""

import logging
import os
import warnings
from pathlib import Path

import lightning as L
import numpy as np
import torch
from finetune_head import MEAN, STD, public_backbone
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import ConcatDataset, DataLoader, Subset, TensorDataset

from lightning_unlearn import (
    CertifiedClassifier,
    PublicBackbone,
    UnlearningCallback,
    compare_heads,
)

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module="lightning")


def images(delta):
    """Pixels are delta-coded in the files; three normalised numbers for each."""
    v = np.cumsum(np.cumsum(delta, axis=2, dtype=np.uint8), axis=3, dtype=np.uint8)
    green = v[:, 0]
    rgb = torch.tensor(np.stack([v[:, 1] + green, green, v[:, 2] + green], 1))
    return (rgb / 255 - MEAN) / STD


def cifar(folder):
    """(public model, public inputs, private training data, test data)."""
    model = public_backbone(folder / "weights" / "resnet20-12fca82f.th")
    public = images(np.load(folder / "cifar10" / "test.npz")["x"][2000:4000])
    file = np.load(folder / "cifar100" / "subset_10k_2k.npz")
    classes = np.random.default_rng(0).permutation(100)[20:40]
    place = {k: i for i, k in enumerate(classes)}
    parts = []
    for kind in ("train", "test"):
        mine = np.isin(file[f"{kind}_y"], classes)
        y = torch.tensor([place[k] for k in file[f"{kind}_y"][mine]])
        parts.append(TensorDataset(images(file[f"{kind}_x"][mine]), y))
    return model, public, *parts


def digits():
    """The same of digits; the public model is trained here, in a second."""
    x, y = load_digits(return_X_y=True)
    x, y = torch.tensor(x / 16, dtype=torch.float32).view(-1, 1, 8, 8), torch.tensor(y)
    public, private = y < 5, y >= 5
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1, stride=2), nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1, stride=2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip
    last = nn.Linear(64, 5)  # of the public classes: left out afterwards
    optimizer = torch.optim.Adam([*model.parameters(), *last.parameters()], 3e-3)
    for _ in range(15):
        for part in torch.randperm(int(public.sum())).split(64):
            optimizer.zero_grad()
            logits = last(model(x[public][part]))
            F.cross_entropy(logits, y[public][part]).backward()
            optimizer.step()
    x_private, y_private = x[private], y[private] - 5
    train = TensorDataset(x_private[:600], y_private[:600])
    return model, x[public], train, TensorDataset(x_private[600:], y_private[600:])


def accuracy(net, dataset):
    with torch.no_grad():
        parts = [
            (net(x).argmax(1) == y).float()
            for x, y in DataLoader(dataset, batch_size=500)
        ]
    return torch.cat(parts).mean().item()


def trainer_with(callback):
    return L.Trainer(
        max_epochs=-1,  # a fit ends by itself, and others may follow
        callbacks=[callback],
        accelerator="cpu",
        logger=False,
        limit_val_batches=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def solved(make, dataset, **options):
    """(net, trainer, callback) after a fit: the head is at its optimum."""
    net, callback = make(), UnlearningCallback(**options)
    trainer = trainer_with(callback)
    trainer.fit(net, DataLoader(dataset, batch_size=100, shuffle=True))
    return net, trainer, callback


def chosen(model, public, train):
    """The better of two backbones with its l2, by a fifth of the training data.

    Those samples are private and may be forgotten later: such a choice remembers them
    a little. Choose on public data where that matters.
    """
    last = PublicBackbone(model, pool=(1, 1), public_data=public).taps[-1]
    backbones = {
        "last layer": PublicBackbone(model, [last], (1, 1), public_data=public),
        "several depths": PublicBackbone(model, public_data=public),
    }
    order = torch.randperm(len(train)).tolist()
    cut = len(train) // 5
    found = compare_heads(
        backbones, Subset(train, order[cut:]), Subset(train, order[:cut]), draws=3
    )
    print(found, "\n")
    best = found.recommended
    return backbones[best.backbone], best.l2


def main():
    L.seed_everything(0, verbose=False)
    folder = Path(os.environ.get("LIGHTNING_UNLEARN_DATA", "."))
    real = (folder / "cifar100" / "subset_10k_2k.npz").is_file()
    model, public, everything, test = cifar(folder) if real else digits()
    n_classes = int(everything.tensors[1].max()) + 1
    order = torch.randperm(len(everything)).tolist()
    train, later = Subset(everything, order[50:]), Subset(everything, order[:50])
    backbone, l2 = chosen(model, public, train)

    def make():
        return CertifiedClassifier(backbone, n_classes, l2=l2)

    net, trainer, callback = solved(make, train, epsilon=1.0, delta=1e-5, releases=10)
    before = accuracy(net, test)
    n_forget = len(train) // 4
    result = trainer.unlearn(range(n_forget))
    print(result.certificate, "\n")
    after = accuracy(net, test)
    retained = Subset(train, callback.retained_indices)
    retrained, *_ = solved(make, retained)
    reference = accuracy(retrained, test)
    print(f"{'test accuracy of all ' + str(len(train)):<32} {before:.3f}")
    print(f"{'unlearned, certified':<32} {after:.3f} in {result.seconds:.2g} s")
    print(f"{'retrained without, no noise':<32} {reference:.3f}")

    # Data grow: what is left first, then what is new. Then a class has to go.
    grown = ConcatDataset([retained, later])
    trainer.fit(net, DataLoader(grown, batch_size=100, shuffle=True))
    labels = [int(grown[i][1]) for i in range(len(grown))]
    one = [i for i, label in enumerate(labels) if label == 0]
    again = trainer.unlearn(one).certificate
    x, y = test.tensors
    with torch.no_grad():
        still = (net(x[y == 0]).argmax(1) == 0).float().mean().item()
    print(f"{'50 new, then class 0 forgotten':<32} {accuracy(net, test):.3f}")
    print(
        f"release {again.release} of {again.releases} ({again.grade.value}): together "
        f"epsilon = {again.composed_epsilon:.2g}; {still:.0%} of class 0 still named so"
    )
    return result, again, (before, after, reference), still


if __name__ == "__main__":
    main()
