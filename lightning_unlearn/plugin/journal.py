"""What makes a request's files appear together, whatever stops the process.

A note beside the ledger names the checkpoint and the longer ledger before either is
written. The checkpoint's name decides: if it is there the request was made and the
ledger is completed; if not it was not, and what was written of it is removed.
"""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from lightning_utilities.core.rank_zero import rank_zero_warn

from lightning_unlearn import ledger as ledgers
from lightning_unlearn._records import replace_file, strict_object
from lightning_unlearn.errors import LedgerError
from lightning_unlearn.ledger import Ledger
from lightning_unlearn.plugin import checkpoint
from lightning_unlearn.processes import Processes

_FIELDS = {"checkpoint": str, "ledger": str, "entries_before": int}


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Nobody else may make a request with a ledger for the length of a block.

    What a request before this one left unfinished is finished or undone first.

    Raises:
        LedgerError: If another request is running, or the folder cannot be written.
    """
    name = path.with_name(f".{path.name}.lock")
    lock = FileLock(name)
    try:
        name.touch()  # FileLock takes a folder it cannot write for a lock of others
        lock.acquire(timeout=0)
    except Timeout:
        raise LedgerError(
            f"expected no other request with the ledger {path}, got one that is "
            "running: wait until it has ended, then go on from its checkpoint"
        ) from None
    except OSError as problem:
        raise LedgerError(
            f"expected a folder for the ledger {path} that can be written: {problem}"
        ) from None
    try:
        recover(path)
        yield
    finally:
        lock.release()


@contextmanager
def locked_for_all(path: Path | None, processes: Processes) -> Iterator[None]:
    """As `locked`, held by the first of all processes; nothing without a path."""
    with ExitStack() as stack:
        with processes.together():
            if path is not None and processes.rank == 0:
                stack.enter_context(locked(path))
        yield


def announce(path: Path, clean: Path, before: Ledger, longer: Ledger) -> None:
    """Note what is about to appear.

    Args:
        path: Of the ledger.
        clean: The checkpoint, which does not exist.
        before: The ledger in the file.
        longer: What it will be.
    """
    note = {
        "checkpoint": str(clean.absolute()),
        "ledger": longer.to_text(),
        "entries_before": len(before.entries),
    }
    replace_file(_note(path), json.dumps(note))


def close(path: Path) -> None:
    """Everything has appeared, or nothing will."""
    _note(path).unlink(missing_ok=True)


def recover(path: Path) -> None:
    """Finish or undo what a request was doing when it was stopped.

    Raises:
        LedgerError: If its note is damaged, or of another ledger.
    """
    try:
        text = _note(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        return
    except (OSError, UnicodeDecodeError) as problem:
        raise LedgerError(f"expected a note at {_note(path)}: {problem}") from None
    clean, before, longer = _read(path, text)
    if ledgers.read(path).entries not in (before.entries, longer.entries):
        raise LedgerError(
            f"expected the ledger {path} as the unfinished request of {_note(path)} "
            "left it, got another: compare both with your newest checkpoint, then "
            "remove the note"
        )
    if clean.exists():
        checkpoint.finish(clean)
        ledgers.write(path, longer)
        rank_zero_warn(
            f"a request was stopped after it had written {clean}: the ledger {path} "
            "has been completed; go on from that checkpoint"
        )
    else:
        checkpoint.discard(clean, appeared=False)
        ledgers.rewind(path, before)
    close(path)


def _read(path: Path, text: str) -> tuple[Path, Ledger, Ledger]:
    note = strict_object(text, LedgerError, f"the note {_note(path)}")
    if set(note) != set(_FIELDS) or any(
        type(note[name]) is not kind for name, kind in _FIELDS.items()
    ):
        raise LedgerError(
            f"expected the note of an unfinished request at {_note(path)}, got other "
            "fields: remove it if no request has been stopped"
        )
    longer, count = Ledger.from_text(note["ledger"]), note["entries_before"]
    clean = note["checkpoint"]
    if not 0 <= count < len(longer.entries) or "\0" in clean or not clean:
        raise LedgerError(
            f"expected a note of one more entry and a checkpoint at {_note(path)}, got "
            f"{len(longer.entries)} after {count}: remove it if no request has been "
            "stopped"
        )
    return Path(clean), Ledger(longer.entries[:count]), longer


def _note(path: Path) -> Path:
    return path.with_name(f".{path.name}.pending")
