"""Certified heads on random features beside gradient-boosted trees.

    python benchmarks/random_features.py
    LIGHTNING_UNLEARN_DATA=folder python benchmarks/random_features.py --mnist

The first writes the table of scikit-learn's own data sets, the second that of MNIST.
Nothing is chosen on these data: one setting for all tables, the others' defaults.
"""

import statistics
import sys
import time

import numpy as np
import sklearn
import torch
from common import accuracy, mnist, publish, table, trainer
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.utils.data import DataLoader, TensorDataset

import lightning_unlearn as lu

TABLES = {
    "breast cancer": load_breast_cancer,
    "wine": load_wine,
    "digits": load_digits,
}
SPLITS, L2, FEATURES = range(5), 1e-3, 1024


def tensors(X, y) -> TensorDataset:
    return TensorDataset(
        torch.tensor(X, dtype=torch.float32), torch.tensor(y, dtype=torch.int64)
    )


def parts(X, y, seed):
    """Private training samples, public ones (no labels needed), test samples."""
    order = np.random.default_rng(seed).permutation(len(y))
    ends = [int(0.6 * len(y)), int(0.75 * len(y))]
    return np.split(order, ends)


def certified(features, train, test, classes, forget, l2, tolerance):
    """(accuracy as solved, as released, result, seconds of fit)."""
    callback = lu.UnlearningCallback(epsilon=1.0, delta=1e-5, tolerance=tolerance)
    own = trainer(callback, -1)
    net = lu.CertifiedClassifier(features, classes, l2=l2)
    begin = time.perf_counter()
    own.fit(net, DataLoader(train, 500))
    seconds = time.perf_counter() - begin
    before = accuracy(net, test)
    result = own.unlearn(range(forget))
    assert result.certificate.grade.value == "certified"
    return before, accuracy(net, test), result, seconds


def of_table(X, y, seed) -> dict[str, float]:
    private, public, test = parts(X, y, seed)
    both, found = np.concatenate([private, public]), {}
    # They need no public samples, and train on these too.
    trees = HistGradientBoostingClassifier(random_state=0).fit(X[both], y[both])
    found["gradient-boosted trees"] = trees.score(X[test], y[test])
    linear = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000))
    found["logistic regression"] = linear.fit(X[both], y[both]).score(X[test], y[test])
    known = torch.tensor(X[public], dtype=torch.float32)
    for kind in ("identity", "fourier", "relu"):
        made = lu.RandomFeatures(
            None if kind == "identity" else FEATURES,
            kind, shape=X.shape[1], public_data=known, unit_norm=True,
        )  # fmt: skip
        before, after, _, _ = certified(
            made, tensors(X[private], y[private]), tensors(X[test], y[test]),
            int(y.max()) + 1, len(private) // 20, L2, 1e-7,
        )  # fmt: skip
        found[f"{kind}, without noise"] = before
        found[f"{kind}, certified"] = after
    return found


def cell(values) -> str:
    error = statistics.stdev(values) / len(values) ** 0.5
    return f"{100 * statistics.mean(values):.1f} +- {100 * error:.1f}"


def tables():
    rows = dict[str, list[str]]()
    for name, load in TABLES.items():
        X, y = load(return_X_y=True)
        runs = [of_table(X, y, seed) for seed in SPLITS]
        for way in runs[0]:
            rows.setdefault(way, []).append(cell([run[way] for run in runs]))
        print(name, flush=True)
    publish(
        "random-features",
        "Certified heads on random features, and gradient-boosted trees",
        f"Command: `python benchmarks/random_features.py`; scikit-learn "
        f"{sklearn.__version__}.",
        "Test accuracy in percent, mean +- standard error over five random splits: 60% "
        "private training samples, 15% public ones, 25% for the test. Certified: a "
        "twentieth of the private samples forgotten, epsilon = 1, delta = 1e-5. "
        f"{FEATURES:,} features of seed 0, rows of norm 8, l2 = {L2:g}, tolerance = "
        "1e-7, columns scaled by mean and deviation of the public samples, length "
        "scale their median distance. Trees and logistic regression (standardised, "
        "C = 1) with scikit-learn's defaults, trained on private and public samples "
        "together, nothing forgotten, nothing certified.",
        table(["", *TABLES], [[way, *cells] for way, cells in rows.items()]),
    )


def show_images(rows):
    """Written after each row: a run that is stopped keeps what it measured."""
    publish(
        "random-features-mnist",
        "Certified heads on random features of MNIST",
        f"Command: `python benchmarks/random_features.py --mnist`; scikit-learn "
        f"{sklearn.__version__}.",
        "60,000 training images, 1,000 of them forgotten at epsilon = 1, delta = "
        "1e-5; 10,000 test images; one run. l2 = 1e-4, tolerance = 1e-7, rows of norm "
        "8, seed 0; patches of 6 x 6 pixels, pooled to 4 x 4; length scale 8 on pixels "
        "from 0 to 1. Boosted trees and logistic regression (200 steps), where "
        "they were run, with scikit-learn's defaults.",
        table(
            ["", "accuracy certified, %", "accuracy, %", "fit, s", "request, s"], rows
        ),
    )


def images():
    train, test = mnist("train"), mnist("t10k")
    (X, y), (Xt, yt) = train.tensors, test.tensors
    rows = []
    settings = {
        "patches": (2048, {"shape": (1, 28, 28)}),
        "fourier": (2048, {"shape": 784, "length_scale": 8.0}),
    }
    for kind, (count, options) in settings.items():
        made = lu.RandomFeatures(count, kind, **options)
        before, after, result, seconds = certified(
            made, train, test, 10, 1000, 1e-4, 1e-7
        )
        rows.append([
            f"{count:,} {kind} features, certified", f"{100 * after:.2f}",
            f"{100 * before:.2f}", f"{seconds:.0f}", f"{result.seconds:.0f}",
        ])  # fmt: skip
        show_images(rows)
    for name, way in {
        "logistic regression on pixels": LogisticRegression(max_iter=200),
        "gradient-boosted trees": HistGradientBoostingClassifier(random_state=0),
    }.items():
        begin = time.perf_counter()
        score = way.fit(X.numpy(), y.numpy()).score(Xt.numpy(), yt.numpy())
        seconds = time.perf_counter() - begin
        rows.append([name, "-", f"{100 * score:.2f}", f"{seconds:.0f}", "-"])
        show_images(rows)


if __name__ == "__main__":
    images() if "--mnist" in sys.argv else tables()
