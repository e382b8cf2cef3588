"""What the baselines' trainings share: refusals, and a model left as it was."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_unlearn._base.modes import modes_put_back
from lightning_unlearn.errors import ArgumentError, ModelError

Loss = Callable[[nn.Module, Any], Tensor]
Optimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


@contextmanager
def unchanged_on_failure(model: nn.Module) -> Iterator[None]:
    """Restore parameters and buffers if the block raises; modes and no grads anyway."""
    parameters = [(p, p.detach().clone()) for p in model.parameters()]
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    try:
        with modes_put_back(model):
            yield
    except BaseException:
        with torch.no_grad():
            for parameter, before in parameters:
                parameter.copy_(before)
            for module, name, buffer, before in buffers:
                setattr(module, name, buffer.copy_(before))
        raise
    finally:
        for parameter, _ in parameters:
            parameter.grad = None


def loss_of(name: str, model: nn.Module, loss: Loss, batch: Any, of: str) -> Tensor:
    """The loss of a batch, a finite scalar with a gradient, or an error by name."""
    value = loss(model, batch)
    if not (isinstance(value, Tensor) and value.numel() == 1 and value.requires_grad):
        got = (
            f"shape {tuple(value.shape)}, requires_grad={value.requires_grad}"
            if isinstance(value, Tensor)
            else type(value).__name__
        )
        raise ArgumentError(
            "expected loss(model, batch) to be one number as a tensor with a gradient, "
            f"got {got}: return the mean over the batch, not detached"
        )
    if not bool(torch.isfinite(value)):
        raise ModelError(
            f"{name}: expected a finite loss of every {of} batch, got {value.item()}: "
            "take a lower learning rate or fewer epochs; the model is as it was"
        )
    return value.reshape(())


def trainable(model: object) -> list[nn.Parameter]:
    """The parameters with a gradient, at least one."""
    parameters = list(model.parameters()) if isinstance(model, nn.Module) else []
    found = [p for p in parameters if p.requires_grad]
    if not found:
        raise ArgumentError(
            "expected model to be a module with parameters that require a gradient, "
            f"got {type(model).__name__} with {len(parameters)} parameters, none of "
            "which does: call requires_grad_(True) on those to train"
        )
    return found


def nothing_without_noise(name: str, model: nn.Module) -> None:
    """What gets no noise would be released as it was trained: refused."""
    frozen = [
        own
        for own, p in model.named_parameters()
        if not (p.requires_grad and p.is_floating_point())
    ]
    buffers = [
        own
        for own, b in model.named_buffers()
        if b.is_floating_point() or b.is_complex()
    ]
    for kind, names in (("frozen or complex parameters", frozen), ("buffers", buffers)):
        if names:
            raise ModelError(
                f"{name}: expected a model of trained real weights only, got {kind} "
                f"{', '.join(names[:3])} ({len(names)} in all): they get no noise and "
                "may know the forgotten samples; train all, or pass as the model the "
                "part that is all trained"
            )


def made_now(name: str, optimizer: Optimizer) -> Optimizer:
    """The same, but what it gives is refused if it has taken steps.

    Its momentum would be made of gradients from before the noise.
    """

    def make(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        made = optimizer(parameters)
        # Some, as Adagrad, begin with a state; it has counted no step.
        steps = [float(kept.get("step", math.nan)) for kept in made.state.values()]
        if not all(step == 0 for step in steps):
            raise ArgumentError(
                f"{name}: expected optimizer to make a new optimizer, got a "
                f"{type(made).__name__} that holds the state of earlier steps, which "
                "may know the forgotten samples: make it inside the function, as in "
                "lambda parameters: torch.optim.Adam(parameters, lr=1e-3)"
            )
        return made

    return make


def finite(name: str, what: str, tensors: Iterable[Tensor]) -> None:
    """Raise `ModelError` if a value is NaN or infinite."""
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
        raise ModelError(
            f"{name}: expected {what}, got NaN or infinity: "
            "take a lower learning rate or fewer epochs; the model is as it was"
        )


def project(parameters: list[nn.Parameter], max_norm: float) -> None:
    """Scale the weights, as one vector, to a norm of at most `max_norm`."""
    norm = math.hypot(*(float(p.detach().double().norm()) for p in parameters))
    if norm > max_norm:
        with torch.no_grad():
            for parameter in parameters:
                parameter.mul_(max_norm / norm)
