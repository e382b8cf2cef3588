"""Requests in a .csv file: what each asks for and until when, and what was done.

A row is pending until its ``state`` says something else. Rows, columns and files of
people's own stay as they are: only the columns of the state are written.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

from lightning_unlearn._base.files import part_of, rewrite_file
from lightning_unlearn._base.text import printable, some
from lightning_unlearn.certificate import file_lock
from lightning_unlearn.certificate.inbox.inbox_table import OWN, InboxTable
from lightning_unlearn.errors import ForgetSetError, SetupError

PENDING, DONE, REFUSED = STATES = ("pending", "done", "refused")
_DATE = re.compile("[0-9]{4}-[0-9]{2}-[0-9]{2}")
_POSITIONS = re.compile("([0-9]{1,18})(?:-([0-9]{1,18}))?")
_AGAIN = "empty its state to ask again"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One request.

    Args:
        number: Of its row, from 1 on, as a spreadsheet counts.
        request: Its id.
        person: Whose samples are meant, or "".
        positions: Which samples are meant, or "".
        state: Pending, done or refused.
        due: Until when it is to be done; None if it is not pending, or half a line.
        derived: Whether that is one month after it was received.
        problem: Why it cannot be done, whatever the data, or "".
    """

    number: int
    request: str
    person: str
    positions: str
    state: str
    due: date | None = None
    derived: bool = False
    problem: str = ""

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """First and last positions, of a row without a problem."""
        found = [_POSITIONS.fullmatch(part) for part in _parts(self.positions)]
        return [(int(m[1]), int(m[2] or m[1])) for m in found if m]

    def asked(self, salt: str) -> str:
        """A digest of what it asks for: whether it was changed, and nothing else."""
        told = json.dumps([salt, self.request, self.person, self.positions])
        return hashlib.sha256(told.encode("utf-8", "surrogatepass")).hexdigest()

    def days_over(self, today: date) -> int:
        """Days since it was due; below zero those that are left."""
        return 0 if self.due is None else (today - self.due).days


class Inbox:
    """The requests in a file.

    Args:
        path: Of the file.

    Raises:
        SetupError: If there is no such file.
        ForgetSetError: If it is malformed, an id is missing or there twice, or a state
            or a date cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.table = InboxTable(path)
        self.rows = [
            _row(number, values, self.table.needed, path)
            for number, values in self.table.rows().items()
        ]
        ids = Counter(row.request for row in self.rows)
        if twice := [request for request, n in ids.items() if n > 1]:
            raise ForgetSetError(
                f"expected every request once in {path}, got twice: "
                f"{_shown(twice)}: give each row an id of its own"
            )

    @property
    def pending(self) -> list[Row]:
        """Those that are to be done, in the order in which they are due."""
        found = [row for row in self.rows if row.state == PENDING]
        return sorted(found, key=lambda row: (row.due or date.min, row.number))


def overdue_text(rows: list[Row], today: date) -> str:
    """Which requests are overdue and by how many days, in words; "" if none is."""
    late = [row for row in rows if row.days_over(today) > 0]
    told = [f"{printable(r.request)} by {days(r.days_over(today))}" for r in late]
    return some(told, 50)


def days(n: int) -> str:
    """A number of days, in words."""
    return f"{n} day{'' if n == 1 else 's'}"


@contextmanager
def locked(path: Path, wait: float = 0.0) -> Iterator[None]:
    """Nobody else of us uses a file of requests for the length of a block.

    Args:
        path: Of the file.
        wait: Seconds.

    Raises:
        SetupError: If another does, or nothing can be written beside it.
    """

    def busy(problem: OSError) -> SetupError:
        del problem
        return SetupError(
            f"expected nobody else to work on the requests in {path}, got another "
            "process that does: wait until it has ended"
        )

    def closed(problem: OSError) -> SetupError:
        return SetupError(
            f"expected to write the requests in {path}, got "
            f"{type(problem).__name__}: {problem!s:.200}; its folder must be writable"
        )

    if not path.parent.is_dir():
        raise SetupError(
            f"expected a .csv file of requests at {str(path)[:200]}, found none there"
        )
    with file_lock.held(path, wait, busy, closed):
        try:
            part_of(path).unlink(missing_ok=True)  # of a process that was killed
        except OSError as problem:
            raise closed(problem) from None
        yield


def mark(
    path: Path, marks: Mapping[str, tuple[str, Mapping[str, str]]], salt: str
) -> list[str]:
    """Write what became of some requests: the file is read anew, and only that changes.

    Args:
        path: Of the file, which is `locked`.
        marks: Id -> what it asked for (`Row.asked`), and new values by column.
        salt: Of these digests.

    Returns:
        Ids whose row is gone, asks for something else by now, or is not pending.

    Raises:
        UnlearningError: If the file cannot be read any more.
        OSError: If it cannot be written.
    """
    for _ in range(100):
        inbox = Inbox(path)
        there = {row.request: row for row in inbox.rows}
        values_of = inbox.table.rows()
        changes, left = {}, []
        for request, (asked, values) in marks.items():
            row = there.get(request)
            if row is None or row.asked(salt) != asked:
                left.append(request)
            elif row.state == PENDING:
                changes[row.number] = dict.fromkeys(OWN, "") | dict(values)
            elif not values.items() <= values_of[row.number].items():
                left.append(request)
        if not changes:
            return left
        content = inbox.table.changed(changes)
        if rewrite_file(path, content, inbox.table.content):
            return left
    raise SetupError(
        f"expected the requests in {path} to stay as they are for a moment, got a file "
        "that changes all the time: close the program that writes it"
    )


def _row(number: int, values: dict[str, str], needed: int, path: Path) -> Row:
    where = f"row {number} of {path}"
    request = values.get("request", "").strip()
    if not request:
        raise ForgetSetError(
            f"expected an id of its own in column request of {where}, got none"
        )
    state = values.get("state", "").strip().casefold() or PENDING
    if state not in STATES:
        raise ForgetSetError(
            f"expected state empty or one of {', '.join(STATES)} in {where}, got "
            f"{printable(state)[:40]!r}: what was done is written there; give a column "
            "of your own another name"
        )
    row = Row(
        number=number,
        request=request,
        person=values.get("person", ""),
        positions=values.get("positions", "").strip(),
        state=state,
        problem=_problem(values, needed),
    )
    if state != PENDING or len(values) < needed:
        return row
    received, due = (
        _date(values.get(name, "").strip(), name, where) for name in ("received", "due")
    )
    if due is None and received is None:
        raise ForgetSetError(
            f"expected a date in received or due of {where}, got neither: when it is "
            "due cannot be told"
        )
    until = due or _month_after(received or date.max)
    return Row(**vars(row) | {"due": until, "derived": due is None})


def _problem(values: dict[str, str], needed: int) -> str:
    """Why a row cannot be done, whatever the data."""
    person = bool(values.get("person", "").strip())
    positions = _parts(values.get("positions", ""))
    if len(values) < needed:
        return (
            f"expected {needed} columns, got {len(values)}: half a line may mean "
            f"somebody else; complete it and {_AGAIN}"
        )
    if person == bool(positions):
        return (
            f"expected a person or positions, got {'both' if person else 'neither'}: "
            f"write one of them and {_AGAIN}"
        )
    if not all(_POSITIONS.fullmatch(part) for part in positions):
        return (
            "expected positions such as 3 7 12 or 10-15, got something else: correct "
            f"them and {_AGAIN}"
        )
    return ""


def _parts(positions: str) -> list[str]:
    return positions.replace(",", " ").split()


def _date(text: str, name: str, where: str) -> date | None:
    if not text:
        return None
    try:
        if _DATE.fullmatch(text) and text < "9000":
            return date.fromisoformat(text)
    except ValueError:  # no such day
        pass
    raise ForgetSetError(
        f"expected a date such as 2026-11-30 in {name} of {where}, got "
        f"{printable(text)[:40]!r}: format the column as text before you write it"
    )


def _month_after(day: date) -> date:
    """The same day of the next month, or its last one (GDPR, Article 12(3))."""
    first = (day.replace(day=1) + timedelta(days=31)).replace(day=1)
    last = (first + timedelta(days=31)).replace(day=1) - timedelta(days=1)
    return first.replace(day=min(day.day, last.day))


def _shown(ids: list[str]) -> str:
    return some([repr(printable(i))[:60] for i in ids])
