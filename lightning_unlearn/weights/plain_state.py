"""What a module keeps beside its weights: lists, counters, tensors in attributes."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

_MOST = 10_000  # parts of a container that are looked into
# Classes of these packages look after themselves, and hold half of the program; so do
# Lightning's, by whatever name it is installed.
_OTHERS = {"builtins", "torch", "torchmetrics", "threading", "logging"}
_NOT_ITS_OWN = {*vars(nn.Module()), "_trainer", "_fabric"}


@contextmanager
def put_back_after(module: nn.Module) -> Iterator[None]:
    """A block after which a module's plain attributes are what they were before.

    Whatever its passes append, count or cache: containers get their old contents, and
    objects of the user's own classes their old attributes. Weights, buffers and modules
    are left alone (`passes` has copies of them).

    Args:
        module: With all its parts.
    """
    undo: dict[int, Callable[[], None]] = {}
    held: list[Any] = []  # an id means nothing once its object is gone
    for part in module.modules():
        own = {k: v for k, v in vars(part).items() if k not in _NOT_ITS_OWN}
        undo[id(part)] = _attributes(part, own, _NOT_ITS_OWN)
        for value in own.values():
            _note(value, undo, held)
    try:
        yield
    finally:
        for step in undo.values():
            step()


def _note(value: Any, undo: dict[int, Callable[[], None]], held: list[Any]) -> None:
    """How to put one value back, and what it holds."""
    if id(value) in undo or isinstance(value, (type, nn.Module, ModuleType)):
        return
    parts: Iterable[Any] = ()
    if isinstance(value, Tensor):
        step = _tensor(value)
    elif isinstance(value, torch.Generator):
        state = value.get_state()
        step = lambda: value.set_state(state) and None  # noqa: E731
    elif isinstance(value, dict):
        step, parts = _mapping(value), list(value.values())
    elif isinstance(value, (list, set, deque)):
        step, parts = _sequence(value), list(value)
    elif isinstance(value, tuple):
        step, parts = _nothing, value
    elif _is_users(value):
        own = dict(vars(value))
        step, parts = _attributes(value, own, set()), list(own.values())
    else:
        return
    undo[id(value)] = step
    held.append(value)
    if len(list(parts)) <= _MOST:
        for part in parts:
            _note(part, undo, held)


def _is_users(value: Any) -> bool:
    plain = not isinstance(value, (FunctionType, MethodType)) and hasattr(
        value, "__dict__"
    )
    package = type(value).__module__.split(".")[0]
    return plain and package not in _OTHERS and "lightning" not in package


def _nothing() -> None:
    """Of what cannot change."""


def _tensor(value: Tensor) -> Callable[[], None]:
    if value.requires_grad or value.is_inference():  # nothing writes into these
        return _nothing
    version, copy = value._version, value.detach().clone()

    def step() -> None:
        if value._version != version:
            with torch.no_grad():
                value.copy_(copy)

    return step


def _mapping(value: dict[Any, Any]) -> Callable[[], None]:
    copy = dict(value)

    def step() -> None:
        dict.clear(value)
        dict.update(value, copy)

    return step


def _sequence(value: Any) -> Callable[[], None]:
    copy = list(value)

    def step() -> None:
        value.clear()
        (value.update if isinstance(value, set) else value.extend)(copy)

    return step


def _attributes(
    owner: Any, before: dict[str, Any], left: set[str]
) -> Callable[[], None]:
    def step() -> None:
        for name in {*vars(owner)} - {*before} - left:
            object.__delattr__(owner, name)
        for name, value in before.items():
            if vars(owner).get(name, step) is not value:
                object.__setattr__(owner, name, value)

    return step
