"""Users' own code during a request: it hears of Lightning's stages only.

A request is no stage of Lightning's. What ``setup("fit")`` makes (data, layers, what a
callback keeps) is made where no fit of this process has made it, and taken down with
``teardown("fit")`` after it; what is there already hears nothing.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from lightning_unlearn.plugin.lightning import (
    BaseFinetuning,
    Callback,
    LightningDataModule,
    LightningModule,
    ModelCheckpoint,
    ProgressBar,
    Trainer,
)
from lightning_unlearn.plugin.which_lightning import PACKAGES

_HOOKS = ("setup", "teardown")
_OURS = ("lightning_unlearn", *PACKAGES)  # packages whose hooks are known


class _Muted:
    """In place of a user's hook for the length of a request."""

    def __init__(self, own: Callable[..., object]) -> None:
        self.own, self.wanted = own, False

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        if self.wanted:
            self.own(*args, **{**kwargs, "stage": "fit"})


@contextmanager
def muted(owner: object) -> Iterator[None]:
    """A block in which an object's ``setup`` and ``teardown`` do nothing by themselves.

    Args:
        owner: A module, a datamodule or a callback, or None.
    """
    kept = {name: vars(owner)[name] for name in _HOOKS if name in vars(owner)}
    for name in _HOOKS:
        object.__setattr__(owner, name, _Muted(getattr(owner, name)))
    try:
        yield
    finally:
        for name in _HOOKS:
            object.__delattr__(owner, name)
        for name, own in kept.items():
            object.__setattr__(owner, name, own)


@contextmanager
def lifted(owner: object) -> Iterator[None]:
    """A block in which a muted object is as its user knows it: it may be compared."""
    hooks = {name: vars(owner).pop(name) for name in _HOOKS}
    try:
        yield
    finally:
        for name, hook in hooks.items():
            object.__setattr__(owner, name, hook)


def set_up(owner: LightningModule | LightningDataModule) -> None:
    """Call a muted object's own ``setup("fit")``, and its ``teardown`` at the end."""
    vars(owner)["teardown"].wanted = True
    vars(owner)["setup"].own(stage="fit")


@contextmanager
def callbacks_muted(trainer: Trainer, ours: object, known: bool) -> Iterator[None]:
    """The same for the Trainer's other callbacks, each by what it is.

    A progress bar shows the request, so it is told. A checkpoint callback finds the
    folder that its state in a checkpoint speaks of, and forgets it again: a later fit
    chooses its own. Other callbacks of Lightning's own prepare what only a fit uses.

    Args:
        trainer: Of the request.
        ours: Our callback.
        known: Whether a fit of this process has set the module up.
    """
    with ExitStack() as stack:
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if callback is ours:
                continue
            stack.enter_context(muted(callback))
            hooks = vars(callback)
            if isinstance(callback, ProgressBar):
                hooks["setup"].wanted = hooks["teardown"].wanted = True
            elif isinstance(callback, ModelCheckpoint):
                stack.enter_context(_folder_put_back(callback))
                find = partial(ModelCheckpoint.setup, callback)
                object.__setattr__(callback, "setup", find)
            elif not known and (_is_users(callback) or _freezes(callback)):
                hooks["setup"].wanted = hooks["teardown"].wanted = True
        yield


def _is_users(callback: Callback) -> bool:
    """Whether a callback's ``setup`` is not one of Lightning's."""
    return type(callback).setup.__module__.split(".")[0] not in _OURS


def _freezes(callback: Callback) -> bool:
    return isinstance(callback, BaseFinetuning)


@contextmanager
def _folder_put_back(callback: ModelCheckpoint) -> Iterator[None]:
    names = ("dirpath", "_fs")
    kept = {name: vars(callback)[name] for name in names if name in vars(callback)}
    try:
        yield
    finally:
        vars(callback).update(kept)


def unfreeze_trained(
    trainer: Trainer, module: LightningModule, trained: list[str]
) -> None:
    """Let what the training moved be in scope, where a callback froze it at its start.

    Args:
        trainer: Of the request.
        module: Its module, in a process that has not trained it.
        trained: Names of parameters that were in scope of the training.
    """
    if any(map(_freezes, trainer.callbacks)):  # type: ignore[attr-defined]
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(name in trained or parameter.requires_grad)
