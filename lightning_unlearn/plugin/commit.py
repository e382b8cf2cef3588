"""The moment of a request: weights, record and files move together, or none does."""

from dataclasses import dataclass
from pathlib import Path

import torch

from lightning_unlearn import ledger as ledgers
from lightning_unlearn.certificate import Certificate
from lightning_unlearn.plugin import checkpoint, inventory, store, strategies
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
    ledger: ledgers.Ledger
    record: TrainingRecord


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
    with processes.together():
        lines = ledgers.read(file) if mine and file is not None else None
        if save_to is not None:
            fresh = strategies.adapter(trainer).fresh_optimizers()
    before = [p.detach().clone() for p in scope.parameters]
    try:
        scope.assign(done.weights)
        callback.record = done.record
        with processes.together():
            if save_to is not None:
                checkpoint.write(trainer, callback, save_to, done.certificate, fresh)
            if mine and file is not None:
                ledgers.write(file, done.ledger)
        callback.committed(ready.module, ready.loader, kept)
    except BaseException:
        # Memory first: putting files back may fail too.
        callback.record, trainer.optimizers = record, trained
        with torch.no_grad():
            for p, old in zip(scope.parameters, before, strict=True):
                p.copy_(old)
        if mine and save_to is not None:  # it did not exist: check_target
            checkpoint.discard(save_to)
        if file is not None and lines is not None:
            ledgers.rewind(file, lines)
        raise
    try:
        inventory.forget_training(trainer, ready.module, save_to)
    finally:
        if mine and callback.options.prepared is not None:
            store.delete(callback.options.prepared)
