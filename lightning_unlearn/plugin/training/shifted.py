"""Other numbers in place of those a module keeps: does anything depend on them?

A loss kept for a plot is no statistic that the model computes with; training changes
both. What differs is whether the rows do.
"""

import random
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import is_dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_unlearn.plugin.plain_state import own_attributes
from lightning_unlearn.plugin.training.outside_digests import (
    DEPTH,
    attribute_of,
    hidden_tensors,
    is_number,
    numbers_in,
)

New = Callable[[], float]

_random = random.Random(0)
#: What is tried in their place. A comparison with one of these goes the other way, and
#: whatever is computed with them becomes another number.
TRIED: tuple[New, ...] = (
    lambda: float("nan"),
    lambda: float("inf"),
    lambda: float("-inf"),
    lambda: 0.0,
    lambda: _random.gauss(0.0, 1e-3),
    lambda: _random.gauss(0.0, 1e3),
)


@contextmanager
def shifted(module: nn.Module, labels: list[str], new: New) -> Iterator[None]:
    """Put another number in place of each that these attributes hold.

    Containers, arrays and tensors are changed in place, so that whoever holds the same
    one sees it.

    Args:
        module: A module.
        labels: Of plain attributes of it or of its layers, as `attribute_of` names
            them.
        new: Makes the numbers. Arrays and tensors become full of one.

    Raises:
        TypeError: If one of them holds a number in whose place none can be put.
    """
    shift = _Shift(module, new)
    try:
        for prefix, layer in module.named_modules():
            for name, value in [*own_attributes(layer)]:
                label = f"{prefix}.{name}".lstrip(".")
                if any(x == label or x.startswith(label + ".") for x in labels):
                    shift.put(vars(layer), name, shift.of(value, DEPTH))
        yield
    finally:
        shift.undo()


class _Shift:
    def __init__(self, module: nn.Module, new: New) -> None:
        self._new, self._ways = new, list[Callable[[], object]]()
        self._known = {id(t) for t in (*module.parameters(), *module.buffers())}

    def undo(self) -> None:
        for way in reversed(self._ways):
            way()

    def put(self, holder: Any, key: Any, value: object) -> None:
        old = holder[key]
        if value is not old:
            holder[key] = value
            self._ways.append(lambda: holder.__setitem__(key, old))

    def of(self, value: Any, depth: int) -> Any:
        if isinstance(value, (float, np.floating)):
            return type(value)(self._new())
        if isinstance(value, (Tensor, np.ndarray)):
            self._fill(value)
        elif depth > 0 and isinstance(value, (tuple, frozenset)):
            held = [self.of(x, depth - 1) for x in value]
            if any(x is not y for x, y in zip(held, value, strict=True)):
                kind = type(value)
                return kind(*held) if hasattr(kind, "_fields") else kind(held)
        elif depth > 0 and isinstance(value, set):
            self._refill(value, {self.of(x, depth - 1) for x in value})
        elif depth > 0 and _has_fields(value):
            self._inside(vars(value), list(vars(value)), depth - 1)
        elif depth > 0 and isinstance(value, dict):
            self._inside(value, list(value), depth - 1)
        elif depth > 0 and isinstance(value, (list, deque)):
            self._inside(value, range(len(value)), depth - 1)
        elif any(True for _ in numbers_in("", value, depth)):
            raise TypeError(f"numbers in a {type(value).__name__}")
        return value

    def _inside(self, holder: Any, places: Any, depth: int) -> None:
        for place in places:
            self.put(holder, place, self.of(holder[place], depth))

    def _refill(self, value: set[Any], held: set[Any]) -> None:
        before = set(value)

        def put_back() -> None:
            value.clear()
            value.update(before)

        value.clear()
        value.update(held)
        self._ways.append(put_back)

    def _fill(self, value: Any) -> None:
        if isinstance(value, np.ndarray):
            if value.dtype.kind in "fc":
                kept = value.copy()
                value.fill(self._new())
                self._ways.append(lambda: np.copyto(value, kept))
        elif id(value) not in self._known:
            if not value.is_floating_point():
                raise TypeError(f"a tensor of {value.dtype}")
            before, inference = value.detach().clone(), value.is_inference()

            def write(fill: Callable[[Tensor], object]) -> None:
                with torch.inference_mode(inference):
                    fill(value.data)

            number = self._new()
            write(lambda held: held.fill_(number))
            self._ways.append(lambda: write(lambda held: held.copy_(before)))


def _has_fields(value: object) -> bool:
    return isinstance(value, SimpleNamespace) or (
        is_dataclass(value) and not isinstance(value, type)
    )


def changed_attributes(
    module: nn.Module, before: dict[str, str], now: dict[str, str]
) -> list[str]:
    """Attributes whose numbers, arrays or tensors are not what they were.

    Args:
        module: A module.
        before: Digests by `outside_digests`.
        now: The same, later.
    """
    held = hidden_tensors(module)
    names = {n for n in {**before, **now} if before.get(n) != now.get(n)}
    return sorted({attribute_of(n) for n in names if n in held or is_number(n)})
