"""The forget set as people have it -> positions in the training dataset."""

import csv
import json
import math
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data import (
    DataLoader,
    Dataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
)

from lightning_unlearn.errors import ForgetSetError

_MOST_BYTES = 256 << 20
_INTEGER = re.compile("[+-]?[0-9]{1,18}")
Forget = Any  # indices, a file of them, a Subset, or a DataLoader over one


def resolve(forget: Forget, dataset: Any, removed: Sequence[int]) -> list[int]:
    """Positions to forget, sorted, each in the dataset and still in the model.

    Args:
        forget: Indices (int, list, tuple, set, range, array, tensor), the path of a
            .txt, .json, .npy or .csv file of them, a `Subset` of the training data,
            or a DataLoader over one.
        dataset: The training dataset.
        removed: Positions earlier requests have removed.

    Returns:
        Sorted positions.

    Raises:
        ForgetSetError: If the set is empty, everything, repeated, out of range,
            already forgotten, or not of the training data.
    """
    if isinstance(forget, DataLoader):
        forget = _from_loader(forget, dataset)
    if isinstance(forget, Subset):
        indices = _from_subset(forget, dataset)
    elif isinstance(forget, Dataset):
        raise ForgetSetError(
            f"expected a Subset of the training dataset, got {type(forget).__name__}: "
            "use torch.utils.data.Subset(train_dataset, indices)"
        )
    elif isinstance(forget, (str, Path)):
        indices = read_indices(Path(forget))
    else:
        indices = _integers(forget, "the forget set")
    chosen = _checked(indices, len(dataset), removed)
    return _with_copies(chosen, dataset, removed)


def _with_copies(chosen: list[int], dataset: Any, removed: Sequence[int]) -> list[int]:
    """Add the other positions at which a Subset repeats a chosen sample."""
    if not isinstance(dataset, Subset):
        return chosen
    _, picked = _flatten(dataset)
    wanted = {picked[i] for i in chosen}
    copies = {i for i, index in enumerate(picked) if index in wanted} - set(removed)
    if len(copies) + len(removed) == len(picked):
        raise ForgetSetError(
            "expected at least one sample to retain, got a request for copies of one "
            "sample that make up the whole dataset: delete the model"
        )
    return sorted(copies)


def _checked(indices: list[int], n: int, removed: Sequence[int]) -> list[int]:
    if not indices:
        raise ForgetSetError("expected at least one sample to forget, got none")
    outside = [i for i in indices if not 0 <= i < n]
    if outside:
        raise ForgetSetError(
            f"expected indices from 0 to {n - 1} of the training dataset, got "
            f"{_some(outside)}"
        )
    unique = sorted(set(indices))
    if len(unique) != len(indices):
        repeated = (
            sorted({i for i in indices if indices.count(i) > 1})
            if (len(indices) < 10_000)
            else []
        )
        raise ForgetSetError(
            f"expected every sample once, got {len(indices) - len(unique)} "
            f"repetitions{': ' + _some(repeated) if repeated else ''}: remove them"
        )
    again = sorted(set(unique) & set(removed))
    if again:
        raise ForgetSetError(
            f"expected samples that are still in, got {_some(again)}, which an earlier "
            "request has already removed: leave them out"
        )
    if len(unique) + len(removed) == n:
        raise ForgetSetError(
            f"expected at least one sample to retain, got a request for all "
            f"{len(unique)}: to forget everything, delete the model"
        )
    return unique


def _some(indices: list[int]) -> str:
    shown = ", ".join(str(i) for i in indices[:5])
    return shown + (f" and {len(indices) - 5} more" if len(indices) > 5 else "")


def _integers(values: Any, what: str) -> list[int]:
    if isinstance(values, Tensor):
        values = values.detach().cpu().tolist()
    if isinstance(values, (int, np.integer)) and not isinstance(values, bool):
        values = [values]
    if not isinstance(values, Iterable) or isinstance(values, (bytes, dict)):
        raise ForgetSetError(
            f"expected {what} as indices, a path, a Subset or a DataLoader over one, "
            f"got {type(values).__name__}"
        )
    if isinstance(values, np.ndarray) and values.ndim != 1:
        raise ForgetSetError(
            f"expected {what} as a flat list of indices, got shape {values.shape}"
        )
    indices = []
    for value in values:
        if isinstance(value, (bool, np.bool_)) or not isinstance(
            value, (int, np.integer)
        ):
            raise ForgetSetError(
                f"expected {what} to hold integers, got {value!r} "
                f"({type(value).__name__}): pass positions in the training dataset"
            )
        indices.append(int(value))
    return indices


def read_indices(path: Path) -> list[int]:
    """Read indices from a .txt, .json, .npy or .csv file.

    .txt: one a line, blank lines and ``#`` comments ignored. .json: a list. .npy: a
    one-dimensional integer array. .csv: the column named ``index``, or a single column
    without a header.

    Args:
        path: The file.

    Returns:
        The indices, in the file's order.

    Raises:
        ForgetSetError: If the file is missing, of another kind or malformed.
    """
    readers = {".txt": _txt, ".json": _json, ".npy": _npy, ".csv": _csv}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise ForgetSetError(
            f"expected a forget file ending in {', '.join(readers)}, got {path}"
        )
    try:
        there = path.is_file()
    except (OSError, ValueError):  # a name no file system takes
        there = False
    if not there:
        raise ForgetSetError(
            f"expected a file of indices at {str(path)[:200]}, found none there"
        )
    size = path.stat().st_size
    if size > _MOST_BYTES:
        raise ForgetSetError(
            f"expected a forget file of at most {_MOST_BYTES >> 20} MiB, got {path} "
            f"with {size >> 20}: pass a list of indices in Python"
        )
    try:
        return _integers(reader(path), str(path))
    except ForgetSetError:
        raise
    except Exception as error:  # whatever a damaged or hostile file provokes
        raise ForgetSetError(
            f"expected indices in {path}: {type(error).__name__}: {error}"
        ) from None


def _txt(path: Path) -> list[int]:
    lines = [line.split("#")[0].strip() for line in path.read_text().splitlines()]
    return [_one(line, path, "one index a line") for line in lines if line]


def _one(text: str, path: Path, expected: str) -> int:
    if _INTEGER.fullmatch(text) is None:  # int() takes 1_0 for ten
        raise ForgetSetError(f"expected {expected} in {path}, got {text[:40]!r}")
    return int(text)


def _json(path: Path) -> Any:
    values = json.loads(path.read_text())
    if not isinstance(values, list):
        raise ForgetSetError(
            f"expected a JSON list of indices in {path}, got {type(values).__name__}"
        )
    return values


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
    with path.open(newline="") as file:
        rows = [row for row in csv.reader(file) if row]
    header = [name.strip() for name in rows[0]] if rows else []
    if "index" in header:
        column = header.index("index")
        rows = rows[1:]
    elif all(len(row) == 1 for row in rows):
        column = 0
    else:
        raise ForgetSetError(
            f"expected a column named 'index', or a single column without a header, in "
            f"{path}, got columns {header}: other columns would be taken for positions"
        )
    if any(len(row) <= column for row in rows):
        raise ForgetSetError(f"expected the same columns in every row of {path}")
    expected = "a column named 'index', or a single column of integers,"
    return [_one(row[column].strip(), path, expected) for row in rows]


def _from_loader(loader: DataLoader, dataset: Any) -> Subset | list[int]:
    sampler = loader.sampler
    if loader.dataset is dataset and isinstance(sampler, SubsetRandomSampler):
        return list(sampler.indices)
    if isinstance(loader.dataset, Subset) and isinstance(
        sampler, (SequentialSampler, RandomSampler)
    ):
        return loader.dataset
    raise ForgetSetError(
        "expected a DataLoader over a Subset of the training dataset, got one over "
        f"{type(loader.dataset).__name__} with {type(sampler).__name__}: use "
        "DataLoader(Subset(train_dataset, indices))"
    )


def _flatten(dataset: Any) -> tuple[Any, list[int]]:
    """The innermost dataset and the positions a nest of Subsets picks from it."""
    positions = list(range(len(dataset)))
    while isinstance(dataset, Subset):
        positions = _through(dataset, positions)
        dataset = dataset.dataset
    return dataset, positions


def _through(subset: Subset, positions: list[int]) -> list[int]:
    """Positions in a Subset as positions in its dataset, counted from the front."""
    base, own = subset.dataset, len(subset.indices)
    first, n = 0, sys.maxsize  # of a dataset that does not say how long it is
    if hasattr(base, "__len__"):
        n = len(base)  # type: ignore[arg-type]
        first = -n
    there = [i for i in positions if -own <= i < own]
    picked = _integers([subset.indices[i] for i in there], "the Subset")
    outside = [i for i in positions if not -own <= i < own]
    outside += [i for i in picked if not first <= i < n]
    if outside:
        raise ForgetSetError(
            f"expected the indices of a Subset to lie in its dataset, got "
            f"{_some(outside)}"
        )
    return [i % n for i in picked]


def _from_subset(subset: Subset, dataset: Any) -> list[int]:
    outer: Any = subset
    positions = list(range(len(subset)))
    while isinstance(outer, Subset) and outer is not dataset:
        positions = _through(outer, positions)
        outer = outer.dataset
    if outer is dataset:
        return positions
    base, picked = _flatten(subset)
    train_base, train_picked = _flatten(dataset)
    if base is not train_base:
        if type(base) is not type(train_base) or len(base) != len(train_base):
            raise ForgetSetError(
                f"expected a Subset of the training dataset, got one of another "
                f"{type(base).__name__} with {len(base)} samples: a set that was never "
                "trained on cannot be forgotten"
            )
        _check_same_samples(base, train_base, picked)
    where = {index: position for position, index in enumerate(train_picked)}
    missing = [index for index in picked if index not in where]
    if missing:
        raise ForgetSetError(
            f"expected a Subset of the training data, got samples {_some(missing)} "
            "that are not in it (a validation split?)"
        )
    return [where[index] for index in picked]


def _check_same_samples(base: Any, train_base: Any, picked: list[int]) -> None:
    """A dataset object made anew must hold, at these positions, the same samples."""
    for index in picked:
        try:
            ours, theirs = tree_leaves(train_base[index]), tree_leaves(base[index])
            same = len(ours) == len(theirs) and all(
                torch.equal(a, b)
                if isinstance(a, Tensor) and isinstance(b, Tensor)
                else bool(np.all(a == b))
                for a, b in zip(ours, theirs, strict=True)
            )
        except Exception as problem:  # whatever reading or comparing them provokes
            raise ForgetSetError(
                f"expected samples that can be compared at position {index} of the "
                f"forget set's dataset and of the training dataset, got another kind "
                f"({type(problem).__name__}: {problem!s:.200})"
            ) from None
        if not same:
            raise ForgetSetError(
                f"expected the forget set's dataset to be the training dataset, got "
                f"another sample at position {index}"
            )
