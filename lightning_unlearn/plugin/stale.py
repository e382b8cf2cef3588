"""Files that still hold what was forgotten: which are known, and which may go."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning_utilities.core.rank_zero import rank_zero_warn

from lightning_unlearn.plugin.record import TrainingRecord

_PATHS = ("best_model_path", "last_model_path", "kth_best_model_path")
_STATE_KEY = "UnlearningCallback"


@dataclass(frozen=True)
class Stale:
    """Files from before a request.

    Args:
        checkpoints: Those known to hold what is being forgotten, that exist.
        logs: Folders of the Trainer's loggers that exist.
    """

    checkpoints: tuple[str, ...]
    logs: tuple[str, ...]


def find(trainer: Trainer, ckpt_path: str | None, record: TrainingRecord) -> Stale:
    """What the Trainer, its callbacks and the record know of.

    Args:
        trainer: Of the request.
        ckpt_path: Checkpoint the request was started from, or None.
        record: Of the model.
    """
    paths = {ckpt_path, *record.saved}
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Checkpoint):
            paths |= {getattr(callback, name, None) for name in _PATHS}
            paths |= set(getattr(callback, "best_k_models", {}))
            folder = getattr(callback, "dirpath", None)
            beside = Path(folder).glob("*.ckpt") if folder else ()
            paths |= {p for p in beside if _problem(p, record.lineage) is None}
    checkpoints = {str(Path(p)) for p in paths if p and Path(p).exists()}
    folders = {logger.log_dir or logger.save_dir for logger in trainer.loggers}
    logs = {str(f) for f in folders if f and Path(f).is_dir()}
    return Stale(tuple(sorted(checkpoints)), tuple(sorted(logs)))


def delete(
    stale: Stale, record: TrainingRecord, clean: Path
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Delete the checkpoints of one training, and no other file.

    Each must say itself that it is of the training the record began with: the names
    it has come from callbacks' states, which anyone may have written.

    Args:
        stale: What is known.
        record: Of the model.
        clean: The new checkpoint, which stays.

    Returns:
        Paths that were deleted, and paths that were left.
    """
    deleted, left = [], []
    for name in stale.checkpoints:
        path = Path(name)
        if path.resolve() == clean.resolve():
            continue
        problem = _problem(path, record.lineage)
        if problem is None:
            try:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
                deleted.append(name)
                continue
            except OSError as error:
                problem = str(error)
        left.append(name)
        rank_zero_warn(f"delete_stale has left {name}: {problem}; delete it by hand")
    return tuple(deleted), tuple(left)


def _problem(path: Path, lineage: str) -> str | None:
    """Why a file may not be deleted."""
    if path.is_symlink():
        return "it is a link"
    file = path / "meta.pt" if path.is_dir() else path  # of a sharded checkpoint
    try:
        # Nothing but the record is read from the disk.
        held: Any = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
        other = held["callbacks"][_STATE_KEY]["lineage"]
    except (KeyError, TypeError):
        return "it holds no record of an UnlearningCallback"
    except Exception as error:  # whatever a file that is no checkpoint makes torch do
        return f"it cannot be read as a checkpoint ({type(error).__name__})"
    return None if other == lineage else "it is of another training"
