"""Which samples a training can draw: told from the sampler, or not told at all."""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sized
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from lightning_unlearn.errors import DataError

_INSTEAD = (
    "train on torch.utils.data.Subset(dataset, positions) of the samples you mean, "
    "shuffled or not, or with a SubsetRandomSampler"
)


@dataclass(frozen=True)
class Drawable:
    """Whom the coins of a private training draw: samples, or people with all theirs.

    Args:
        positions: All that may be drawn, sorted.
        people: Those of each person; None where each sample is drawn for itself.
    """

    positions: list[int]
    people: list[list[int]] | None = None

    def __len__(self) -> int:
        return len(self.positions if self.people is None else self.people)

    def __getitem__(self, place: int) -> list[int]:
        """Positions of one of them."""
        return [self.positions[place]] if self.people is None else self.people[place]


@dataclass(frozen=True)
class Piece:
    """What one batch must hold.

    Args:
        drawn: Positions of each sample, or person, that it is of.
        last: Whether the optimizer steps after it; else it is a part of what one step
            has drawn, and others follow.
    """

    drawn: list[list[int]]
    last: bool = True

    @property
    def positions(self) -> list[int]:
        """The samples, in their order."""
        return [position for some in self.drawn for position in some]


class PoissonBatches:
    """Batches for which each sample, or person, is drawn by a coin of its own.

    Coins come from the operating system. Who takes a batch takes what it must hold from
    `ahead`, in order: an empty draw is a batch of one filler that counts for nothing.

    Args:
        drawable: Who may be drawn.
        rate: q, the probability of each, for each step.
        batches: Of an epoch.
        refresh: Called before each is read: augmentation by a known seed would tell
            how many samples were read before.
        pieces: Batches in which what one step has drawn is read.
        rank: Of this process: it draws from every `world`-th, beginning with its own.
        world: Number of processes that share them.
    """

    def __init__(
        self,
        drawable: Drawable,
        rate: float,
        batches: int,
        refresh: Callable[[], None] = lambda: None,
        *,
        pieces: int = 1,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.drawable, self.rate, self.batches = drawable, rate, batches
        self.refresh, self.pieces = refresh, pieces
        self.share = range(rank, len(drawable), world)
        self.ahead: deque[Piece] = deque()

    @property
    def positions(self) -> list[int]:
        """All that may be drawn, in whichever process."""
        return self.drawable.positions

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[list[int]]:
        self.ahead = ahead = deque[Piece]()  # what nobody took is forgotten
        for first in range(0, self.batches, self.pieces):
            pieces = min(self.pieces, self.batches - first)
            drawn = self._draw()
            for i in range(pieces):
                here = slice(len(drawn) * i // pieces, len(drawn) * (i + 1) // pieces)
                piece = Piece(drawn[here], last=i == pieces - 1)
                ahead.append(piece)
                self.refresh()
                yield piece.positions or self.drawable[self.share[0]][:1]

    def _draw(self) -> list[list[int]]:
        raw = bytearray(os.urandom(8 * len(self.share)))
        coins = torch.frombuffer(raw, dtype=torch.int64).bitwise_and(2**53 - 1)
        places = torch.nonzero(coins < int(self.rate * 2**53)).flatten().tolist()
        return [self.drawable[self.share[i]] for i in places]


def drawn_positions(loader: DataLoader, batches: int | None = None) -> list[int] | None:
    """Positions of the dataset that an epoch can draw; None if it is every one.

    Args:
        loader: The training loader, after Lightning has prepared it.
        batches: Of an epoch, where the Trainer takes fewer than the loader has.

    Raises:
        DataError: If the sampler is not one that is known by class, or the Trainer
            stops an epoch among samples that were drawn at random.
    """
    batch_sampler = loader.batch_sampler
    if isinstance(batch_sampler, PoissonBatches):
        every = range(len(loader.dataset))  # type: ignore[arg-type]
        own_positions = batch_sampler.positions
        return None if own_positions == list(every) else own_positions
    if type(batch_sampler) is not BatchSampler:
        raise DataError(
            "expected a loader whose batches are made of single draws, got "
            f"batch_sampler={type(batch_sampler).__name__}: which samples it draws is "
            f"not known; {_INSTEAD}"
        )
    sampler, size = loader.sampler, batch_sampler.batch_size
    order, own = _order(sampler), _length(sampler)  # own: draws of this process
    taken = own // size * size if batch_sampler.drop_last else own
    if batches is not None:
        taken = min(taken, batches * size)
    if order is None and batches is not None and batches * size < own:
        raise DataError(
            f"expected epochs of all samples, got {batches} batches of {size} drawn at "
            "random (limit_train_batches, overfit_batches or fast_dev_run): which "
            f"samples were trained on is not known; leave it out, or {_INSTEAD}"
        )
    if order is None:
        found = _any_of(sampler)
    else:  # what comes too late is never drawn; processes take turns
        found = order[: taken * getattr(sampler, "num_replicas", 1)]
    every = set(range(len(loader.dataset)))  # type: ignore[arg-type]
    return None if set(found) == every else sorted(set(found))


def in_fixed_order(loader: DataLoader) -> bool:
    """Whether every epoch draws the samples in one order, so that it has a beginning.

    Args:
        loader: One that `drawn_positions` knows.
    """
    return _order(loader.sampler) is not None


def _order(sampler: Any) -> list[int] | None:
    """Positions in the order of every epoch, if it is the same one; else None."""
    kind = type(sampler)
    if kind is SequentialSampler:
        return list(range(len(sampler)))
    if _is_distributed(sampler) and not sampler.shuffle:
        inner = _inner(sampler)
        order = range(len(sampler.dataset)) if inner is None else _order(inner)
        if order is not None:  # each process takes every world-th
            return list(order)[: sampler.total_size]
    return None


def _any_of(sampler: Any) -> list[int]:
    """Positions that a shuffling sampler can draw.

    Raises:
        DataError: If its class is not known.
    """
    kind = type(sampler)
    if kind is RandomSampler:
        return list(range(len(sampler.data_source)))
    if kind is SubsetRandomSampler:
        return [int(i) for i in sampler.indices]
    if kind is WeightedRandomSampler:
        return [i for i, weight in enumerate(sampler.weights.tolist()) if weight > 0]
    if _is_distributed(sampler):
        inner = _inner(sampler)
        if inner is None:
            return list(range(len(sampler.dataset)))
        return _order(inner) or _any_of(inner)
    raise DataError(
        "expected a sampler whose draws are known (shuffle=True or False, "
        "SubsetRandomSampler, WeightedRandomSampler, DistributedSampler), got "
        f"{kind.__name__}: which samples it draws is not known; {_INSTEAD}"
    )


def _is_distributed(sampler: Any) -> bool:
    """Torch's own, or the one Lightning puts around the user's sampler."""
    named = type(sampler).__name__ == "DistributedSamplerWrapper"
    return type(sampler) is DistributedSampler or (
        named and isinstance(sampler, DistributedSampler)
    )


def under(sampler: Any) -> Any:
    """The sampler that Lightning's own was put in front of; itself if there is none."""
    if not _is_distributed(sampler):
        return sampler
    inner = _inner(sampler)
    return SequentialSampler(sampler.dataset) if inner is None else inner


def _inner(sampler: Any) -> Any:
    """The user's sampler inside Lightning's, or None."""
    if type(sampler) is DistributedSampler:
        return None
    return sampler.dataset._sampler


def _length(sampler: Any) -> int:
    return len(sampler) if isinstance(sampler, Sized) else 0
