"""Which model a callback's record is of, and how it came here."""

import weakref
from dataclasses import dataclass, field

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch.utils.data import DataLoader

from lightning_unlearn.errors import UnlearningError
from lightning_unlearn.plugin.files.prepared_file import BoundState
from lightning_unlearn.plugin.options import Options
from lightning_unlearn.plugin.plan.row_probe import RowProbe, probe
from lightning_unlearn.plugin.training.training_record import TrainingRecord


@dataclass
class Attachment:
    """All of a callback that a run may change, and that is put back if it fails.

    Args:
        record: What is known of the training.
        loader: The training loader, or None.
        datamodule: It came from, where the loader is in a process that is gone.
        bound_state: What was prepared for the next request, or None.
        probe: Rows at the start of the training in this process, or None.
        module: The module that was trained or unlearned in this process.
        set_up: The datamodule whose ``setup("fit")`` has been called.
        restored: Whether the record was read from a checkpoint since.
        travelled: Whether it came to a launched process with its module.
        fits_seen: Trainings that have ended and whose record is this one.
        requests: That have succeeded.
        forgotten_since: Positions that a request of this process had forgotten before
            an older checkpoint was loaded.
    """

    record: TrainingRecord = field(default_factory=TrainingRecord)
    loader: DataLoader | None = None
    datamodule: LightningDataModule | None = None
    bound_state: BoundState | None = None
    probe: RowProbe | None = None
    module: "weakref.ref[LightningModule] | None" = None
    set_up: "weakref.ref[LightningDataModule] | None" = None
    restored: bool = False
    travelled: bool = False
    fits_seen: int = 0
    requests: int = 0
    forgotten_since: frozenset[int] = frozenset()

    def restore(self, record: TrainingRecord) -> None:
        """Take the record of a checkpoint; warn if it is older than what is known."""
        known = {*self.record.removed, *self.forgotten_since}
        behind = frozenset(known - set(record.removed))
        if record.lineage != self.record.lineage:
            behind = frozenset[int]()
        if behind:
            # Lightning has loaded the weights already: the record must be true of them.
            rank_zero_warn(
                f"this checkpoint is from before {len(behind)} samples were unlearned: "
                "they are back in the model; load the clean checkpoint, or unlearn "
                "them again"
            )
        self.record, self.restored, self.forgotten_since = record, True, behind

    def probe_rows(
        self,
        trainer: Trainer,
        module: LightningModule,
        options: Options,
        loader: DataLoader,
    ) -> None:
        """Take some rows before the module's own ``on_train_start``."""
        positions, self.probe = self.record.retained, None
        try:
            self.probe = probe(trainer, module, options, loader, positions)
        except UnlearningError:  # a request will say what is wrong with the module
            self.record.rows_compared = False
        else:
            self.record.rows_compared = self.probe is None or self.probe.known

    def compare_rows(
        self, trainer: Trainer, module: LightningModule, options: Options
    ) -> None:
        """Note in the record if what reaches the head is not what it was."""
        changed = self.probe and self.probe.changed(trainer, module, options)
        if changed:
            self.record.rows_changed = changed

    def is_of(self, module: LightningModule) -> bool:
        """Whether the record is of this very module, in this process."""
        return self.module is not None and self.module() is module

    def may_be_of(self, module: LightningModule) -> bool:
        """Whether the record is of this module, or of none in this process."""
        other = self.module() if self.module is not None else None
        return other is None or other is module or self.restored

    def travelling(self) -> "Attachment":
        """Without what cannot travel to a spawned process."""
        alive = self.module is not None and self.module() is not None
        return Attachment(
            record=self.record,
            restored=self.restored,
            travelled=alive,
            fits_seen=self.fits_seen,
            requests=self.requests,
            forgotten_since=self.forgotten_since,
        )
