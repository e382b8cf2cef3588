"""Activations at several depths of a model, as rows of numbers."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import zip_longest
from typing import Any

from torch import Tensor, nn

from lightning_unlearn.errors import ArgumentError, ModelError
from lightning_unlearn.step.head.reading.keywords import call, is_text, kinds

#: Depths that ``taps="auto"`` reads: the last blocks, as linear probes of DINO do
#: (Caron et al., Emerging Properties in Self-Supervised Vision Transformers, 2021).
DEPTHS = 4
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_HIDDEN = "last_hidden_state"
#: Of a mapping that is returned, the entry that is read: these, else the first.
_ENTRIES = (_HIDDEN, "sentence_embedding", "token_embeddings")


def _tensor(output: Any) -> Tensor | None:
    """The activation in what a module returns: it, the first, or the last hidden."""
    if isinstance(output, Mapping):
        named = [output[name] for name in _ENTRIES if name in output]
        output = [*named, *output.values()]
    if isinstance(output, (tuple, list)):
        floats = (x for x in output if isinstance(x, Tensor) and x.is_floating_point())
        output = next(floats, None)
    return output if isinstance(output, Tensor) else None


class _Seen(dict[str, Tensor]):
    """What modules returned, in the order they finished in.

    Of a module that is called several times the last output counts.

    Attributes:
        calls: How often each was called.
        hidden: Those that returned a mapping with a last hidden state.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.hidden: list[str] = []


@contextmanager
def _watching(modules: Mapping[str, nn.Module]) -> Iterator[_Seen]:
    """What modules return inside the block.

    Hooks only live as long as the block: the model stays picklable.
    """
    seen = _Seen()

    def note(name: str, _module: nn.Module, _inputs: Any, output: Any) -> None:
        seen.calls[name] += 1
        if isinstance(output, Mapping) and _HIDDEN in output:
            seen.hidden.append(name)
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
        taps: Names as in ``model.named_modules()``: "" is the model itself.
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
    known = [name for name, _ in model.named_modules() if name] + [""]
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
    shown = ", ".join(name or '"" (what the model returns)' for name in names[:11])
    return f"{shown}, ... ({len(names)} in all)" if len(names) > 11 else shown


def find(model: nn.Module, inputs: Any) -> list[str]:
    """The taps of "auto".

    Of texts the last layer: the last hidden state, else the last block. Of others the
    last four blocks, or layers where nothing repeats. A block is a module of a type
    that occurs several times (and is no container, and lies in no other block): a
    residual block, a transformer layer. In a model without them a layer ends where the
    next one with weights begins. One that is called again and again (ALBERT) is read
    once, at its end.

    Args:
        model: Any module.
        inputs: An example, to see which modules are called.

    Returns:
        Names, in the order they are called.

    Raises:
        ModelError: If no module gives an activation, or the model has an encoder for
            each of several inputs.
    """
    modules = dict(model.named_modules())
    with _watching(modules) as seen:
        call(model, inputs)
    again = _called_again(seen, modules)
    called = [
        name
        for name, output in seen.items()
        if name and 2 <= output.dim() <= 4 and not _inside(name, again)
    ]
    found = _blocks(called, modules) or _layers(called, modules, again)
    _check_one_encoder(found, inputs)
    if "" in seen and next(model.children(), None) is None:
        return [""]  # one layer
    if is_text(inputs):
        return seen.hidden[-1:] or found[-1:] or _none(model)
    return found[-DEPTHS:] or _none(model)


def _none(model: nn.Module) -> list[str]:
    raise ModelError(
        f"expected modules that return activations (n, ...), got a model "
        f"({type(model).__name__}) in which none does: wrap what it computes in "
        "modules, and name them in taps="
    )


def _called_again(seen: _Seen, modules: Mapping[str, nn.Module]) -> list[str]:
    """Modules with weights that are called several times, the outermost ones."""
    several = [
        name
        for name, count in seen.calls.items()
        if count > 1 and next(modules[name].parameters(), None) is not None
    ]
    return [name for name in several if not _inside(name, several)]


def _inside(name: str, others: list[str]) -> bool:
    return any(name.startswith(f"{other}.") for other in others)


def _check_one_encoder(found: list[str], inputs: Any) -> None:
    """Raise `ModelError` if each of several inputs has blocks of its own."""
    several, parts = kinds(inputs), sorted({name.split(".")[0] for name in found})
    if len(several) > 1 and len(parts) > 1:
        raise ModelError(
            f'expected one encoder for taps="auto", got {", ".join(parts)} for the '
            f"inputs {', '.join(several)}: name in taps= what is to be read of each, "
            "or make a PublicBackbone of one of them, and give it its own input"
        )


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
    return [n for n in several if not _inside(n, several)]


def _layers(
    called: list[str], modules: Mapping[str, nn.Module], again: list[str]
) -> list[str]:
    leaves = [
        n for n in called if n in again or next(modules[n].children(), None) is None
    ]
    convolves = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding)
    ends = [
        name
        for name, after in zip_longest(leaves, leaves[1:])
        if after is None or after in again or isinstance(modules[after], convolves)
    ]
    return ends
