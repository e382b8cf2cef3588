"""A table of requests as a file: whatever is not changed stays as it stands there."""

import re
from collections.abc import Mapping
from pathlib import Path

from lightning_unlearn._base.csv_files import header_of, records_of
from lightning_unlearn._base.files import is_remote
from lightning_unlearn.errors import ForgetSetError, SetupError

OWN = ("release", "certificate", "receipt", "why", "done_at")
WRITTEN = ("state", *OWN)
_READ = ("request", "person", "positions", "received", "due")
_MOST_BYTES = 64 << 20
_MARK = b"\xef\xbb\xbf"


class InboxTable:
    """The records of a file.

    Args:
        path: Of the file.

    Raises:
        SetupError: If there is no such file.
        ForgetSetError: If it is malformed, or its columns are not those of requests.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.content = path, _content(path)
        self.records = records_of(self.content, path)
        filled = [i for i, (values, _) in enumerate(self.records) if any(values)]
        if not filled:
            raise ForgetSetError(
                f"expected a first row with the columns {', '.join(_READ)} in {path}, "
                "got an empty file: person or positions is enough, and received or due"
            )
        self._first, *self._rows = filled
        self.names = [
            name.casefold() for name in header_of([self.records[self._first][0]])
        ]
        self._check_names()
        theirs = [i for i, name in enumerate(self.names) if name not in WRITTEN]
        #: Columns that a whole row has: whoever adds rows may not know of ours.
        self.needed = theirs[-1] + 1

    def rows(self) -> dict[int, dict[str, str]]:
        """Number of a row, from 1 on, as a spreadsheet counts -> its values by column.

        A row that is too short lacks the last columns.

        Raises:
            ForgetSetError: If one is too long.
        """
        found = {}
        for i in self._rows:
            values = self.records[i][0]
            if len(values) > len(self.names):
                raise ForgetSetError(
                    f"expected {len(self.names)} columns in every row of {self.path}, "
                    f"got {len(values)} in row {i + 1}: quote what holds a comma"
                )
            found[i + 1] = dict(zip(self.names, values, strict=False))
        return found

    def changed(self, changes: Mapping[int, Mapping[str, str]]) -> bytes:
        """What the file holds with some values changed, and all columns we write.

        Args:
            changes: Number of a row -> new values by column.
        """
        lacking = [name for name in WRITTEN if name not in self.names]
        names, text = [*self.names, *lacking], []
        for i, (values, raw) in enumerate(self.records):
            body = raw.rstrip("\r\n")
            end = raw[len(body) :]
            if i + 1 in changes:
                new = changes[i + 1]
                cells = [*values, *[""] * (len(names) - len(values))]
                cells = [
                    new.get(name, cell) for name, cell in zip(names, cells, strict=True)
                ]
                body = ",".join(map(_quoted, cells))
            elif i == self._first:
                body = ",".join([body, *lacking])
            elif values:
                body += "," * len(lacking)
            text.append(body + end)
        mark = _MARK if self.content.startswith(_MARK) else b""
        return mark + "".join(text).encode()

    def _check_names(self) -> None:
        names = self.names
        if len(names) == 1 and ";" in names[0]:
            raise ForgetSetError(
                f"expected columns separated by commas in {self.path}, got semicolons: "
                "save it as CSV UTF-8 with commas"
            )
        twice = [name for name in (*_READ, *WRITTEN) if names.count(name) > 1]
        whose, when = {"person", "positions"}, {"received", "due"}
        if (
            twice
            or "request" not in names
            or not whose & {*names}
            or not when & {*names}
        ):
            raise ForgetSetError(
                f"expected the columns {', '.join(_READ)} once in the first row of "
                f"{self.path}, got {names!s:.200}: person or positions is enough, and "
                "received or due"
            )
        ours = [name for name in OWN if name in names]
        if ours and (len(ours) < len(OWN) or "state" not in names):
            raise ForgetSetError(
                f"expected all of the columns {', '.join(WRITTEN)} in {self.path}, or "
                f"state alone, or none, got {', '.join(ours)}: what was done is "
                "written there; give columns of your own other names"
            )


def _content(path: Path) -> bytes:
    if is_remote(path):
        raise SetupError(
            f"expected requests in a file on a disk of this machine, got {path}: it is "
            "locked and replaced, which no remote store can do"
        )
    if not path.is_file():
        raise SetupError(
            f"expected a .csv file of requests at {str(path)[:200]}, found none there"
        )
    if path.stat().st_size > _MOST_BYTES:
        raise SetupError(
            f"expected requests of at most {_MOST_BYTES >> 20} MiB in {path}: move "
            "what is done to another file"
        )
    return path.read_bytes()


def _quoted(value: str) -> str:
    if re.search('[",\r\n]', value) is None:
        return value
    return '"' + value.replace('"', '""') + '"'
