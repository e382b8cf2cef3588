"""A `datasets.Dataset` as training data: its columns, and parts that were picked."""

from typing import Any

from lightning_unlearn.errors import ForgetSetError
from lightning_unlearn.plugin.data.subsets import flatten


def is_hub(dataset: Any) -> bool:
    """Whether it is a `datasets.Dataset`, or behaves like one."""
    names = ("column_names", "data", "select", "with_format")
    return all(hasattr(dataset, name) for name in names)


def column(dataset: Any, name: str) -> list[Any] | None:
    """One value for each sample, of a column; None if it has none of that name."""
    if not is_hub(dataset) or name not in dataset.column_names:
        return None
    return list(dataset.with_format(None)[name])  # as it is stored, not as tensors


def picked_from(part: Any, dataset: Any) -> list[int]:
    """Positions in the training data of rows that were picked from it.

    ``select``, ``filter``, ``shuffle``, ``train_test_split`` and the like copy no row:
    both datasets hold the same memory, by which rows are known again.

    Args:
        part: What such a method returned.
        dataset: The training data: a `datasets.Dataset`, or Subsets of one.

    Returns:
        Positions, sorted; all of a row that the training data repeat.

    Raises:
        ForgetSetError: If a row is not in the training data, or none can be told.
    """
    base, positions = flatten(dataset)
    if not is_hub(base):
        raise ForgetSetError(
            f"expected rows picked from the training data, got {type(part).__name__} "
            f"where these are {type(base).__name__}: give positions, or ids with by="
        )
    missing = len(part)
    for name in sorted({*base.column_names} & {*part.column_names}):
        rows, wanted = _rows(base, name), _rows(part, name)
        if rows is None or wanted is None:
            continue
        where: dict[tuple[int, int], list[int]] = {}
        for position, place in enumerate(positions):
            where.setdefault(rows[place], []).append(position)
        missing = sum(row not in where for row in wanted)
        if not missing:
            return sorted({position for row in wanted for position in where[row]})
    raise ForgetSetError(
        f"expected rows picked from the training data, got {missing} of {len(part)} "
        "that are not in its memory: call select or filter on the very dataset that "
        "was trained on (map and load make copies), or give positions, "
        "or ids with by="
    )


def _rows(dataset: Any, name: str) -> list[tuple[int, int]] | None:
    """Where each row's value of a column stands: (address of a buffer, place in it).

    None of a column whose values are in several buffers.
    """
    found = list[tuple[int, int]]()
    for chunk in dataset.data.column(name).chunks:
        buffers = chunk.buffers()
        if len(buffers) < 2 or buffers[1] is None or _nested(chunk):
            return None
        start = chunk.offset
        found += [(buffers[1].address, i) for i in range(start, start + len(chunk))]
    indices = getattr(dataset, "_indices", None)  # rows of the table that are in it
    if indices is None:
        return found
    return [found[i] for i in indices.column(0).to_pylist()]


def _nested(chunk: Any) -> bool:
    """Whether the second buffer is that of a part, and not of the rows."""
    return str(chunk.type).startswith(("struct", "extension", "fixed_size_list", "run"))
