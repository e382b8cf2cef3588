"""Digests of everything a module keeps outside the scope."""

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import is_dataclass
from functools import partial
from types import CellType, CodeType, FunctionType, MethodType, SimpleNamespace

import numpy as np
import torch
import torchmetrics
from torch import Tensor, nn

from lightning_unlearn.plugin.plain_state import own_attributes
from lightning_unlearn.weights.digests import entry_digest, tensors_digest

#: Ends the name of a plain number: settings, mostly, shown only if training moves them.
NUMBER = " (number)"


def outside_digests(module: nn.Module, scope: Iterable[nn.Parameter]) -> dict[str, str]:
    """Digest of everything a module keeps outside the scope.

    Parameters, buffers, extra state, and tensors and modules held in plain
    attributes, lists, tuples or dictionaries of any submodule.
    """
    ids = {id(p) for p in scope}
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    known = ids | {id(t) for t in tensors.values()}
    for prefix, layer in module.named_modules():
        if isinstance(layer, torchmetrics.Metric):
            continue  # emptied after every request
        tensors |= {n: t for n, t in _hidden(prefix, layer) if id(t) not in known}
    found = {
        name: tensors_digest([(name, t)])
        for name, t in tensors.items()
        if id(t) not in ids
    }
    for name, value in module.state_dict().items():
        if name.endswith("_extra_state"):
            found[name] = entry_digest(name, value)
    return found


def is_number(name: str) -> bool:
    """Whether it is that of a plain number."""
    return name.endswith(NUMBER)


def attribute_of(name: str) -> str:
    """Without keys and places: a dictionary's may be people, a list's count steps."""
    return name.removesuffix(NUMBER).partition("[")[0]


def hidden_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Numbers, arrays and tensors in plain attributes of a module, by name."""
    held = module.named_modules()
    return {name: t for prefix, layer in held for name, t in _hidden(prefix, layer)}


DEPTH = 4  # of containers in containers
_SHOWN = 100_000  # characters
_FEW = 100  # values of a list of settings


def _hidden(prefix: str, layer: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Numbers in plain attributes: tensors, arrays and floats, however nested.

    Integers, booleans and text are left out: counters and settings, not statistics.
    """
    for name, value in own_attributes(layer):
        yield from numbers_in(f"{prefix}.{name}".lstrip("."), value, DEPTH)


def numbers_in(label: str, value: object, depth: int) -> Iterator[tuple[str, Tensor]]:
    """Numbers, arrays and tensors in a plain value, so many containers deep."""
    if isinstance(value, Tensor):
        yield label, value
    elif isinstance(value, nn.Module):
        if not isinstance(value, torchmetrics.Metric):
            for key, tensor in value.state_dict(keep_vars=True).items():
                if isinstance(tensor, Tensor):
                    yield f"{label}.{key}", tensor
    elif isinstance(value, np.ndarray) and value.dtype.kind in "fc":
        yield label, torch.from_numpy(np.ascontiguousarray(value))
    elif isinstance(value, (float, np.floating)):
        yield label + NUMBER, torch.tensor(float(value), dtype=torch.float64)
    elif depth > 0:
        yield from _inside(label, value, depth - 1)


def _inside(label: str, value: object, depth: int) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Mapping):
        items = [(f"{label}[{key!r}]", item) for key, item in value.items()]
    elif isinstance(value, (list, tuple, set, frozenset, deque)):
        items = [(f"{label}[{i}]", item) for i, item in enumerate(value)]
    elif isinstance(value, SimpleNamespace) or is_dataclass(value):
        items = [(f"{label}.{key}", item) for key, item in vars(value).items()]
    else:
        return
    for name, item in items:
        yield from numbers_in(name, item, depth)


def settings(module: nn.Module, collate: object) -> dict[str, str]:
    """What decides how samples are read, and is no tensor: it may move few of them.

    Hyperparameters, integers, booleans and text in plain attributes of layers (where
    texts are cut, say), and the code of the function that collates. Other attributes of
    the module itself may be counters, which another process begins anew.
    """
    found = {"collate": repr(_written(collate, DEPTH))}
    for name, value in getattr(module, "hparams", {}).items():
        if _is_plain(value):
            found[f"hparams.{name}"] = repr(value)
    for prefix, layer in module.named_modules():
        for name, value in own_attributes(layer) if prefix else ():
            if not name.startswith("_") and _is_plain(value):
                found[f"{prefix}.{name}"] = repr(value)
    return found


def _is_plain(value: object) -> bool:
    if isinstance(value, (list, tuple)):
        return len(value) <= _FEW and all(_is_plain(x) for x in value)
    return value is None or type(value) in (bool, int, float, str, bytes)


def _written(value: object, depth: int) -> object:
    """Code, defaults and what is bound to it; of others their type and plain values."""
    if _is_plain(value):
        return value
    if depth == 0:
        return type(value).__qualname__
    if isinstance(value, CodeType):
        consts = [_written(x, depth) for x in value.co_consts]
        return value.co_code.hex(), value.co_names, consts
    if isinstance(value, FunctionType):
        cells = [x.cell_contents for x in value.__closure__ or () if _filled(x)]
        bound = [*(value.__defaults__ or ()), *cells]
        bound += [v for _, v in sorted((value.__kwdefaults__ or {}).items())]
        return _written(value.__code__, depth), [_written(x, depth - 1) for x in bound]
    if isinstance(value, MethodType):
        parts: list[object] = [value.__func__, value.__self__]
        return [_written(x, depth - 1) for x in parts]
    if isinstance(value, partial):
        keys = sorted(value.keywords)
        parts = [value.func, *value.args, *(value.keywords[key] for key in keys)]
        return keys, [_written(x, depth - 1) for x in parts]
    if isinstance(value, (list, tuple)):
        return [_written(x, depth - 1) for x in value[:_FEW]]
    own = getattr(value, "__dict__", {})
    plain = {k: v for k, v in own.items() if k[:1] != "_" and _is_plain(v)}
    return type(value).__qualname__, sorted(plain.items())


def _filled(cell: CellType) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:  # nothing is in it yet
        return False
    return True


def plain_attributes(module: nn.Module, by_content: bool = False) -> dict[str, str]:
    """Digests of plain attributes of any type, to name what has changed.

    What ``repr`` does not show is not seen: names are for people, rows are compared.

    Args:
        module: Whose they are, and its layers'.
        by_content: Only of those that look the same in two modules if they are.
    """
    found = {}
    for prefix, layer in module.named_modules():
        for name, value in own_attributes(layer):
            # `forward` is Lightning's own, once it has wrapped a step.
            named = not (name.startswith("_") or name == "forward")
            if named and not isinstance(value, (Tensor, nn.Module)):
                shown = repr(value)[:_SHOWN]
                if by_content and " at 0x" in shown:
                    continue
                text = shown.encode(errors="replace")
                label = f"{prefix}.{name}".lstrip(".")
                found[label] = hashlib.sha256(text).hexdigest()
    return found
