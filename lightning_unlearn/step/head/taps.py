"""Activations at several depths of a model, as rows of numbers."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_unlearn.errors import ArgumentError, ModelError

#: Depths that ``taps="auto"`` reads: the last blocks, as linear probes of DINO do
#: (Caron et al., Emerging Properties in Self-Supervised Vision Transformers, 2021).
DEPTHS = 4
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_MASK = "attention_mask"


def call(model: nn.Module, inputs: Any) -> Any:
    """The model's output: keywords of a mapping, else one argument."""
    return model(**inputs) if isinstance(inputs, Mapping) else model(inputs)


def _tensor(output: Any) -> Tensor | None:
    """The activation in what a module returns: it, the first, or the last hidden."""
    if isinstance(output, Mapping) and output:
        output = output.get("last_hidden_state", next(iter(output.values())))
    elif isinstance(output, (tuple, list)) and output:
        output = output[0]
    return output if isinstance(output, Tensor) else None


@contextmanager
def _watching(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """What modules return inside the block, in the order they finish in.

    Hooks only live as long as the block: the model stays picklable. Of a module that is
    called several times the last output counts.
    """
    seen: dict[str, Tensor] = {}

    def note(name: str, _module: nn.Module, _inputs: Any, output: Any) -> None:
        tensor = _tensor(output)
        if tensor is not None and tensor.is_floating_point() and tensor.dim() >= 2:
            seen.pop(name, None)
            seen[name] = tensor

    handles = [
        module.register_forward_hook(partial(note, name))
        for name, module in modules.items()
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def activations(model: nn.Module, taps: Sequence[str], inputs: Any) -> list[Tensor]:
    """Outputs of the modules `taps` in one forward pass, in their order.

    Args:
        model: Any module.
        taps: Names as in ``model.named_modules()``.
        inputs: A tensor (n, ...), or a mapping of keywords.

    Returns:
        One tensor for each tap, (n, ...).

    Raises:
        ModelError: If a tap gave no activation.
    """
    modules = dict(model.named_modules())
    with _watching({name: modules[name] for name in taps}) as seen:
        call(model, inputs)
    for name in taps:
        if name not in seen:
            raise ModelError(
                f"expected a floating-point tensor (n, ...) from the tap {name!r}, got "
                "none: it was not called, or returns something else; name another "
                "module in taps="
            )
    return [seen[name] for name in taps]


def check_names(model: nn.Module, taps: object) -> list[str]:
    """The taps as a list of names of modules.

    Raises:
        ArgumentError: If they are none, unknown, or repeat.
    """
    known = [name for name, _ in model.named_modules() if name]
    if isinstance(taps, str) or not isinstance(taps, Sequence) or not taps:
        raise ArgumentError(
            f'expected taps="auto" or a list of names of modules, got {taps!r}: choose '
            f"among {_some(known)}"
        )
    for name in taps:
        if name not in known:
            raise ArgumentError(
                f"expected taps that are modules of the model, got {name!r}: choose "
                f"among {_some(known)}"
            )
    if len(set(taps)) != len(taps):
        raise ArgumentError(f"expected each tap once, got {list(taps)}")
    return list(taps)


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:12])
    return f"{shown}, ... ({len(names)} in all)" if len(names) > 12 else shown


def find(model: nn.Module, inputs: Any) -> list[str]:
    """The taps of "auto": the last four blocks, or layers where nothing repeats.

    A block is a module of a type that occurs several times (and is no container, and
    lies in no other block): a residual block, a transformer layer. In a model without
    them a layer ends where the next one with weights begins.

    Args:
        model: Any module.
        inputs: An example, to see which modules are called.

    Returns:
        Names, in the order they are called.

    Raises:
        ModelError: If no module gives an activation.
    """
    modules = {name: m for name, m in model.named_modules() if name}
    with _watching(modules) as seen:
        call(model, inputs)
    called = [name for name, output in seen.items() if 2 <= output.dim() <= 4]
    found = _blocks(called, modules) or _layers(called, modules)
    if not found:
        raise ModelError(
            f"expected modules that return activations (n, ...), got a model "
            f"({type(model).__name__}) in which none does: wrap what it computes in "
            "modules, and name them in taps="
        )
    return found[-DEPTHS:]


def _blocks(called: list[str], modules: Mapping[str, nn.Module]) -> list[str]:
    composed = [
        name
        for name in called
        if next(modules[name].children(), None) is not None
        and type(modules[name]) not in _CONTAINERS
    ]
    types = [type(modules[name]) for name in composed]
    several = [
        n for n, kind in zip(composed, types, strict=True) if types.count(kind) > 1
    ]
    return [n for n in several if not any(n.startswith(f"{o}.") for o in several)]


def _layers(called: list[str], modules: Mapping[str, nn.Module]) -> list[str]:
    leaves = [n for n in called if next(modules[n].children(), None) is None]
    convolves = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding)
    ends = [
        name
        for name, after in zip_longest(leaves, leaves[1:])
        if after is None or isinstance(modules[after], convolves)
    ]
    return ends


def pooled(activation: Tensor, pool: tuple[int, int], inputs: Any = None) -> Tensor:
    """One row for each sample of an activation, float32.

    Args:
        activation: Vectors (n, c), kept as they are; sequences of tokens (n, t, c),
            of which the mean and the first (CLS) are taken; or maps (n, c, h, w),
            averaged over a grid.
        pool: Rows and columns of that grid, at most h and w of them.
        inputs: Of the model. If it is a mapping with an ``attention_mask`` (n, t), the
            mean is over the tokens it marks.

    Returns:
        (n, c), (n, 2 c) or (n, c pool[0] pool[1]).

    Raises:
        ModelError: If the activation has another number of dimensions.
    """
    x = activation.float()
    if x.dim() == 2:
        return x
    if x.dim() == 3:
        return torch.cat([_mean(x, inputs), x[:, 0]], dim=1)
    if x.dim() == 4:
        grid = min(pool[0], x.shape[2]), min(pool[1], x.shape[3])
        return F.adaptive_avg_pool2d(x, grid).flatten(1)
    raise ModelError(
        "expected activations (n, c), (n, t, c) or (n, c, h, w), got "
        f"{tuple(x.shape)}: wrap the model so that it pools them itself"
    )


def _mean(tokens: Tensor, inputs: Any) -> Tensor:
    mask = inputs.get(_MASK) if isinstance(inputs, Mapping) else None
    if mask is None or mask.shape != tokens.shape[:2]:
        return tokens.mean(1)
    weights = mask.to(tokens)[:, :, None]
    return (tokens * weights).sum(1) / weights.sum(1).clamp_min(1)
