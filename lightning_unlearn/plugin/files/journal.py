"""What makes a request's files appear together, whatever stops the process.

A note beside the ledger names the checkpoint and the longer ledger before either is
written. The checkpoint's name decides: if it is there the request was made and the
ledger is completed; if not it was not, and what was written of it is removed. What is
secret (private file and receipts) appears before the checkpoint, so that it has both.
"""

import json
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from lightning_utilities.core.rank_zero import rank_zero_warn

from lightning_unlearn._base.files import remove, replace_file
from lightning_unlearn._base.strict_json import from_plain, strict_object
from lightning_unlearn._base.text import printable, some
from lightning_unlearn.certificate import exclusions, file_lock, ledger as ledgers
from lightning_unlearn.certificate.certificate import Certificate
from lightning_unlearn.certificate.inbox import answers
from lightning_unlearn.certificate.inbox.answers import Answers
from lightning_unlearn.certificate.ledger import Ledger
from lightning_unlearn.errors import DataError, LedgerError
from lightning_unlearn.plugin.files import checkpoint, replacement
from lightning_unlearn.weights.processes import Processes


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Nobody else may make a request with a ledger for the length of a block.

    What a request before this one left unfinished is finished or undone first.

    Raises:
        LedgerError: If another request is running, or the folder cannot be written.
    """

    def busy(problem: OSError) -> LedgerError:
        del problem
        return LedgerError(
            f"expected no other request with the ledger {path}, got one that is "
            "running: wait until it has ended, then go on from its checkpoint"
        )

    def closed(problem: OSError) -> LedgerError:
        return LedgerError(
            f"expected a folder for the ledger {path} that can be written: {problem}"
        )

    with file_lock.held(path, 0.0, busy, closed):
        recover(path)
        yield


@contextmanager
def locked_for_all(path: Path | None, processes: Processes) -> Iterator[None]:
    """As `locked`, held by the first of all processes; nothing without a path."""
    with ExitStack() as stack:
        with processes.together():
            if path is not None and processes.rank == 0:
                stack.enter_context(locked(path))
        yield


@dataclass(frozen=True)
class Note:
    """What is about to appear.

    Args:
        checkpoint: Its path.
        certificate: Its text.
        ledger: The longer ledger's.
        entries_before: Of the ledger in the file.
        secret: Paths of files that are deleted once the request is done.
        exclusions: Path of the exclusion list, or "".
        exclusion: Its line in there.
        answers: What becomes of requests in a file of them, or "".
    """

    checkpoint: str
    certificate: str
    ledger: str
    entries_before: int
    secret: list[str]
    exclusions: str = ""
    exclusion: str = ""
    answers: str = ""


def announce(path: Path, note: Note) -> None:
    """Write a note beside the ledger at a path."""
    replace_file(_note(path), json.dumps(asdict(note)), 0o600)


def close(path: Path) -> None:
    """Everything has appeared, or nothing will."""
    _note(path).unlink(missing_ok=True)


def recover(path: Path) -> None:
    """Finish or undo what a request was doing when it was stopped.

    Raises:
        LedgerError: If its note is damaged, or of another ledger, or if its checkpoint
            was taken away.
        UnlearningError: If the exclusion list that it was to add to, or the file of
            requests that it was to complete, cannot be written.
    """
    try:
        text = _note(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        return
    except (OSError, UnicodeDecodeError) as problem:
        raise LedgerError(f"expected a note at {_note(path)}: {problem}") from None
    note, longer, certificate = _read(path, text)
    before = Ledger(longer.entries[: note.entries_before])
    if ledgers.read(path).entries not in (before.entries, longer.entries):
        raise LedgerError(
            f"expected the ledger {path} as the unfinished request of {_note(path)} "
            "left it, got another: compare both with your newest checkpoint, then "
            "remove the note"
        )
    clean = Path(note.checkpoint)
    made = _made(clean, note)
    replacement.settle_stopped(clean, certificate.request_id)
    for part in checkpoint.parts(clean, certificate.request_id).values():
        remove(part)
    if made:
        beside = checkpoint.certificate_path(clean)
        if not os.path.lexists(beside):
            replace_file(beside, note.certificate)
        ledgers.write(path, longer)
        if note.exclusions:
            line = exclusions.parse(note.exclusion, f"the note {_note(path)}")
            exclusions.append(Path(note.exclusions), line)
        if note.answers:
            given = answers.parse(note.answers, f"the note {_note(path)}")
            tell_left(given, given.recover())
        rank_zero_warn(
            f"a request was stopped after it had written {clean}: the ledger {path} "
            "has been completed; go on from that checkpoint"
        )
    else:
        _check_not_taken_away(path, clean, note)
        checkpoint.remove_secrets(clean, certificate)
        ledgers.rewind(path, before)
    for secret in note.secret:
        if Path(secret).exists():
            rank_zero_warn(
                f"a request that was stopped has left {secret}, which is as secret as "
                "the samples: delete it"
            )
    close(path)


def tell_left(given: Answers, left: list[str]) -> None:
    """Warn of requests whose rows could not say what became of them."""
    if left:
        rank_zero_warn(
            f"{given.file} was changed meanwhile: the rows of "
            f"{some([printable(one) for one in left])} are left as they are; what they "
            f"asked for before is done by {given.checkpoint}"
        )


def _made(clean: Path, note: Note) -> bool:
    """Whether the checkpoint of a note is there: one that has this very ledger."""
    if not os.path.lexists(clean):
        return False
    try:
        return checkpoint.record_in(clean).get("certificate") == note.certificate
    except DataError as problem:
        raise LedgerError(
            f"expected at {clean} nothing, or the checkpoint of a request that was "
            f"stopped, but {problem}: whether the request was made cannot be told; "
            "move the file away if it is another one, or let torch read its types "
            "(torch.serialization.add_safe_globals)"
        ) from None


def _check_not_taken_away(path: Path, clean: Path, note: Note) -> None:
    beside = checkpoint.certificate_path(clean)
    try:
        shown = beside.read_text(encoding="utf-8") == note.certificate
    except (OSError, UnicodeDecodeError):
        shown = False
    if shown:
        raise LedgerError(
            f"expected the checkpoint {clean} of a request that was stopped, whose "
            f"certificate is there, got none of it: put it back, so that the ledger "
            f"{path} can be completed; or remove {beside} if it was never used"
        )


def _read(path: Path, text: str) -> tuple[Note, Ledger, Certificate]:
    what = f"{_note(path)}, the note of an unfinished request"
    plain = strict_object(text, LedgerError, what)
    may_lack = frozenset({"exclusions", "exclusion", "answers"})
    note = from_plain(Note, plain, LedgerError, what, may_lack)
    longer = Ledger.from_text(note.ledger)
    certificate = Certificate.from_json(note.certificate)
    paths = [note.checkpoint, *note.secret, note.exclusions or "none"]
    if not (
        0 <= note.entries_before < len(longer.entries)
        and all(p and "\0" not in p for p in paths)
        and longer.entries[-1].certificate_digest == certificate.digest
        and re.fullmatch("[0-9a-f]{32}", certificate.request_id)
    ):
        raise LedgerError(
            f"expected a note of one more entry, its checkpoint and its certificate at "
            f"{_note(path)}, got others: remove it if no request has been stopped"
        )
    return note, longer, certificate


def _note(path: Path) -> Path:
    return path.with_name(f".{path.name}.pending")
