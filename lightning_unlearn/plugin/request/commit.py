"""The moment of a request: weights, record and files move together, or none does."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lightning_unlearn._base import files
from lightning_unlearn._base.files import write_new
from lightning_unlearn.certificate import exclusions, ledger as ledgers, receipts
from lightning_unlearn.certificate.certificate import Certificate
from lightning_unlearn.certificate.exclusions import Excluded
from lightning_unlearn.certificate.inbox.answers import Answers
from lightning_unlearn.certificate.ledger import Ledger
from lightning_unlearn.certificate.receipts import Leaf
from lightning_unlearn.plugin import excluded
from lightning_unlearn.plugin.callback import UnlearningCallback
from lightning_unlearn.plugin.files import (
    checkpoint,
    journal,
    prepared_file,
    private_file,
    replacement,
    solve_file,
)
from lightning_unlearn.plugin.files.prepared_file import BoundState
from lightning_unlearn.plugin.files.private_file import private_path
from lightning_unlearn.plugin.files.replacement import Replacement
from lightning_unlearn.plugin.files.stale_checkpoints import Stale
from lightning_unlearn.plugin.plan.plan import Plan
from lightning_unlearn.plugin.request import trainer_state
from lightning_unlearn.plugin.run.progress import told
from lightning_unlearn.plugin.stages import stage_end
from lightning_unlearn.plugin.training.training_record import TrainingRecord
from lightning_unlearn.weights.dtensors import sharded_as
from lightning_unlearn.weights.passes import held
from lightning_unlearn.weights.scope import Vector


@dataclass(frozen=True)
class Decided:
    """What a request has decided, and not yet done."""

    weights: Vector
    certificate: Certificate
    ledger: Ledger
    record: TrainingRecord
    buffers: dict[str, Tensor]
    stale: Stale
    leaves: tuple[Leaf, ...] = ()


class Files:
    """The files of a request: they appear together, or none does.

    Args:
        done: What the request has decided.
        clean: The checkpoint, or None.
        ledger: The ledger's file, or None.
        secret: Files that are deleted once the request is done.
        overwrite: Whether the clean checkpoint of an earlier request may be replaced.
    """

    def __init__(
        self,
        done: Decided,
        clean: Path | None,
        ledger: Path | None,
        secret: list[Path],
        overwrite: bool = False,
    ) -> None:
        self.done, self.clean, self.ledger, self.secret = done, clean, ledger, secret
        self.overwrite = overwrite
        self.exclusion: tuple[Path, Excluded] | None = None
        self.answers: Answers | None = None
        self._listed = False
        self._replacement: Replacement | None = None
        self._before: Ledger | None = None
        self._ours: dict[Path, tuple[int, int] | None] = {}

    @property
    def parts(self) -> dict[Path, Path]:
        """What is written, in order -> the names it is staged under."""
        if self.clean is None:
            return {}
        return checkpoint.parts(self.clean, self.done.certificate.request_id)

    def prepare(self) -> None:
        """Note how things stand, and what will be written."""
        if self.clean is not None and self.overwrite and os.path.lexists(self.clean):
            replacement.check(self.clean, self.done.record, self.done.record.removed)
            own = self.done.certificate.request_id
            self._replacement = Replacement(self.clean, self.parts, own)
        elif self.clean is not None:
            checkpoint.check_target(self.clean)
        if self.ledger is None:
            return
        self._before = ledgers.read(self.ledger)
        if self.clean is not None:
            listed, line = self.exclusion or ("", None)
            journal.announce(
                self.ledger,
                journal.Note(
                    checkpoint=str(self.clean.absolute()),
                    certificate=self.done.certificate.to_json(),
                    ledger=self.done.ledger.to_text(),
                    entries_before=len(self._before.entries),
                    secret=[str(path) for path in self.secret],
                    exclusions=str(listed),
                    exclusion="" if line is None else line.to_text(),
                    answers="" if self.answers is None else self.answers.to_text(),
                ),
            )

    def publish(self) -> None:
        """Make the staged checkpoint, what belongs to it and the ledger appear."""
        beside = {} if self.clean is None else self._beside(self.clean)
        for target, part in self.parts.items():
            if target in beside:
                write_new(part, *beside[target])
            if self._replacement is None:
                self._ours[target] = files.identity(part)
                checkpoint.publish(part, target)
        if self._replacement is not None:
            self._replacement.take_place()
        if self.ledger is not None:
            ledgers.write(self.ledger, self.done.ledger)
        if self.exclusion is not None:
            self._listed = True
            exclusions.append(*self.exclusion)

    def _beside(self, clean: Path) -> dict[Path, tuple[str, int]]:
        """Text and mode of what stands beside the checkpoint."""
        done, mine = self.done, 0o600
        opened = receipts.to_text(done.leaves, done.certificate.request_id)
        return {
            private_path(clean): (private_file.text_of(done.record), mine),
            receipts.receipts_path(clean): (opened, mine),
            checkpoint.certificate_path(clean): (done.certificate.to_json(), 0o666),
        }

    def close(self) -> None:
        """Everything is done; a file of requests says so last of all."""
        if self._answered():
            self._close()

    def _answered(self) -> bool:
        """Whether it does. If not, the note stays, and the next request goes by it."""
        answers, done = self.answers, list[bool]()
        if answers is None:
            return True
        with told(
            f"the request is done, but {answers.file} does not say so: the next one "
            f"with the ledger {self.ledger} completes it"
        ):
            journal.tell_left(answers, answers.complete(self.done.leaves))
            done.append(True)
        return bool(done)

    def _close(self) -> None:
        if self._replacement is not None:
            self._replacement.close()
        if self.ledger is not None:
            journal.close(self.ledger)

    def undo(self) -> None:
        """Put everything back; what somebody else has put there stays."""
        if self.exclusion is not None and self._listed:
            path, own = self.exclusion[0], self.exclusion[1].request_id
            with told(f"{path} may have a line of request {own}, which was not done"):
                exclusions.withdraw(path, own)
        if self._replacement is not None:
            self._replacement.undo()
        for target, part in reversed(self.parts.items()):
            files.remove(part)
            ours = self._ours.get(target)
            if ours is not None and files.identity(target) == ours:
                files.remove(target)
        if self.ledger is not None and self._before is not None:
            ledgers.rewind(self.ledger, self._before)
        self._close()


def commit(
    plan: Plan,
    done: Decided,
    callback: UnlearningCallback,
    save_to: Path | None,
    kept: BoundState | None,
    overwrite: bool = False,
    answers: Answers | None = None,
) -> None:
    """Move the weights, the record and the files together, or none of them.

    Args:
        plan: The request.
        done: What it has decided.
        callback: Ours.
        save_to: Where the clean checkpoint goes, or None.
        kept: What of the prepared state may stay, or None.
        overwrite: Whether it may take the place of an earlier one.
        answers: What becomes of the requests in a file, if there is one.
    """
    trainer, processes = plan.trainer, plan.processes
    record, file = callback.record, callback.options.ledger_path
    scope, mine = plan.scope.again(), processes.rank == 0
    trained, fresh = trainer.optimizers, []
    secret = solve_file.files(plan.solve_file)
    store = callback.options.prepared_path
    if store is not None and kept is None:
        secret = [*secret, store]
    old = stage_end.left_over(callback.options.stages_path, record, done.record)
    secret = [*secret, *old]
    files = Files(done, None, None, [])
    if mine:
        files = Files(done, save_to, file, secret, overwrite)
    named = held(plan.module)
    moved = [*scope.parameters, *(named[name] for name in done.buffers)]
    before, rest = [t.detach().clone() for t in moved], None
    try:
        with processes.together():
            if mine:
                files.exclusion = excluded.line_of(
                    callback.options, done.leaves, done.certificate.request_id
                )
                files.answers = answers
            files.prepare()
            if save_to is not None:
                fresh = plan.strategy.fresh_optimizers()
        scope.assign(done.weights)
        with torch.no_grad():
            for name, value in done.buffers.items():
                named[name].copy_(sharded_as(named[name], value))
        rest = plan.move_rest(callback)
        callback.record = done.record
        with processes.together():
            if save_to is not None:
                part = checkpoint.parts(save_to, done.certificate.request_id)[save_to]
                checkpoint.stage(trainer, callback, part, fresh)
        if store is not None and kept is not None:
            # Before the request counts as done: the forgotten rows are gone then. If
            # it fails after this they are read again, as any that are not there.
            prepared_file.keep(store, plan, kept)
        with processes.together():
            files.publish()
        callback.committed(plan.module, plan.loader, kept)
    except BaseException:
        # Memory first: putting files back may fail too.
        if rest is not None:
            rest()
        callback.record, trainer.optimizers = record, trained
        with torch.no_grad():
            for t, old in zip(moved, before, strict=True):
                t.copy_(old)
        files.undo()
        raise
    try:
        trainer_state.forget_training(trainer, plan.module, save_to)
    finally:
        if mine and store is not None and kept is None:
            prepared_file.delete(store)
        solve_file.delete(plan.solve_file)
        if mine:
            stage_end.delete(old)
        files.close()
