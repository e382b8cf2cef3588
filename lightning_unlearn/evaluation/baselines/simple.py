"""Baselines to compare with: retrain, fine-tune, gradient ascent, NegGrad+.

None of them gives a certificate. They train in place, and leave a model that cannot be
trained on as it was.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from torch import Tensor, nn

from lightning_unlearn._base import validate
from lightning_unlearn.errors import ArgumentError
from lightning_unlearn.evaluation.baselines import training
from lightning_unlearn.evaluation.baselines.training import Loss, Optimizer

_NO_CERTIFICATE = "no certificate: nothing bounds what the weights still tell of the "


class Baseline(NamedTuple):
    """What a baseline did, and what may be said of its weights.

    Attributes:
        name: Of the method.
        seconds: Wall time of its training, preparation and checks included.
        claim: What is claimed of the weights, and what is not.
        epsilon: Of what is claimed; None where nothing is.
        delta: The same.
        noise_std: Standard deviation of the noise added to the weights at each step,
            in their units; None for a method without noise.
    """

    name: str
    seconds: float
    claim: str
    epsilon: float | None = None
    delta: float | None = None
    noise_std: float | None = None


def _train(
    name: str,
    model: nn.Module,
    objectives: Callable[[], Iterable[Tensor]],
    *,
    epochs: int,
    optimizer: Optimizer,
    max_norm: float | None = None,
) -> float:
    """Seconds of one optimizer step for each objective of each epoch."""
    validate.count(epochs=epochs)
    started = time.perf_counter()
    parameters = training.trainable(model)
    with training.unchanged_on_failure(model):
        model.train()
        steps = optimizer(parameters)
        for _ in range(epochs):
            taken = 0
            for objective in objectives():
                steps.zero_grad()
                objective.backward()
                steps.step()
                if max_norm is not None:
                    training.project(parameters, max_norm)
                taken += 1
            if not taken:
                raise ArgumentError(
                    f"{name}: expected batches in every epoch, got none: give a "
                    "DataLoader or a list, which can be read again, not a generator"
                )
        training.finite(name, "finite weights after training", parameters)
    return time.perf_counter() - started


def _descend(
    name: str, model: nn.Module, loss: Loss, batches: Iterable[Any], **how: Any
) -> float:
    def objectives() -> Iterator[Tensor]:
        for batch in batches:
            yield training.loss_of(name, model, loss, batch, "retained")

    return _train(name, model, objectives, **how)


def fine_tune(
    model: nn.Module,
    loss: Loss,
    retain: Iterable[Any],
    *,
    epochs: int,
    optimizer: Optimizer,
) -> Baseline:
    """Train on, on the retained samples. No certificate.

    Args:
        model: Trained in place, in training mode; modes are as before afterwards.
        loss: Called with the model and a batch, gives the batch's mean loss, a scalar.
        retain: Batches of retained samples, iterable anew each epoch.
        epochs: Passes over `retain`, >= 1.
        optimizer: Called with the parameters that require a gradient.

    Returns:
        The time it took, and that nothing is claimed.

    Raises:
        ArgumentError: If `epochs` < 1, no parameter requires a gradient, there is no
            batch, or the loss is no scalar with a gradient. The model is as it was.
        ModelError: If a loss or a weight is NaN or infinite. The model is as it was.
    """
    seconds = _descend(
        "fine_tune", model, loss, retain, epochs=epochs, optimizer=optimizer
    )
    return Baseline("fine-tune", seconds, _NO_CERTIFICATE + "forgotten samples")


def retrain(
    fresh: nn.Module,
    loss: Loss,
    retain: Iterable[Any],
    *,
    epochs: int,
    optimizer: Optimizer,
) -> Baseline:
    """Train a fresh model on the retained samples alone: the reference. No certificate.

    Its weights know nothing of the forgotten samples if neither `fresh` nor what was
    chosen for the training does, which nothing here can check.

    Args:
        fresh: Newly initialised, never trained; trained in place.
        loss: As for `fine_tune`.
        retain: As for `fine_tune`.
        epochs: As for `fine_tune`.
        optimizer: As for `fine_tune`.

    Returns:
        The time it took, and on what condition it forgets.

    Raises:
        ArgumentError: As for `fine_tune`.
        ModelError: As for `fine_tune`.
    """
    seconds = _descend(
        "retrain", fresh, loss, retain, epochs=epochs, optimizer=optimizer
    )
    claim = (
        "no certificate: exact forgetting by construction, if the start and all choices"
        " were made without the forgotten samples, which is not checked"
    )
    return Baseline("retrain", seconds, claim)


def gradient_ascent(
    model: nn.Module,
    loss: Loss,
    forget: Iterable[Any],
    *,
    epochs: int,
    optimizer: Optimizer,
    max_norm: float | None = None,
) -> Baseline:
    """Raise the loss of the forgotten samples. No certificate.

    GA in Fan et al. 2024 (arXiv 2310.12508). A loss driven past the retrained model's
    is a trace of its own, and nothing stops the weights from running away but few
    epochs or `max_norm`.

    Args:
        model: As for `fine_tune`.
        loss: As for `fine_tune`; its negative is minimised.
        forget: Batches of forgotten samples, iterable anew each epoch.
        epochs: As for `fine_tune`.
        optimizer: As for `fine_tune`.
        max_norm: Radius of the ball the trained weights, as one vector, are scaled
            back into after each step, > 0; None for no ball.

    Returns:
        The time it took, and that nothing is claimed.

    Raises:
        ArgumentError: As for `fine_tune`, or if `max_norm` is not > 0.
        ModelError: As for `fine_tune`.
    """
    if max_norm is not None:
        validate.positive(max_norm=max_norm)
    name = "gradient_ascent"

    def objectives() -> Iterator[Tensor]:
        for batch in forget:
            yield -training.loss_of(name, model, loss, batch, "forgotten")

    seconds = _train(
        name, model, objectives, epochs=epochs, optimizer=optimizer, max_norm=max_norm
    )
    return Baseline("gradient ascent", seconds, _NO_CERTIFICATE + "forgotten samples")


def neg_grad_plus(
    model: nn.Module,
    loss: Loss,
    retain: Iterable[Any],
    forget: Iterable[Any],
    *,
    epochs: int,
    optimizer: Optimizer,
    alpha: float,
) -> Baseline:
    """Descend on the retained, ascend on the forgotten samples. No certificate.

    Each step minimises ``alpha * retain loss - (1 - alpha) * forget loss`` (NegGrad+
    of Kurmanji et al. 2023, arXiv 2302.09880) on a batch of either; an epoch is a pass
    over `retain`, in which `forget` starts again as often as needed.

    Args:
        model: As for `fine_tune`.
        loss: As for `fine_tune`.
        retain: As for `fine_tune`.
        forget: Batches of forgotten samples, iterable anew.
        epochs: As for `fine_tune`.
        optimizer: As for `fine_tune`.
        alpha: Weight of the retained samples, in (0, 1).

    Returns:
        The time it took, and that nothing is claimed.

    Raises:
        ArgumentError: As for `fine_tune`, or if `alpha` is outside (0, 1).
        ModelError: As for `fine_tune`.
    """
    validate.probability(alpha=alpha)
    name = "neg_grad_plus"

    def objectives() -> Iterator[Tensor]:
        for kept, gone in zip(retain, _again_and_again(forget), strict=False):
            retained = training.loss_of(name, model, loss, kept, "retained")
            forgotten = training.loss_of(name, model, loss, gone, "forgotten")
            yield alpha * retained - (1 - alpha) * forgotten

    seconds = _train(name, model, objectives, epochs=epochs, optimizer=optimizer)
    return Baseline("NegGrad+", seconds, _NO_CERTIFICATE + "forgotten samples")


def _again_and_again(batches: Iterable[Any]) -> Iterator[Any]:
    found = True
    while found:
        found = False
        for batch in batches:
            found = True
            yield batch
    raise ArgumentError(
        "neg_grad_plus: expected batches of forgotten samples at every pass, got none: "
        "give a DataLoader or a list, which can be read again, not a generator"
    )
