"""Are batches the same at every read, and left as they were?"""

from collections.abc import Iterator
from contextlib import contextmanager
from math import prod

import torch
from torch import Tensor

from lightning_unlearn.errors import DataError, ModelError
from lightning_unlearn.weights.objective import Batches, LossFunction
from lightning_unlearn.weights.opaque import tensors_in

_READ = 32  # samples read for a check


def spread_places(n: int, count: int = _READ) -> list[int]:
    """At most `count` places among n, evenly spaced, both ends among them.

    Folders are often sorted by class: the first samples say little of the others.
    """
    count = min(count, n)
    return [i * (n - 1) // max(count - 1, 1) for i in range(count)]


def check_repeatable(batches: Batches) -> None:
    """Raise `DataError` unless some samples are the same at a second read."""

    def read() -> list[Tensor]:
        _, batch = batches.take(spread_places(batches.n))
        return tensors_in(batch)

    if not _identical(read(), read()):
        raise DataError(
            "expected the same samples at every read of the training data, got "
            "different tensors the second time: turn random augmentation off for "
            "the unlearning request (pass train_dataloaders= with a plain one)"
        )


def check_in_place(loss: LossFunction, batches: Batches) -> None:
    """Raise `ModelError` if the loss changes the batch it is given."""
    _, batch = batches.take(spread_places(batches.n))
    with left_alone(batch):
        loss(batch, 0)


@contextmanager
def left_alone(batch: object) -> Iterator[None]:
    """Raise `ModelError` if a block, which reads a batch, changes it in place."""
    leaves = tensors_in(batch)
    before = [x.clone() for x in leaves]
    yield
    if not _identical(before, leaves):
        raise ModelError(
            "expected a loss that leaves its batch as it is, got one that changes it "
            "in place: the next pass would see other data; write x = x - mean, not "
            "x -= mean"
        )


#: Sizes of a batch's tensors, the number of its samples left out.
Width = tuple[tuple[int, ...], ...]


def width_of(batch: object) -> Width:
    """How wide a batch is: with dynamic padding, as its longest sample."""
    return tuple(tuple(leaf.shape[1:]) for leaf in tensors_in(batch))


def size_of(width: Width) -> int:
    """Numbers that stand for each sample."""
    return sum(prod(sizes) for sizes in width)


def _identical(first: list[Tensor], second: list[Tensor]) -> bool:
    for one, two in zip(first, second, strict=True):
        same = one.shape == two.shape and torch.isclose(
            one, two, rtol=0, atol=0, equal_nan=True
        )
        if not bool(torch.as_tensor(same).all()):
            return False
    return True
