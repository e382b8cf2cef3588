"""One shard of an ensemble: its samples, and a training that can be made anew."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import Subset

from lightning_unlearn.errors import ModelError, SetupError
from lightning_unlearn.plugin.callback import UnlearningCallback
from lightning_unlearn.plugin.files.checkpoint import record_in
from lightning_unlearn.plugin.lightning import (
    LightningDataModule,
    LightningModule,
    Trainer,
)
from lightning_unlearn.plugin.request.stage import callback_of
from lightning_unlearn.plugin.retrain.fresh_training import MakeTraining, the_three
from lightning_unlearn.plugin.training import public_backbones


@dataclass
class Shard:
    """One of an ensemble, with all that a request to it needs.

    Args:
        positions: Of its samples in the whole dataset.
        data: They.
        trainer: Its own.
        module: Its own.
        loaded_by: The loader or the DataModule.
        callback: The Trainer's.
        checkpoint: That its next request begins with, or None.
        weights_only: How that is read.
    """

    positions: list[int]
    data: Subset
    trainer: Trainer
    module: LightningModule
    loaded_by: Any
    callback: UnlearningCallback
    checkpoint: Path | None = None
    weights_only: bool | None = None

    @property
    def source(self) -> dict[str, Any]:
        """The loader or the DataModule, as a verb of the Trainer takes it."""
        is_module = isinstance(self.loaded_by, LightningDataModule)
        return {
            "train_dataloaders": None if is_module else self.loaded_by,
            "datamodule": self.loaded_by if is_module else None,
        }

    @property
    def removed(self) -> set[int]:
        """Positions in the whole dataset that it has forgotten."""
        removed: Sequence[int] = self.callback.record.removed
        if self.checkpoint is not None:
            removed = record_in(self.checkpoint).get("removed", ())
        return {self.positions[i] for i in removed}


def made_by(
    make: MakeTraining, dataset: Any, positions: list[int], shards: int
) -> Shard:
    """A shard whose training is made and has not begun.

    Args:
        make: The user's factory.
        dataset: The whole one.
        positions: Of the shard's samples in it.
        shards: S.

    Raises:
        UnlearningError: If it could not be retrained later.
    """
    data = Subset(dataset, positions)
    trainer, module, loaded_by = the_three(make(data))
    callback = _checked_callback(trainer, module, shards)
    return Shard(positions, data, trainer, module, loaded_by, callback)


def _checked_callback(trainer: Any, module: Any, shards: int) -> UnlearningCallback:
    """The callback of a shard, if its shard can be retrained later."""
    callback = callback_of(trainer, module)
    if callback.options.retrain is None:
        raise SetupError(
            "expected UnlearningCallback(retrain=make_training) in the Trainer that "
            "make_training makes, got one without: a request could not retrain a shard"
        )
    if public_backbones.private_weights(module):
        raise ModelError(
            "expected shards that saw none of each other's samples, got a "
            "PrivatelyTrained backbone, which saw all of them with noise: no shard "
            "could be retrained without it; take a public backbone, or one "
            "CertifiedClassifier of all samples"
        )
    if trainer.world_size != 1:
        raise SetupError(
            f"expected a Trainer of one process for each shard, got "
            f"{trainer.world_size} processes: pass devices=1"
        )
    if shards > 1 and callback.options.ledger_path is not None:
        raise SetupError(
            f"expected shards without ledger=, got one file for {shards} models, each "
            "of which has a ledger of its own: leave it out; each shard's clean "
            "checkpoint (save_to=) keeps its ledger"
        )
    return callback


def check_saw_all(shard: Shard, j: int) -> None:
    """Raise `SetupError` unless the training was on all of a shard.

    Args:
        shard: That was trained.
        j: Its number.
    """
    seen = shard.callback.record.n_train
    if seen != len(shard.data):
        raise SetupError(
            f"expected the training of shard {j} to load the {len(shard.data):,} "
            f"samples it is given, got one over {seen}: give data to the DataLoader as "
            "it is; validate on samples that are in no shard"
        )
