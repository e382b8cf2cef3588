"""The moment of a request: weights, record and files move together, or none does."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lightning_unlearn import ledger as ledgers
from lightning_unlearn.certificate import Certificate
from lightning_unlearn.ledger import Ledger
from lightning_unlearn.plugin import (
    checkpoint,
    inventory,
    journal,
    solve_state,
    store,
    strategies,
)
from lightning_unlearn.plugin.callback import UnlearningCallback
from lightning_unlearn.plugin.record import TrainingRecord
from lightning_unlearn.plugin.resolved import Resolved
from lightning_unlearn.plugin.store import Stored
from lightning_unlearn.scope import Vector


@dataclass(frozen=True)
class Done:
    """What a request has decided, and not yet done."""

    weights: Vector
    certificate: Certificate
    ledger: Ledger
    record: TrainingRecord
    buffers: dict[str, Tensor]


class Files:
    """The files of a request: they appear together, or none does.

    Args:
        clean: The checkpoint, or None.
        ledger: The ledger's file, or None.
        longer: What it will hold.
    """

    def __init__(
        self, clean: Path | None, ledger: Path | None, longer: Ledger | None = None
    ) -> None:
        self.clean, self.ledger, self.longer = clean, ledger, longer
        self._before: Ledger | None = None
        self._appears = False

    def prepare(self) -> None:
        """Note how things stand, and what will be written."""
        if self.clean is not None:
            checkpoint.check_target(self.clean)
            checkpoint.discard(self.clean, appeared=False)
        if self.ledger is not None:
            self._before = ledgers.read(self.ledger)
            if self.clean is not None and self.longer is not None:
                journal.announce(self.ledger, self.clean, self._before, self.longer)

    def publish(self) -> None:
        """Make the staged checkpoint and the longer ledger appear."""
        path, longer = self.ledger, self.longer
        if self.clean is not None:
            checkpoint.check_target(self.clean)
            self._appears = True
            checkpoint.publish(self.clean)
        if path is not None and longer is not None:
            ledgers.write(path, longer)
            journal.close(path)

    def undo(self) -> None:
        """Put everything back."""
        if self.clean is not None:
            checkpoint.discard(self.clean, self._appears)
        if self.ledger is not None and self._before is not None:
            ledgers.rewind(self.ledger, self._before)
            journal.close(self.ledger)


def commit(
    ready: Resolved,
    done: Done,
    callback: UnlearningCallback,
    save_to: Path | None,
    kept: Stored | None,
) -> None:
    """Move the weights, the record and the files together, or none of them.

    Args:
        ready: The request.
        done: What it has decided.
        callback: Ours.
        save_to: Where the clean checkpoint goes, or None.
        kept: What of the prepared state may stay, or None.
    """
    trainer, processes = ready.trainer, ready.processes
    record, file = callback.record, callback.options.ledger
    scope, mine = ready.scope.again(), processes.rank == 0
    trained, fresh = trainer.optimizers, []
    files = Files(save_to, file, done.ledger) if mine else Files(None, None)
    named = dict(ready.module.named_buffers())
    moved = [*scope.parameters, *(named[name] for name in done.buffers)]
    before = [t.detach().clone() for t in moved]
    try:
        with processes.together():
            files.prepare()
            if save_to is not None:
                fresh = strategies.adapter(trainer).fresh_optimizers()
        scope.assign(done.weights)
        for name, value in done.buffers.items():
            named[name].copy_(value)
        callback.record = done.record
        with processes.together():
            if save_to is not None:
                checkpoint.stage(trainer, callback, save_to, done.certificate, fresh)
        with processes.together():
            files.publish()
        callback.committed(ready.module, ready.loader, kept)
    except BaseException:
        # Memory first: putting files back may fail too.
        callback.record, trainer.optimizers = record, trained
        with torch.no_grad():
            for t, old in zip(moved, before, strict=True):
                t.copy_(old)
        files.undo()
        raise
    try:
        inventory.forget_training(trainer, ready.module, save_to)
    finally:
        if mine and callback.options.prepared is not None:
            store.delete(callback.options.prepared)
        solve_state.delete(ready.watch)
