"""Files of what is to be forgotten: positions, or values that name samples."""

import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from lightning_unlearn._base.csv_files import column, header_of, picked, rows_of
from lightning_unlearn._base.files import is_remote
from lightning_unlearn._base.strict_json import unique
from lightning_unlearn.errors import ForgetSetError
from lightning_unlearn.plugin.data import masks

_MOST_BYTES = 256 << 20
_INTEGER = re.compile("[+-]?[0-9]{1,18}")
Value = int | str


def read_indices(path: Path, n: int | None = None) -> list[int]:
    """Read indices from a .txt, .json, .npy or .csv file.

    .txt: one a line, blank lines and ``#`` comments ignored. .json: a list. .npy: a
    one-dimensional integer array. .csv: the column named ``index``, or a single column
    without a header.

    Args:
        path: The file.
        n: Length of the dataset, where a .json or .npy file may hold a mask of it.

    Returns:
        The indices, in the file's order.

    Raises:
        ForgetSetError: If the file is missing, of another kind or malformed.
    """
    readers = {".txt": _txt, ".json": _json, ".npy": _npy, ".csv": _csv}
    return _read(path, readers, lambda found, what: integers(found, what, n), "indices")


def read_values(path: Path, by: str | None) -> list[Value]:
    """Read values that name samples (ids of users, names of classes).

    .txt: one a line. .json: a list of them, a list of objects with the key `by`, or
    one object with a list under it. .npy: a one-dimensional array. .csv: the column
    named `by`. Text is taken as it stands: there are no comments, and spaces count.

    Args:
        path: The file.
        by: Name of the column or key; None where a file has neither.

    Returns:
        The values, in the file's order; numbers in text stay text.

    Raises:
        ForgetSetError: If the file is missing, of another kind or malformed.
    """
    readers = {
        ".txt": _ids,
        ".json": lambda path: _json_values(path, by),
        ".npy": _npy,
        ".csv": lambda path: _column(path, by),
    }
    return _read(path, readers, values, "values that name samples")


def integers(found: Any, what: str, n: int | None = None) -> list[int]:
    """Positions, whatever holds them.

    Args:
        found: What holds them.
        what: Its name, for a message.
        n: Length of the dataset, where a mask of it is taken too.

    Raises:
        ForgetSetError: If it holds something else.
    """
    flat = _flat(masks.column(found), what, "indices")
    if n is not None:
        flat = list(flat)
        marked = masks.positions(found, flat, what, n)
        if marked is not None:
            return marked
    indices = []
    for value in flat:
        if isinstance(value, (bool, np.bool_)) or not isinstance(
            value, (int, np.integer)
        ):
            raise ForgetSetError(
                f"expected {what} to hold integers, got {value!r:.60} "
                f"({type(value).__name__}): pass positions in the training dataset, or "
                "name what it lists in by="
            )
        indices.append(int(value))
    return indices


def values(found: Any, what: str) -> list[Value]:
    """Values that name samples, whatever holds them.

    Raises:
        ForgetSetError: If one is neither a whole number nor text.
    """
    named: list[Value] = []
    for value in _flat(found, what, "ids"):
        if isinstance(value, str):
            named.append(str(value))
        elif isinstance(value, (int, np.integer)) and not isinstance(value, bool):
            named.append(int(value))
        else:
            raise ForgetSetError(
                f"expected {what} to hold ids (whole numbers or text), got "
                f"{value!r:.60} ({type(value).__name__})"
            )
    return named


def _flat(found: Any, what: str, kind: str) -> Iterable[Any]:
    if isinstance(found, Tensor):
        found = found.detach().cpu().tolist()
    if isinstance(found, (int, np.integer)) and not isinstance(found, bool):
        found = [found]
    if not isinstance(found, Iterable) or isinstance(found, (bytes, dict, str)):
        raise ForgetSetError(
            f"expected {what} as {kind}, a path, a Subset or a DataLoader over one, "
            f"got {type(found).__name__}"
        )
    if getattr(found, "ndim", 1) != 1:  # a table would give its columns' names
        raise ForgetSetError(
            f"expected {what} as a flat list of {kind}, got {type(found).__name__} of "
            f"shape {getattr(found, 'shape', None)}: pass one column of it"
        )
    return found


def _read(path: Path, readers: dict[str, Any], convert: Any, what: str) -> list[Any]:
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise ForgetSetError(
            f"expected a forget file ending in {', '.join(readers)}, got "
            f"{str(path)[:200]}: pass values themselves as a list, [{str(path)[:40]}]"
        )
    if is_remote(path):
        raise ForgetSetError(
            f"expected a forget file on a disk of this machine, got {path}: copy it "
            "here first"
        )
    try:
        there = path.is_file()
    except (OSError, ValueError):  # a name no file system takes
        there = False
    if not there:
        raise ForgetSetError(
            f"expected a file of {what} at {str(path)[:200]}, found none there"
        )
    size = path.stat().st_size
    if size > _MOST_BYTES:
        raise ForgetSetError(
            f"expected a forget file of at most {_MOST_BYTES >> 20} MiB, got {path} "
            f"with {size >> 20}: pass a list in Python"
        )
    try:
        return convert(reader(path), str(path))
    except ForgetSetError:
        raise
    except Exception as error:  # whatever a damaged or hostile file provokes
        raise ForgetSetError(
            f"expected {what} in {path}: {type(error).__name__}: {error}"
        ) from None


def _ids(path: Path) -> list[str]:
    """Whole lines, and nothing else ends one: half an id may be another's."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        lines = [line.removesuffix("\r") for line in file.read().split("\n")]
    return [line for line in lines if line]


def _txt(path: Path) -> list[int]:
    text = path.read_text(encoding="utf-8-sig")
    lines = [line.split("#")[0].strip() for line in text.splitlines()]
    return [_one(line, path, "one index a line") for line in lines if line]


def _one(text: str, path: Path, expected: str) -> int:
    if _INTEGER.fullmatch(text) is None:  # int() takes 1_0 for ten
        raise ForgetSetError(
            f"expected {expected} in {path}, got {text[:40]!r}: ids need by="
        )
    return int(text)


def _load(path: Path) -> Any:
    def twice(keys: list[str]) -> ForgetSetError:
        return ForgetSetError(
            f"expected every key once in an object of {path}, got {keys!s:.200}: the "
            "last would hide the others"
        )

    text = path.read_text(encoding="utf-8-sig")
    return json.loads(text, object_pairs_hook=unique(twice))


def _json(path: Path) -> Any:
    found = _load(path)
    if not isinstance(found, list):
        raise ForgetSetError(
            f"expected a JSON list of indices in {path}, got {type(found).__name__}"
        )
    return found


def _json_values(path: Path, by: str | None) -> Any:
    found = _load(path)
    if isinstance(found, dict) and by in found:
        found = found[by]
    if not isinstance(found, list):
        raise ForgetSetError(
            f"expected a JSON list, or an object with one under {by!r}, in {path}, got "
            f"{_keys(found)}"
        )
    objects = [one for one in found if isinstance(one, dict)]
    if not objects:
        return found
    odd = next((one for one in objects if by not in one), None)
    if odd is not None or len(objects) != len(found):
        raise ForgetSetError(
            f"expected the key {by!r} in every object of {path}, got "
            f"{_keys(found[0] if odd is None else odd)}: name the key in by="
        )
    return [one[by] for one in objects]


def _keys(found: Any) -> str:
    if isinstance(found, dict):
        return f"an object with {sorted(map(str, found))!s:.200}"
    return type(found).__name__


def _npy(path: Path) -> Any:
    with path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if read is None:
            raise ValueError(f"a .npy file of version {version}")
        shape, _, dtype = read(file)
        if math.prod(shape) * dtype.itemsize > path.stat().st_size:
            raise ValueError(f"an array of shape {shape} in a smaller file")
        file.seek(0)
        return np.lib.format.read_array(file, allow_pickle=False)


def _csv(path: Path) -> list[int]:
    rows = list(rows_of(path))
    header = header_of(rows)
    if "index" in header:
        found = list(picked(rows, "index", path))
    elif all(len(row) == 1 for row in rows):
        found = [row[0] for row in rows]
    else:
        raise ForgetSetError(
            f"expected a column named 'index', or a single column without a header, in "
            f"{path}, got columns {header}: other columns would be taken for "
            "positions; name a column of ids in by="
        )
    expected = "a column named 'index', or a single column of integers,"
    return [_one(text.strip(), path, expected) for text in found]


def _column(path: Path, by: str | None) -> list[str]:
    if by is None:
        raise ForgetSetError(
            f"expected the name of a column of {path}, got none: name it in by="
        )
    return list(column(path, by))
