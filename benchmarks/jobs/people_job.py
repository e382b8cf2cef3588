"""Tables: people that scikit-learn bundles, and more that it makes."""

from functools import partial

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer, make_classification
from sklearn.ensemble import HistGradientBoostingClassifier
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from ways import (
    Private,
    Rows,
    Tuned,
    audited_head,
    audited_private,
    certified,
    choose,
    choose_private,
    cpu,
    keep,
    network_trainer,
    not_unlearned,
    percent,
    private,
    refit,
    retrained,
    told,
    with_wrong_labels,
)

from lightning_unlearn import RandomFeatures

STRENGTHS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
SETTINGS = [Private(lr, 20, 128) for lr in (0.01, 0.05, 0.2)]
PUBLIC = 0.05  # of the people, of whom only columns are known


def made_people():
    """8,000 of 20 columns: 8 in eight clusters, 4 mixtures of them, 8 empty."""
    return make_classification(
        8000, 20, n_informative=8, n_redundant=4, n_clusters_per_class=4,
        flip_y=0.03, random_state=0,
    )  # fmt: skip


class People:
    """A table with two classes, split at random for each seed.

    Args:
        load: Columns and classes.
        n_features: D that are tried.
        seed: Of the split.
    """

    def __init__(self, load, n_features, seed: int):
        X, y = load()
        X = torch.tensor(X, dtype=torch.float32)
        y = torch.tensor(y, dtype=torch.int64)
        order = torch.tensor(np.random.default_rng(seed).permutation(len(y)))
        ends = [int(0.7 * len(y)), int((0.7 + PUBLIC) * len(y))]
        own, known, test = order.tensor_split(ends)
        self.public, self.D = X[known], n_features
        self.columns = Rows(X[own], y[own], X[test], y[test])
        both = torch.cat([own, known])  # the others need no public people
        self.everyone = TensorDataset(X[both], y[both])
        self.gone = [seed]

    def features(self, name: str) -> RandomFeatures:
        """By name: "identity", or a kind and a factor of its length scale."""
        d, known = self.public.shape[1], {"public_data": self.public}
        if name == "identity":
            return RandomFeatures(None, name, shape=d, unit_norm=True, **known)
        kind, factor = name.split(" x ")
        usual = RandomFeatures(self.D, kind, shape=d, **known)
        scale = float(factor) * usual.recipe.length_scale
        return RandomFeatures(self.D, kind, shape=d, length_scale=scale, **known)

    def rows(self, name: str) -> Rows:
        """Read by the features."""
        own, read = self.columns, self.features(name).features
        return Rows(read(own.x), own.y, read(own.x_test), own.y_test)


NAMES = ("identity", "fourier x 0.5", "fourier x 1", "relu x 1")


def choice(task: People, folds: int, settings: list[Private]):
    """By the mean over some splits of the training people."""
    found = {}
    for seed in range(folds):
        named = {name: task.rows(name).split(seed=seed) for name in NAMES}
        for name, l2, score in choose(named, STRENGTHS)["tried"]:
            found.setdefault((name, l2), []).append(score)
    score, name, l2 = max((float(np.mean(v)), *k) for k, v in found.items())
    chosen = told(features=name, l2=l2, validation=score)
    if settings:
        named = {"identity": task.rows("identity").split()}
        chosen["private"] = choose_private(named, settings)["private"]
    return chosen


def head(task: People, chosen):
    own = task.columns
    loader = DataLoader(TensorDataset(own.x, own.y), 256, shuffle=True)
    return certified(
        task.features(chosen["features"]), 2, chosen["l2"], loader, task.gone,
        lambda net: percent(net, own.x_test, own.y_test),
    )  # fmt: skip


def trees(task: People):
    X, y = (t.numpy() for t in task.everyone.tensors)
    test = task.columns.x_test.numpy(), task.columns.y_test.numpy()
    before = HistGradientBoostingClassifier(random_state=0).fit(X, y).score(*test)
    kept = keep(len(y), task.gone).numpy()
    again = HistGradientBoostingClassifier(random_state=0)
    _, seconds = cpu(lambda: again.fit(X[kept], y[kept]))
    return told(accuracy=100 * again.score(*test), before=100 * before, seconds=seconds)


def network(task: People, epochs: int):
    """(how a perceptron is made and trained): columns scaled as public people's."""
    mean, std = task.public.mean(0), task.public.std(0).clamp_min(1e-6)

    def adam(module, steps):
        optimizer = torch.optim.AdamW(module.parameters(), 3e-3, weight_decay=1e-2)
        one = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
        return optimizer, one

    def make(data):
        layers = nn.Sequential(
            Scaled(mean, std), nn.Linear(len(mean), 128), nn.ReLU(),
            nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 2),
        )  # fmt: skip
        own = network_trainer(make, epochs)
        return own, Tuned(layers, adam), DataLoader(data, 64, shuffle=True)

    return make


class Scaled(nn.Module):
    def __init__(self, mean, std):
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, x):
        return (x - self.mean) / self.std


def perceptron(task: People, seed: int, epochs: int):
    test = task.columns
    return retrained(
        network(task, epochs), task.everyone, task.gone,
        lambda net: percent(net, test.x_test, test.y_test), seed,
    )  # fmt: skip


def audits_not_unlearned(task: People, epochs: int, canaries: int):
    """Of the perceptron and the trees, released as they were trained."""
    torch.manual_seed(0)
    x, y = task.everyone.tensors
    y = with_wrong_labels(y, range(canaries), 2)
    data, make = TensorDataset(x, y), network(task, epochs)

    @torch.no_grad()
    def of_network(given):
        with torch.enable_grad():
            own, net, loader = make(given)
            own.fit(net, loader)
        return F.cross_entropy(net.eval()(x[:canaries]), y[:canaries], reduction="none")

    def of_trees(given):
        kept = list(given.indices)
        model = HistGradientBoostingClassifier(random_state=0)
        model.fit(x[kept].numpy(), y[kept].numpy())
        p = torch.tensor(model.predict_proba(x[:canaries].numpy()))
        return -p[torch.arange(canaries), y[:canaries]].clamp_min(1e-12).log()

    return {
        "perceptron": not_unlearned(of_network, data, canaries),
        "trees": not_unlearned(of_trees, data, canaries),
    }


TABLES = {
    "people": (partial(load_breast_cancer, return_X_y=True), 1024, 10, 3, 50),
    "made people": (made_people, 2048, 3, 1, 100),
}


def cells(name: str, known, quick: bool):
    """(name of a cell, how to measure it); `known` gives what was measured before."""
    load, D, seeds, folds, canaries = TABLES[name]
    D, seeds, folds = (64, 1, 1) if quick else (D, seeds, folds)
    epochs, canaries = (2, 20) if quick else (40, canaries)
    tried = [Private(0.05, 2, 128)] if quick else SETTINGS
    for seed in range(seeds):
        task = People(load, D, seed)

        def chosen(seed=seed):
            return known(f"{name} | choice | {seed}")

        def rows(task=task, chosen=chosen):
            return task.rows(chosen()["features"])

        def settings():  # of the first split: such a choice takes time
            return Private(*known(f"{name} | choice | 0")["private"])

        few = tried if seed == 0 else []
        yield f"{name} | choice | {seed}", partial(choice, task, folds, few)
        yield (
            f"{name} | certified | {seed}",
            lambda task=task, chosen=chosen: head(task, chosen()),
        )
        yield (
            f"{name} | refit | {seed}",
            lambda task=task, chosen=chosen, rows=rows: refit(
                rows(), task.gone, chosen()["l2"]
            ),
        )
        yield f"{name} | trees | {seed}", partial(trees, task)
        yield f"{name} | perceptron | {seed}", partial(perceptron, task, seed, epochs)
        yield (
            f"{name} | private | {seed}",
            lambda task=task, settings=settings: private(
                task.rows("identity"), task.gone, settings()
            ),
        )
    task = People(load, D, 0)
    yield (
        f"{name} | audit certified | 0",
        lambda: audited_head(
            task.rows(known(f"{name} | choice | 0")["features"]),
            known(f"{name} | choice | 0")["l2"], canaries,
        ),
    )  # fmt: skip
    yield (
        f"{name} | audit private | 0",
        lambda: audited_private(
            task.rows("identity"), Private(*known(f"{name} | choice | 0")["private"]),
            known(f"{name} | private | 0")["noise_multiplier"], canaries,
        ),
    )  # fmt: skip
    yield (
        f"{name} | audit not unlearned | 0",
        partial(audits_not_unlearned, task, epochs, canaries),
    )
