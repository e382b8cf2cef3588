"""A clean checkpoint in place of the one before it: the old files, or the new ones.

The checkpoint's name decides: it is replaced in one step, and what belongs to it after
it. The old files have second names until all is done, so that an error puts them back.
The checkpoint's second name also tells whoever comes next that the process was stopped
between: from it, and what the checkpoint itself says, `finish` puts all in its place.
"""

import glob
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from lightning_unlearn._base.files import identity, part_of, remove, settle, sync
from lightning_unlearn.certificate.certificate import Certificate
from lightning_unlearn.certificate.receipts import receipts_path
from lightning_unlearn.errors import CertificateError, DataError, SetupError
from lightning_unlearn.plugin.files import checkpoint, private_file
from lightning_unlearn.plugin.files.private_file import private_path
from lightning_unlearn.plugin.training.training_record import TrainingRecord

_WAIT = 10.0  # seconds: other processes of the same run finish it at the same moment


def check(clean: Path, record: TrainingRecord, gone: list[int]) -> None:
    """Raise unless all that has these names may be replaced by a request.

    Args:
        clean: Where the new clean checkpoint will be.
        record: Of the model.
        gone: Positions it will have forgotten, those of earlier requests included.

    Raises:
        SetupError: If the checkpoint there is not the clean one of an earlier state of
            this model, or a file beside it does not belong to it.
    """
    if clean.is_symlink() or not clean.is_file():
        raise _refusal(clean, "a link or a folder")
    try:
        served = checkpoint.state_in(clean)
        private = private_file.read_of(private_path(clean), served.get("certificate"))
    except DataError as problem:
        raise _refusal(clean, f"one of which {problem}") from None
    text = served.get("certificate")
    if served.get("whole") is not False or not isinstance(text, str):
        raise _refusal(clean, "a file that no request has written")
    if served.get("lineage") != record.lineage:
        raise _refusal(clean, "the checkpoint of another training")
    if private is None:
        raise _refusal(clean, f"one without its {private_path(clean).name}")
    if not set(private["removed"]) <= set(gone):
        raise _refusal(
            clean, "one that has forgotten samples which this model still holds"
        )
    certificate = Certificate.from_json(text)
    for path, belongs in _companions(clean, certificate).items():
        if path.exists() and not belongs:
            raise _refusal(path, "a file that does not belong to the checkpoint")


def _refusal(path: Path, got: str) -> SetupError:
    return SetupError(
        "expected overwrite=True to replace the clean checkpoint that an earlier "
        f"request of this model wrote, and what belongs to it, got {got} at {path}: "
        "choose another name for save_to=, or move that file away"
    )


def _companions(clean: Path, certificate: Certificate) -> dict[Path, bool]:
    """Certificate and receipts beside a checkpoint -> whether they belong to it."""
    shown, opened = checkpoint.certificate_path(clean), receipts_path(clean)
    found = {shown: False, opened: checkpoint.are_receipts_of(opened, certificate)}
    with suppress(CertificateError, OSError, UnicodeDecodeError):  # somebody else's
        found[shown] = Certificate.from_json(shown.read_text("utf-8")) == certificate
    return found


class Replacement:
    """The files of one request, in place of those of an earlier one.

    Args:
        clean: The checkpoint.
        parts: What is written -> the names it is staged under (`checkpoint.parts`).
        request_id: Of the request.
    """

    def __init__(self, clean: Path, parts: dict[Path, Path], request_id: str) -> None:
        self.clean, self.parts, self.request_id = clean, parts, request_id
        self._lock: FileLock | None = None

    def take_place(self) -> None:
        """Have all staged files take their names, the checkpoint first.

        Raises:
            SetupError: If the checkpoint is a folder, or another request is replacing
                the same one.
        """
        if self.parts[self.clean].is_dir():
            raise _refusal(self.clean, "a new one that is a folder, to be put")
        for part in self.parts.values():
            settle(part)
        lock = FileLock(_lock_of(self.clean))
        _acquire(lock, self.clean, 0.0)
        self._lock = lock
        try:
            for target in _checkpoint_first(self.clean):
                _keep(target, _second(target, self.request_id))
        except OSError as problem:
            raise SetupError(
                f"expected a file system with links, to keep the old {self.clean} "
                f"until the new one is whole, got {problem}: choose another name for "
                "save_to="
            ) from None
        sync(self.clean.parent)
        for target in _checkpoint_first(self.clean):
            self.parts[target].replace(target)
            sync(self.clean.parent)

    def close(self) -> None:
        """All is done: the old files go."""
        if self._lock is not None:
            _forget(self.clean, self.request_id)
            self._lock.release()

    def undo(self) -> None:
        """Put the old files back."""
        if self._lock is not None:
            _put_back(self.clean, self.request_id)
            self._lock.release()
        for part in self.parts.values():
            remove(part)


def finish(clean: Path) -> None:
    """Put everything in its place if a request was stopped while it replaced files.

    Args:
        clean: A checkpoint that there may be.

    Raises:
        SetupError: If a request is replacing it now.
        DataError: If the checkpoint cannot be read.
    """
    if not _unfinished(clean):
        return
    with _locked(clean):
        for request_id in _unfinished(clean):
            settle_stopped(clean, request_id)


def settle_stopped(clean: Path, request_id: str) -> None:
    """The same of one request; nothing if it was replacing no file.

    Whether it was made is what the checkpoint itself says.
    """
    if not _second(clean, request_id).exists():
        return
    parts = checkpoint.parts(clean, request_id)
    if clean.exists() and _id_in(clean) == request_id:
        for target, part in parts.items():
            if part.exists():
                part.replace(target)
        sync(clean.parent)
        _forget(clean, request_id)
        return
    _put_back(clean, request_id)
    for part in parts.values():
        remove(part)


def _keep(target: Path, second: Path) -> None:
    """Give a file a second name; an empty file tells that there is none."""
    if target.exists():
        second.hardlink_to(target)
    else:
        second.touch(mode=0o600)


def _put_back(clean: Path, request_id: str) -> None:
    """The old files under their names again; what was not there before goes."""
    for target in _checkpoint_first(clean):
        second = _second(target, request_id)
        if not second.exists() or identity(second) == identity(target):
            continue  # not replaced yet, or put back already
        if second.stat().st_size == 0:
            remove(target)
            continue
        third = part_of(target, f"{request_id}.back")
        remove(third)
        third.hardlink_to(second)
        third.replace(target)
    sync(clean.parent)
    _forget(clean, request_id)


def _forget(clean: Path, request_id: str) -> None:
    """Remove the second names; that of the checkpoint, which tells, is the last."""
    for target in reversed(_checkpoint_first(clean)):
        remove(_second(target, request_id))


def _checkpoint_first(clean: Path) -> list[Path]:
    return [clean, *(t for t in checkpoint.targets(clean) if t != clean)]


def _second(target: Path, request_id: str) -> Path:
    return target.with_name(f".{target.name}.{request_id}.old")


def _unfinished(clean: Path) -> list[str]:
    """Requests that were stopped while they replaced this checkpoint."""
    pattern = f".{glob.escape(clean.name)}.*.old"
    named = [path.name.split(".")[-2] for path in clean.parent.glob(pattern)]
    return [name for name in named if re.fullmatch("[0-9a-f]{32}", name)]


def _id_in(clean: Path) -> str:
    return Certificate.from_json(checkpoint.state_in(clean)["certificate"]).request_id


def _lock_of(clean: Path) -> Path:
    return clean.with_name(f".{clean.name}.lock")


def _acquire(lock: FileLock, clean: Path, seconds: float) -> None:
    try:
        lock.acquire(timeout=seconds)
    except Timeout:
        raise SetupError(
            f"expected no other request that replaces {clean}, got one that is "
            "running: wait until it has ended"
        ) from None


@contextmanager
def _locked(clean: Path) -> Iterator[None]:
    lock = FileLock(_lock_of(clean))
    _acquire(lock, clean, _WAIT)
    try:
        yield
    finally:
        lock.release()
