"""Which model a callback's record is of, and how it came here."""

import time
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_warn
from torch.utils.data import DataLoader

from lightning_unlearn.errors import UnlearningError
from lightning_unlearn.plugin import covered
from lightning_unlearn.plugin.data import own_scale, training_data
from lightning_unlearn.plugin.data.training_data import rebuilder
from lightning_unlearn.plugin.excluded import Guard
from lightning_unlearn.plugin.files.prepared_file import BoundState
from lightning_unlearn.plugin.lightning import (
    LightningDataModule,
    LightningModule,
    Trainer,
)
from lightning_unlearn.plugin.options import Options
from lightning_unlearn.plugin.plan.made_at_start import AtSetup
from lightning_unlearn.plugin.plan.row_probe import RowProbe, probe
from lightning_unlearn.plugin.private import fit_checks
from lightning_unlearn.plugin.private.private_run import PrivateRun
from lightning_unlearn.plugin.run import strategies
from lightning_unlearn.plugin.stages import kept_stages
from lightning_unlearn.plugin.training.drawing import Drawing
from lightning_unlearn.plugin.training.outside import note_changed_numbers
from lightning_unlearn.plugin.training.trained_marks import (
    remember_rows,
    remember_values,
    rows_of,
    values_of,
)
from lightning_unlearn.plugin.training.training_record import Stage, TrainingRecord
from lightning_unlearn.step.head.rows.feature_data import FeatureData
from lightning_unlearn.weights.digests import state_digest
from lightning_unlearn.weights.passes import held


@dataclass
class Attachment:
    """All of a callback that a run may change, and that is put back if it fails.

    Args:
        record: What is known of the training.
        loader: The training loader, or None.
        datamodule: It came from, where the loader is in a process that is gone.
        bound_state: What was prepared for the next request, or None.
        scaling_told: Whether it was said that the data look scaled by themselves.
        probe: Rows at the start of the training in this process, or None.
        drawing: What the training in this process draws, or None.
        at_setup: Plain attributes when this run began, until its training starts.
        module: The module that was trained or unlearned in this process.
        set_up: The datamodule whose ``setup("fit")`` has been called.
        restored: Whether the record was read from a checkpoint since.
        travelled: Whether it came to a launched process with its module.
        fits_seen: Trainings that have ended and whose record is this one.
        requests: That have succeeded.
        forgotten_since: Positions that a request of this process had forgotten before
            an older checkpoint was loaded.
        values: Of tensors, when the training began; None if none has.
        began: When the training that runs began, by `time.perf_counter`.
        fit_seconds: How long the last training took, or None if none has ended here.
        validated: Validation datasets that the training was seen to read.
        end: What the training before has left, until the data of this one are known.
        guard: Holds the data of the training to the exclusion list, or None.
        private: The private training that runs, or None.
    """

    record: TrainingRecord = field(default_factory=TrainingRecord)
    loader: DataLoader | None = None
    datamodule: LightningDataModule | None = None
    bound_state: BoundState | None = None
    scaling_told: bool = False
    probe: RowProbe | None = None
    drawing: Drawing | None = None
    at_setup: AtSetup | None = None
    module: "weakref.ref[LightningModule] | None" = None
    set_up: "weakref.ref[LightningDataModule] | None" = None
    restored: bool = False
    travelled: bool = False
    fits_seen: int = 0
    requests: int = 0
    forgotten_since: frozenset[int] = frozenset()
    values: dict[str, str] | None = None
    began: float | None = None
    fit_seconds: float | None = None
    validated: list[Any] = field(default_factory=list)
    end: kept_stages.End | None = None
    guard: Guard | None = None
    private: PrivateRun | None = None

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

    def before_fit(self, options: Options) -> None:
        """A training will begin, with nothing that was prepared for a request.

        Raises:
            UnlearningError: If its exclusion list cannot be read.
        """
        self.bound_state, self.guard = None, Guard.of(options)

    def begin_fit(
        self, module: LightningModule, fits: int, loads: bool, stages: Path | None
    ) -> bool:
        """A training of a module begins.

        Args:
            module: The module.
            fits: Trainings that have ended in any process.
            loads: Whether it begins with a checkpoint.
            stages: Folder for the ends of stages, or None.

        Returns:
            Whether something has trained the module that no record tells of.
        """
        unknown = loads and not self.restored
        if fits != self.fits_seen and not self.restored:
            rank_zero_warn(
                "this callback has watched a training in other processes whose record "
                "stayed with its Trainer: what lies outside the scope is not known to "
                "be public; pass ckpt_path= of a checkpoint of that training"
            )
            self.record, unknown = TrainingRecord(), True
            self.fits_seen = fits
        known = loads and self.restored
        self.end = kept_stages.begin(self.record, module, stages, known, unknown)
        self.restored = self.travelled = False
        self.module = weakref.ref(module)
        self.began, self.fit_seconds = time.perf_counter(), None
        self.values = values_of(module)
        known, record = rows_of(module), self.record
        record.rows_changed = record.rows_changed or known.changed
        record.made_at_start = sorted({*record.made_at_start, *known.made})
        return unknown

    def end_fit(self, fits: int) -> None:
        """It has ended; so many have, in any process."""
        self.fits_seen = fits
        if self.began is not None:
            self.fit_seconds = time.perf_counter() - self.began
        self.began = None

    def begin_reading(
        self, trainer: Trainer, module: LightningModule, options: Options
    ) -> DataLoader:
        """Look at the data of a training, before its first step.

        Raises:
            DataError: If there is no one loader, or it reads what is excluded.
        """
        loader = training_data.training_loader(trainer.train_dataloader)
        if self.guard is not None:
            self.guard.check_training(trainer, module, loader)
        self.begin_drawing(trainer, module, options, loader)
        self.warn_if_scaled(trainer, loader.dataset)
        self.probe_rows(trainer, module, options, loader)
        self.begin_private(trainer, module, options, loader)
        return loader

    def check_private(
        self,
        trainer: Trainer,
        module: LightningModule,
        options: Options,
        unwatched: bool,
    ) -> None:
        """Refuse, or note, a training that what is known before does not allow."""
        covered.check_fit(module, options, self.record)
        if options.private is not None:
            with strategies.processes_of(trainer).together():
                fit_checks.check_start(module, self.record, unwatched)
        elif self.record.private is not None:
            self.record.private.problem = (
                "its training was continued without PrivateTraining"
            )

    def begin_private(
        self,
        trainer: Trainer,
        module: LightningModule,
        options: Options,
        loader: DataLoader,
    ) -> None:
        """Take over the training's draws and steps, if it is to be private."""
        if options.private is not None:
            terms = options.epsilon, options.delta
            self.private = PrivateRun.begin(
                trainer, module, loader, options.private, self.record, terms
            )
            if self.drawing is not None:
                self.drawing.all_read()

    def batch_started(self, batch: Any) -> None:
        """A batch is about to be trained on."""
        if self.private is not None:
            self.private.batch_started(batch)

    def begin_validation(self, trainer: Trainer) -> None:
        """Validation data are about to be read, perhaps by a `fit`."""
        if self.guard is not None:
            self.guard.check_validation(trainer)

    def begin_drawing(
        self,
        trainer: Trainer,
        module: LightningModule,
        options: Options,
        loader: DataLoader,
    ) -> None:
        """Record the data of a training, and the stage that it follows."""
        record, old = self.record, self.loader
        earlier, gone = record.retained, record.removed
        before = Stage(earlier, digest="", seconds=record.fit_seconds)
        if gone:  # positions are those of a dataset of what is left
            before.drawn = list(range(len(earlier)))
        self.drawing = Drawing.begin(trainer, record, loader)
        self.loader, self.validated, end, self.end = loader, [], self.end, None
        if end is None or options.stages_path is None:
            return
        if not kept_stages.known_again(record, old, loader, earlier):
            record.stages = None
        kept_stages.end_before(record, trainer, options.stages_path, before, end)

    def cut_short(
        self, trainer: Trainer, module: LightningModule, options: Options
    ) -> None:
        """A training has ended before its end."""
        self.note_changes(trainer, module, options, alone=True)
        self.remember(module)
        if self.record.private is not None:  # nothing may move them from now on
            self.record.weights_digest = state_digest(module.state_dict())
        self.record.fit_seconds = self.began = None

    def probe_rows(
        self,
        trainer: Trainer,
        module: LightningModule,
        options: Options,
        loader: DataLoader,
    ) -> None:
        """Take some rows before the module's own ``on_train_start``."""
        positions, self.probe = self.record.retained, None
        if self.record.outside is not None and self.record.start is None:
            self.record.start = self.values
        try:
            self.probe = probe(
                trainer, module, options, loader, positions, self.at_setup
            )
        except UnlearningError:  # a request will say what is wrong with the module
            self.record.rows_compared = False
        else:
            # What an earlier training did to this very module cannot be undone.
            compared = self.probe is None or self.probe.known
            self.record.rows_compared = compared and rows_of(module).compared
            made = [] if self.probe is None else self.probe.made
            self.record.made_at_start = sorted({*self.record.made_at_start, *made})
        finally:
            self.at_setup = None

    def warn_if_scaled(
        self, trainer: Trainer, dataset: Any, rows: FeatureData | None = None
    ) -> None:
        """Warn once if the data look scaled by their own mean and deviation.

        Args:
            trainer: In the training's run.
            dataset: The training dataset.
            rows: That were read of it anyway; else it is looked at if it is of plain
                tensors.
        """
        if self.scaling_told or rebuilder(trainer, dataset) is not None:
            return
        found, of = (
            own_scale.columns_of(dataset, self.record.retained)
            if rows is None
            else own_scale.first_of(rows.features, rows.targets)
        )
        self.scaling_told = found > 0
        if found:
            own_scale.warn(found, of)

    def note_changes(
        self, trainer: Trainer, module: LightningModule, options: Options, alone: bool
    ) -> None:
        """Note in the record what training has changed besides the weights in scope.

        Args:
            trainer: In the training's run.
            module: That is trained.
            options: Of the callback.
            alone: Whether other processes may have come to another end.
        """
        processes = strategies.processes_of(trainer)

        def reached(attributes: list[str]) -> list[str]:
            if processes.world > 1:
                if alone:
                    return attributes
                found = processes.gather(attributes)
                attributes = sorted({name for names in found for name in names})
            if self.probe is None or not attributes:
                return attributes
            return self.probe.reached(trainer, module, options, attributes)

        note_changed_numbers(module, self.record, reached)
        self.compare_rows(trainer, module, options)

    def compare_rows(
        self, trainer: Trainer, module: LightningModule, options: Options
    ) -> None:
        """Note in the record if what reaches the head is not what it was."""
        changed = self.probe and self.probe.changed(trainer, module, options)
        if changed:
            self.record.rows_changed = changed

    def batch_done(self, trainer: Trainer, batch_idx: int) -> None:
        """A batch has been trained on."""
        if self.private is not None:
            self.private.batch_done()
        if self.drawing is not None:
            self.drawing.batch_done(trainer, self.record, batch_idx)
        private = self.record.private
        decided = private is not None and private.decided_by
        if batch_idx == 0 and (decided or self.record.stages is not None):
            kept_stages.note_validated(self.record, trainer, self.validated)

    def note_drawn(self) -> None:
        """Note in the record what the training has drawn and taken so far."""
        if self.private is not None:
            self.private.note_moved()
        if self.began is not None:
            self.record.fit_seconds = time.perf_counter() - self.began
        if self.drawing is not None:
            self.drawing.note(self.record)

    def end_drawing(self, trainer: Trainer, *, failed: bool) -> None:
        """A training ends: what it drew is noted for the last time."""
        self.record.ended = None
        if not failed and self.record.stages is not None:
            kept_stages.note_validated(self.record, trainer, self.validated)
            self.record.ended = state_digest(held(trainer.lightning_module))
        if self.drawing is not None and not failed:
            self.drawing.look(trainer, self.record)
        self.note_drawn()
        self.drawing = None
        if self.private is not None:
            self.private.end(failed=failed)
            self.private = None

    def remember(self, module: LightningModule) -> None:
        """What a training has made of a module shall be known in this process."""
        remember_values(module, self.values)
        self.values = None
        self.remember_rows(module)

    def remember_rows(self, module: LightningModule) -> None:
        """Later callbacks of this process shall know what became of its rows."""
        remember_rows(module, self.record.known_rows)

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
