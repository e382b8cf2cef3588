"""Which trainings a model came out of, as far as a request may go back to one."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import nn

from lightning_unlearn.plugin.data.training_data import fingerprint, sample_digest
from lightning_unlearn.plugin.lightning import (
    LightningModule,
    Trainer,
    is_overridden,
    isolate_rng,
)
from lightning_unlearn.plugin.stages import stage_end
from lightning_unlearn.plugin.training.outside_digests import hidden_tensors
from lightning_unlearn.plugin.training.trained_marks import (
    has_trained_value,
    was_trained,
)
from lightning_unlearn.plugin.training.training_record import Stage, TrainingRecord
from lightning_unlearn.weights.digests import state_digest
from lightning_unlearn.weights.dtensors import in_shards
from lightning_unlearn.weights.passes import copies, held


def begin(
    record: TrainingRecord,
    module: LightningModule,
    folder: Path | None,
    known: bool,
) -> None:
    """A training begins: do the stages so far lead to the weights it begins with?

    Args:
        record: Of the training.
        module: That is about to be trained.
        folder: Where stages are kept, or None.
        known: Whether the record came with the weights, out of one checkpoint.
    """
    if folder is None:
        record.stages = None
        return
    stage_end.check_folder(folder)
    problem = None
    if any(map(in_shards, module.parameters())):
        problem = "got weights in shards (FSDP2)"
    elif is_overridden("configure_model", module):
        problem = "got a module that makes its layers in configure_model"
    elif record.n_train is None:
        record.stages = []
        values = {**hidden_tensors(module), **held(module)}.values()
        if any(was_trained(t) or has_trained_value(t) for t in values):
            problem = "got some that an earlier training has made"
    elif record.stages is None:
        problem = "got a training before it that was not kept (stages=)"
    elif not known and record.weights_digest != state_digest(module.state_dict()):
        problem = "got others than those the training before it ended with"
    if problem is not None:
        record.stages = None
        rank_zero_warn(
            "expected weights that only the recorded trainings have made, for stages=, "
            f"{problem}: a request by how='retrain' will train from the start"
        )


def note_validated(record: TrainingRecord, trainer: Trainer, noted: set[int]) -> None:
    """Note what a training is validated on: a stage that saw a sample so saw it too.

    Args:
        record: Of the training.
        trainer: That trains.
        noted: Ids of datasets that are noted already.
    """
    loaders: Any = trainer.val_dataloaders
    several = loaders if isinstance(loaders, (list, tuple)) else [loaders]
    for dataset in (getattr(loader, "dataset", None) for loader in several):
        if dataset is None or id(dataset) in noted:
            continue
        noted.add(id(dataset))
        found: list[str | None] = [None]
        with isolate_rng():  # a training goes on as if nobody had looked
            if hasattr(dataset, "__len__") and fingerprint(dataset, ""):
                found = [_keyed(dataset[i], record) for i in range(len(dataset))]
        if None in found or record.validated is None:
            record.validated = None
            rank_zero_warn(
                "expected validation samples of tensors, arrays, images, text and "
                "numbers that are the same at every read, for stages=, got others: no "
                "request by how='retrain' can go back to the end of this training"
            )
        else:
            known = {digest for digest in found if digest is not None}
            record.validated = sorted({*record.validated, *known})


def end_before(
    record: TrainingRecord,
    trainer: Trainer,
    module: nn.Module,
    folder: Path | None,
    before: Stage,
) -> None:
    """The data of a training are known: was the one before it a stage of its own?

    Args:
        record: Which knows the data by now.
        trainer: At the start of the training.
        module: With the weights that the training before has left.
        folder: Where stages are kept, or None.
        before: What the training before could draw, in positions of these data.
    """
    if record.drawn_problem is not None:
        record.stages = None
    if folder is None or record.stages is None or before.drawn == record.retained:
        return
    state, model = copies(module), stage_end.model_name(record)
    stage = stage_end.ended(folder, model, state, before.drawn, before.seconds)
    stage.validated, record.validated = record.validated, []
    if trainer.is_global_zero:
        stage_end.write(stage, model, state)
    record.stages = [*record.stages, stage]


@dataclass
class Gone:
    """Samples that are forgotten, as stages know them.

    Args:
        positions: In the training dataset.
        digests: Keyed, of what they hold; none of samples that differ between reads.
    """

    positions: frozenset[int]
    digests: frozenset[str]

    @staticmethod
    def of(record: TrainingRecord, dataset: Any, positions: list[int]) -> "Gone":
        """Some samples of a training dataset."""
        found = set[str]()
        if record.validated or any(s.validated for s in record.stages or ()):
            with isolate_rng():
                found = {_keyed(dataset[i], record) or "" for i in positions}
        return Gone(frozenset(positions), frozenset(found - {""}))

    def without(self, stages: list[Stage] | None) -> list[Stage] | None:
        """The stages once they are forgotten: who saw one keeps no model."""
        if stages is None:
            return None
        found, seen = list[Stage](), False
        for stage in stages:
            drawn = [p for p in stage.drawn if p not in self.positions]
            validated = self.left_of(stage.validated)
            seen = seen or len(drawn) < len(stage.drawn)
            seen = seen or validated is None or validated != stage.validated
            if seen:
                stage = replace(stage, drawn=drawn, validated=validated)
                stage = replace(stage, path=None, seconds=None)
            found.append(stage)
        return found

    def left_of(self, validated: list[str] | None) -> list[str] | None:
        """The digests of validation samples, less those of these."""
        if validated is None:
            return None
        return [digest for digest in validated if digest not in self.digests]

    def last_before(self, stages: list[Stage]) -> int:
        """How many stages, from the first on, saw none of them and can be read."""
        marked = self.without(stages) or []
        for i in range(len(stages), 0, -1):
            if marked[i - 1].path is not None and _can_be_read(stages, i):
                return i
        return 0


def _keyed(sample: Any, record: TrainingRecord) -> str | None:
    digest = sample_digest(sample, record.ledger_key)
    return None if digest is None else digest[:16]


def _can_be_read(stages: list[Stage], i: int) -> bool:
    problem = stage_end.problem_with(stages[i - 1])
    if problem is not None:
        rank_zero_warn(
            f"stage {i} of {len(stages) + 1} cannot be gone back to ({problem}): the "
            "retraining starts earlier"
        )
    return problem is None
