"""Tables as .csv files, read strictly: a row too short or too long is an error."""

import csv
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

from lightning_unlearn.errors import ForgetSetError


def rows_of(path: Path) -> Iterator[list[str]]:
    """The rows of a file that are not blank.

    Raises:
        ForgetSetError: If it is malformed.
    """
    with (
        _named(path),
        path.open(newline="", encoding="utf-8-sig") as file,  # Excel writes a BOM
    ):
        yield from (row for row in csv.reader(file, strict=True) if row)


def records_of(content: bytes, path: Path) -> list[tuple[list[str], str]]:
    """(values, text) of every record of a file, blank ones too.

    Args:
        content: Of the file, in UTF-8; a mark of the byte order is part of no record.
        path: Its name, for a message.

    Raises:
        ForgetSetError: If it is malformed.
    """
    with _named(path):
        text = content.decode("utf-8-sig")
        lines = re.findall(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+", text)
        reader, found, end = csv.reader(lines, strict=True), [], 0
        for values in reader:
            found.append((values, "".join(lines[end : reader.line_num])))
            end = reader.line_num
        return found


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """A malformed table is named."""
    try:
        yield
    except (csv.Error, UnicodeError) as problem:
        raise ForgetSetError(
            f"expected a table of comma-separated values in UTF-8 in {path}: "
            f"{type(problem).__name__}: {problem!s:.200}"
        ) from None


def header_of(rows: list[list[str]]) -> list[str]:
    """The names in the first of some rows, if there is one."""
    return [name.strip() for name in rows[0]] if rows else []


def picked(rows: Iterable[list[str]], name: str, path: Path) -> Iterator[str]:
    """The values of a named column; the first row has the names.

    Raises:
        ForgetSetError: If there is not one such column, or rows differ in length.
    """
    rows = iter(rows)
    first = next(rows, None)
    header = header_of([] if first is None else [first])
    if header.count(name) != 1:
        raise ForgetSetError(
            f"expected one column named {name!r} in {path}, got {header!s:.200}"
        )
    place = header.index(name)
    for number, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise ForgetSetError(
                f"expected the same columns in every row of {path}, got {len(row)} in "
                f"row {number} and {len(header)} names: quote what holds a comma"
            )
        yield row[place]


def column(path: Path, name: str) -> Iterator[str]:
    """The values of a named column of a file, each of which must say something.

    Raises:
        ForgetSetError: If there is no such column, it has an empty value, or the file
            is malformed.
    """
    rows = rows_of(path)
    first = next(rows, None)
    header = header_of([] if first is None else [first])
    if first is None or name not in header:
        raise ForgetSetError(
            f"expected a column named {name!r} in {path}, got columns {header!s:.200}: "
            "name one of them, and separate columns by commas"
        )
    for number, value in enumerate(picked(chain([first], rows), name, path), start=2):
        if not value:
            raise ForgetSetError(
                f"expected a value in every row of column {name!r} of {path}, got an "
                f"empty one in row {number}: nobody is named there"
            )
        yield value
