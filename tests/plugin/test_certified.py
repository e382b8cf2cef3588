"""CertifiedClassifier and CertifiedRegressor: solved, then unlearned, certified."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.linear_model import Ridge
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_unlearn import (
    CertifiedClassifier,
    CertifiedRegressor,
    UnlearningCallback,
)
from lightning_unlearn.certificate.fields import entries_digest
from lightning_unlearn.errors import (
    ArgumentError,
    DataError,
    GuaranteeError,
    ModelError,
    SetupError,
)
from tests.helpers.lightning import ModelCheckpoint
from tests.helpers.nets import trainer
from tests.plugin.helpers.publics import (
    Extra,
    accuracy,
    backbone,
    held_out,
    loader,
    private,
    solved,
    split,
)

L2 = 1e-3


def features_of(net, dataset):
    x, y = dataset.tensors
    return net.backbone(x).double().numpy(), y.numpy()


def logistic(rows, classes, n_classes, l2):
    """The optimum by scipy, from formulas written here: (K, d) and (K,)."""
    n, d = rows.shape
    Z = np.hstack([rows, np.ones((n, 1))])
    Y = np.eye(n_classes)[classes]

    def value_and_gradient(w):
        W = w.reshape(n_classes, d + 1)
        z = Z @ W.T
        z = z - z.max(1, keepdims=True)
        p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
        value = -(Y * (z - np.log(np.exp(z).sum(1, keepdims=True)))).sum() / n
        return value + l2 / 2 * w @ w, ((p - Y).T @ Z / n + l2 * W).ravel()

    start = np.zeros(n_classes * (d + 1))
    options = {"maxiter": 5000, "gtol": 1e-9, "ftol": 1e-16}
    best = minimize(
        value_and_gradient, start, jac=True, method="L-BFGS-B", options=options
    ).x
    W = best.reshape(n_classes, d + 1)
    return W[:, :-1], W[:, -1]


def distance(net, found):
    weight, bias = found
    dw = net.head.weight.detach().double().numpy() - weight
    db = net.head.bias.detach().double().numpy() - bias
    return math.hypot(np.linalg.norm(dw), np.linalg.norm(db))


def test_fit_ends_at_the_optimum_which_is_that_of_scipy():
    net, own, callback, dataset = solved(tolerance=1e-8)
    found = logistic(*features_of(net, dataset), 5, L2)
    assert distance(net, found) < 1e-5 * np.linalg.norm(found[0])
    assert own.global_step == 1
    assert own.current_epoch == 1
    assert accuracy(net, held_out()) > 0.85
    assert callback.record.l2 == L2
    assert callback.bound_state is not None


def test_a_request_is_certified_and_as_near_a_retrained_model_as_it_says():
    net, own, _, dataset = solved()
    forget = list(range(40))
    result = own.unlearn(forget)
    certificate = result.certificate
    assert certificate.grade.value == "certified"
    assert certificate.epsilon == 1.0
    rows, classes = features_of(net, dataset)
    found = logistic(rows[40:], classes[40:], 5, L2)
    noise = certificate.noise_std * math.sqrt(certificate.n_parameters)
    before_noise = distance(net, found)
    assert before_noise < 1.1 * noise + certificate.sensitivity
    part = certificate.public_parts[0]
    assert part.name == "backbone"
    assert part.digest == entries_digest(part.entries)
    assert net.backbone.digest in part.note
    assert "901 public samples" in part.note
    assert ", backbone as public" in " ".join(str(certificate).split())
    assert "means and deviations of" in str(certificate).replace("\n", " ")
    assert certificate == type(certificate).from_json(certificate.to_json())


@pytest.mark.parametrize("tolerance", [1e-4, 1e-6])
def test_without_noise_it_is_within_the_certified_distance_of_a_retrained_one(
    tolerance,
):
    net, own, _, dataset = solved(noise_std=0.0, tolerance=tolerance)
    own.unlearn(range(40))
    rows, classes = features_of(net, dataset)
    assert distance(net, logistic(rows[40:], classes[40:], 5, L2)) < tolerance / L2


def test_squared_error_is_ridge_regression():
    net = CertifiedClassifier(backbone(), 5, loss="mse", l2=1e-2)
    net, own, _, dataset = solved(net, noise_std=0.0, tolerance=1e-8)
    own.unlearn(range(30))
    rows, classes = features_of(net, dataset)
    rows, targets = rows[30:], np.eye(5)[classes[30:]]
    Z = np.hstack([rows, np.ones((len(rows), 1))])
    ridge = Ridge(alpha=1e-2 * len(rows) * 5 / 2, fit_intercept=False).fit(Z, targets)
    found = ridge.coef_[:, :-1], ridge.coef_[:, -1]
    assert distance(net, found) < 1e-4 * np.linalg.norm(found[0])


def regression():
    (_, _), (x, y) = split()
    return TensorDataset(x[:500], (y[:500].float() - 2) / 2)


def test_a_regressor_is_ridge_regression_and_logs_its_error():
    net = CertifiedRegressor(backbone(), l2=1e-2)
    net, own, _, dataset = solved(net, regression(), noise_std=0.0, tolerance=1e-8)
    own.unlearn(range(30))
    rows, targets = features_of(net, dataset)
    Z = np.hstack([rows, np.ones((len(rows), 1))])[30:]
    ridge = Ridge(alpha=1e-2 * len(Z) / 2, fit_intercept=False).fit(Z, targets[30:])
    found = ridge.coef_[None, :-1], ridge.coef_[None, -1]
    assert distance(net, found) < 1e-4 * np.linalg.norm(found[0])
    shown = own.validate(net, DataLoader(dataset, 64), verbose=False)[0]
    predicted = net(dataset.tensors[0]).detach()[:, 0]
    expected = (predicted - dataset.tensors[1]).square().mean().item()
    assert shown["val_mse"] == pytest.approx(expected, rel=1e-4)
    assert shown["val_loss"] == pytest.approx(expected, rel=1e-4)


def test_counts_are_solved_too():
    (_, _), (x, y) = split()
    net = CertifiedRegressor(backbone(), loss="poisson", l2=1e-1)
    dataset = TensorDataset(x[:300], y[:300])
    net, own, _, _ = solved(net, dataset, tolerance=1e-6)
    result = own.unlearn(range(10))
    assert result.certificate.grade.value == "certified"
    shown = own.test(net, DataLoader(dataset, 64), verbose=False)[0]
    assert shown["test_mse"] < float(y[:300].float().var())


def test_metrics_and_checkpoint_are_of_the_solved_model(tmp_path):
    net, callback = CertifiedClassifier(backbone(), 5), UnlearningCallback()
    saver = ModelCheckpoint(tmp_path, "best", monitor="val_acc", mode="max")
    own = trainer(callback, callbacks=[saver], enable_checkpointing=True)
    val = TensorDataset(*held_out())
    own.fit(net, loader(private()), DataLoader(val, 100))
    expected = accuracy(net, held_out())
    assert own.callback_metrics["val_acc"].item() == pytest.approx(expected)
    assert own.callback_metrics["train_loss"] < 0.5
    again = CertifiedClassifier.load_from_checkpoint(
        saver.best_model_path, backbone=backbone(), weights_only=True
    )
    assert (again.hparams.num_classes, again.hparams.l2) == (5, L2)
    assert torch.equal(again(val.tensors[0]), net(val.tensors[0]))
    fresh = trainer(UnlearningCallback())
    result = fresh.unlearn(
        range(5),
        model=CertifiedClassifier(backbone(), 5),
        train_dataloaders=loader(private()),
        ckpt_path=saver.best_model_path,
    )
    assert result.certificate.grade.value == "certified"
    predicted = fresh.predict(net, DataLoader(val, 100))
    assert torch.equal(torch.cat(predicted), net(val.tensors[0]))


def test_a_request_after_a_fit_reads_no_features_but_those_near_the_forgotten():
    net, own, _, _ = solved()
    seen = []
    handle = net.backbone.model.register_forward_hook(
        lambda module, inputs, output: seen.append(len(output))
    )
    own.unlearn([7])
    handle.remove()
    # Without what was kept all 600 are read besides the up to 512 that are compared
    # with what they were in training.
    assert sum(seen) < 512 + 300


class Dictionaries(torch.utils.data.Dataset):
    """As of a tokenizer: keywords of the model, and labels."""

    def __init__(self, base):
        self.base = base

    def __len__(self):
        return len(self.base)

    def __getitem__(self, i):
        x, y = self.base[i]
        return {"input": x, "labels": y}


def test_batches_of_keywords_with_labels_are_read():
    one, _, _, dataset = solved()
    two, own, _, _ = solved(dataset=Dictionaries(dataset))
    torch.testing.assert_close(one.head.weight, two.head.weight, rtol=1e-3, atol=1e-4)
    assert own.unlearn([3]).certificate.grade.value == "certified"


# -- refused -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: CertifiedClassifier(nn.Linear(2, 2), 5), ArgumentError, "wrap it"),
        (
            lambda: CertifiedClassifier(backbone(), 1),
            ArgumentError,
            "num_classes >= 2 for loss='cross_entropy', got 1: for yes or no say",
        ),
        (lambda: CertifiedClassifier(backbone(), 5, l2=0.0), ArgumentError, "l2"),
        (lambda: CertifiedClassifier(backbone(), 5, "poisson"), ArgumentError, "loss"),
        (lambda: CertifiedRegressor(backbone(), 1, "bce"), ArgumentError, "loss"),
        (lambda: CertifiedRegressor(backbone(), 0), ArgumentError, "out_features"),
    ],
)
def test_bad_arguments_are_refused(make, error, match):
    with pytest.raises(error, match=match):
        make()


def test_a_fit_without_the_callback_is_refused_by_name():
    net = CertifiedClassifier(backbone(), 5)
    with pytest.raises(SetupError, match="Trainer with an UnlearningCallback"):
        trainer().fit(net, loader(private()), DataLoader(private()))


def test_a_fit_that_lightning_skips_is_no_silent_success():
    net, own, _, _ = solved(trainer_options={"max_epochs": 1})
    more = TensorDataset(*(t[:300] for t in private().tensors))
    with pytest.raises(
        SetupError, match="max_epochs=1 with 1 done.*nothing was solved"
    ):
        own.fit(net, loader(more), DataLoader(more, 256))
    assert own.unlearn([3], train_dataloaders=loader(private())).n_retain == 599


def test_a_norm_ball_would_move_the_solution_and_is_refused():
    with pytest.raises(SetupError, match="without max_norm"):
        solved(max_norm=1.0)


def test_other_batches_are_refused_with_what_to_override():
    with pytest.raises(DataError, match="override inputs_and_targets"):
        solved(dataset=TensorDataset(private().tensors[0]))


def test_a_class_that_is_no_output_is_refused():
    net = CertifiedClassifier(backbone(), 3)
    with pytest.raises(DataError, match="expected classes from 0 to 2, got [34]: set"):
        solved(net)


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_classes_may_be_of_any_integer_type(loss):
    x, y = private(200).tensors
    net = CertifiedClassifier(backbone(), 5, loss=loss, l2=1e-2)
    _, own, _, _ = solved(net, TensorDataset(x, y.to(torch.int32)))
    assert own.unlearn([3]).certificate.grade.value == "certified"


def test_inputs_alone_are_predicted():
    net, own, _, dataset = solved()
    x = dataset.tensors[0][:30]
    found = own.predict(net, DataLoader(TensorDataset(x), 10))
    torch.testing.assert_close(torch.cat(found), net(x).detach())


@pytest.mark.parametrize("options", [{}, {"noise_std": 0.0}])
def test_an_extra_trainable_layer_is_refused_by_name_when_the_training_starts(options):
    net = Extra(backbone())
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    with pytest.raises(GuaranteeError, match="extra.weight, extra.bias beside"):
        solved(net, **options)
    assert all(torch.equal(before[name], p) for name, p in net.named_parameters())


def test_an_extra_layer_that_is_unfrozen_after_the_fit_is_refused_by_the_request():
    net = Extra(backbone())
    net.extra.requires_grad_(False)
    net, own, _, _ = solved(net)
    net.extra.requires_grad_(True)
    with pytest.raises(GuaranteeError, match="extra.weight, extra.bias beside"):
        own.unlearn([1])


def refused_after(change, error, match):
    net, own, callback, _ = solved()
    change(net.backbone)
    head = net.head.weight.detach().clone()
    with pytest.raises(error, match=match):
        own.unlearn([1, 2])
    assert torch.equal(head, net.head.weight)
    assert callback.record.removed == []


def _weight(b):
    b.model[3].weight.data[0, 0, 0, 0] += 1e-6


def test_a_backbone_changed_by_one_weight_is_refused_by_name():
    refused_after(_weight, ModelError, "got others in 3.weight")


def _train_mode(b):
    b.model[4].train()


def test_a_precision_that_converts_the_backbone_is_refused_and_a_mixed_one_is_not():
    with pytest.raises(ModelError, match="such as 'bf16-true' converts it"):
        solved(trainer_options={"precision": "bf16-true"})
    one, _, _, _ = solved()
    two, _, _, _ = solved(trainer_options={"precision": "bf16-mixed"})
    torch.testing.assert_close(one.head.weight, two.head.weight)


def test_batchnorm_in_train_mode_is_refused_by_name():
    refused_after(_train_mode, ModelError, r"4 \(BatchNorm2d\) in train mode")


@pytest.mark.filterwarnings("ignore:Found 12 module")
def test_a_backbone_in_train_mode_is_refused_before_the_fit():
    made = backbone()
    made.model[4].train()
    with pytest.raises(ModelError, match=r"4 \(BatchNorm2d\) in train mode"):
        solved(CertifiedClassifier(made, 5))


def test_statistics_of_private_samples_are_refused():
    dataset = private()
    mixed = torch.cat([split()[0][0], dataset.tensors[0][11:13]])
    net = CertifiedClassifier(backbone(public_data=mixed), 5)
    with pytest.raises(GuaranteeError, match="training samples.*are both"):
        solved(net, dataset)


def test_a_plain_module_with_a_changed_backbone_is_refused_too():
    """The check is the request's: it needs no CertifiedClassifier."""

    class Own(CertifiedClassifier):
        pass

    refused = Own(backbone(), 5)
    net, own, _, _ = solved(refused)
    net.backbone.scale = 9.0
    with pytest.raises(ModelError, match="got others in options"):
        own.unlearn([1])


# -- growth, users, classes ----------------------------------------------------


def test_a_class_that_disappears():
    """No retained sample is of it: its outputs stay, and nothing predicts it."""
    dataset = private()
    x, y = dataset.tensors
    gone = (y == 3).nonzero()[:, 0].tolist()
    net, own, _, _ = solved(dataset=dataset)
    assert (net(x[gone]).argmax(1) == 3).float().mean() > 0.9
    result = own.unlearn(gone)
    assert result.certificate.grade.value == "certified"
    assert not (net(x).argmax(1) == 3).any()


def test_a_hundred_announced_releases_stay_useful():
    net, own, _, _ = solved(releases=100, tolerance=1e-7)
    for i in range(3):
        result = own.unlearn([i])
    certificate = result.certificate
    assert certificate.release == 3
    assert certificate.composed_epsilon < 1
    assert accuracy(net, held_out()) > 0.85
