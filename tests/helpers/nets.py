"""Lightning modules and Trainers for the plugin's tests."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_unlearn import ConvexHead, UnlearnableMixin, UnlearningCallback
from tests.helpers.lightning import L


def digits(n=None):
    X, y = load_digits(return_X_y=True)
    X, y = torch.tensor(X / 16, dtype=torch.float32), torch.tensor(y)
    return TensorDataset(X[:n], y[:n])


def loader(dataset, batch_size=64):
    return DataLoader(dataset, batch_size, shuffle=True)


class HeadNet(UnlearnableMixin, L.LightningModule):
    """A ConvexHead on a frozen random projection."""

    def __init__(self, weight_decay=1e-3, lr=1e-2, backbone=True):
        super().__init__()
        self.backbone = (
            nn.Sequential(nn.Linear(64, 32), nn.Tanh()) if backbone else (nn.Identity())
        )
        self.backbone.requires_grad_(False)
        self.head = ConvexHead(32 if backbone else 64, 10)
        self.weight_decay, self.lr = weight_decay, lr

    def forward(self, x):
        return self.head(self.backbone(x))

    def training_step(self, batch, batch_idx):
        loss = self.head.loss(self.backbone(batch[0]), batch[1]).mean()
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(
            self.head.parameters(), lr=self.lr, weight_decay=self.weight_decay
        )


class MLP(L.LightningModule):
    """A plain LightningModule, without the mixin."""

    def __init__(self, activation=nn.Tanh, hidden=8, norm=None):
        super().__init__()
        layers = [nn.Linear(64, hidden), activation(), nn.Linear(hidden, 10)]
        if norm is not None:
            layers.insert(1, norm(hidden))
        self.net = nn.Sequential(*layers)

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, weight_decay=1e-4)


def trainer(callback=None, max_epochs=2, **options):
    settings = {
        "accelerator": "cpu", "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False,
        "max_epochs": max_epochs, **options,
    }  # fmt: skip
    callbacks = [] if callback is None else [callback]
    return L.Trainer(callbacks=callbacks + options.pop("callbacks", []), **{
        k: v for k, v in settings.items() if k != "callbacks"})  # fmt: skip


def fitted(net=None, dataset=None, max_epochs=2, trainer_options=None, **options):
    """(net, trainer, callback, dataset) after a short fit."""
    net = HeadNet() if net is None else net
    dataset = digits(600) if dataset is None else dataset
    callback = UnlearningCallback(**options)
    fit_trainer = trainer(callback, max_epochs, **(trainer_options or {}))
    fit_trainer.fit(net, loader(dataset))
    return net, fit_trainer, callback, dataset


def weights(module):
    return {k: v.detach().clone() for k, v in module.state_dict().items()}


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)
