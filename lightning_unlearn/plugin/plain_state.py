"""Plain state that a module's own code may change: noted, compared and put back.

A loss that is called to look at rows may append to lists, count, or number the words it
meets. Whoever only looks must leave no trace of that.
"""

import copy
import functools
import itertools
import random
import sys
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import BuiltinMethodType, FunctionType, MethodType, SimpleNamespace
from typing import Any

import numpy as np
import torch
import torchmetrics
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lightning_unlearn.plugin.lightning import LightningModule

#: Attributes that torch and Lightning have made.
BARE = frozenset(vars(LightningModule())) | {"_calls", "log", "log_dict"}
_LIBRARIES = sys.stdlib_module_names | {
    *("torch", "lightning_utilities", "torchmetrics", "lightning_unlearn"),
    *("numpy", "pandas", LightningModule.__module__.partition(".")[0]),
}
_NODES = 20_000  # objects that are looked at
_INSIDE = 10_000  # elements of one container that are looked into
_COPIED = 10_000_000  # elements of all tensors and arrays that are copied
_GENERATORS = random.Random, np.random.Generator, np.random.RandomState, torch.Generator


def own_attributes(layer: nn.Module) -> Iterator[tuple[str, object]]:
    """Those that torch and Lightning have not made."""
    for name, value in vars(layer).items():
        if name not in BARE and not name.endswith("_hooks"):
            yield name, value


@dataclass(frozen=True)
class _Node:
    """Something that can change: has it, and how to put it back (None: nobody can).

    A cache that others had filled is left as it is: it is not `whole` again.
    """

    name: str
    changed: Callable[[], bool]
    put_back: Callable[[], None] | None
    whole: bool = True


class PlainState:
    """What can be reached from some objects and can change, as it is now.

    Looked into are attributes of layers and of objects, containers, arrays, tensors,
    random generators, what functions hold in closures, and the global names that
    methods use. Parameters and buffers are left to `passes`, metrics to `quiet`.

    Args:
        roots: Name -> object: a module, a function that collates, a dataset.
    """

    def __init__(self, **roots: object) -> None:
        self._nodes, self._room = list[_Node](), _COPIED
        held = [x for x in roots.values() if isinstance(x, nn.Module)]
        buffers = [b for module in held for b in module.buffers()]
        # Kept alive: an id must stay theirs.
        self._seen: dict[int, object] = {id(b): b for b in buffers}
        #: Names of what had changed when it was put back, and of what could not be.
        self.touched, self.left = list[str](), list[str]()
        waiting = deque((name, value) for name, value in roots.items())
        while waiting and len(self._seen) < _NODES:
            name, value = waiting.popleft()
            if id(value) not in self._seen and not isinstance(value, _ATOMS):
                self._seen[id(value)] = value
                waiting.extend(self._look(name, value))

    @property
    def reached(self) -> dict[int, object]:
        """What was looked at, by id."""
        return self._seen

    def changed(self) -> list[str]:
        """Names of what has changed since."""
        return [node.name for node in self._nodes if node.changed()]

    def put_back(self) -> list[str]:
        """Make everything what it was; the names of what nobody can put back.

        All or nothing: words that are forgotten, and a counter of them that is not,
        would be a state that the user's code cannot be in.
        """
        changed = [node for node in self._nodes if node.changed()]
        ways = [node.put_back for node in changed if node.put_back is not None]
        if len(ways) == len(changed):
            for way in ways:
                way()
        self.touched = [node.name for node in changed]
        self.left = [n.name for n in changed if n.put_back is None or not n.whole]
        return self.left

    def _look(self, name: str, value: Any) -> list[tuple[str, object]]:
        """Note one object; what is to be looked at next."""
        if type(value) in _CONTAINERS:  # most of them, and it is quick to tell
            return self._held_in(name, value)
        if isinstance(value, (DTensor, torchmetrics.Metric, nn.Parameter)):
            return []
        if isinstance(value, (Tensor, np.ndarray)):
            size = value.numel() if isinstance(value, Tensor) else value.size
            self._room -= size
            copied = self._room >= 0
            self._room += 0 if copied else size
            self._nodes.append(_array(name, value, copied))
            return []
        if isinstance(value, _GENERATORS):
            self._nodes.append(_generator(name, value))
            return []
        if isinstance(value, nn.Module):
            return self._module(name, value)
        if isinstance(value, (*_CONTAINERS, deque, bytearray)):
            return self._held_in(name, value)
        if isinstance(value, (MethodType, BuiltinMethodType)):
            parts = value.__self__, getattr(value, "__func__", None)
            return [(name, part) for part in parts]
        if isinstance(value, functools.partial):
            return [(name, value.func), (name, value.args), (name, value.keywords)]
        if isinstance(value, (functools._lru_cache_wrapper, itertools.count)):
            self._nodes.append(_opaque(name, value))
            return [(name, getattr(value, "__wrapped__", None))]
        if isinstance(value, (FunctionType, type)):
            nodes, found = (_class if isinstance(value, type) else _function)(
                name, value
            )
            self._nodes += nodes
            return found
        if isinstance(value, SimpleNamespace) or not of_library(type(value)):
            return [
                *(self._attributes(name, value) if hasattr(value, "__dict__") else []),
                (name, type(value)),
            ]
        if isinstance(value, torch.utils.data.Dataset):
            return self._attributes(name, value)
        return []

    def _held_in(self, name: str, value: Any) -> list[tuple[str, object]]:
        if isinstance(value, (tuple, frozenset)):
            pairs = _first(enumerate(value))
            return [(f"{name}[{i}]", x) for i, x in pairs if type(x) not in _PLAIN]
        self._nodes.append(_container(name, value))
        pairs = _held(value).items() if isinstance(value, dict) else enumerate(value)
        found = [
            (f"{name}[{k!r:.40}]", x)
            for k, x in _first(pairs)
            if type(x) not in _PLAIN  # the container itself remembers these
        ]
        own = getattr(value, "__dict__", None)
        return found + ([] if own is None else self._attributes(name, value))

    def _module(self, name: str, module: nn.Module) -> list[tuple[str, object]]:
        found = list[tuple[str, object]]()
        for prefix, layer in module.named_modules(prefix=name if name else ""):
            if isinstance(layer, torchmetrics.Metric):
                continue
            self._seen[id(layer)] = layer
            own = dict(own_attributes(layer))
            self._nodes.append(_attributes_of(prefix, layer, own, _is_own))
            found += [(f"{prefix}.{key}", value) for key, value in own.items()]
            found += [] if of_library(type(layer)) else [(prefix, type(layer))]
            found += [(f"{prefix}.{key}", b) for key, b in layer._buffers.items()]
        return found

    def _attributes(self, name: str, value: object) -> list[tuple[str, object]]:
        own = dict(vars(value))
        self._nodes.append(_attributes_of(name, value, own, lambda key: True))
        return [(f"{name}.{key}", x) for key, x in _first(own.items())]


_ATOMS = (str, bytes, int, float, complex, bool, type(None), torch.dtype, torch.device)

_PLAIN = frozenset({str, bytes, int, float, complex, bool, type(None)})
_CONTAINERS = dict, list, set, tuple, frozenset


def _first(pairs: Iterable[tuple[Any, object]]) -> Iterator[tuple[Any, object]]:
    return itertools.islice(pairs, _INSIDE)


def _is_own(name: str) -> bool:
    return name not in BARE and not name.endswith("_hooks")


def of_library(kind: type | FunctionType) -> bool:
    """Whether a class or function is of the language, of torch, or of Lightning."""
    return str(kind.__module__).partition(".")[0] in _LIBRARIES


def _differs(one: object, other: object) -> bool:
    return not (
        one is other
        or (isinstance(one, _ATOMS) and type(one) is type(other) and one == other)
    )


def _attributes_of(
    name: str, value: object, own: dict[str, Any], counts: Callable[[str], bool]
) -> _Node:
    def now() -> dict[str, Any]:
        return {key: x for key, x in vars(value).items() if counts(key)}

    def put_back() -> None:
        for key in now():
            del vars(value)[key]
        vars(value).update(own)

    return _Node(name, lambda: _others(now(), own), put_back)


def _others(now: dict[Any, Any], before: dict[Any, Any]) -> bool:
    """Whether two mappings differ, in their order too."""
    return len(now) != len(before) or any(
        _differs(k, key) or _differs(x, before[key])
        for (k, x), key in zip(now.items(), before, strict=True)
    )


def _container(name: str, value: Any) -> _Node:
    if isinstance(value, dict):
        kept, counter = _held(value), _counter_of(value)

        def refill() -> None:
            _refill(value, kept)
            if isinstance(value, defaultdict) and counter is not None:
                value.default_factory = copy.copy(counter).__next__

        return _Node(name, lambda: _others(_held(value), kept), refill)
    if isinstance(value, set):
        known = set(value)
        return _Node(name, lambda: value != known, lambda: _refill(value, known))
    items = list(value)

    def changed() -> bool:
        return len(value) != len(items) or any(map(_differs, value, items))

    def put_back() -> None:
        value.clear()
        value.extend(items)

    return _Node(name, changed, put_back)


def _counter_of(value: Any) -> Any:
    """A copy of the counter that numbers a dictionary's new keys, if one does."""
    own = getattr(getattr(value, "default_factory", None), "__self__", None)
    return copy.copy(own) if isinstance(own, itertools.count) else None


def _held(value: dict[Any, Any]) -> dict[Any, Any]:
    """What a dictionary holds, whatever its class makes of it when it is asked.

    transformers' table of activations makes a new layer of each at every look.
    """
    return {key: dict.__getitem__(value, key) for key in dict.keys(value)}


def _refill(value: Any, kept: Any) -> None:
    value.clear()
    if isinstance(value, OrderedDict):  # it keeps an order of its own
        for key, held in kept.items():
            OrderedDict.__setitem__(value, key, held)
    elif isinstance(value, dict):  # a Counter's own update would add
        dict.update(value, kept)
    else:
        value.update(kept)


def _array(name: str, value: Any, copied: bool) -> _Node:
    if isinstance(value, np.ndarray):
        if not copied or value.dtype.hasobject:
            return _Node(name, lambda: False, None)
        kept = value.copy()
        return _Node(
            name,
            lambda: value.tobytes() != kept.tobytes(),
            lambda: np.copyto(value, kept),
        )
    if not copied or value.layout != torch.strided:
        if value.is_inference():
            return _Node(name, lambda: False, None)
        version = value._version
        return _Node(name, lambda: value._version != version, None)
    copy = value.detach().clone()

    def put_back() -> None:
        with torch.inference_mode(value.is_inference()):
            value.data.copy_(copy)

    return _Node(name, lambda: not torch.equal(value.detach(), copy), put_back)


def _generator(name: str, value: Any) -> _Node:
    if isinstance(value, torch.Generator):
        state = value.get_state()
        return _Node(
            name,
            lambda: not torch.equal(value.get_state(), state),
            lambda: value.set_state(state) and None,
        )
    if isinstance(value, random.Random):
        held = value.getstate()
        return _Node(
            name, lambda: value.getstate() != held, lambda: value.setstate(held)
        )
    if isinstance(value, np.random.RandomState):
        old: Any = value.get_state()
        return _Node(
            name,
            lambda: repr(value.get_state()) != repr(old),
            lambda: value.set_state(old),
        )
    bits: Any = value.bit_generator
    before = bits.state
    return _Node(
        name,
        lambda: repr(bits.state) != repr(before),
        lambda: setattr(bits, "state", before),
    )


def _opaque(name: str, value: Any) -> _Node:
    if isinstance(value, itertools.count):
        text = repr(value)
        return _Node(name, lambda: repr(value) != text, None)
    size = value.cache_info().currsize
    clear = value.cache_clear if size == 0 else lambda: None
    return _Node(name, lambda: value.cache_info().currsize != size, clear, size == 0)


_Found = tuple[list[_Node], list[tuple[str, object]]]


def _function(name: str, function: Any) -> _Found:
    """What a function of the user's holds: closures, defaults, and global names."""
    nodes, found = list[_Node](), list[tuple[str, object]]()
    if of_library(function):
        return nodes, found
    code, names = function.__code__, function.__globals__
    for key, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        try:
            value = cell.cell_contents
        except ValueError:  # not filled yet
            continue
        nodes.append(_slot(key, cell, "cell_contents", value))
        found.append((key, value))
    for key in code.co_names:
        if key in names:
            nodes.append(_global(key, names, names[key]))
            found.append((key, names[key]))
    found += [(name, function.__defaults__), (name, function.__kwdefaults__)]
    found.append((name, getattr(function, "__wrapped__", None)))
    return nodes, found


def _global(key: str, names: dict[str, Any], value: object) -> _Node:
    return _Node(
        key,
        lambda: key not in names or _differs(names[key], value),
        lambda: names.update({key: value}),
    )


def _slot(name: str, holder: object, key: str, value: object) -> _Node:
    return _Node(
        name,
        lambda: _differs(getattr(holder, key, None), value),
        lambda: setattr(holder, key, value),
    )


def _class(name: str, kind: Any) -> _Found:
    """What classes of the user's hold: attributes, and what their methods use."""
    nodes, found = list[_Node](), list[tuple[str, object]]()
    for one in kind.__mro__:
        for key, value in {} if of_library(one) else dict(vars(one)).items():
            if isinstance(value, (staticmethod, classmethod)):
                value = value.__func__
            elif isinstance(value, property):
                value = value.fget
            elif not (key.startswith("__") or hasattr(value, "__get__")):
                nodes.append(_slot(f"{name}.{key}", one, key, value))
            found.append((f"{name}.{key}", value))
    return nodes, found
