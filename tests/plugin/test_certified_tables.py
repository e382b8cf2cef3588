"""Tables and small images: random features, yes or no, labels, weights, loaders."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from torch.utils.data import DataLoader, TensorDataset

from lightning_unlearn import (
    CertifiedClassifier,
    CertifiedRegressor,
    RandomFeatures,
    UnlearningCallback,
    prepare,
)
from lightning_unlearn.errors import ArgumentError, DataError, GuaranteeError
from tests.helpers.nets import digits, trainer
from tests.plugin.helpers.publics import solved

L2 = 1e-2


def cancer():
    """(public rows, private rows and answers, rows and answers of the test)."""
    X, y = load_breast_cancer(return_X_y=True)
    X, y = torch.tensor(X, dtype=torch.float32), torch.tensor(y)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    X, y = X[order], y[order]
    return X[:100], (X[100:400], y[100:400]), (X[400:], y[400:])


def table(count=200, **options):
    return RandomFeatures(count, shape=30, public_data=cancer()[0], **options)


def optimum(rows, targets, weights, l2, link="bce"):
    """The minimiser by scipy, in formulas of its own: (K, d) and (K,)."""
    n, K = targets.shape
    Z = np.hstack([rows, np.ones((n, 1))])

    def value_and_gradient(w):
        W = w.reshape(K, -1)
        z = Z @ W.T
        if link == "bce":
            each = np.logaddexp(0, z) - targets * z
            slope = 1 / (1 + np.exp(-z)) - targets
            value, slope = (weights * each).sum() / (n * K), weights * slope / (n * K)
        else:
            top = z.max(1, keepdims=True)
            logs = z - top - np.log(np.exp(z - top).sum(1, keepdims=True))
            value = -(weights * targets * logs).sum() / n
            slope = (weights * (np.exp(logs) - targets)) / n
        return value + l2 / 2 * w @ w, (slope.T @ Z + l2 * W).ravel()

    start = np.zeros(K * Z.shape[1])
    options = {"maxiter": 5000, "gtol": 1e-10, "ftol": 1e-17}
    found = minimize(
        value_and_gradient, start, jac=True, method="L-BFGS-B", options=options
    ).x.reshape(K, -1)
    return found[:, :-1], found[:, -1]


def distance(net, found):
    dw = net.head.weight.detach().double().numpy() - found[0]
    db = net.head.bias.detach().double().numpy() - found[1]
    return math.hypot(np.linalg.norm(dw), np.linalg.norm(db))


def rows_of(net, x):
    return net.backbone(x).double().numpy()


# -- certified end to end ------------------------------------------------------


@pytest.mark.parametrize("kind", ["fourier", "relu", "identity"])
def test_a_table_in_a_few_lines_is_certified_and_as_good_as_scikit_learn(kind):
    _, (x, y), (xt, yt) = cancer()
    made = table(None if kind == "identity" else 400, kind=kind, unit_norm=True)
    net = CertifiedClassifier(made, 1, "bce", l2=1e-3)
    net, own, _, _ = solved(net, TensorDataset(x, y), tolerance=1e-7)
    certificate = own.unlearn(range(20)).certificate
    assert certificate.grade.value == "certified"
    part = certificate.public_parts[0]
    assert part.name == "backbone"
    assert made.digest in part.note
    assert f"RandomFeatures(seed=0, kind='{kind}'" in part.note
    score = own.test(net, DataLoader(TensorDataset(xt, yt), 64), verbose=False)[0]
    right = ((net(xt)[:, 0] > 0).long() == yt).float().mean().item()
    assert score["test_acc"] == pytest.approx(right)
    mean, std = x.mean(0), x.std(0)
    plain = LogisticRegression(max_iter=5000).fit((x - mean) / std, y)
    assert right > plain.score((xt - mean) / std, yt) - 0.03


def test_patches_of_digits_are_certified_and_better_than_pixels():
    x, y = digits().tensors
    train, test = TensorDataset(x[:1200], y[:1200]), (x[1200:], y[1200:])
    scores = {}
    for kind, count in (("identity", None), ("patches", 512)):
        made = RandomFeatures(
            count, kind, shape=(1, 8, 8), patch=3, unit_norm=True, low=0, high=1
        )
        net = CertifiedClassifier(made, 10, l2=1e-3)
        net, own, _, _ = solved(net, train, tolerance=1e-7)
        assert own.unlearn(range(60)).certificate.grade.value == "certified"
        scores[kind] = (net(test[0]).argmax(1) == test[1]).float().mean().item()
    assert scores["patches"] > scores["identity"] + 0.01
    assert scores["patches"] > 0.94


@pytest.mark.parametrize("tolerance", [1e-4, 1e-6])
def test_without_noise_it_is_within_the_certified_distance_of_a_retrained_one(
    tolerance,
):
    _, (x, y), _ = cancer()
    net = CertifiedClassifier(table(), 1, "bce", l2=L2)
    net, own, _, _ = solved(
        net, TensorDataset(x, y), noise_std=0.0, tolerance=tolerance
    )
    own.unlearn(range(20))
    targets = y[20:, None].double().numpy()
    found = optimum(rows_of(net, x[20:]), targets, np.ones_like(targets), L2)
    assert distance(net, found) < tolerance / L2


def labels_of(y):
    """Three questions about a digit."""
    return torch.stack([y % 2, (y > 4).long(), (y % 3 == 0).long()], dim=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.bool])
def test_several_labels_of_a_sample(dtype):
    x, y = digits(600).tensors
    wanted = labels_of(y).to(dtype)
    made = RandomFeatures(200, shape=64)
    net = CertifiedClassifier(made, 3, "bce", l2=L2, class_weights=[1.0, 2.0, 0.5])
    net, own, _, dataset = solved(
        net, TensorDataset(x, wanted), noise_std=0.0, tolerance=1e-6
    )
    shown = own.validate(net, DataLoader(dataset, 77), verbose=False)[0]
    right = ((net(x) > 0) == labels_of(y).bool()).float().mean().item()
    assert shown["val_acc"] == pytest.approx(right)
    own.unlearn(range(30))
    targets = labels_of(y)[30:].double().numpy()
    weights = np.where(targets == 1, [1.0, 2.0, 0.5], 1.0)
    found = optimum(rows_of(net, x[30:]), targets, weights, L2)
    assert distance(net, found) < 1e-6 / L2


def weighted(n=400):
    x, y = digits(n).tensors
    weights = 0.5 + torch.rand(n, generator=torch.Generator().manual_seed(2))
    return x, y, weights


@pytest.mark.parametrize("prepared", [True, False])
def test_weights_of_samples_and_classes_are_those_of_the_retrained_model(prepared):
    x, y, w = weighted()
    c = torch.linspace(0.5, 2, 10)
    net = CertifiedClassifier(
        RandomFeatures(150, shape=64), 10, l2=L2,
        class_weights=c.tolist(), sample_weights=True,
    )  # fmt: skip
    net, own, callback, _ = solved(
        net, TensorDataset(x, y, w), noise_std=0.0, tolerance=1e-6
    )
    if not prepared:
        callback.attached.bound_state = None
    own.unlearn(range(25))
    weights = (w * c[y])[25:, None].double().numpy()
    targets = np.eye(10)[y[25:]]
    found = optimum(rows_of(net, x[25:]), targets, weights, L2, "softmax")
    assert distance(net, found) < 1e-6 / L2
    plain = optimum(rows_of(net, x[25:]), targets, np.ones_like(weights), L2, "softmax")
    assert distance(net, plain) > 100 * 1e-6 / L2


def test_weights_of_classes_stand_in_the_certificate_and_a_file_keeps_sample_weights(
    tmp_path,
):
    x, y, w = weighted()
    net = CertifiedClassifier(
        RandomFeatures(60, shape=64), 10, l2=L2,
        class_weights=[1.0] * 9 + [3.0], sample_weights=True,
    )  # fmt: skip
    net, own, _, dataset = solved(
        net, TensorDataset(x, y, w), prepared=tmp_path / "rows.secret", tolerance=1e-6
    )
    prepare(own)
    saved = tmp_path / "solved.ckpt"
    own.save_checkpoint(saved)
    fresh = trainer(
        UnlearningCallback(prepared=tmp_path / "rows.secret", tolerance=1e-6)
    )
    result = fresh.unlearn(
        range(8), model=net, ckpt_path=saved,
        train_dataloaders=DataLoader(dataset, 64),
    )  # fmt: skip
    assert result.certificate.grade.value == "certified"
    names = [part.name for part in result.certificate.public_parts]
    assert names == ["class_weights", "backbone"] or names == [
        "backbone",
        "class_weights",
    ]


def test_weights_of_classes_of_squared_error_and_of_a_regression():
    x, y, w = weighted()
    c = [0.5] * 5 + [2.0] * 5
    net = CertifiedClassifier(
        RandomFeatures(80, shape=64), 10, "mse", L2, class_weights=c
    )
    net, _, _, _ = solved(net, TensorDataset(x, y), tolerance=1e-8)
    by_class = torch.tensor(c)[y].double().numpy()
    assert ridge_distance(net, x, np.eye(10)[y], by_class) < 1e-4
    net = CertifiedRegressor(RandomFeatures(80, shape=64), l2=L2, sample_weights=True)
    z = (y.float() - 4.5) / 5
    net, _, _, _ = solved(net, TensorDataset(x, z, w), tolerance=1e-8)
    assert ridge_distance(net, x, z.double().numpy()[:, None], w.numpy()) < 1e-4


def ridge_distance(net, x, targets, weights):
    n, K = targets.shape
    Z = np.hstack([rows_of(net, x), np.ones((n, 1))])
    A = 2 / (n * K) * (Z * weights[:, None]).T @ Z + L2 * np.eye(Z.shape[1])
    found = np.linalg.solve(A, 2 / (n * K) * (Z * weights[:, None]).T @ targets).T
    return distance(net, (found[:, :-1], found[:, -1])) / np.linalg.norm(found)


def test_batches_of_keywords_may_have_weights_and_validation_may_have_none():
    class Named(torch.utils.data.Dataset):
        def __len__(self):
            return 200

        def __getitem__(self, i):
            x, y, w = weighted()
            return {"input": x[i], "labels": y[i], "sample_weight": w[i]}

    def make():
        made = RandomFeatures(60, shape=64)
        return CertifiedClassifier(made, 10, l2=L2, sample_weights=True)

    parts = [t[:200] for t in weighted()]
    two, _, _, _ = solved(make(), TensorDataset(*parts))
    one, _, _, _ = solved(make(), Named())
    torch.testing.assert_close(one.head.weight, two.head.weight, rtol=1e-3, atol=1e-4)
    own = trainer()
    bare = DataLoader(TensorDataset(*parts[:2]), 50)
    shown = own.validate(two, bare, verbose=False)[0]
    right = (two(parts[0]).argmax(1) == parts[1]).float().mean().item()
    assert shown["val_acc"] == pytest.approx(right)
    found = own.predict(two, DataLoader(TensorDataset(*parts), 50))
    torch.testing.assert_close(torch.cat(found), two(parts[0]).detach())


def test_several_loaders_are_measured_each_for_itself():
    x, y = digits(500).tensors
    net = CertifiedClassifier(RandomFeatures(100, shape=64), 10, l2=L2)
    own = trainer(UnlearningCallback(), max_epochs=-1)
    halves = [TensorDataset(x[:130], y[:130]), TensorDataset(x[130:], 9 - y[130:])]
    loaders = [DataLoader(half, 50) for half in halves]
    own.fit(net, DataLoader(TensorDataset(x, y), 64), loaders)
    for i, half in enumerate(halves):
        right = (net(half.tensors[0]).argmax(1) == half.tensors[1]).float().mean()
        shown = own.callback_metrics[f"val_acc/dataloader_idx_{i}"]
        assert shown.item() == pytest.approx(right.item())
    tested = own.test(net, loaders, verbose=False)
    assert tested[1]["test_acc/dataloader_idx_1"] < 0.3 < 0.9
    assert len(own.predict(net, loaders)) == 2


# -- refused -------------------------------------------------------------------


def yes_or_no(**options):
    return CertifiedClassifier(RandomFeatures(20, shape=64), 1, "bce", **options)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: yes_or_no(class_weights="balanced"), "remember the ones to be"),
        (lambda: yes_or_no(class_weights=[1.0]), "expected 2 class_weights.*of no and"),
        (lambda: yes_or_no(class_weights=[0.0, 0.0]), "not all 0"),
        (lambda: yes_or_no(sample_weights=torch.ones(9)), "True or False, got Tensor"),
        (lambda: yes_or_no(class_weights=[1.0, -1.0]), "class_weights_1 to be a finit"),
        (
            lambda: yes_or_no(class_weights=[1.0, float("nan")]),
            "class_weights_1 to be a finite",
        ),
        (
            lambda: CertifiedRegressor(RandomFeatures(20, shape=64), 1, "bce"),
            "loss to be one of 'mse', 'poisson'",
        ),
    ],
)
def test_bad_arguments_are_refused(make, match):
    with pytest.raises(ArgumentError, match=match):
        make()


@pytest.mark.parametrize(
    ("net", "targets", "match"),
    [
        (yes_or_no, torch.full((60,), 2), "from 0 .no. to 1 .yes. for loss='bce', got"),
        (yes_or_no, torch.zeros(60, 3), r"shape \(n, 1\).*number of labels"),
        (
            lambda: CertifiedClassifier(RandomFeatures(20, shape=64), 3, "bce"),
            torch.zeros(60, dtype=torch.long),
            "one yes or no for each label, got .*say loss='cross_entropy'",
        ),
        (
            lambda: CertifiedClassifier(RandomFeatures(20, shape=64), 3),
            torch.zeros(60, 3, dtype=torch.long),
            "for several labels of a sample say loss='bce'",
        ),
        (
            lambda: yes_or_no(sample_weights=True),
            torch.zeros(60),
            "for sample_weights=True, got one without weights",
        ),
    ],
)
def test_other_targets_are_refused_with_what_to_say(net, targets, match):
    with pytest.raises(DataError, match=match):
        solved(net(), TensorDataset(digits(60).tensors[0], targets))


def test_advice_that_one_message_gives_the_next_takes():
    """Several labels: cross entropy names bce, and bce is taken."""
    x, y = digits(200).tensors
    data = TensorDataset(x, labels_of(y).float())
    made = RandomFeatures(20, shape=64)
    with pytest.raises(ArgumentError, match="use loss='bce' for several labels"):
        solved(CertifiedClassifier(made, 3), data)
    net = CertifiedClassifier(made, 3, "bce", l2=L2)
    _, own, _, _ = solved(net, data)
    assert own.unlearn([3]).certificate.grade.value == "certified"


def test_a_third_column_is_no_weight_unless_it_is_said():
    x, y, w = weighted(100)
    net = CertifiedClassifier(RandomFeatures(20, shape=64), 10)
    with pytest.raises(DataError, match="of 3: .*sample_weights=True if the third"):
        solved(net, TensorDataset(x, y, w))
    net = CertifiedClassifier(RandomFeatures(20, shape=64), 10, sample_weights=True)
    with pytest.raises(ArgumentError, match="finite and >= 0"):
        solved(net, TensorDataset(x, y, w - 1))


def test_public_rows_among_the_training_samples_are_refused():
    public, (x, y), _ = cancer()
    data = TensorDataset(torch.cat([x, public[:2]]), torch.cat([y, y[:2]]))
    with pytest.raises(GuaranteeError, match="training samples.*are both"):
        solved(CertifiedClassifier(table(), 1, "bce"), data)
