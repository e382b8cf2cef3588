"""What a watched training of this process changed: marks, values, and rows."""

import weakref
from collections.abc import Iterable
from typing import NamedTuple

from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from lightning_unlearn.weights.digests import tensors_digest

# On parameters that some callback of this process saw in scope of a training run: they
# cannot be public, even if a later run freezes them. An attribute: torch refuses to
# move FSDP's parameters to a device while somebody holds a weak reference.
_MARK = "trained_on_private_data"


def mark_trained(parameters: Iterable[nn.Parameter]) -> None:
    """Remember that these parameters were trained on private data."""
    for p in parameters:
        setattr(p, _MARK, True)


def mark_all_trained(
    module: nn.Module,
    optimizers: Iterable[Optimizer],
    before: dict[str, str] | None,
) -> set[str]:
    """Mark what a training can move, or has moved.

    An optimizer may hold frozen parameters of the module, which it leaves as they are.

    Args:
        module: That is trained.
        optimizers: Of the training.
        before: `values_of` the module before it, or None.

    Returns:
        The names of all in the module that are marked.
    """
    known = before or {}
    frozen = set[int]()
    for name, p in module.named_parameters():
        if p.requires_grad or (name in known and known[name] != value_digest(p)):
            mark_trained([p])
        elif name in known:
            frozen.add(id(p))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            mark_trained(p for p in group["params"] if id(p) not in frozen)
    return {name for name, p in module.named_parameters() if was_trained(p)}


def was_trained(tensor: Tensor) -> bool:
    """Whether a callback of this process saw this parameter trained."""
    return getattr(tensor, _MARK, False)


# Digests of tensors that watched trainings of this process have made: a copy, a state
# dict or a checkpoint of one is not public, whoever holds it now.
_VALUES: set[str] = set()


def values_of(module: nn.Module) -> dict[str, str]:
    """Name -> digest of the value of every parameter and buffer."""
    named = (*module.named_parameters(), *module.named_buffers())
    return {name: value_digest(t) for name, t in named if telling(t)}


def remember_values(module: nn.Module, before: dict[str, str] | None) -> None:
    """Remember the values that are others than those of before a training.

    None before: a run that failed before its training began has made none.
    """
    if before is None:
        return
    _VALUES.update(
        digest
        for name, digest in values_of(module).items()
        if before.get(name) != digest
    )


def has_trained_value(tensor: Tensor) -> bool:
    """Whether a watched training of this process has made this very value."""
    return bool(_VALUES) and telling(tensor) and value_digest(tensor) in _VALUES


def telling(tensor: Tensor) -> bool:
    """Whether a value can be known again.

    Of one number, and of the same number throughout, if it is no usual one: a mean of
    zeros, or deviations of ones, say nothing of where they were made.
    """
    if isinstance(tensor, DTensor) or tensor.is_meta or not tensor.numel():
        return tensor.numel() > 1
    flat = tensor.detach().reshape(-1)
    if not bool((flat == flat[0]).all()):
        return True
    return tensor.is_floating_point() and flat[0].item() not in (0.0, 1.0)


def value_digest(tensor: Tensor) -> str:
    """Digest of a tensor whatever its name, over its shards if it has them."""
    return tensors_digest([("", tensor)])


class KnownRows(NamedTuple):
    """What watched trainings of this process did to the rows of a module."""

    changed: str | None = None
    made: tuple[str, ...] = ()
    compared: bool = True


# A notebook's cell is run again: a new callback, and the module of before.
_ROWS: "weakref.WeakKeyDictionary[nn.Module, KnownRows]" = weakref.WeakKeyDictionary()


def remember_rows(module: nn.Module, known: KnownRows) -> None:
    """Remember it for callbacks that will watch this module later."""
    _ROWS[module] = known


def rows_of(module: nn.Module) -> KnownRows:
    """What callbacks of this process remember of the rows of a module."""
    return _ROWS.get(module, KnownRows())
