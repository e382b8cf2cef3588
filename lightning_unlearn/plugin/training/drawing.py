"""Watches that a training draws, in every epoch, from the samples it began with."""

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader

from lightning_unlearn.errors import DataError
from lightning_unlearn.plugin.data import training_data
from lightning_unlearn.plugin.data.drawn import drawn_positions, in_fixed_order
from lightning_unlearn.plugin.lightning import Trainer, isolate_rng
from lightning_unlearn.plugin.training.training_record import (
    TrainingRecord,
    record_data,
)


@dataclass
class Drawing:
    """One training: what it can draw, and how much of it has been drawn.

    Args:
        loader: At its beginning.
        batches: Of an epoch.
        earlier: Positions that were drawn before it; None if that is all of them, or
            not known.
        drawn: Positions it can draw, as they were recorded; None if all.
        seen: Batches of an epoch that have been trained on, at most.
    """

    loader: DataLoader
    batches: int
    earlier: frozenset[int] | None
    drawn: list[int] | None
    seen: int = 0

    @classmethod
    def begin(
        cls, trainer: Trainer, record: TrainingRecord, loader: DataLoader
    ) -> "Drawing":
        """Record the data a training is about to see, and watch it.

        Args:
            trainer: In ``on_train_start``.
            record: To note it in.
            loader: The training loader.

        Raises:
            DataError: See `record_data`.
        """
        known, before = record.n_train is not None, record.retained
        problem, lineage = record.drawn_problem, record.lineage
        batches = _batches(trainer, loader)
        record_data(record, loader, batches)
        earlier: frozenset[int] | None = frozenset()
        if known and lineage == record.lineage:
            earlier = None if problem is not None else frozenset(before)
        elif known and not record.others_before:
            earlier = frozenset(range(len(before)))  # the first part of this dataset
        elif not known and trainer.global_step > 0:
            earlier = None  # a training that nobody watched
        return cls(loader, batches or len(loader), earlier, record.drawn)

    def batch_done(
        self, trainer: Trainer, record: TrainingRecord, batch_idx: int
    ) -> None:
        """Look again in each epoch, when its own hooks have run."""
        self.seen = max(self.seen, batch_idx + 1)
        if batch_idx == 0:
            self.look(trainer, record)

    def all_read(self) -> None:
        """Whatever else the training does, it has used all that it could draw."""
        self.seen = self.batches

    def look(self, trainer: Trainer, record: TrainingRecord) -> None:
        """Note in the record if the training can draw other samples by now."""
        if record.drawn_problem is not None:
            return
        what, others = "several loaders, or one that cannot be indexed", True
        with suppress(DataError):
            loader = training_data.training_loader(trainer.train_dataloader)
            what = "other samples, or new random ones that cannot be compared"
            if self._same_data(loader, record):
                what, others = "draws by a sampler that cannot be told", False
                drawn = drawn_positions(loader, _batches(trainer, loader))
                if drawn == self.drawn:
                    return
                then, now = _number(self.drawn, loader), _number(drawn, loader)
                what = f"{now} in place of {then}, or others"
        record.others_before |= others
        record.drawn_problem = (
            "expected every epoch of the training to draw from the same samples, got "
            f"{what} (in epoch {trainer.current_epoch}): a sampler, a dataset, or the "
            "loader by reload_dataloaders_every_n_epochs, changed, and which samples "
            "were trained on is not known; train a new model with a sampler and a "
            "dataset that stay, or on all samples in every epoch"
        )

    def note(self, record: TrainingRecord) -> None:
        """Note what was drawn of a fixed order, which may be left before its end."""
        if record.drawn_problem is not None or self.earlier is None:
            return
        record.drawn = self.drawn
        if self.seen < self.batches and in_fixed_order(self.loader):
            dataset: Any = self.loader.dataset
            every = frozenset(range(len(dataset)))
            found = drawn_positions(self.loader, self.seen)
            reached = every if found is None else self.earlier | {*found}
            record.drawn = None if reached == every else sorted(reached)

    def _same_data(self, loader: DataLoader, record: TrainingRecord) -> bool:
        dataset: Any = loader.dataset
        if len(dataset) != record.n_train:
            return False
        if record.fingerprint is None:
            return dataset is self.loader.dataset
        with isolate_rng():  # a training goes on as if nobody had looked
            now = training_data.fingerprint(dataset, record.salt)
        return now == record.fingerprint


def _batches(trainer: Trainer, loader: DataLoader) -> int | None:
    """Of an epoch, where the Trainer takes fewer than the loader has."""
    most = trainer.num_training_batches
    return int(most) if most < len(loader) else None


def _number(drawn: list[int] | None, loader: DataLoader) -> str:
    dataset: Any = loader.dataset
    return f"{len(dataset if drawn is None else drawn)} positions of {len(dataset)}"
