"""Which privately trained backbones are read, and what rows they gave to be kept."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lightning_unlearn.step.known_samples import public_ones, sample_names

_OPEN: list[list[nn.Module]] = []
_ROWS: set[int] = set()  # first bytes of the digests of features, of this process


def note(backbone: nn.Module) -> None:
    """A backbone that was trained privately is read now."""
    for met in _OPEN:
        if not any(one is backbone for one in met):
            met.append(backbone)


@contextmanager
def noted() -> Iterator[list[nn.Module]]:
    """A block; the list has those that were read in it."""
    met: list[nn.Module] = []
    _OPEN.append(met)
    try:
        yield met
    finally:
        _OPEN[:] = [one for one in _OPEN if one is not met]


def remember(rows: Tensor) -> None:
    """Features (n, d) that were given to whoever asked, who may keep them."""
    _ROWS.update(sample_names(rows))


def remembered(rows: Tensor) -> int:
    """How many of some rows (n, d) such a backbone has given; blank ones are none."""
    return sum(public_ones(rows, torch.tensor(sorted(_ROWS)))) if _ROWS else 0
