"""Which trainings a model came out of, as far as a request may go back to one."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.data import ConcatDataset, DataLoader

from lightning_unlearn.plugin.data.subsets import flatten
from lightning_unlearn.plugin.data.training_data import (
    fingerprint,
    loaders_in,
    sample_digest,
)
from lightning_unlearn.plugin.lightning import (
    LightningModule,
    Trainer,
    is_overridden,
    isolate_rng,
)
from lightning_unlearn.plugin.stages import stage_end
from lightning_unlearn.plugin.training.outside_digests import (
    hidden_tensors,
    plain_attributes,
)
from lightning_unlearn.plugin.training.trained_marks import (
    has_trained_value,
    was_trained,
)
from lightning_unlearn.plugin.training.training_record import Stage, TrainingRecord
from lightning_unlearn.weights.digests import state_digest
from lightning_unlearn.weights.dtensors import in_shards
from lightning_unlearn.weights.passes import copies, held


@dataclass(frozen=True)
class End:
    """What a training has left, before anything of the next one has touched it.

    Args:
        state: Parameters and buffers by name.
        attributes: Digests of plain attributes, which the next training finds too.
    """

    state: dict[str, Tensor]
    attributes: dict[str, str]


def begin(
    record: TrainingRecord,
    module: LightningModule,
    folder: Path | None,
    known: bool,
    unknown: bool,
) -> End | None:
    """A training begins: do the stages so far lead to the weights it begins with?

    Args:
        record: Of the training.
        module: That is about to be trained.
        folder: Where stages are kept, or None.
        known: Whether the record came with the weights, out of one checkpoint.
        unknown: Whether something has trained them that no record tells of.

    Returns:
        What it begins with, where that may be the end of a stage.
    """
    if folder is None:
        record.stages = None
        return None
    stage_end.check_folder(folder)
    first = record.n_train is None
    if first:
        record.stages = []
        stage_end.warn_of_others(folder, stage_end.model_name(record))
    problem = _why_not(record, module, first, known, unknown)
    if problem is not None:
        record.stages = None
        rank_zero_warn(
            "expected weights that only the recorded trainings have made, for stages=, "
            f"{problem}: a request by how='retrain' will train from the start"
        )
    if first or record.stages is None:
        return None
    return End(copies(module), learnt(module))


def _why_not(
    record: TrainingRecord,
    module: LightningModule,
    first: bool,
    known: bool,
    unknown: bool,
) -> str | None:
    if any(map(in_shards, module.parameters())):
        return "got weights in shards (FSDP2)"
    if is_overridden("configure_model", module):
        return "got a module that makes its layers in configure_model"
    if unknown:
        return "got an earlier training that no record tells of"
    if first:
        values = {**hidden_tensors(module), **held(module)}.values()
        seen = any(was_trained(t) or has_trained_value(t) for t in values)
        return "got weights that an earlier training has made" if seen else None
    if record.stages is None:
        return "got an earlier training that was not kept (stages=)"
    if record.stepped:
        return "got a step that a request has taken"
    if not known and record.ended != state_digest(held(module)):
        return "got other weights than the training before ended with"
    return None


def learnt(module: nn.Module) -> dict[str, str]:
    """Digests of plain attributes that say what they hold, by name."""
    return plain_attributes(module, by_content=True)


def known_again(
    record: TrainingRecord, old: DataLoader | None, new: DataLoader, kept: list[int]
) -> bool:
    """Whether the samples of the training before are known to be among the new ones.

    Args:
        record: Of the training.
        old: The loader of the one before, if it was in this process.
        new: Its own.
        kept: Positions of the old dataset that the new one begins with.
    """
    if record.fingerprint is not None or record.others_before:
        return True  # compared, or no matter
    first: Any = new.dataset
    if isinstance(first, ConcatDataset) and old is not None:
        first = first if first is old.dataset else first.datasets[0]
    if old is not None and first is old.dataset:
        return True
    if old is not None:
        (base, positions), (same, drawn) = flatten(first), flatten(old.dataset)
        if base is same and positions == [drawn[i] for i in kept]:
            return True
    rank_zero_warn(
        "expected samples that are the same at every read, or the very dataset object "
        "of the training before, for stages=, got random ones in another object: a "
        "request by how='retrain' will train from the start"
    )
    return False


def note_validated(record: TrainingRecord, trainer: Trainer, noted: list[Any]) -> None:
    """Note what a training is validated on: a stage that saw a sample so saw it too.

    Args:
        record: Of the training.
        trainer: That trains.
        noted: Datasets that are noted already.
    """
    for loader in loaders_in(trainer.val_dataloaders):
        dataset = getattr(loader, "dataset", None)
        if any(dataset is one for one in noted):
            continue
        noted.append(dataset)
        with isolate_rng():  # a training goes on as if nobody had looked
            found = _digests(dataset, record)
        staged = record.stages is not None
        if staged and found is None and record.validated is not None:
            rank_zero_warn(
                "expected validation samples of tensors, arrays, images, text and "
                "numbers that are the same at every read, for stages=, got others: no "
                "request by how='retrain' can go back to the end of this training"
            )
        if found is None or record.validated is None:
            record.validated = None
        else:
            record.validated = sorted({*record.validated, *found})


def _digests(dataset: Any, record: TrainingRecord) -> set[str] | None:
    """Of all samples; None if they cannot be compared, or not be read."""
    try:
        if not fingerprint(dataset, ""):
            return None
        found = {_keyed(dataset[i], record) for i in range(len(dataset))}
    except Exception:  # whatever a dataset of another kind provokes
        return None
    known = {digest for digest in found if digest is not None}
    return known if len(known) == len(found) else None


def end_before(
    record: TrainingRecord, trainer: Trainer, folder: Path, before: Stage, end: End
) -> None:
    """The data of a training are known: was the one before it a stage of its own?

    Args:
        record: Which knows the data by now.
        trainer: At the start of the training.
        folder: Where stages are kept.
        before: What the training before could draw, in positions of these data.
        end: What it has left.
    """
    if record.drawn_problem is not None:
        record.stages = None
    if record.stages is None or before.drawn == record.retained:
        return
    model = stage_end.model_name(record)
    stage = stage_end.ended(
        folder, model, end.state, before.drawn, before.seconds, record.validated
    )
    record.validated = []
    if trainer.is_global_zero:
        stage_end.write(stage, model, end.state, attributes=end.attributes)
    record.stages = [*record.stages, stage]


@dataclass
class Gone:
    """Samples that are forgotten, as stages know them.

    Args:
        positions: In the training dataset.
        digests: Keyed, of what they hold.
        comparable: Whether their digests say what was validated on: not of samples that
            differ between reads.
    """

    positions: frozenset[int]
    digests: frozenset[str]
    comparable: bool = True

    @staticmethod
    def of(record: TrainingRecord, dataset: Any, positions: list[int]) -> "Gone":
        """Some samples of a training dataset."""
        found = set[str]()
        if record.validated or any(s.validated for s in record.stages or ()):
            with isolate_rng():
                found = {_keyed(dataset[i], record) or "" for i in positions}
        same = record.fingerprint is not None and "" not in found
        return Gone(frozenset(positions), frozenset(found - {""}), same)

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
            seen = seen or bool(validated and not self.comparable)
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

    def last_before(self, stages: list[Stage], folder: Path) -> int:
        """How many stages, from the first on, saw none of them and can be read.

        Args:
            stages: Of the training.
            folder: Where their files are.
        """
        marked = self.without(stages) or []
        for i in range(len(stages), 0, -1):
            if marked[i - 1].path is not None and _can_be_read(stages, i, folder):
                return i
        return 0


def _keyed(sample: Any, record: TrainingRecord) -> str | None:
    """Of its largest parts: a sample is validated on without its id, say."""
    leaves = tree_leaves(sample)
    sizes = [_size(leaf) for leaf in leaves]
    largest = [v for v, size in zip(leaves, sizes, strict=True) if size == max(sizes)]
    digest = sample_digest(largest, record.ledger_key)
    return None if digest is None else digest[:16]


def _size(leaf: Any) -> int:
    if isinstance(leaf, Tensor):
        return leaf.numel()
    size = getattr(leaf, "size", None)  # of an array, or (width, height)
    if isinstance(size, tuple):
        return math.prod(size)
    if isinstance(size, int):
        return size
    return len(leaf) if isinstance(leaf, (str, bytes)) else 1


def _can_be_read(stages: list[Stage], i: int, folder: Path) -> bool:
    problem = stage_end.problem_with(stages[i - 1], folder)
    if problem is not None:
        rank_zero_warn(
            f"the retraining cannot start from the end of stage {i} of "
            f"{len(stages) + 1} ({problem}): it starts earlier"
        )
    return problem is None
