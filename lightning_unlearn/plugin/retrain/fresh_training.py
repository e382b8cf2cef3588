"""The retraining itself: the user's own training, watched, on what it is given."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import nn
from torch.utils.data import DataLoader, Dataset

from lightning_unlearn.errors import (
    ArgumentError,
    DataError,
    ModelError,
    SetupError,
)
from lightning_unlearn.plugin.callback import UnlearningCallback
from lightning_unlearn.plugin.files import checkpoint
from lightning_unlearn.plugin.files.known_checkpoints import PATHS
from lightning_unlearn.plugin.lightning import (
    Callback,
    Checkpoint,
    EarlyStopping,
    LightningDataModule,
    LightningModule,
    Trainer,
    check_package,
    is_overridden,
    pl,
)
from lightning_unlearn.plugin.retrain.retrained import (
    Job,
    Retrained,
    Start,
    check_fresh,
    check_same_model,
    going_on,
    left_by,
)
from lightning_unlearn.plugin.retrain.watch import Watch, given, on_cpu
from lightning_unlearn.plugin.run import compat
from lightning_unlearn.plugin.stages.kept_stages import learnt
from lightning_unlearn.plugin.training.training_record import TrainingRecord
from lightning_unlearn.plugin.which_lightning import PACKAGES
from lightning_unlearn.weights.passes import held, put_back

MakeTraining = Callable[[Dataset], tuple[Trainer, LightningModule, Any]]


def train_anew(
    made: object,
    job: Job,
    old: tuple[Trainer, LightningModule, UnlearningCallback],
    dataset: Any,
    resume_from: Path | None,
    start: Start | None = None,
) -> Retrained:
    """Fit what `make_training` has made, and take what it leaves.

    Args:
        made: (Trainer, module, DataLoader or DataModule), none of them used before.
        job: What is to be retrained.
        old: The Trainer, module and callback of the request.
        dataset: The training dataset, forgotten samples included.
        resume_from: A checkpoint of this very retraining, or None.
        start: The end of a stage that it goes on from; None for a fresh start.

    Raises:
        UnlearningError: If the training could see more than it was given.
        KeyboardInterrupt: If it was stopped; nothing was changed.
    """
    trainer, module, data = _checked(made, old)
    callback = _callback_in(trainer, old)
    if resume_from is not None:
        _check_checkpoint(resume_from, job)
    callback.options = replace(callback.options, stages=None)  # it is one itself
    if start is not None:
        check_fresh(module, job, began=False)
        check_same_model(module, start.state)
        _warn_of_attributes(module, start)
        put_back(module, start.state)
        job = start.known_to(job)
    watch = Watch(job, callback, dataset, resume_from is not None, start)
    trainer.callbacks.insert(0, watch)  # type: ignore[attr-defined]
    source = {"datamodule": data}
    if not isinstance(data, LightningDataModule):
        source = {"train_dataloaders": data}
    began = time.perf_counter()
    path = None if resume_from is None else str(resume_from)
    try:
        trainer.fit(module, **source, ckpt_path=path)  # type: ignore[arg-type]
    finally:
        trainer.callbacks.remove(watch)  # type: ignore[attr-defined]
    seconds = time.perf_counter() - began
    if trainer.interrupted:  # Lightning 2.4 returns from fit as if it were done
        raise KeyboardInterrupt
    callback.take_sent_record(trainer)
    record = callback.record
    _check_record(record, job)
    if start is not None:
        record = going_on(start.record, record)
    state = watch.state
    if state is None:
        state = on_cpu(module)
    drew = watch.positions
    if drew is None and isinstance(data, DataLoader):  # of processes that are gone
        drew = given(data, job.token)
    if drew is None and record.n_train != len(job.retained):
        raise SetupError(
            f"expected a retraining in spawned processes on all {len(job.retained)} "
            f"samples it is given, got one on {record.n_train}: return a DataLoader "
            "over a Subset of them, so that this process knows which they are"
        )
    found = left_by(module, state, record, job, seconds)
    return replace(found, drew_from=drew, written=_written(trainer))


def _warn_of_attributes(module: LightningModule, start: Start) -> None:
    """Warn of what a stage has learnt besides weights, which begins anew."""
    now = learnt(module)
    other = sorted(name for name, d in start.attributes.items() if now.get(name) != d)
    if other:
        rank_zero_warn(
            "expected weights and buffers to be all that a stage leaves to the next, "
            f"got plain attributes that it has changed, {', '.join(other[:3])}: they "
            "begin anew, whatever the weights were trained with; keep a vocabulary or "
            "the like in buffers, or leave stages= out"
        )


def _written(trainer: Trainer) -> tuple[str, ...]:
    """Checkpoints that a training has left: later requests must know of them."""
    found = set[str]()
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Checkpoint):
            found |= {getattr(callback, name, "") for name in PATHS}
            found |= set(getattr(callback, "best_k_models", {}))
    return tuple(sorted(path for path in found if path))


def the_three(made: object) -> tuple[Any, Any, Any]:
    """Trainer, module and data that `make_training` returned, or `ArgumentError`."""
    if isinstance(made, tuple) and len(made) == 3:
        return made
    raise ArgumentError(
        "expected make_training to return (Trainer, module, DataLoader or "
        f"DataModule), got {type(made).__name__}: return them, and do not fit them"
    )


def _checked(
    made: object, old: tuple[Trainer, LightningModule, UnlearningCallback]
) -> tuple[Trainer, LightningModule, Any]:
    """What `make_training` returned, if it can be a training of its own."""
    trainer, module, data = the_three(made)
    module = compat.unwrapped(module) if isinstance(module, nn.Module) else module
    check_package(
        trainer, module, data if isinstance(data, LightningDataModule) else None
    )
    if not (isinstance(trainer, pl.Trainer) and isinstance(module, LightningModule)):
        raise ArgumentError(
            "expected make_training to return (Trainer, module, DataLoader or "
            f"DataModule), got {type(trainer).__name__} and {type(module).__name__}"
        )
    used = module is old[1] or vars(module).get("_trainer") is not None
    if used or trainer is old[0] or trainer.state.fn is not None:
        what = "module" if used else "Trainer"
        raise SetupError(
            f"expected make_training to make a new {what}, got one that was used "
            "before: what it learnt then would be in the retrained model"
        )
    if trainer.world_size != old[0].world_size:
        raise SetupError(
            f"expected a Trainer with {old[0].world_size} processes, as that of the "
            f"request, got {trainer.world_size}: every process must take part in both"
        )
    if not is_overridden("configure_model", module):  # or it has no layers yet
        check_same_model(old[1], held(module))
    return trainer, module, data


def _callback_in(
    trainer: Trainer, old: tuple[Trainer, LightningModule, UnlearningCallback]
) -> UnlearningCallback:
    """The new Trainer's own callback; no other is one of the old Trainer's."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    own = [c for c in callbacks if isinstance(c, UnlearningCallback)]
    if len(own) != 1 or own[0] is old[2] or own[0].record.n_train is not None:
        raise SetupError(
            "expected make_training to make a Trainer with an UnlearningCallback of "
            "its own, got one without, or one that was used before: pass "
            "Trainer(callbacks=[UnlearningCallback(...)]) there too"
        )
    before: list[Callback] = old[0].callbacks  # type: ignore[attr-defined]
    kept = [
        type(c).__name__
        for c in callbacks
        if any(c is other for other in before) and _keeps_state(c)
    ]
    if kept:
        raise SetupError(
            "expected make_training to make its callbacks anew, got "
            f"{', '.join(kept)} of the old Trainer, which remembers the old training: "
            "make a new one there"
        )
    return own[0]


def _keeps_state(callback: Callback) -> bool:
    """Whether it may: Lightning's own say so, of others nobody knows."""
    own = type(callback).__module__.partition(".")[0] in PACKAGES
    known = isinstance(callback, (Checkpoint, EarlyStopping))
    return known or not own or bool(callback.state_dict())


def _check_checkpoint(path: Path, job: Job) -> None:
    """Raise `SetupError` unless a checkpoint is of this very retraining."""
    advice = (
        "Name one that the retraining's own ModelCheckpoint wrote, or begin anew "
        "without it"
    )
    asked = f"expected resume_from= to name a checkpoint of this retraining, got {path}"
    try:
        held = checkpoint.record_in(path)
    except DataError as problem:
        raise SetupError(f"{asked}, but {problem}. {advice}") from None
    if held.get("retrains") != job.token:
        raise SetupError(
            f"{asked}, of another training, or of another request: it may hold what is "
            f"to be forgotten. {advice}"
        )


def _check_record(record: TrainingRecord, job: Job) -> None:
    """Raise unless the callback saw the whole of a retraining."""
    if record.retrains != job.token or record.outside is None:
        raise ModelError(
            "expected a retraining that the UnlearningCallback watches from its start "
            "to its end, got one that it did not: let fit run as it is"
        )
    if record.steps < 1:
        raise ModelError(
            "expected a retraining of at least one step, got none: look at max_epochs, "
            "max_steps and limit_train_batches"
        )
