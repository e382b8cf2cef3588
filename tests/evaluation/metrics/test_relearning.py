"""Relearn time: of gradient descent on a quadratic, where steps are known."""

import copy
import math

import pytest
import torch
from torch import nn

from lightning_unlearn.errors import ArgumentError
from lightning_unlearn.evaluation import relearn_time

RATE = 0.25  # w <- (1 - RATE) w, so the loss w^2 / 2 falls by (1 - RATE)^2 a step


class Point(nn.Module):
    def __init__(self, w):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(float(w), dtype=torch.float64))


def training(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)

    def step():
        optimizer.zero_grad()
        (model.w**2 / 2).backward()
        optimizer.step()

    return step


def loss(model):
    return float(model.w.detach() ** 2 / 2)


def steps_needed(w, target):
    return max(0, math.ceil(math.log(target / (w**2 / 2)) / math.log((1 - RATE) ** 2)))


def timed(**changed):
    options = {
        "unlearned": Point(2),
        "retrained": Point(8),
        "original": 0.0,
        "training": training,
        "measure": loss,
        "margin": 0.01,
    }
    return relearn_time(**{**options, **changed})


def test_steps_are_those_of_the_closed_form():
    result = timed()
    expected = steps_needed(2, 0.01), steps_needed(8, 0.01)
    assert (result.unlearned.steps, result.retrained.steps) == expected == (10, 15)
    assert result.anamnesis_index == 10 / 15
    assert result.unlearned.reached
    values = result.unlearned.values
    assert len(values) == 11
    assert values[0] == 2.0
    assert values[-1] <= 0.01 < values[-2]


def test_models_are_not_trained_themselves_and_a_copy_is_as_fast():
    unlearned, retrained = Point(3), Point(3)
    before = copy.deepcopy(unlearned.state_dict())
    result = timed(unlearned=unlearned, retrained=retrained)
    assert unlearned.state_dict() == before
    assert result.anamnesis_index == 1.0
    assert result.unlearned == result.retrained


def test_the_original_may_be_a_model():
    result = timed(original=Point(1), margin=0.0)
    assert result.unlearned.steps == steps_needed(2, 0.5) == 3


def test_accuracy_goes_the_other_way():
    result = timed(
        original=1.0,
        measure=lambda model: 1 - loss(model) / 100,
        margin=0.01,
        higher_is_better=True,
    )
    assert result.unlearned.steps == steps_needed(2, 1.0)
    assert result.retrained.steps == steps_needed(8, 1.0)


def test_who_does_not_come_back_has_no_ratio():
    result = timed(max_steps=12)
    assert result.unlearned == timed().unlearned
    assert (result.retrained.steps, result.retrained.reached) == (12, False)
    assert result.anamnesis_index is None


def test_the_last_step_counts():
    assert timed(max_steps=15).retrained.reached
    assert not timed(max_steps=14).retrained.reached


def test_who_was_back_at_once():
    result = timed(unlearned=Point(0))
    assert result.unlearned == (0, True, (0.0,))
    assert result.anamnesis_index == 0.0
    assert timed(retrained=Point(0)).anamnesis_index is None


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"retrained": None}, "model retrained without.*got NoneType: how soon"),
        ({"margin": -1.0}, "margin to be a finite number >= 0"),
        ({"margin": math.nan}, "margin to be a finite number >= 0"),
        ({"max_steps": 0}, "max_steps to be an integer >= 1"),
        ({"original": math.nan}, "original to be a finite number"),
        ({"unlearned": Point(math.nan)}, "measured to be a finite number"),
        ({"original": Point(math.inf)}, "measured to be a finite number"),
    ],
)
def test_what_cannot_be_timed_is_refused(changed, message):
    with pytest.raises(ArgumentError, match=message):
        timed(**changed)


def test_a_training_that_diverges_is_named():
    def diverging(model):
        return lambda: model.w.data.mul_(1e200)

    with pytest.raises(ArgumentError, match="measured to be a finite number, got"):
        timed(training=diverging)
