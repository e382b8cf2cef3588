"""The retraining itself: the user's own training, watched, on what it is given."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset
from typing_extensions import override

from lightning_unlearn.errors import ArgumentError, DataError, ModelError, SetupError
from lightning_unlearn.plugin.callback import UnlearningCallback
from lightning_unlearn.plugin.files import checkpoint
from lightning_unlearn.plugin.lightning import (
    Callback,
    Checkpoint,
    EarlyStopping,
    LightningDataModule,
    LightningModule,
    Trainer,
    check_package,
    pl,
)
from lightning_unlearn.plugin.retrain.retained import check_given
from lightning_unlearn.plugin.retrain.retrained import (
    Job,
    Retrained,
    check_fresh,
    left_by,
)
from lightning_unlearn.plugin.run import compat, strategies
from lightning_unlearn.plugin.training.training_record import TrainingRecord
from lightning_unlearn.weights.passes import copies

MakeTraining = Callable[[Dataset], tuple[Trainer, LightningModule, Any]]


class _Watch(Callback):
    """Sees that a retraining starts afresh and draws what it was given."""

    def __init__(self, job: Job, callback: UnlearningCallback) -> None:
        self.job, self.callback = job, callback
        self.state: dict[str, Tensor] | None = None

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        check_fresh(pl_module, self.job)

    @override
    def on_train_epoch_start(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> None:
        # In every epoch: a hook may have made the loader anew.
        check_given(trainer.train_dataloader, self.job.token)
        self.callback.record.retrains = self.job.token

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        check_given(trainer.train_dataloader, self.job.token)
        self.callback.record.steps = trainer.global_step
        if compat.is_spawning(trainer):
            return  # Lightning brings the weights back
        with strategies.adapter(trainer).gathered(pl_module):
            self.state = _on_cpu(pl_module)


def train_anew(
    made: object,
    job: Job,
    old: tuple[Trainer, LightningModule, UnlearningCallback],
    resume_from: Path | None,
) -> Retrained:
    """Fit what `make_training` has made, and take what it leaves.

    Args:
        made: (Trainer, module, DataLoader or DataModule), none of them used before.
        job: What is to be retrained.
        old: The Trainer, module and callback of the request.
        resume_from: A checkpoint of this very retraining, or None.

    Raises:
        UnlearningError: If the training could see more than it was given.
        KeyboardInterrupt: If it was stopped; nothing was changed.
    """
    trainer, module, data = _checked(made, old)
    callback = _callback_in(trainer, old)
    if resume_from is not None:
        _check_checkpoint(resume_from, job)
    watch = _Watch(job, callback)
    trainer.callbacks.insert(0, watch)  # type: ignore[attr-defined]
    given = {"datamodule": data}
    if not isinstance(data, LightningDataModule):
        given = {"train_dataloaders": data}
    began = time.perf_counter()
    path = None if resume_from is None else str(resume_from)
    try:
        trainer.fit(module, **given, ckpt_path=path)  # type: ignore[arg-type]
    finally:
        trainer.callbacks.remove(watch)  # type: ignore[attr-defined]
    seconds = time.perf_counter() - began
    if trainer.interrupted:  # Lightning 2.4 returns from fit as if it were done
        raise KeyboardInterrupt
    callback.take_sent_record(trainer)
    record = callback.record
    _check_record(record, job)
    state = watch.state
    if state is None:  # of processes that are gone
        state = _on_cpu(module)
    return left_by(module, state, record, job, seconds)


def _on_cpu(module: LightningModule) -> dict[str, Tensor]:
    return {name: value.cpu() for name, value in copies(module).items()}


def _checked(
    made: object, old: tuple[Trainer, LightningModule, UnlearningCallback]
) -> tuple[Trainer, LightningModule, Any]:
    """What `make_training` returned, if it can be a training of its own."""
    if not (isinstance(made, tuple) and len(made) == 3):
        raise ArgumentError(
            "expected make_training to return (Trainer, module, DataLoader or "
            f"DataModule), got {type(made).__name__}: return them, and do not fit them"
        )
    trainer, module, data = made
    check_package(
        trainer, module, data if isinstance(data, LightningDataModule) else None
    )
    if not (isinstance(trainer, pl.Trainer) and isinstance(module, LightningModule)):
        raise ArgumentError(
            "expected make_training to return (Trainer, module, DataLoader or "
            f"DataModule), got {type(trainer).__name__} and {type(module).__name__}"
        )
    shared = trainer is old[0] or module is old[1]
    if shared or trainer.state.fn is not None:
        what = "module" if module is old[1] else "Trainer"
        raise SetupError(
            f"expected make_training to make a new {what}, got one that was used "
            "before: what it learnt then would be in the retrained model"
        )
    if trainer.world_size != old[0].world_size:
        raise SetupError(
            f"expected a Trainer with {old[0].world_size} processes, as that of the "
            f"request, got {trainer.world_size}: every process must take part in both"
        )
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
    known = isinstance(callback, (Checkpoint, EarlyStopping))
    return known or bool(callback.state_dict())


def _check_checkpoint(path: Path, job: Job) -> None:
    """Raise `SetupError` unless a checkpoint is of this very retraining."""
    held = checkpoint.record_in(path)
    token = held.get("retrains") if held else None
    if token != job.token:
        what = "of another training, or of another request"
        raise SetupError(
            f"expected resume_from= to name a checkpoint of this retraining, got "
            f"{path}, {what}: it may hold what is to be forgotten. Name one that the "
            "retraining's own ModelCheckpoint wrote, or begin anew without it"
        )


def _check_record(record: TrainingRecord, job: Job) -> None:
    """Raise unless the callback saw the whole of a retraining."""
    if record.retrains != job.token or record.outside is None:
        raise ModelError(
            "expected a retraining that the UnlearningCallback watches from its start "
            "to its end, got one that it did not: let fit run as it is"
        )
    if record.drawn_problem is not None:
        raise DataError(record.drawn_problem)
    if record.steps < 1:
        raise ModelError(
            "expected a retraining of at least one step, got none: look at max_epochs, "
            "max_steps and limit_train_batches"
        )
