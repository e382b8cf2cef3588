"""Relearn time: how soon the forgotten is known again, against the retrained model."""

import copy
from collections.abc import Callable
from typing import NamedTuple

from torch import nn

from lightning_unlearn._base import validate
from lightning_unlearn.errors import ArgumentError


class RelearnTime(NamedTuple):
    """Steps until one model is back.

    Attributes:
        steps: Training steps taken; 0 if it was back before the first.
        reached: Whether it came back; if not, it needs more than `steps`.
        values: What was measured before the first and after each step.
    """

    steps: int
    reached: bool
    values: tuple[float, ...]


class Relearning(NamedTuple):
    """Relearn times of both models, from the same training.

    Attributes:
        unlearned: Of the unlearned model.
        retrained: Of the retrained one.
        anamnesis_index: ``unlearned.steps / retrained.steps`` (AIN, Chundawat et al.
            2023): near 1 where the unlearned model relearns as if it had never known,
            below where something stayed. None where it does not exist: a model did
            not come back within `max_steps`, or the retrained one was there at once.
    """

    unlearned: RelearnTime
    retrained: RelearnTime
    anamnesis_index: float | None


def _measured(measure: Callable[[nn.Module], float], model: nn.Module) -> float:
    value = float(measure(model))
    validate.finite(measured=value)
    return value


def _until_back(
    model: nn.Module,
    training: Callable[[nn.Module], Callable[[], object]],
    measure: Callable[[nn.Module], float],
    is_back: Callable[[float], bool],
    max_steps: int,
) -> RelearnTime:
    model = copy.deepcopy(model)
    step = training(model)
    values = [_measured(measure, model)]
    while not is_back(values[-1]) and len(values) <= max_steps:
        step()
        values.append(_measured(measure, model))
    return RelearnTime(len(values) - 1, is_back(values[-1]), tuple(values))


def relearn_time(
    *,
    unlearned: nn.Module,
    retrained: nn.Module | None,
    original: nn.Module | float,
    training: Callable[[nn.Module], Callable[[], object]],
    measure: Callable[[nn.Module], float],
    margin: float,
    max_steps: int = 1000,
    higher_is_better: bool = False,
) -> Relearning:
    """Train copies of both models on the forgotten samples until they are back.

    Back means: within `margin` of what the original model, before the request, has.
    Golatkar et al. 2020 (arXiv 2003.02960) with the loss, Chundawat et al. 2023 (arXiv
    2201.05629), definition of AIN, with the accuracy; there the margin is a share of
    the original's, here it is in units of the measure.

    Args:
        unlearned: The unlearned model; it is copied, never trained itself.
        retrained: The model retrained without the samples; copied too.
        original: The model before the request, or what `measure` gave for it.
        training: Called with a copy, gives a function that trains it by one step
            (makes its own optimizer; the same batches and learning rate for both).
        measure: Loss or accuracy of a model on the forgotten samples.
        margin: >= 0, in units of the measure.
        max_steps: Steps after which to give up, >= 1.
        higher_is_better: False for a loss, True for an accuracy.

    Returns:
        Both times and their ratio.

    Raises:
        ArgumentError: If `retrained` is None, a number is outside its range, or the
            measure is NaN or infinite.
    """
    if not isinstance(retrained, nn.Module):
        raise ArgumentError(
            "expected a model retrained without the forgotten samples, got "
            f"{type(retrained).__name__}: how soon a model relearns says nothing by "
            "itself"
        )
    validate.non_negative(margin=margin)
    validate.count(max_steps=max_steps)
    if isinstance(original, nn.Module):
        target = _measured(measure, original)
    else:
        target = original
    validate.finite(original=target)

    def is_back(value: float) -> bool:
        if higher_is_better:
            return value >= target - margin
        return value <= target + margin

    ours = _until_back(unlearned, training, measure, is_back, max_steps)
    theirs = _until_back(retrained, training, measure, is_back, max_steps)
    exists = ours.reached and theirs.reached and theirs.steps
    return Relearning(ours, theirs, ours.steps / theirs.steps if exists else None)
