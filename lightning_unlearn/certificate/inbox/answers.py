"""What became of the requests in a file: a receipt for each, and its row."""

import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from lightning_unlearn._base.files import replace_file
from lightning_unlearn._base.strict_json import from_plain, strict_object
from lightning_unlearn.certificate import receipts
from lightning_unlearn.certificate.inbox import inbox
from lightning_unlearn.certificate.inbox.inbox import DONE, REFUSED
from lightning_unlearn.certificate.receipts import Leaf
from lightning_unlearn.errors import LedgerError, SetupError

_WAIT = 60.0  # seconds for another process that works on the file


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What became of one request.

    Args:
        request: Its id.
        asked: What it asked for (`Row.asked`).
        places: Of its samples among the leaves of the release; none if it is refused.
        why: It is refused, or "".
    """

    request: str
    asked: str
    places: tuple[int, ...] = ()
    why: str = ""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What became of the requests in a file by one release.

    Args:
        file: Of the requests.
        salt: Of the digests of what they asked for.
        rows: One a request, in the order in which they are due.
        checkpoint: The clean one, or "" if all are refused.
        certificate: Its request_id, likewise.
        release: Which it is, from 1 on.
        done_at: When.
    """

    file: str
    salt: str
    rows: tuple[Answer, ...]
    checkpoint: str = ""
    certificate: str = ""
    release: int = 0
    done_at: str = ""

    @property
    def done(self) -> tuple[Answer, ...]:
        """Those that were done."""
        return tuple(row for row in self.rows if not row.why)

    def to_text(self) -> str:
        """All of it as JSON: who is meant does not stand in it."""
        return json.dumps(asdict(self))

    def receipt_path(self, answer: Answer) -> Path:
        """Where the receipt of a request that was done stands."""
        name = f"{_as_name(answer.request)}.{self.certificate[:8]}.jsonl"
        return receipts_folder(Path(self.checkpoint)) / name

    def complete(self, leaves: Sequence[Leaf]) -> list[str]:
        """Write the receipts, then what became of each request into the file.

        What is there already is written again, the same.

        Args:
            leaves: Of the release.

        Returns:
            Ids whose row is gone or asks for something else by now.
        """
        folder = Path(self.file).parent
        opened = receipts.all_receipts(leaves, self.certificate) if self.done else ()
        marks = {}
        for row in self.rows:
            values = {"state": REFUSED, "why": row.why}
            if not row.why:
                path = self.receipt_path(row)
                path.parent.mkdir(mode=0o700, exist_ok=True)
                lines = [opened[place].to_json() for place in row.places]
                replace_file(path, "".join(lines), 0o600)
                values = {
                    "state": DONE,
                    "release": str(self.release),
                    "certificate": self.certificate,
                    "receipt": _shown(path, folder),
                    "done_at": self.done_at,
                }
            marks[row.request] = (row.asked, values)
        return inbox.mark(Path(self.file), marks, self.salt)

    def recover(self) -> list[str]:
        """As `complete`, for a process that was stopped: leaves are in their file.

        Raises:
            SetupError: If that, or the file of requests, is gone.
        """
        path, file = receipts.receipts_path(Path(self.checkpoint)), Path(self.file)
        if not file.is_file():
            raise SetupError(
                f"expected {file}, whose requests a release that was stopped has done, "
                "found none: put it back, so that it can be completed (its first row "
                "is enough, if it was deleted on purpose)"
            )
        if not path.is_file():
            raise SetupError(
                f"expected {path} of a request that was stopped, found none: put it "
                f"back, so that the rows of {self.file} get their receipts"
            )
        leaves, request_id = receipts.from_text(path.read_text(encoding="utf-8"))
        if request_id != self.certificate or any(
            place >= len(leaves) for row in self.rows for place in row.places
        ):
            raise SetupError(
                f"expected the receipts of request {self.certificate} in {path}, got "
                f"those of {request_id}: put the file back that belongs to it"
            )
        with inbox.locked(file, _WAIT):
            return self.complete(leaves)


def receipts_folder(clean: Path) -> Path:
    """Where the receipts of requests stand, beside a clean checkpoint."""
    return clean.with_name(f"{clean.stem}.receipts")


def parse(text: str, what: str) -> Answers:
    """The opposite of `Answers.to_text`.

    Args:
        text: JSON.
        what: Named in the message.

    Raises:
        LedgerError: If it is damaged.
    """
    plain = strict_object(text, LedgerError, what)
    found = from_plain(Answers, plain, LedgerError, what)
    if (
        not re.fullmatch("[0-9a-f]{32}", found.certificate)
        or not all(p and "\0" not in p for p in (found.file, found.checkpoint))
        or any(min(row.places, default=0) < 0 for row in found.rows)
    ):
        raise LedgerError(
            f"expected a file, a checkpoint and the places of samples in {what}, got "
            "others: it was altered; restore it from a copy"
        )
    return found


def _as_name(request: str) -> str:
    """A name that every file system takes; two ids never share one."""
    safe = re.sub("[^A-Za-z0-9_-]", "_", request)[:60]
    if safe == request and safe == safe.upper():
        return safe
    return f"{safe}-{hashlib.sha256(request.encode()).hexdigest()[:8]}"


def _shown(path: Path, folder: Path) -> str:
    """A path from the file's folder on; no spreadsheet takes it for a formula."""
    shown = Path(os.path.relpath(path, folder)).as_posix()
    return f"./{shown}" if shown[0] in "=+-@" else shown
