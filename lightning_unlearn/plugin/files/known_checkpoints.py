"""The checkpoints a request can know of, and how each stands to its model.

A file is of the request's training, or of a later state of it that has forgotten more,
or of another training, or nobody can tell. Nothing of a file is unpickled but plain
values: whatever else it holds, a class of the user's among it, is not even imported.
"""

import sys
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from lightning_unlearn._base.files import is_remote
from lightning_unlearn.certificate.certificate import Certificate
from lightning_unlearn.certificate.ledger import Ledger
from lightning_unlearn.errors import CertificateError, DataError, SetupError
from lightning_unlearn.guarantee.terms import EXACT
from lightning_unlearn.plugin.files import checkpoint
from lightning_unlearn.plugin.lightning import Checkpoint, LightningModule, Trainer
from lightning_unlearn.plugin.mixin import LOADED
from lightning_unlearn.plugin.training.training_record import TrainingRecord

PATHS = ("best_model_path", "last_model_path", "kth_best_model_path")


class Standing(Enum):
    """How a file stands to a model."""

    OURS = "of this training, and has forgotten nothing that the model holds"
    LATER = "of this training, and has forgotten samples that the model holds"
    OTHER = "of another training, or of none that was watched"
    UNREADABLE = "cannot be read: it may hold them"


@dataclass(frozen=True)
class Known:
    """A file.

    Args:
        path: Absolute, or the address of a remote one.
        standing: To the model it was looked at for.
        named: Whether the Trainer, its callbacks, the record or the request names it;
            else it only lies beside one that they do.
        forgotten: Positions it has forgotten; none if its private file is not there to
            say which.
        certificate: JSON of that of its last request, or None.
    """

    path: str
    standing: Standing
    named: bool
    forgotten: frozenset[int] = frozenset()
    certificate: str | None = None


def known(
    trainer: Trainer,
    ckpt_path: str | None,
    record: TrainingRecord,
    *folders: Path,
) -> list[Known]:
    """Every checkpoint that the request can know of, in the order of their paths.

    Args:
        trainer: Of the request.
        ckpt_path: Checkpoint the request was started from, or None.
        record: Of the model.
        folders: That are looked into too.
    """
    named: set[Any] = {ckpt_path, *record.saved}
    beside = {Path(p).absolute().parent for p in named if _is_there(p)}
    beside |= set(folders)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Checkpoint):
            named |= {getattr(callback, name, None) for name in PATHS}
            named |= set(getattr(callback, "best_k_models", {}))
            own = getattr(callback, "dirpath", None)
            if own is not None and is_remote(own):
                named.add(str(own))
            elif own:
                beside.add(Path(own))
    local = {_absolute(p) for p in named if _is_there(p)}
    remote = {str(p) for p in named if isinstance(p, (str, Path)) and is_remote(p)}
    # Another process knows of the file it began with, and not of those beside it.
    others = {_absolute(p) for folder in beside for p in folder.glob("*.ckpt")} - local
    found = [Known(p, Standing.UNREADABLE, named=True) for p in remote]
    found += [_looked_at(p, record, named=True) for p in local]
    found += [_looked_at(p, record, named=False) for p in others]
    return sorted(found, key=lambda one: one.path)


def check_newest(
    files: Collection[Known],
    record: TrainingRecord,
    chosen: Iterable[int],
    counted: bool = False,
) -> None:
    """Raise unless no other file has forgotten what the request would keep.

    Args:
        files: That are known.
        record: Of the model.
        chosen: Positions the request will forget.
        counted: Whether all releases are counted together: a release that the model's
            own ledger does not have then counts too, whatever the request forgets.

    Raises:
        SetupError: If one has: it is named.
    """
    gone = {*record.removed, *chosen}
    later = [one for one in files if one.standing is Standing.LATER]
    back = [one for one in later if not one.forgotten or one.forgotten - gone]
    if back:
        newest = max(back, key=lambda one: len(one.forgotten))
        missing = len(newest.forgotten - gone) or "some"
        raise SetupError(
            "expected the newest checkpoint of this model, got one from before "
            f"{missing} samples were unlearned, as {newest.path} knows: go on from "
            "that checkpoint (ckpt_path=), or the samples forgotten since would be back"
            + ("" if counted else "; or forget them in this request too")
        )
    lacking = [one for one in files if _is_uncounted(one, record)] if counted else []
    if lacking:
        raise SetupError(
            "expected all releases of this model in its ledger, for the noise of "
            "releases= is scaled for their number, got a model without that of "
            f"{lacking[0].path}: go on from that checkpoint (ckpt_path=), or where "
            "requests were made on two copies of a model, train a new one"
        )


def _is_uncounted(one: Known, record: TrainingRecord) -> bool:
    """Whether a file holds a release that a model's own ledger does not have.

    Retrainings alone use up nothing: they tell nothing of who was forgotten.
    """
    if one.standing not in (Standing.OURS, Standing.LATER):
        return False
    if one.certificate is None:  # of a request that left none to read
        return one.standing is Standing.LATER
    try:
        found = Certificate.from_json(one.certificate)
    except CertificateError:
        return True
    alone = found.bound in EXACT and [*found.release_mus] == [0.0] * found.release
    return not alone and not _knows(record, found)


def check_not_released(
    module: LightningModule,
    digest: str,
    trainer: Trainer,
    ckpt_path: object,
    record: TrainingRecord,
    *folders: Path,
) -> None:
    """Raise if a model is a released one whose record did not come with it.

    Args:
        module: The model.
        digest: `state_digest` of its state, as all processes have computed it.
        trainer: Of the request, or the training.
        ckpt_path: Checkpoint it was started from, or None.
        record: That the callback has of the model.
        folders: That are looked into, besides those of `known` and where the process
            runs.

    Raises:
        SetupError: If the weights are those a known certificate speaks of, and the
            record knows nothing of that request.
    """
    start = None if ckpt_path is None else str(ckpt_path)
    here = Path.cwd(), Path(trainer.default_root_dir)
    places = (f for f in {*folders, *here} if not is_remote(f) and f.is_dir())
    files = known(trainer, start, record, *places)
    released = [(one.path, one.certificate) for one in files]
    released.append(("the clean checkpoint", getattr(module, LOADED, None)))
    for path, text in released:
        if not text or text == record.certificate:
            continue
        with suppress(CertificateError):
            found = Certificate.from_json(text)
            # A private training has the same weights after each of its requests.
            if found.weights_digest == digest and not _knows(record, found):
                raise SetupError(
                    "expected a model with the record of its requests, got the "
                    f"weights of {path} without it: what they have forgotten would be "
                    "learned again; pass ckpt_path= of that file to the request, or "
                    "to fit, in place of load_from_checkpoint or load_state_dict"
                )


def _knows(record: TrainingRecord, certificate: Certificate) -> bool:
    """Whether a request is among those of a record."""
    entries = Ledger.from_text(record.ledger).entries
    return certificate.digest in [entry.certificate_digest for entry in entries]


def _looked_at(path: str, record: TrainingRecord, named: bool) -> Known:
    text, forgotten = None, frozenset[int]()
    try:
        held = checkpoint.record_in(Path(path))
        text = held.get("certificate")
        text = text if isinstance(text, str) else None
        other = TrainingRecord.from_dict(held) if held else None
    except DataError:
        return Known(path, Standing.UNREADABLE, named, certificate=text)
    if other is None or other.lineage != record.lineage:
        return Known(path, Standing.OTHER, named, certificate=text)
    if other.whole:
        forgotten = frozenset(other.removed)
        later = not forgotten <= set(record.removed)
    else:  # to be served: only its certificate says how old it is
        later = _release(other) > len(Ledger.from_text(record.ledger).entries)
    standing = Standing.LATER if later else Standing.OURS
    return Known(path, standing, named, forgotten, text)


def _release(served: TrainingRecord) -> int:
    """Which release a served checkpoint is; any that cannot be read may be the last."""
    try:
        return Certificate.from_json(served.certificate or "").release
    except CertificateError:
        return sys.maxsize


def _absolute(path: object) -> str:
    return str(Path(str(path)).absolute())


def _is_there(path: object) -> bool:
    """Whether a path that anyone may have written names something."""
    try:
        return isinstance(path, (str, Path)) and path != "" and Path(path).exists()
    except (OSError, ValueError):  # a name no file system takes
        return False
