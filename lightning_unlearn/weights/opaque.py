"""Batches of classes that say no more of themselves than how to be moved: ``.to()``."""

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import is_dataclass
from types import ModuleType
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

_KNOWN = (Tensor, nn.Module, Mapping, tuple, list)


class _Kind(type):
    def __instancecheck__(cls, instance: object) -> bool:
        known = isinstance(instance, _KNOWN) or is_dataclass(instance)
        return callable(getattr(instance, "to", None)) and not known


class Opaque(metaclass=_Kind):
    """What no collection and no dataclass is, and has a method ``to``.

    Batches of graphs are. Nobody makes one: ``isinstance`` asks for it.
    """


def tensors_in(batch: Any) -> list[Tensor]:
    """Every tensor of a batch, in the same order at every call.

    Args:
        batch: Collections, dataclasses and `Opaque` objects, nested.
    """
    return [t for leaf in tree_leaves(batch) for t in _within(leaf, set())]


def _within(held: Any, seen: set[int]) -> Iterator[Tensor]:
    if isinstance(held, Tensor):
        yield held
    elif id(held) not in seen:
        seen.add(id(held))
        for _, part in _parts(held):
            yield from _within(part, seen)


def _parts(held: Any) -> list[tuple[Any, Any]]:
    """(name, part) of what an object holds itself; [] for plain values."""
    if isinstance(held, dict):
        return list(held.items())
    if isinstance(held, (list, tuple)):
        return list(enumerate(held))
    if isinstance(held, (type, nn.Module, ModuleType)):
        return []
    return list(vars(held).items()) if hasattr(held, "__dict__") else []


def rewritten(batch: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A copy of an `Opaque` object with other tensors.

    Itself if none changes, or if it cannot be copied: a pass that needs other dtypes
    will then say so.
    """
    if all(change(t) is t for t in tensors_in(batch)):
        return batch
    try:
        own = copy.deepcopy(batch)  # keeps what its parts say of one another
    except Exception:  # of the user's own class
        return batch
    _rewrite(own, change, set())
    return own


def _rewrite(held: Any, change: Callable[[Tensor], Tensor], seen: set[int]) -> Any:
    if isinstance(held, Tensor):
        return change(held)
    if id(held) in seen:
        return held
    seen.add(id(held))
    parts = [(name, part, _rewrite(part, change, seen)) for name, part in _parts(held)]
    changed = {name: new for name, part, new in parts if new is not part}
    if isinstance(held, tuple):
        values = [new for _, _, new in parts]
        kind: Any = type(held)
        return (
            held
            if not changed
            else (kind(*values) if hasattr(held, "_fields") else kind(values))
        )
    for name, new in changed.items():
        if isinstance(held, (dict, list)):
            held[name] = new
        else:
            object.__setattr__(held, name, new)
    return held
