"""Noisy fine-tuning with its own accountant: a rival's guarantee, to compare with."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_unlearn._base import validate
from lightning_unlearn.errors import ArgumentError
from lightning_unlearn.evaluation.baselines import training
from lightning_unlearn.evaluation.baselines.noisy_accountant import (
    noisy_fine_tuning_noise_std,
)
from lightning_unlearn.evaluation.baselines.simple import Baseline, fine_tune
from lightning_unlearn.evaluation.baselines.training import Loss, Optimizer
from lightning_unlearn.step.noise import add_noise

_NAME = "noisy_fine_tune"
_CLAIMED = (
    "the law of these weights is within (epsilon, delta) of what the same procedure "
    "gives from any other starting weights: clipped start, clipped noisy steps, no "
    "assumption on the loss (Koloskova et al. 2025; exact arithmetic). No certificate "
    "of this package; nothing of weights seen between the steps, nor of choices made "
    "with the forgotten samples in sight"
)
_AFTERWARDS = (
    "; then {epochs} epochs of plain training on the retained samples: post-processing "
    "of the noisy weights, so the same epsilon. Together a certified reset, then "
    "retraining"
)
_BY_HAND = (
    "no certificate: the noise came from a generator, so it can be drawn again and "
    "taken off"
)


def leading_dimension(batch: Any) -> int:
    """Samples in a batch: the first dimension that all its tensors share.

    Args:
        batch: A tensor, or tuples, lists and mappings of them at any depth.

    Returns:
        The number, >= 1.

    Raises:
        ArgumentError: If there is no tensor with a dimension, or they differ.
    """
    found = set(_lengths(batch))
    if len(found) != 1 or not min(found):
        raise ArgumentError(
            "expected all tensors of a batch to have as many rows, at least one, got "
            f"{sorted(found) or 'no tensor'}: pass count=, a function of the batch"
        )
    return found.pop()


def _lengths(batch: Any) -> Iterator[int]:
    if isinstance(batch, Tensor) and batch.ndim:
        yield len(batch)
    elif isinstance(batch, Mapping):
        batch = list(batch.values())
    if isinstance(batch, (list, tuple)):
        for part in batch:
            yield from _lengths(part)


def _flat(tensors: Iterable[Tensor]) -> Tensor:
    """In a row, whatever their memory format is (channels last, say)."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def _scaled(vector: Tensor, max_norm: float) -> Tensor:
    norm = float(vector.norm())
    return vector * (max_norm / norm) if norm > max_norm else vector


def _gradient(
    model: nn.Module, loss: Loss, retain: Iterable[Any], count: Callable[[Any], int]
) -> Tensor:
    """Of the mean loss over all retained samples: float64, (p,)."""
    parameters = list(model.parameters())
    like = _flat(parameters).detach().double()
    total, n = torch.zeros_like(like), 0
    for batch in retain:
        samples = count(batch)
        validate.count(count=samples)
        value = training.loss_of(_NAME, model, loss, batch, "retained")
        parts = torch.autograd.grad(value, parameters, materialize_grads=True)
        total += samples * _flat(parts).double()
        n += samples
    if not n:
        raise ArgumentError(
            f"{_NAME}: expected batches at every step, got none: give a DataLoader or "
            "a list, which can be read again, not a generator"
        )
    training.finite(_NAME, "a finite gradient", [total])
    return total / n


def _write(vector: Tensor, parameters: Iterable[Tensor]) -> None:
    start = 0
    with torch.no_grad():
        for parameter in parameters:
            stop = start + parameter.numel()
            parameter.copy_(vector[start:stop].view_as(parameter))
            start = stop


def noisy_fine_tune(
    model: nn.Module,
    loss: Loss,
    retain: Iterable[Any],
    *,
    epsilon: float,
    delta: float,
    max_norm: float,
    gradient_norm: float,
    l2: float,
    lr: float,
    steps: int,
    count: Callable[[Any], int] = leading_dimension,
    generator: torch.Generator | None = None,
    fine_tune_epochs: int = 0,
    optimizer: Optimizer | None = None,
) -> Baseline:
    """Scale the weights down, then take clipped steps on the retained samples, noisily.

    Koloskova et al., ICML 2025, by gradient clipping; the accountant is
    `noisy_fine_tuning_epsilon`. Its claim holds for every start, so nothing that the
    model knew is sure to be kept (docs/theory.md section 8): expect the
    accuracy of training anew with this noise. More than about
    ``max_norm / (lr * gradient_norm)`` steps do not lower the noise, but may train the
    model further. Its claim is no certificate of this package: it is not recorded,
    verified or composed with other requests.

    The authors train on without noise once epsilon is reached; `fine_tune_epochs` does
    this. It uses the noisy weights and the retained samples, nothing else, so epsilon
    also holds for its result, by post-processing. It is a certified reset followed by
    retraining: it takes as long as retraining, and ends no better. Choose
    `max_norm` so small that the noisy weights are no larger than those of a new model:
    training goes on from there.

    Args:
        model: Trained in place, in evaluation mode; every parameter must be trained,
            and no buffer be floating, since only the weights get noise.
        loss: Called with the model and a batch, gives the batch's mean loss, a scalar
            tensor. Any randomness in it must not depend on the forgotten samples.
        retain: Batches of all retained samples, iterable anew at each step.
        epsilon: Privacy parameter, > 0.
        delta: Failure probability, in (0, 1).
        max_norm: The radius the weights are scaled into before the first step, > 0.
        gradient_norm: The norm the gradient of each step, of the mean over all of
            `retain`, is clipped to as one vector, > 0.
        l2: Weight decay, >= 0, applied after clipping.
        lr: Step size, > 0, with ``lr * l2 <= 1``.
        steps: Steps, each over all of `retain`, >= 1.
        count: Gives the number of samples in a batch.
        generator: For tests only: with it nothing is claimed.
        fine_tune_epochs: Passes over `retain` after the last noise, >= 0, as in
            `fine_tune`: in training mode, without noise, clipping or `l2`. Its
            settings and seeds must not depend on the forgotten samples either.
        optimizer: Called with the noisy weights before the first of these passes,
            gives a new optimizer; needed for them, unused without.

    Returns:
        The time, epsilon, delta and the noise of a step; no epsilon with a generator.

    Raises:
        ArgumentError: If a number is outside its range, a batch cannot be counted,
            there is none, the loss is no scalar with a gradient, or `optimizer` is
            missing or gives one that has been used. The model is as it was.
        ModelError: If there are floating buffers or frozen parameters, or a loss,
            gradient or weight is NaN or infinite. The model is as it was.
    """
    started = time.perf_counter()
    noise_std = noisy_fine_tuning_noise_std(
        epsilon,
        delta,
        max_norm=max_norm,
        gradient_norm=gradient_norm,
        l2=l2,
        lr=lr,
        steps=steps,
    )
    validate.count(minimum=0, fine_tune_epochs=fine_tune_epochs)
    if fine_tune_epochs and not callable(optimizer):
        raise ArgumentError(
            f"{_NAME}: expected optimizer= for fine_tune_epochs={fine_tune_epochs}, "
            f"got {type(optimizer).__name__}: pass a function of the parameters, as in "
            "optimizer=lambda parameters: torch.optim.Adam(parameters, lr=1e-3)"
        )
    parameters = training.trainable(model)
    training.nothing_without_noise(_NAME, model)
    with training.unchanged_on_failure(model):
        model.eval()
        # The chain runs in float64; what the model holds is rounded from it.
        w = _flat(parameters).detach().double()
        training.finite(_NAME, "finite weights before training", [w])
        w = _scaled(w, max_norm)
        for _ in range(steps):
            _write(w, parameters)
            step = _scaled(_gradient(model, loss, retain, count), gradient_norm)
            w = add_noise((1 - lr * l2) * w - lr * step, noise_std, generator)
        _write(w, parameters)
        training.finite(_NAME, "finite weights after training", parameters)
        if fine_tune_epochs and optimizer is not None:
            new = training.made_now(_NAME, optimizer)
            fine_tune(model, loss, retain, epochs=fine_tune_epochs, optimizer=new)
    seconds = time.perf_counter() - started
    if generator is not None:
        return Baseline("noisy fine-tuning", seconds, _BY_HAND, noise_std=noise_std)
    claim = _CLAIMED
    if fine_tune_epochs:
        claim += _AFTERWARDS.format(epochs=fine_tune_epochs)
    return Baseline("noisy fine-tuning", seconds, claim, epsilon, delta, noise_std)
