"""Batches that read every chosen sample exactly once."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Subset,
    TensorDataset,
    default_collate,
)

from lightning_unlearn.weights.opaque import tensors_in

_KEPT = (
    *("num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn"),
    *("multiprocessing_context",),
)


def reading_of(loader: DataLoader) -> dict[str, Any]:
    """Options of a `DataLoader` that say how it reads samples, not which and when."""
    return {name: getattr(loader, name) for name in _KEPT}


CACHE_BYTES = 1 << 30


def over(loader: DataLoader, dataset: Any) -> DataLoader:
    """A loader that reads another dataset as this one reads its own, in its order."""
    own, options = torch.Generator(), reading_of(loader)  # nothing of the global one
    return DataLoader(dataset, loader.batch_size or 1, generator=own, **options)


class ExactBatches:
    """Chosen samples of a dataset, each once, the same at every iteration.

    No sampler, no shuffling, no dropped or padded samples. Batches are kept in
    memory after the first complete sweep if they are small enough. Several processes
    take turns at the batches one process would have; one with fewer reads the first
    once more, as a filler that counts for nothing.

    Args:
        loader: The training loader: its dataset, collate function, workers and
            batch size are used, its sampler is not.
        indices: Positions to use.
        batch_size: Samples in a batch.
        transfer: Moves a batch to the device and dtype of the passes.
        keep: Whether to keep batches in memory for the next sweep.
        by_position: Put samples into one batch whose positions have the same quotient
            by `batch_size`: what a sample is read with then depends on which samples of
            its block are used, and on no others. Samples of the block that are not used
            are replaced by repeated ones: kernels that round by the size of a batch
            then give a row the same last bits however many others are left. Processes
            take turns at blocks, empty ones too: `own_positions`.
        rank: Of this process.
        world: Processes that share the batches.
    """

    def __init__(
        self,
        loader: DataLoader,
        indices: list[int],
        batch_size: int,
        transfer: Callable[[Any], Any] = lambda batch: batch,
        keep: bool = True,
        by_position: bool = False,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.dataset: Any = loader.dataset
        self.indices = indices
        self.transfer = transfer
        self._collate = loader.collate_fn
        self._keep = keep
        places = range(len(indices))
        parts = [
            (i // batch_size, places[i : i + batch_size]) for i in places[::batch_size]
        ]
        if by_position:
            blocks = groupby(places, lambda place: indices[place] // batch_size)
            parts = [(block, list(part)) for block, part in blocks]
        own = [part for block, part in parts if block % world == rank]
        self.places = torch.tensor([p for part in own for p in part], dtype=torch.int64)
        self._weights = [len(part) for part in own]
        most = max(Counter(block % world for block, _ in parts).values(), default=0)
        own, fillers = [*own], most - len(own)
        own += fillers * [parts[0][1]] if parts else []
        self._weights += fillers * [0]
        size = min(batch_size, len(self.dataset)) if by_position else 0
        self.parts = [[*part, *_repeated(part, size - len(part))] for part in own]
        self._parts = [[indices[place] for place in part] for part in self.parts]
        options = reading_of(loader)
        self._loader = DataLoader(
            self.dataset,
            batch_sampler=self._parts,
            generator=torch.Generator().manual_seed(0),  # never the global one
            **options,
        )
        self._picked = None
        if loader.collate_fn is default_collate:
            self._picked = plain_batches(self.dataset, indices[:1] + indices[-2:])
        self._cache: list[tuple[int, Any]] | None = None
        self._now: list[int] = []
        #: Told of every batch that was read, how many samples of it count.
        self.seen: Callable[[int], object] = bool

    def now(self) -> list[int]:
        """Positions of the samples in the batch that was handed out last."""
        return self._now

    @property
    def n(self) -> int:
        """Number of samples."""
        return len(self.indices)

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        """Yield (number of samples that count, batch)."""
        if self._cache is not None:
            for part, item in zip(self._parts, self._cache, strict=True):
                self._now = part
                yield item
            return
        kept: list[tuple[int, Any]] | None = [] if self._keep else None
        size = 0
        batches = self._loader
        if self._picked is not None:
            batches = (self._picked(part) for part in self._parts)
        for part, weight, batch in zip(
            self._parts, self._weights, batches, strict=True
        ):
            item = (weight, self.transfer(batch))
            self.seen(weight)
            if kept is not None:
                size += _nbytes(item[1])
                kept.append(item)
                kept = kept if size <= CACHE_BYTES else None
            self._now = part
            yield item
        self._cache = kept

    def take(self, places: Sequence[int]) -> tuple[int, Any]:
        """The samples at some places of `indices`, read afresh."""
        self._now = part = [self.indices[i] for i in places]
        if self._picked is not None:
            return len(part), self.transfer(self._picked(part))
        samples = [self.dataset[i] for i in part]
        return len(samples), self.transfer(self._collate(samples))


def own_positions(
    positions: Sequence[int], block: int, rank: int, world: int
) -> list[int]:
    """Of some positions, those whose samples a process reads where blocks are dealt."""
    return [p for p in positions if p // block % world == rank]


def _repeated(part: Sequence[int], count: int) -> list[int]:
    """So many of a list, from its start again and again."""
    return [part[i % len(part)] for i in range(count)]


Pick = Callable[[Sequence[int]], list[Tensor]]


def plain_batches(dataset: Any, probe: Sequence[int]) -> Pick | None:
    """Picks a batch at once, as `default_collate` would put it together.

    For a `TensorDataset`, or Subsets of one; reading it sample by sample takes longer
    than a gradient of a small network.

    Args:
        dataset: Any dataset.
        probe: Positions that are read both ways and compared.

    Returns:
        Positions -> their batch; None for any other dataset, or one that behaves
        differently.
    """
    base, nest = dataset, []
    while type(base) is Subset:
        indices = base.indices
        if isinstance(indices, (Tensor, np.ndarray)):
            indices = indices.tolist()
        if "__getitems__" in vars(base) or not _plain(indices):
            return None
        nest.append(indices)
        base = base.dataset
    if type(base) is not TensorDataset or "__getitems__" in vars(base):
        return None
    tensors = base.tensors

    def pick(part: Sequence[int]) -> list[Tensor]:
        rows = list(part)
        for indices in nest:
            rows = [indices[i] for i in rows]
        chosen = torch.tensor(rows)
        return [tensor[chosen.to(tensor.device)] for tensor in tensors]

    collated = default_collate([dataset[i] for i in probe])
    picked = pick(probe)
    same = isinstance(collated, list) and len(collated) == len(picked)
    if same and all(
        isinstance(a, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
        for a, b in zip(collated, picked, strict=True)
    ):
        return pick
    return None


def _plain(indices: object) -> bool:
    if isinstance(indices, range):
        return True
    return isinstance(indices, (list, tuple)) and all(
        isinstance(i, (int, np.integer)) and not isinstance(i, bool) for i in indices
    )


def _nbytes(batch: Any) -> int:
    return sum(x.nbytes for x in tensors_in(batch))
