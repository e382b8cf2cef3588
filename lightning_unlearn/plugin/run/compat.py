"""Every private Lightning name this package touches, and nothing else.

A stage of our own runs under Lightning's `Trainer._run`, so that strategy, devices,
precision, loggers, checkpoint loading and interrupts behave as in `fit`. Signatures
were compared over Lightning 2.4 to 2.6; the one difference is found by inspection.
"""

import dataclasses
import functools
import importlib
import inspect
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.abc import MetaPathFinder
from typing import Any

from lightning_utilities.core.enums import StrEnum as LightningEnum
from torch.utils.data import DataLoader

from lightning_unlearn._base.modes import borrowed
from lightning_unlearn.errors import SetupError
from lightning_unlearn.plugin.lightning import (
    PACKAGE,
    CombinedLoader,
    EarlyStopping,
    LightningDataModule,
    LightningModule,
    PassThroughProfiler,
    Timer,
    Trainer,
    TrainerStatus,
    _call_and_handle_interrupt,
    _maybe_unwrap_optimized,
    _MultiProcessingLauncher,
)
from lightning_unlearn.plugin.run import loading
from lightning_unlearn.plugin.run.guests import callbacks_muted, lifted, muted
from lightning_unlearn.plugin.which_lightning import (
    PACKAGES,
    installed,
    refuse_mixed,
)


# What our callback's ``setup(stage)`` receives, and no other's (`guests`); not one of
# Lightning's own stages, so that no optimizer is made, no DDP wrapper is put on and no
# validation step is asked.
class StageFn(LightningEnum):
    """The value of ``trainer.state.fn`` during a request."""

    UNLEARN = "unlearn"


STAGE = StageFn.UNLEARN


def is_spawning(trainer: Trainer) -> bool:
    """Whether a run goes on in new processes that end with it (spawn, fork)."""
    return isinstance(trainer.strategy.launcher, _MultiProcessingLauncher)


def pickles(trainer: Trainer) -> bool:
    """Whether what a run needs travels to its processes as a pickle."""
    launcher = trainer.strategy.launcher
    return is_spawning(trainer) and launcher._start_method == "spawn"  # type: ignore[union-attr]


def passed_loader(trainer: Trainer) -> object:
    """What was passed to ``fit`` as training data; None if a module makes it."""
    source = trainer.fit_loop._data_source
    return None if source.is_module() else source.instance


def drop_workers(loader: DataLoader) -> None:
    """Let go of workers that persist: they go by the sampler they began with."""
    loader._iterator = None


def restart_loader(trainer: Trainer) -> None:
    """Begin the training's loader anew, as an epoch does; its sampler has changed."""
    fetcher = trainer.fit_loop._data_fetcher
    if fetcher is None:
        raise SetupError("expected a training that reads data, got none")
    iter(fetcher)


def logged_in_training(trainer: Trainer) -> set[str]:
    """Names under which the training's own hooks have logged in this epoch."""
    found = set[str]()
    for result in trainer.fit_loop.epoch_loop._results.values():
        name = result.meta.name
        found |= {name, f"{name}_step", f"{name}_epoch"}
    return found


#: Where a callback of Lightning's stops a training, and what it goes by there.
_STOPS = (
    (EarlyStopping, "_run_early_stopping_check", "_evaluate_stopping_criteria"),
    (Timer, "_check_time_remaining", "time_elapsed"),
)


def stopping_check(callback: object) -> str | None:
    """The method in which a callback stops a training, if by Lightning's own rule."""
    for kind, *names in _STOPS:
        of_class = (getattr(type(callback), n, 0) is getattr(kind, n) for n in names)
        if all(of_class) and not {*names} & {*vars(callback)}:
            return names[0]
    return None


def run_stage(
    trainer: Trainer,
    model: LightningModule,
    stage: Callable[[], Any],
    ours: Any,
    *,
    datamodule: LightningDataModule | None,
    ckpt_path: str | None,
    weights_only: bool | None,
    keep: bool = True,
) -> Any:
    """Run `stage` where `fit` would run its loop, and return what it returns.

    The Trainer stays connected to `model` if the run succeeds and `keep` is set. Of its
    callbacks `ours` alone hears of a stage that is not Lightning's.
    """
    model = _maybe_unwrap_optimized(model)
    previous = trainer.strategy._lightning_module
    state = dataclasses.replace(trainer.state)
    datamodule_before = getattr(trainer, "datamodule", None)
    connected = previous is not None
    trainer.strategy._lightning_module = model
    trainer.state.fn = STAGE  # type: ignore[assignment]
    trainer.state.status = TrainerStatus.RUNNING
    trainer.state.stage = None
    connect = previous
    try:
        result = _call_and_handle_interrupt(
            trainer,
            _in_process,
            trainer,
            model,
            stage,
            ours,
            datamodule,
            ckpt_path,
            weights_only,
            connected,
        )
        connect = model if keep else previous
        return result
    finally:
        trainer.strategy._lightning_module = connect
        if not keep:
            trainer.state.fn, trainer.state.stage = state.fn, state.stage
            trainer.state.status = state.status
            trainer.datamodule = datamodule_before  # type: ignore[attr-defined]


def _in_process(
    trainer: Trainer,
    model: LightningModule,
    stage: Callable[[], Any],
    ours: Any,
    datamodule: LightningDataModule | None,
    ckpt_path: str | None,
    weights_only: bool | None,
    connected: bool,
) -> Any:
    trainer._data_connector.attach_data(model, datamodule=datamodule)
    path = trainer._checkpoint_connector._select_ckpt_path(
        trainer.state.fn,  # type: ignore[arg-type]
        ckpt_path,
        model_provided=True,
        model_connected=connected,
    )
    if ckpt_path is not None and not path:
        raise SetupError(
            f"expected a checkpoint to load for ckpt_path={ckpt_path!r}, found none: "
            "an untrained model has nothing to unlearn; name the file"
        )
    kwargs: dict[str, Any] = {"ckpt_path": path}
    if "weights_only" in inspect.signature(Trainer._run).parameters:  # from 2.6.0
        kwargs["weights_only"] = weights_only

    def as_known() -> Any:
        with lifted(model):
            return stage()

    trainer._run_stage = as_known  # type: ignore[method-assign]
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    try:
        with (
            borrowed(trainer, profiler=PassThroughProfiler()),  # a fit's ends with it
            _hooks_muted(trainer, model, ours),
            _clock_put_back(trainer),
            _callbacks_restored(trainer),
            warnings.catch_warnings(),
        ):
            # Other callbacks' states, and where they would write, we do not use.
            for about in ("The dirpath has changed from", "Be aware that when using"):
                warnings.filterwarnings("ignore", message=about)
            return trainer._run(model, **kwargs)
    finally:
        trainer.callbacks = callbacks  # type: ignore[attr-defined]
        del trainer._run_stage


@contextmanager
def _callbacks_restored(trainer: Trainer) -> Iterator[None]:
    """Load the callbacks' states too; Lightning < 2.6 does so for `fit` only."""
    connector = trainer._checkpoint_connector
    restore_all = connector._restore_modules_and_callbacks
    restore_callbacks = connector.restore_callbacks
    restored = []

    def noting() -> None:
        restored.append(True)
        restore_callbacks()

    def everything(*args: Any, **kwargs: Any) -> None:
        with loading.named(args[0] if args else None):
            restore_all(*args, **kwargs)
            _load_clock(trainer, connector._loaded_checkpoint)
            if not restored:
                restore_callbacks()

    connector.restore_callbacks = noting  # type: ignore[method-assign]
    connector._restore_modules_and_callbacks = everything  # type: ignore[method-assign]
    try:
        yield
    finally:
        del connector.restore_callbacks
        del connector._restore_modules_and_callbacks


@contextmanager
def _hooks_muted(trainer: Trainer, model: LightningModule, ours: Any) -> Iterator[None]:
    """See `guests`; callbacks of the model are known once Lightning has added them."""
    connector = trainer._callback_connector
    attach = connector._attach_model_callbacks
    with ExitStack() as stack:
        for owner in (model, getattr(trainer, "datamodule", None)):
            if owner is not None:
                stack.enter_context(muted(owner))

        def attach_and_mute() -> None:
            attach()
            known = ours.attached.is_of(model)
            stack.enter_context(callbacks_muted(trainer, ours, known))

        connector._attach_model_callbacks = attach_and_mute  # type: ignore[method-assign]
        stack.callback(delattr, connector, "_attach_model_callbacks")
        yield


_MOVED = 17  # epochs; and a multiple of it for what counts faster


@contextmanager
def clock_moved(trainer: Trainer) -> Iterator[None]:
    """A block in which a Trainer's epochs, steps and batches show other numbers."""
    loop, before = trainer.fit_loop, trainer.fit_loop.max_batches
    counters = _counters(trainer)
    with _clock_put_back(trainer):
        for speed, counter in enumerate(counters, start=1):
            for name, value in vars(counter).items():
                setattr(counter, name, value + _MOVED * speed)
        finite = before != float("inf")
        loop.max_batches = int(before) + 3 * _MOVED if finite else 3 * _MOVED
        yield


def _counters(trainer: Trainer) -> list[Any]:
    loop, steps = trainer.fit_loop, trainer.fit_loop.epoch_loop
    return [
        *(loop.epoch_progress.current, loop.epoch_progress.total),
        *(steps.batch_progress.current, steps.batch_progress.total),
        *(
            steps.automatic_optimization.optim_progress.optimizer.step.total,
            steps.manual_optimization.optim_step_progress.total,
        ),
    ]


@contextmanager
def _clock_put_back(trainer: Trainer) -> Iterator[None]:
    """A block after which a Trainer's clock, and what it trains on, is as before."""
    loop, counters = trainer.fit_loop, _counters(trainer)
    shown = [dict(vars(counter)) for counter in counters]
    batches, loader = loop.max_batches, loop._combined_loader
    try:
        yield
    finally:
        loop.max_batches, loop._combined_loader = batches, loader
        for counter, values in zip(counters, shown, strict=True):
            vars(counter).update(values)


def _load_clock(trainer: Trainer, checkpoint: dict[str, Any]) -> None:
    """Show the epochs and steps of the training that a checkpoint is of."""
    loop, steps = trainer.fit_loop, trainer.fit_loop.epoch_loop
    of = "epoch_loop."
    shown = {
        "epoch_progress": loop.epoch_progress,
        f"{of}batch_progress": steps.batch_progress,
        f"{of}automatic_optimization.optim_progress": (
            steps.automatic_optimization.optim_progress
        ),
        f"{of}manual_optimization.optim_step_progress": (
            steps.manual_optimization.optim_step_progress
        ),
    }
    saved = checkpoint.get("loops", {}).get("fit_loop", {})
    for name, progress in shown.items():
        if name in saved:
            progress.load_state_dict(saved[name])


@contextmanager
def as_after_fit(trainer: Trainer, loader: DataLoader) -> Iterator[None]:
    """A block in which the Trainer shows a training loader, as it does after a fit."""
    loop = trainer.fit_loop
    with _clock_put_back(trainer):
        if loop._combined_loader is None:
            loop._combined_loader = CombinedLoader(loader, "max_size_cycle")
        if loop.max_batches in (0, float("inf")):
            limit = trainer.limit_train_batches
            most = limit if isinstance(limit, int) else int(len(loader) * (limit or 1))
            loop.max_batches = min(most, len(loader))
        yield


def unwrapped(model: Any) -> Any:
    """The module that `torch.compile` has put into another."""
    return _maybe_unwrap_optimized(model) if hasattr(model, "_orig_mod") else model


def name_mixed_packages() -> None:
    """Let both packages name who mixes them, where Lightning's words are vague.

    A module of `lightning` in a Trainer of `pytorch_lightning` ends in "expected a
    LightningModule", a lone callback in "not iterable". Only what is about to fail so
    is looked at.
    """
    for package in filter(installed, PACKAGES):
        if f"{PACKAGES[package]}.{_LAST}" in sys.modules:
            _name_mixed(package)
        else:
            sys.meta_path.insert(0, _Arrival(package))


_LAST = "_graveyard"  # what a package imports when all else is there


class _Arrival(MetaPathFinder):
    """Sees the other package being imported later; finds nothing itself."""

    def __init__(self, package: str) -> None:
        self.package = package

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> None:
        if fullname == f"{PACKAGES[self.package]}.{_LAST}":
            _name_mixed(self.package)


def _name_mixed(package: str) -> None:
    def private(name: str) -> Any:
        return importlib.import_module(f"{PACKAGES[package]}.{name}")

    def refuse(thing: object) -> None:
        refuse_mixed(thing, package, used=PACKAGE)

    # Lightning calls this for what is not its own; it knows its own classes by name,
    # but not those that users derive from them.
    for module in map(private, ("utilities.model_helpers", "utilities.compile")):
        module._check_mixed_imports = _after(refuse, module._check_mixed_imports)

    def refuse_lone(connector: Any, *_: object) -> None:
        if not isinstance(connector.trainer.callbacks, list):
            refuse(connector.trainer.callbacks)

    connector = private("trainer.connectors.callback_connector")._CallbackConnector
    connector._configure_checkpoint_callbacks = _after(
        refuse_lone, connector._configure_checkpoint_callbacks
    )


def _after(first: Callable[..., None], own: Callable[..., Any]) -> Callable[..., Any]:
    """A function of Lightning's after a look of ours at its arguments."""

    @functools.wraps(own)
    def both(*args: Any, **kwargs: Any) -> Any:
        first(*args)
        return own(*args, **kwargs)

    return both
