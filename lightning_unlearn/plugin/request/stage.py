"""A stage of ours inside the Trainer's run, with callback, model and data found."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from lightning_unlearn._base.modes import borrowed
from lightning_unlearn.errors import DataError, SetupError
from lightning_unlearn.plugin.callback import UnlearningCallback
from lightning_unlearn.plugin.data import training_data
from lightning_unlearn.plugin.data.drawn import drawn_positions
from lightning_unlearn.plugin.files import private_file
from lightning_unlearn.plugin.lightning import (
    LightningDataModule,
    LightningModule,
    TrainerStatus,
    check_package,
    is_overridden,
    isolate_rng,
    pl,
)
from lightning_unlearn.plugin.request import trainer_state
from lightning_unlearn.plugin.run import (
    child_processes,
    compat,
    loading,
    strategies,
)
from lightning_unlearn.weights.passes import check_ordinary, copies, put_back
from lightning_unlearn.weights.processes import Processes


@dataclass(frozen=True)
class StageContext:
    """What a stage of ours finds inside the Trainer's run."""

    trainer: pl.Trainer
    module: LightningModule
    callback: UnlearningCallback
    loader: DataLoader
    ckpt_path: str | None = None

    @property
    def processes(self) -> Processes:
        """Those that share the request."""
        return self.strategy.processes

    @property
    def strategy(self) -> strategies.Replicated:
        """What the Trainer's strategy means for this request."""
        return strategies.adapter(self.trainer, self.callback.options.curvature)


def drawn_in_training(context: StageContext) -> list[int]:
    """Positions the training could draw: of its record, else of this loader.

    Raises:
        DataError: If that is not known.
    """
    record, loader = context.callback.record, context.loader
    if record.n_train is None:
        drawn = drawn_positions(loader)
    elif record.drawn_problem is not None:
        raise DataError(record.drawn_problem)
    else:
        drawn = record.drawn
    every = range(len(loader.dataset))  # type: ignore[arg-type]
    return list(every if drawn is None else drawn)


# An object, so that it reaches a spawned process; no dataclass, which Lightning
# would take apart on the way.
class _InEachProcess:
    """A stage of ours in each process of the run."""

    def __init__(
        self,
        stage: Callable[[StageContext], Any],
        trainer: pl.Trainer,
        model: LightningModule,
        callback: UnlearningCallback,
        loader: DataLoader | None,
        ckpt_path: str | None,
    ) -> None:
        self.stage, self.trainer, self.model = stage, trainer, model
        self.callback, self.loader, self.ckpt_path = callback, loader, ckpt_path

    def __call__(self) -> Any:
        if not compat.is_spawning(self.trainer):
            return self.work()
        state = self.callback.state_dict
        return child_processes.pack(self.work, self.trainer, self.model, state)

    def work(self) -> Any:
        """Find the data and run the stage."""
        _check_attached(self.trainer, self.callback)
        private_file.check_whole(self.callback.record, self.ckpt_path)
        loader = self.loader
        if loader is None:
            source = getattr(self.trainer, "datamodule", None) or self.model
            loader = source.train_dataloader()
        loader = training_data.training_loader(loader)
        context = StageContext(
            self.trainer, self.model, self.callback, loader, self.ckpt_path
        )
        with compat.as_after_fit(self.trainer, loader):
            return self.stage(context)


def _check_attached(trainer: pl.Trainer, callback: UnlearningCallback) -> None:
    """Refuse if Lightning has put another callback in our place, and its state in it.

    Raises:
        SetupError: If it has.
    """
    attached = trainer.callbacks  # type: ignore[attr-defined]
    own = [c for c in attached if isinstance(c, UnlearningCallback)]
    if len(own) != 1 or own[0] is not callback:
        raise SetupError(
            "expected the UnlearningCallback in Trainer(callbacks=[...]), got one that "
            "configure_callbacks makes anew for every run: it would not know what "
            "earlier requests have removed; move it to the Trainer, or return the same "
            "object every time"
        )


def run_in_trainer(
    trainer: pl.Trainer,
    stage: Callable[[StageContext], Any],
    *,
    model: LightningModule | None,
    train_dataloaders: DataLoader | None,
    datamodule: LightningDataModule | None,
    ckpt_path: str | Path | None,
    weights_only: bool | None,
    changes_nothing: bool = False,
) -> Any:
    """Run a stage of ours under Lightning's `_run`, with model and data resolved.

    Args:
        trainer: With an `UnlearningCallback`.
        stage: Called with the `StageContext`; what it returns is returned.
        model: The module, or None for the Trainer's.
        train_dataloaders: The training loader, or None to find it.
        datamodule: In its place.
        ckpt_path: Checkpoint to load first.
        weights_only: For `torch.load`.
        changes_nothing: Whether to undo everything even if the stage succeeds.

    Returns:
        The stage's result.

    Raises:
        SetupError: If the callback, the model or the data is missing.
    """
    _check_idle(trainer)
    check_package(datamodule)
    callback = callback_of(trainer, None if model is None else compat.unwrapped(model))
    model = compat.unwrapped(trainer.lightning_module if model is None else model)
    if not isinstance(model, LightningModule):
        raise SetupError(
            "expected a model: pass model=, or call trainer.fit first, got "
            f"{type(model).__name__}"
        )
    if train_dataloaders is not None and datamodule is not None:
        raise SetupError(
            "expected train_dataloaders= or datamodule=, got both: leave one out"
        )
    check_ordinary(model)
    loading.check_there(ckpt_path)
    strategies.adapter(trainer)  # refuse before any process is launched
    callback.take_sent_record(trainer)
    attached = callback.attached
    given = train_dataloaders
    if given is None and datamodule is None:
        given = trainer.train_dataloader
        given = attached.loader if given is None else given
        if given is None:
            datamodule = getattr(trainer, "datamodule", None) or attached.datamodule
        nowhere = given is None and datamodule is None
        if nowhere and not is_overridden("train_dataloader", model):
            raise SetupError(
                "expected the training data, got none: pass train_dataloaders= or "
                "datamodule= (those of the fit ended with its processes)"
            )

    if ckpt_path is None and not attached.may_be_of(model):
        raise SetupError(
            "expected the model this UnlearningCallback has watched, got another one: "
            "its record of data and requests would be wrong; use a new callback, or "
            "pass ckpt_path="
        )

    path = None if ckpt_path is None else str(ckpt_path)
    in_each = _InEachProcess(stage, trainer, model, callback, given, path)
    with (
        _unchanged(model, callback, path is not None, changes_nothing),
        isolate_rng() if changes_nothing else nullcontext(),
        # Lightning would make a folder for a run that logs nothing.
        borrowed(trainer, loggers=[]) if changes_nothing else nullcontext(),
    ):
        result = compat.run_stage(
            trainer,
            model,
            in_each,
            callback,
            datamodule=datamodule,
            ckpt_path=path,
            weights_only=weights_only,
            keep=not changes_nothing,
        )
        if compat.is_spawning(trainer):
            result, weights, record = child_processes.unpack(trainer, result)
            if changes_nothing:
                return result
            put_back(model, weights)
            callback.take_result(record, model, given, datamodule)
            trainer_state.forget_training(trainer, model, result.checkpoint_path)
        return result


def _check_idle(trainer: pl.Trainer) -> None:
    if trainer.state.status == TrainerStatus.RUNNING:
        what = trainer.state.fn.value if trainer.state.fn is not None else "a run"
        raise SetupError(
            f"expected a Trainer that is done, got one in the middle of {what}: a hook "
            "cannot change weights that an optimizer is training; call unlearn after "
            f"trainer.{what} has returned"
        )


@contextmanager
def said_if_interrupted(trainer: pl.Trainer) -> Iterator[None]:
    """A block before anything is moved, after which an interrupt says so."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        if trainer.is_global_zero:
            print(_interrupted(False), file=sys.stderr)
        raise


def _interrupted(committed: bool) -> str:
    if committed:
        return "Interrupted after the request was done: the model has the new weights."
    return "Interrupted: nothing was changed (model, record and files are as before)."


@contextmanager
def _unchanged(
    model: LightningModule, callback: UnlearningCallback, loads: bool, always: bool
) -> Iterator[None]:
    """Undo the loading of a checkpoint if the request it was loaded for fails."""
    snapshot, requests = callback.snapshot(), callback.requests
    weights = copies(model) if loads or always else None
    flags = [(p, p.requires_grad) for p in model.parameters()]
    done = False
    try:
        yield
        done = not always
    except (KeyboardInterrupt, SystemExit):  # Lightning makes one of the other
        if model.trainer.is_global_zero:
            print(_interrupted(callback.requests != requests), file=sys.stderr)
        raise
    finally:
        committed = callback.requests != requests  # teardown may still fail after it
        if not (done or committed):
            callback.rewind(snapshot)
            for parameter, required in flags:
                parameter.requires_grad_(required)
            if weights is not None:
                put_back(model, weights)


def callback_of(
    trainer: pl.Trainer, model: LightningModule | None
) -> UnlearningCallback:
    """Ours, of the Trainer or of the model.

    Raises:
        SetupError: If there is none, or Trainer and model are not of our Lightning.
    """
    candidates = list(trainer.callbacks)  # type: ignore[attr-defined]
    check_package(trainer, model, *candidates)
    if model is not None:
        if not hasattr(model, "configure_callbacks"):  # a compiled module has it too
            raise SetupError(
                f"expected model= to be a LightningModule, got {type(model).__name__}: "
                "what is to be forgotten comes first, trainer.unlearn(forget, model)"
            )
        extra = model.configure_callbacks()
        candidates += extra if isinstance(extra, (list, tuple)) else [extra]
    found = [c for c in candidates if isinstance(c, UnlearningCallback)]
    if not found:
        raise SetupError(
            "expected a Trainer with an UnlearningCallback, got one without: pass "
            "Trainer(callbacks=[UnlearningCallback(...)])"
        )
    return found[0]
