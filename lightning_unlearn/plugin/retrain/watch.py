"""A callback that sees that a retraining starts afresh and draws what it was given."""

from typing import Any

from torch import Tensor
from torch.utils.data import ConcatDataset, Subset
from typing_extensions import override

from lightning_unlearn.errors import DataError
from lightning_unlearn.plugin.callback import UnlearningCallback
from lightning_unlearn.plugin.data import training_data
from lightning_unlearn.plugin.data.subsets import flatten, through
from lightning_unlearn.plugin.lightning import Callback, LightningModule, Trainer
from lightning_unlearn.plugin.retrain.retained import Retained
from lightning_unlearn.plugin.retrain.retrained import Job, Start, check_fresh
from lightning_unlearn.plugin.run import child_processes, compat, strategies
from lightning_unlearn.plugin.stages.kept_stages import note_validated
from lightning_unlearn.plugin.training.training_record import TrainingRecord
from lightning_unlearn.weights.dtensors import in_shards
from lightning_unlearn.weights.passes import copies


class Watch(Callback):
    """Of one retraining.

    Args:
        job: The retraining.
        callback: The UnlearningCallback of its Trainer.
        dataset: The training dataset, forgotten samples included.
        resumes: Whether it goes on from a checkpoint of its own.
        start: The end of a stage that it goes on from, or None.

    Attributes:
        positions: Of what it draws from, among the retained samples.
        state: Parameters and buffers at its end, if they lie in shards; else None.
    """

    def __init__(
        self,
        job: Job,
        callback: UnlearningCallback,
        dataset: Any,
        resumes: bool,
        start: Start | None = None,
    ) -> None:
        self.job, self.callback, self.dataset = job, callback, dataset
        self.resumes, self.start = resumes, start
        self.trained, self.noted = False, list[Any]()
        self.gone: tuple[Any, set[tuple[int, int]]] | None = None
        self.positions: list[int] | None = None
        self.state: dict[str, Tensor] | None = None

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        went_on = self.resumes or self.start is not None
        check_fresh(pl_module, self.job, began=went_on)
        if self.start is not None and not self.resumes:
            # It may be what an earlier request has released.
            known = TrainingRecord(certificate=self.start.record.certificate)
            self.callback.attached.restore(known)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.trained = True
        self.callback.record.retrains = self.job.token

    @override
    def on_train_epoch_start(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> None:
        # In every epoch: a hook may have made the loader anew. Not in one that it goes
        # on with: `on_train_end` looks again.
        self.positions = given(trainer.train_dataloader, self.job.token)
        self._check_others(trainer)
        record = self.callback.record
        record.retrains, record.lineage = self.job.token, self.job.lineage
        record.ledger_key = self.job.key
        self._note_validated(trainer)

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == trainer.global_step == 0:  # after the hooks of the start
            check_fresh(pl_module, self.job, began=True)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.positions = given(trainer.train_dataloader, self.job.token)
        self._check_others(trainer)
        self._note_validated(trainer)
        self.callback.record.steps = trainer.global_step
        if not compat.is_spawning(trainer) and any(
            map(in_shards, pl_module.parameters())
        ):
            with strategies.adapter(trainer).gathered(pl_module):
                self.state = on_cpu(pl_module)

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.resumes and not self.trained:
            # It was stopped after its last step. Of a training that is over Lightning
            # calls no hook but this one; its record is the checkpoint's.
            self.on_train_end(trainer, pl_module)
            if compat.is_spawning(trainer):
                child_processes.send_record(trainer, self.callback.state_dict())

    def _note_validated(self, trainer: Trainer) -> None:
        if self.job.staged:  # a later request may go back to its end
            note_validated(self.callback.record, trainer, self.noted)

    def _check_others(self, trainer: Trainer) -> None:
        """Raise `DataError` if a validation loader reads what is to be forgotten."""
        loader = training_data.training_loader(trainer.train_dataloader)
        drawn, _ = flatten(loader.dataset)
        if self.gone is None or self.gone[0] is not drawn.whole:
            # A DataModule makes one of its own.
            stored = [_stored(whole) for whole in (self.dataset, drawn.whole)]
            places = {s[position] for s in stored for position in self.job.removed}
            self.gone = drawn.whole, places
        _, gone = self.gone
        for loader in training_data.loaders_in(trainer.val_dataloaders):
            dataset = getattr(loader, "dataset", None)
            if hasattr(dataset, "__len__") and not gone.isdisjoint(_stored(dataset)):
                raise DataError(
                    "expected a retraining that reads none of the samples to be "
                    "forgotten, got them in a validation DataLoader: stopping early or "
                    "choosing a checkpoint by it would depend on them; validate on "
                    "other samples, or on a part of what make_training is given"
                )


def _stored(dataset: Any) -> list[tuple[int, int]]:
    """Which object each sample is read from, and where it is in it."""
    if isinstance(dataset, ConcatDataset):
        return [place for part in dataset.datasets for place in _stored(part)]
    if isinstance(dataset, Subset):
        within = _stored(dataset.dataset)
        places = through(dataset, list(range(len(dataset))))
        return [within[place] for place in places]
    return [(id(dataset), i) for i in range(len(dataset))]


def given(loader: object, token: str) -> list[int]:
    """What a training draws from, as positions among the samples it was given.

    Args:
        loader: Its loader, as Lightning has prepared it.
        token: Of the retraining.

    Raises:
        DataError: If it is anything but these samples, or some of them.
    """
    dataset: Any = training_data.training_loader(loader).dataset
    inner, positions = flatten(dataset)
    if not (isinstance(inner, Retained) and inner.token == token):
        raise DataError(
            "expected the retraining to draw from the very dataset that make_training "
            f"is given, or a Subset of it, got {len(dataset):,} samples in a "
            f"{type(dataset).__name__}: it may hold the samples to be forgotten. Give "
            "data to the DataLoader as it is, transforms into the dataset it was made "
            "from or into collate_fn, and make no ConcatDataset of it"
        )
    return positions


def on_cpu(module: LightningModule) -> dict[str, Tensor]:
    """Parameters and buffers by name."""
    return {name: value.cpu() for name, value in copies(module).items()}
