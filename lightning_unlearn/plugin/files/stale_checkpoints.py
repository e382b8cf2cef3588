"""Files that still hold what was forgotten: which are known, and which may go."""

from dataclasses import dataclass
from pathlib import Path

from lightning_utilities.core.rank_zero import rank_zero_warn

from lightning_unlearn._base.files import is_remote
from lightning_unlearn.errors import DataError
from lightning_unlearn.plugin.files import checkpoint, private_file
from lightning_unlearn.plugin.files.known_checkpoints import Standing, known
from lightning_unlearn.plugin.files.private_file import private_path
from lightning_unlearn.plugin.lightning import Trainer
from lightning_unlearn.plugin.training.training_record import TrainingRecord


@dataclass(frozen=True)
class Stale:
    """Files from before a request.

    Args:
        checkpoints: Those known to hold what is being forgotten, that exist or are in
            a remote store, which nobody asks.
        logs: Folders of the Trainer's loggers that exist.
        unsure: Files that cannot be read, or not from here: they may hold it too.
    """

    checkpoints: tuple[str, ...]
    logs: tuple[str, ...]
    unsure: tuple[str, ...] = ()


NOTHING_STALE = Stale((), ())


def find(
    trainer: Trainer,
    ckpt_path: str | None,
    record: TrainingRecord,
    replaced: Path | None = None,
) -> Stale:
    """What the Trainer, its callbacks and the record know of, and what lies beside it.

    Args:
        trainer: Of the request.
        ckpt_path: Checkpoint the request was started from, or None.
        record: Of the model.
        replaced: Name of the request's own checkpoint: what has it now will be gone.
    """
    own = None if replaced is None else str(replaced.absolute())
    found = [o for o in known(trainer, ckpt_path, record) if o.path != own]
    ours = Standing.OURS, Standing.LATER
    checkpoints = [one.path for one in found if one.named or one.standing in ours]
    unsure = [
        one.path
        for one in found
        if one.standing is Standing.UNREADABLE and one.path not in checkpoints
    ]
    # The folder of all versions: a training in another process logged to another one.
    logged = {
        getattr(logger, "root_dir", None) or logger.log_dir or logger.save_dir
        for logger in trainer.loggers
    }
    logs = {str(f) for f in logged if f and Path(f).is_dir()}
    return Stale(tuple(checkpoints), tuple(sorted(logs)), tuple(unsure))


def delete(
    stale: Stale, record: TrainingRecord, chosen: list[int], clean: Path
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Delete the checkpoints that hold what was forgotten, and no other file.

    Each must say itself that it is of the training the record began with, was made no
    later, and still holds some of the forgotten samples: the paths come from
    callbacks' states, which anyone may have written.

    Args:
        stale: What is known.
        record: Of the model, before the request.
        chosen: Positions the request has forgotten.
        clean: The new checkpoint, which stays.

    Returns:
        Paths that were deleted, and paths that were left.
    """
    deleted, left = [], []
    for name in stale.checkpoints:
        path = Path(name)
        if path.resolve() == clean.resolve():
            continue
        problem = "it is in a remote store"
        if not is_remote(name):
            problem = _problem(path, record, chosen, clean)
        if problem is None:
            try:
                _remove(path)
                deleted.append(name)
                continue
            except OSError as error:
                problem = str(error)
        left.append(name)
        rank_zero_warn(f"delete_stale has left {name}: {problem}; delete it by hand")
    return tuple(deleted), tuple(left)


def _problem(
    path: Path, record: TrainingRecord, chosen: list[int], clean: Path
) -> str | None:
    """Why a file may not be deleted."""
    if path.is_symlink():
        return "it is a link"
    if path.is_dir() and not all(_is_shard(p) for p in path.iterdir()):
        return "it is a folder with other files"
    if clean.resolve().is_relative_to(path.resolve()):
        return "the new checkpoint is in it"
    try:
        held = checkpoint.record_in(path)
        if not held:
            return "it holds no record of an UnlearningCallback"
        other = TrainingRecord.from_dict(held)
    except DataError as error:
        return str(error)
    if not other.whole:
        return "its private file is not beside it: what it holds is not known"
    if other.lineage != record.lineage:
        return "it is of another training"
    if other.fingerprint is None:
        return "its data has no fingerprint: it may be of a training on other samples"
    if not record.ledger.startswith(other.ledger):
        return "it is of other requests than this model"
    if set(chosen) <= set(other.removed):
        return "it does not hold what was forgotten"
    return None


def _is_shard(path: Path) -> bool:
    """Whether a file belongs to a sharded checkpoint."""
    named = path.name in (".metadata", "meta.pt") or path.suffix == ".distcp"
    return named and path.is_file() and not path.is_symlink()


def _remove(path: Path) -> None:
    """Remove a checkpoint, and the private file of a clean one."""
    private = private_path(path)
    certificate = checkpoint.record_in(path).get("certificate")
    if private_file.read_of(private, certificate) is not None:
        private.unlink()
    if not path.is_dir():
        path.unlink()
        return
    for shard in path.iterdir():
        shard.unlink()
    path.rmdir()
