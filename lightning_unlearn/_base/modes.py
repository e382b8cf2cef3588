"""Training and evaluation modes of a module and its parts, put back afterwards."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def modes_put_back(module: Any) -> Iterator[None]:
    """A block after which every part of a torch module has the mode it had before."""
    modes = [(part, part.training) for part in module.modules()]
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
