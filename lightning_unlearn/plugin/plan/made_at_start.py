"""What hooks make of a module's plain state before its training starts.

Layers and settings that ``setup`` makes are ordinary; a vocabulary or a fitted object
may be made from the samples, and then what reaches the head is not public.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
from torch import nn
from torch.utils.data import DataLoader, Dataset

from lightning_unlearn.plugin.lightning import LightningDataModule
from lightning_unlearn.plugin.plain_state import PlainState, of_library, own_attributes

#: Libraries whose objects are settings, or come from published files.
_PUBLIC = {"transformers", "tokenizers", "torchvision", "sentencepiece", "pathlib"}
_SETTINGS, _TEXT = 4, 200  # elements of a tuple of settings, characters of a setting
_GONE = object()
_EMPTIED = dict, Counter, list, set, tuple, str

Attribute = tuple[nn.Module, str]  # a layer, and a name


class AtSetup:
    """A module's plain attributes as they are when a run sets it up."""

    def __init__(self, module: nn.Module) -> None:
        self._state = PlainState(module=module)
        self._held = {label: value for label, _, value in _labelled(module)}

    def made(self, module: nn.Module) -> dict[str, Attribute]:
        """What appeared or changed since, and may hold data."""
        touched = self._state.changed()
        return {
            label: at
            for label, at, value in _labelled(module)
            if may_hold_data(value)
            and (
                self._held.get(label, _GONE) is not value
                or any(
                    name.startswith((f"module.{label}[", f"module.{label}."))
                    or name == f"module.{label}"
                    for name in touched
                )
            )
        }


def _labelled(module: nn.Module) -> Iterator[tuple[str, Attribute, object]]:
    for prefix, layer in module.named_modules():
        for name, value in own_attributes(layer):
            if not name.startswith("_hparams"):
                yield f"{prefix}.{name}".lstrip("."), (layer, name), value


def may_hold_data(value: Any, depth: int = 3) -> bool:
    """Whether a plain value can be a vocabulary, counts, or something fitted.

    Tensors and floats have digests of their own (`outside_digests`).
    """
    if isinstance(value, str):
        return len(value) > _TEXT
    if isinstance(value, (Mapping, set, frozenset, deque)):
        return len(value) > 0
    if isinstance(value, (list, tuple)):
        plain = all(isinstance(x, (int, str, type(None))) for x in value)
        return len(value) > 0 and not (plain and len(value) <= _SETTINGS)
    if isinstance(value, np.ndarray):
        return value.dtype.kind not in "fc" and value.size > 0
    kind = type(value)
    named = kind.__module__.partition(".")[0]
    known = (nn.Module, Dataset, DataLoader, LightningDataModule, type)
    if isinstance(value, known) or named in _PUBLIC or depth == 0:
        return False
    if of_library(kind) and kind is not SimpleNamespace:
        return False
    return any(
        (name.endswith("_") and not name.endswith("__"))  # as scikit-learn's fitted
        or (not isinstance(x, (list, tuple)) and may_hold_data(x, depth - 1))
        for name, x in getattr(value, "__dict__", {}).items()
    )


def reaching(
    made: dict[str, Attribute], same_rows: Callable[[], bool | None]
) -> list[str]:
    """Names of what was made without which the rows would be others.

    Args:
        made: Of `AtSetup.made`.
        same_rows: Whether the rows are what they are with it; None if they cannot be
            computed.
    """
    if not made or _without(list(made.values()), same_rows):
        return []
    names = [label for label, at in made.items() if not _without([at], same_rows)]
    return names or list(made)


def _without(some: list[Attribute], same_rows: Callable[[], bool | None]) -> bool:
    """Whether the rows are the same if these are missing, or else empty."""
    with _replaced(some, lambda value: _GONE):
        same = same_rows()
    if same is None:
        with _replaced(some, _emptied):
            same = same_rows()
    return bool(same)


def _emptied(value: Any) -> object:
    return type(value)() if type(value) in _EMPTIED else _GONE


@contextmanager
def _replaced(some: list[Attribute], new: Callable[[object], object]) -> Iterator[None]:
    """Other values in place of these attributes, and these again at the end."""
    own = [dict(vars(layer)) for layer, _ in some]
    for layer, name in some:
        value = new(vars(layer).pop(name))
        if value is not _GONE:
            vars(layer)[name] = value
    try:
        yield
    finally:
        for (layer, name), held in zip(some, own, strict=True):
            vars(layer)[name] = held[name]
