"""What a LightningModule says about its own unlearning; every hook has a default."""

import copy
import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, TypeGuard

import torch
import torchmetrics
from torch import Tensor, nn

from lightning_unlearn._base.modes import borrowed
from lightning_unlearn.errors import ModelError, UnlearningError
from lightning_unlearn.plugin.lightning import (
    DummyLogger,
    LightningModule,
    is_overridden,
)
from lightning_unlearn.plugin.plain_state import PlainState

#: Where a module remembers the certificate of the checkpoint it was loaded from.
LOADED = "_loaded_certificate"


class UnlearnableMixin:
    """Optional hooks for a LightningModule that will be unlearned.

    A plain LightningModule works too, with these defaults.

    Example:
        >>> class Net(UnlearnableMixin, LightningModule):
        ...     def unlearning_l2(self):
        ...         return 1e-3
    """

    def unlearning_loss(self, batch: Any, batch_idx: int) -> Tensor:
        """The loss of a batch: one for each sample, (batch,), or their mean.

        By default the loss that ``training_step`` returns. It must not contain the
        regulariser, must not step an optimizer, and must treat every sample on its
        own (no in-batch negatives).
        """
        return loss_of_training_step(self, batch, batch_idx)  # type: ignore[arg-type]

    def unlearning_parameters(self) -> Iterable[nn.Parameter]:
        """The weights in scope. By default all that require a gradient."""
        return trainable(self)  # type: ignore[arg-type]

    def unlearning_l2(self) -> float | None:
        """Coefficient of (l2/2)|w|^2; None reads it from the optimizer."""
        return None

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Remember which request has released the weights, if one has."""
        super().on_load_checkpoint(checkpoint)  # type: ignore[misc]
        states = checkpoint.get("callbacks", {}).values()
        found = [s["certificate"] for s in states if is_record(s)]
        setattr(self, LOADED, found[0] if found else None)


def is_record(state: object) -> TypeGuard[dict[str, Any]]:
    """Whether what a callback has left in a checkpoint is a record of ours."""
    return isinstance(state, dict) and {"lineage", "certificate"} <= {*state}


def trainable(module: LightningModule) -> list[nn.Parameter]:
    """The parameters that require a gradient."""
    return [p for p in module.parameters() if p.requires_grad]


def scope_of(module: LightningModule) -> list[nn.Parameter]:
    """The weights in scope of a module, with or without mixin."""
    parameters = getattr(module, "unlearning_parameters", None)
    return list(parameters()) if parameters else trainable(module)


def loss_of_training_step(
    module: LightningModule, batch: Any, batch_idx: int
) -> Tensor:
    """Call ``training_step`` and take its loss.

    Raises:
        ModelError: If it returns nothing that is a loss.
    """
    step = module.training_step
    takes_index = len(inspect.signature(step).parameters) >= 2
    out = step(batch, batch_idx) if takes_index else step(batch)
    loss = out.get("loss") if isinstance(out, dict) else out
    if not isinstance(loss, Tensor):
        raise ModelError(
            "expected training_step to return a loss tensor or a dict with 'loss', got "
            f"{type(loss).__name__} on batch {batch_idx}: a sample without a loss "
            "cannot be unlearned; return one, or override unlearning_loss"
        )
    return loss


def hooks(
    module: LightningModule,
) -> tuple[Callable[[Any, int], Tensor], list[nn.Parameter], float | None]:
    """The loss, the weights in scope and the l2 of a module, with or without mixin.

    Raises:
        ModelError: If the module cannot give a loss.
    """
    l2 = getattr(module, "unlearning_l2", None)
    loss = partial(_named_failure, _loss_function(module))
    return loss, scope_of(module), l2() if l2 else None


def _named_failure(
    loss: Callable[[Any, int], Tensor], batch: Any, batch_idx: int
) -> Tensor:
    """A loss of the user's, which was written for training, in a pass of ours.

    Raises:
        ModelError: If it cannot be computed there.
    """
    try:
        return loss(batch, batch_idx)
    except (UnlearningError, torch.OutOfMemoryError):
        raise
    except Exception as problem:  # of the user's own code
        raise ModelError(
            "expected a loss that can be computed as the passes of a request do, "
            "outside of fit, in eval mode and in the dtype of the passes, got "
            f"{type(problem).__name__} on batch {batch_idx}: {problem!s:.300}; make "
            "tensors in the dtype and on the device of the input; what only fit has "
            "(optimizers, attributes set in on_train_start, losses that exist in train "
            "mode) is not there: override unlearning_loss(batch, batch_idx)"
        ) from problem


def _loss_function(module: LightningModule) -> Callable[[Any, int], Tensor]:
    own = getattr(type(module), "unlearning_loss", None)
    if own is not None and own is not UnlearnableMixin.unlearning_loss:
        return module.unlearning_loss  # type: ignore[return-value]
    if not module.automatic_optimization:
        raise ModelError(
            "expected automatic optimization, got automatic_optimization=False: its "
            "training_step steps the optimizer; override unlearning_loss(batch, "
            "batch_idx) to return the loss alone"
        )
    if not is_overridden("training_step", module):
        raise ModelError(
            "expected a training_step or an unlearning_loss, got a module with "
            "neither: define one"
        )
    return partial(loss_of_training_step, module)


@contextmanager
def quiet(
    module: LightningModule, restore: bool = False, **also: object
) -> Iterator[PlainState]:
    """Silence ``self.log`` and loggers in the passes, and keep metrics out of them.

    Outside Lightning's own loops ``self.log`` raises. Lists, counters and whatever else
    the module keeps are afterwards as they were before. Metrics are emptied before the
    passes, so that no loss can depend on what they had accumulated, and after a
    request that succeeds; after one that fails, or with `restore`, they are as before.
    The plain state of the module, and of what is named besides it, is yielded.
    """
    state = PlainState(module=module, **also)
    trainer = vars(module).get("_trainer")
    # What a loss logs by ``self.logger`` in a pass goes nowhere: it is no step.
    dummies = [] if trainer is None else [DummyLogger() for _ in trainer.loggers]
    muted = nullcontext() if trainer is None else borrowed(trainer, loggers=dummies)
    try:
        with _profilers_lifted(module), muted, _silent(module, restore):
            yield state
    finally:
        state.put_back()


@contextmanager
def _profilers_lifted(module: LightningModule) -> Iterator[None]:
    """Without the hooks by which a profiler of Lightning's sees every layer."""
    lifted = []
    for part in module.modules():
        for hooks_of in (part._forward_hooks, part._forward_pre_hooks):
            for key, hook in [*hooks_of.items()]:
                function = getattr(hook, "func", hook)
                if ".profilers." in (getattr(function, "__module__", "") or ""):
                    lifted.append((hooks_of, [*hooks_of.items()]))
                    del hooks_of[key]
    try:
        yield
    finally:
        for hooks_of, before in reversed(lifted):
            hooks_of.clear()
            hooks_of.update(before)


@contextmanager
def unlogged(module: LightningModule) -> Iterator[None]:
    """A block in which ``self.log`` does nothing."""
    names = ("log", "log_dict")
    own = {name: vars(module)[name] for name in names if name in vars(module)}
    for name in names:
        object.__setattr__(module, name, _nothing)
    try:
        yield
    finally:
        for name in names:
            object.__delattr__(module, name)
        vars(module).update(own)


@contextmanager
def _silent(module: LightningModule, restore: bool) -> Iterator[None]:
    """Without ``self.log``, and with metrics that are emptied."""
    names = ("log", "log_dict")
    own = {name: vars(module)[name] for name in names if name in vars(module)}
    metrics = [m for m in module.modules() if isinstance(m, torchmetrics.Metric)]
    states = [copy.deepcopy(metric.metric_state) for metric in metrics]
    for name in names:
        object.__setattr__(module, name, _nothing)
    for metric in metrics:
        metric.reset()
    failed = True
    try:
        yield
        failed = False
    finally:
        for metric in metrics:
            metric.reset()
        if failed or restore:
            for metric, state in zip(metrics, states, strict=True):
                for name, value in state.items():
                    setattr(metric, name, value)
        for name in names:
            object.__delattr__(module, name)
        vars(module).update(own)


def _nothing(*args: Any, **kwargs: Any) -> None:
    return None
