"""Marks on parameters that a watched training changed."""

from collections.abc import Iterable

from torch import nn

# On parameters that some callback of this process saw in scope of a training run: they
# cannot be public, even if a later run freezes them. An attribute: torch refuses to
# move FSDP's parameters to a device while somebody holds a weak reference.
_MARK = "trained_on_private_data"


def mark_trained(parameters: Iterable[nn.Parameter]) -> None:
    """Remember that these parameters were trained on private data."""
    for p in parameters:
        setattr(p, _MARK, True)


def was_trained(parameter: nn.Parameter) -> bool:
    """Whether a callback of this process saw this parameter trained."""
    return getattr(parameter, _MARK, False)
