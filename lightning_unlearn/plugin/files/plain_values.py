"""The plain values in a checkpoint; nothing else of it is unpickled, or imported."""

import pickle
import zipfile
from pathlib import Path
from typing import Any

_MOST = 1 << 28  # bytes of a pickle: tensors are kept beside it


def plain_values(path: Path) -> Any:
    """What ``torch.save`` wrote, with a `Something` for all that is no plain value.

    A checkpoint may hold a module, a `Path`, a numpy number or a class that this
    process cannot import: ``torch.load(weights_only=True)`` refuses all of it then, and
    without that it would run the file's code. Here no code runs: names of classes and
    functions are never looked up. Tensors are not read from the disk.

    Args:
        path: The file.

    Raises:
        Exception: Of many kinds, if it is no such file.
    """
    with zipfile.ZipFile(path) as archive:
        names = [n for n in archive.namelist() if n.endswith("/data.pkl")]
        (name,) = (n for n in names if n.count("/") == 1)
        if archive.getinfo(name).file_size > _MOST:
            raise ValueError("its values are too long")
        with archive.open(name) as file:
            return _Unpickler(file, encoding="utf-8").load()


class Something:
    """Stands for an object of a class that was not looked up."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        del args, kwargs

    def __call__(self, *args: object, **kwargs: object) -> "Something":
        """It may be a function's result, or a function."""
        return self

    def __setstate__(self, state: object) -> None:
        """Nothing of it is kept."""

    def __setitem__(self, key: object, value: object) -> None:
        """Nothing of it is kept."""

    def append(self, item: object) -> None:
        """Nothing of it is kept."""

    def extend(self, items: object) -> None:
        """Nothing of it is kept."""

    def add(self, item: object) -> None:
        """Nothing of it is kept."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> type[Something]:
        del module_name, global_name
        return Something

    def persistent_load(self, pid: object, /) -> Something:
        del pid  # a tensor's numbers
        return Something()
