"""A retraining in stages: each goes on from the end of the one before it."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor

from lightning_unlearn.errors import DataError
from lightning_unlearn.plugin.callback import UnlearningCallback
from lightning_unlearn.plugin.lightning import LightningModule, Trainer
from lightning_unlearn.plugin.retrain.fresh_training import train_anew
from lightning_unlearn.plugin.retrain.retained import Retained
from lightning_unlearn.plugin.retrain.retrained import Job, Retrained, Start
from lightning_unlearn.plugin.run.coins import own_coins
from lightning_unlearn.plugin.stages import stage_end
from lightning_unlearn.plugin.stages.kept_stages import learnt
from lightning_unlearn.plugin.training.training_record import Stage, TrainingRecord


@dataclass(frozen=True)
class InStages:
    """The trainings that a retraining takes; one, where no stages were kept.

    Args:
        make: Makes each of them over what it may draw.
        job: The retraining.
        old: The Trainer, module and callback of the request.
        dataset: The training dataset, forgotten samples included.
        record: Of the old training.
    """

    make: Callable[[Any], object]
    job: Job
    old: tuple[Trainer, LightningModule, UnlearningCallback]
    dataset: Any
    record: TrainingRecord

    def run(self, resume_from: Path | None) -> Retrained:
        """Train; what was finished of this very retraining before is not done again.

        Args:
            resume_from: A checkpoint of the first training that is not finished.

        Raises:
            UnlearningError: If a training could see more than it was given.
        """
        *before, last = self.job.each()
        stages, start = [*self.job.kept], None
        if stages:
            state, attributes = stage_end.read(stages[-1], self._folder)
            start = Start(state, self.record, attributes)
        written, seconds, steps = list[str](), 0.0, 0
        for part in before:
            finished = self._finished(part)
            if finished is None:
                done = self._train(part, resume_from, start)
                finished, resume_from = self._kept(part, done), None
                written += done.written
                seconds += done.seconds
            stage, start = finished
            stages.append(stage)
            steps += start.record.steps
        done = self._train(last, resume_from, start)
        return replace(
            done,
            job=self.job,
            record=replace(done.record, steps=steps + done.record.steps),
            seconds=seconds + done.seconds,
            written=(*written, *done.written),
            stages=tuple(stages) if self.job.staged else None,
        )

    def _train(
        self, part: Job, resume_from: Path | None, start: Start | None
    ) -> Retrained:
        with own_coins((self.job.coins + part.part) % 2**32):
            made = self.make(Retained(self.dataset, part.retained, part.token))
            return train_anew(made, part, self.old, self.dataset, resume_from, start)

    @property
    def _model(self) -> str:
        return stage_end.model_name(self.record)

    @property
    def _folder(self) -> Path:
        folder = self.old[2].options.stages_path
        assert folder is not None  # or there is one training
        return folder

    def _stage(
        self,
        part: Job,
        state: dict[str, Tensor],
        seconds: float | None,
        record: TrainingRecord,
    ) -> Stage:
        return stage_end.ended(
            self._folder, self._model, state, part.retained, seconds, record.validated
        )

    def _kept(self, part: Job, done: Retrained) -> tuple[Stage, Start]:
        """Keep what a training has left for later requests, and for this one."""
        record = replace(done.record, retrains=None)
        stage = self._stage(part, done.state, done.seconds, record)
        attributes = {} if done.module is None else learnt(done.module)
        if self.old[0].is_global_zero:
            told = json.dumps(record.to_dict())
            stage_end.write(
                stage, self._model, done.state, part.token, told, attributes
            )
        return stage, Start(done.state, record, attributes)

    def _finished(self, part: Job) -> tuple[Stage, Start] | None:
        """What a training has left that was finished before the request was stopped."""
        for path, token in stage_end.found(self._folder, self._model).items():
            if token != part.token:
                continue
            try:
                text, state = stage_end.FILE.read(path)
                record = TrainingRecord.from_dict(json.loads(text["record"]))
                attributes = dict(json.loads(text["learnt"]))
            except (DataError, ValueError, KeyError) as problem:
                rank_zero_warn(f"{path} is not used ({problem!s:.200})")
                continue
            stage = self._stage(part, state, record.fit_seconds, record)
            return stage, Start(state, record, attributes)
        return None
