"""Baselines: against closed forms on quadratics, and what they refuse."""

import copy
import math

import pytest
import torch
from torch import nn

from lightning_unlearn.errors import ArgumentError, ModelError
from lightning_unlearn.evaluation import (
    fine_tune,
    gradient_ascent,
    neg_grad_plus,
    retrain,
)

RATE = 0.25


class Point(nn.Module):
    def __init__(self, w):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([float(w)], dtype=torch.float64))
        self.register_buffer("seen", torch.tensor(0))


def loss(model, batch):
    model.seen += 1
    return ((model.w - batch) ** 2).mean() / 2


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=RATE)


def batches(*values):
    return [torch.tensor([float(value)]) for value in values]


def with_names(model, **changed):
    """Every method without a certificate, on the same options."""
    how = {"epochs": 2, "optimizer": sgd, **changed}
    retain = how.pop("retain", batches(1, 2))
    forget = how.pop("forget", batches(-1))
    ours = how.pop("loss", loss)
    return {
        "fine_tune": lambda: fine_tune(model, ours, retain, **how),
        "retrain": lambda: retrain(model, ours, retain, **how),
        "gradient_ascent": lambda: gradient_ascent(model, ours, forget, **how),
        "neg_grad_plus": lambda: neg_grad_plus(
            model, ours, retain, forget, alpha=0.9, **how
        ),
    }


NAMES = tuple(with_names(None))


@pytest.mark.parametrize("method", [fine_tune, retrain])
def test_training_on_the_retained_is_gradient_descent_in_their_order(method):
    model = Point(8)
    done = method(model, loss, batches(1, 2), epochs=3, optimizer=sgd)
    w = 8.0
    for target in [1, 2] * 3:
        w -= RATE * (w - target)
    assert model.w.item() == pytest.approx(w, rel=1e-14)
    assert model.seen == 6
    assert done.seconds > 0


def test_ascent_climbs_and_the_ball_stops_it():
    model = Point(2)
    gradient_ascent(model, loss, batches(1), epochs=4, optimizer=sgd)
    assert model.w.item() == pytest.approx(1 + (1 + RATE) ** 4, rel=1e-14)
    gradient_ascent(model, loss, batches(1), epochs=4, optimizer=sgd, max_norm=2.5)
    assert model.w.item() == pytest.approx(2.5, rel=1e-14)
    gradient_ascent(model, loss, batches(3), epochs=1, optimizer=sgd, max_norm=2.5)
    assert model.w.item() == pytest.approx(2.375, rel=1e-14)  # inside: left alone


def test_the_ball_holds_the_weights_as_one_vector():
    model = nn.Linear(2, 1).double()
    gradient_ascent(
        model,
        lambda model, x: (model(x) ** 2).mean() + model.bias.sum(),
        [torch.ones(3, 2, dtype=torch.float64)],
        epochs=20,
        optimizer=sgd,
        max_norm=0.5,
    )
    flat = nn.utils.parameters_to_vector(model.parameters())
    assert float(flat.detach().norm()) == pytest.approx(0.5, rel=1e-14)


def test_neg_grad_plus_weighs_both_and_starts_the_forgotten_again():
    model, alpha = Point(8), 0.75
    neg_grad_plus(
        model,
        loss,
        batches(1, 2, 3),
        batches(-1, -2),
        epochs=2,
        optimizer=sgd,
        alpha=alpha,
    )
    w = 8.0
    for kept, gone in [(1, -1), (2, -2), (3, -1)] * 2:
        w -= RATE * (alpha * (w - kept) - (1 - alpha) * (w - gone))
    assert model.w.item() == pytest.approx(w, rel=1e-14)


@pytest.mark.parametrize("name", NAMES)
def test_no_baseline_without_noise_claims_anything(name):
    done = with_names(Point(3))[name]()
    assert "no certificate" in done.claim
    assert (done.epsilon, done.delta, done.noise_std) == (None, None, None)


@pytest.mark.parametrize("name", NAMES)
def test_modes_are_as_before_and_training_is_in_training_mode(name):
    model = nn.Sequential(nn.Linear(1, 1), nn.Dropout())
    model.eval()
    model[1].train()
    modes = []

    def watched(model, batch):
        modes.append([module.training for module in model])
        return model(torch.ones(1, 1)).sum()

    with_names(model, loss=watched)[name]()
    assert set(map(tuple, modes)) == {(True, True)}
    assert [module.training for module in model] == [False, True]
    assert all(p.grad is None for p in model.parameters())


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"epochs": 0}, ArgumentError, "epochs to be an integer >= 1"),
        ({"loss": lambda m, b: 1.0}, ArgumentError, "one number.*got float"),
        ({"loss": lambda m, b: m.w.repeat(2)}, ArgumentError, r"got shape \(2,\)"),
        (
            {"loss": lambda m, b: m.w.detach().sum()},
            ArgumentError,
            "requires_grad=False: return the mean",
        ),
        (
            {"retain": [], "forget": []},
            ArgumentError,
            "batches.*got none: give a DataLoader",
        ),
        (
            {"retain": iter(batches(1)), "forget": iter(batches(1))},
            ArgumentError,
            "batches.*got none: give a DataLoader",
        ),
        (
            {"retain": batches(1, math.nan), "forget": batches(1, math.nan)},
            ModelError,
            "{name}: expected a finite loss.*got nan.*as it was",
        ),
        (
            {"optimizer": lambda p: torch.optim.SGD(p, lr=math.inf), "epochs": 1,
             "retain": batches(1), "forget": batches(1)},
            ModelError,
            "{name}: expected finite weights after training",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_leaves_the_model_as_it_was(
    name, changed, error, message
):
    model = Point(5)
    before = state(model)
    with pytest.raises(error, match=message.format(name=name)):
        with_names(model, **changed)[name]()
    assert state(model) == before


def test_forgotten_samples_that_run_out_are_refused():
    model = Point(5)
    with pytest.raises(ArgumentError, match="neg_grad_plus: expected batches of forg"):
        neg_grad_plus(
            model,
            loss,
            batches(1, 2),
            iter(batches(3)),
            epochs=1,
            optimizer=sgd,
            alpha=0.5,
        )
    assert model.w.item() == 5


@pytest.mark.parametrize("alpha", [0.0, 1.0, math.nan])
def test_a_weight_outside_its_range_is_refused(alpha):
    with pytest.raises(ArgumentError, match="alpha strictly between 0 and 1"):
        neg_grad_plus(
            Point(1),
            loss,
            batches(1),
            batches(1),
            epochs=1,
            optimizer=sgd,
            alpha=alpha,
        )


def test_a_ball_without_radius_is_refused():
    with pytest.raises(ArgumentError, match="max_norm to be a finite number > 0"):
        gradient_ascent(
            Point(1), loss, batches(1), epochs=1, optimizer=sgd, max_norm=0.0
        )


@pytest.mark.parametrize("model", [None, nn.ReLU(), Point(1).requires_grad_(False)])
def test_a_model_with_nothing_to_train_is_refused(model):
    with pytest.raises(ArgumentError, match="parameters that require a gradient, got"):
        fine_tune(model, loss, batches(1), epochs=1, optimizer=sgd)


def test_a_buffer_put_in_place_of_another_is_restored():
    model = Point(5)

    def assigning(model, batch):
        model.seen = model.seen + 1
        return loss(model, batch)

    original = model.seen
    with pytest.raises(ModelError, match="fine_tune: expected a finite loss"):
        fine_tune(model, assigning, batches(1, math.inf), epochs=1, optimizer=sgd)
    assert model.seen is original
    assert model.seen == 0


def test_a_frozen_weight_stays():
    model = nn.Linear(1, 1)
    model.bias.requires_grad_(False)
    before = copy.deepcopy(model.bias)
    fine_tune(
        model,
        lambda model, x: model(x).square().mean(),
        [torch.ones(2, 1)],
        epochs=2,
        optimizer=sgd,
    )
    assert torch.equal(model.bias, before)
