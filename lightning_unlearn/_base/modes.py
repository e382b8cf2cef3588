"""Attributes and modes that are others for the length of a block."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def borrowed(obj: object, **attributes: object) -> Iterator[None]:
    """Set attributes for the length of a block and restore them whatever happens."""
    old = {name: getattr(obj, name) for name in attributes}
    try:
        for name, value in attributes.items():
            setattr(obj, name, value)
        yield
    finally:
        for name, value in old.items():
            setattr(obj, name, value)


@contextmanager
def modes_put_back(module: Any) -> Iterator[None]:
    """A block after which every part of a torch module has the mode it had before."""
    modes = [(part, part.training) for part in module.modules()]
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
