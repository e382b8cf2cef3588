"""The processes that share the samples: sums over them, and errors all of them see."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from lightning_unlearn.errors import DataError, StrategyError, UnlearningError

T = TypeVar("T")


def _same(value: Any) -> Any:
    return value


@dataclass(frozen=True, kw_only=True)
class Processes:
    """One process of several that hold a part of the samples each.

    All take every step together. What has been summed is the same everywhere, so
    every process decides the same; what must be decided once (noise, names, times) is
    decided by the first. An error in one is raised in all of them: none waits for
    another that has left.

    Args:
        rank: Of this process, from 0.
        world: Number of processes.
        device: Where tensors that travel live.
        add: Sums a tensor over all processes, in place.
        gather: An object of each process -> all of them by rank, in every process.
        broadcast: An object of the first process -> the same in every process.
    """

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    add: Callable[[Tensor], Any] = _same
    gather: Callable[[Any], list[Any]] = lambda value: [value]
    broadcast: Callable[[Any], Any] = _same

    @contextmanager
    def summed(
        self,
        *sizes: int,
        dtype: torch.dtype = torch.float64,
        device: torch.device | None = None,
    ) -> Iterator[list[Tensor]]:
        """Vectors that are summed over all processes when the block ends.

        They travel as one, together with whether the block failed anywhere.

        Args:
            sizes: Of the vectors, which start at zero.
            dtype: Of the vectors.
            device: Of the vectors; `device` of the processes by default.

        Yields:
            The vectors.

        Raises:
            Exception: The block's own.
            UnlearningError: That of another process.
        """
        where = self.device if device is None else device
        buffer = torch.zeros(sum(sizes) + 1, dtype=dtype, device=where)
        problem: Exception | None = None
        try:
            yield list(buffer[1:].split(list(sizes)))
        except Exception as error:
            if self.world == 1:
                raise
            problem = error
            buffer.zero_()[0] = 1
        if self.world > 1:
            self.add(buffer)
            if problem is not None or float(buffer[0]) != 0:
                self._raise(problem)

    def together(self) -> AbstractContextManager[object]:
        """A block that fails in every process if it fails in one."""
        return self.summed()

    def _raise(self, own: Exception | None) -> None:
        told = None if own is None else (type(own), str(own))
        everyone = self.gather(_portable(told))
        if own is not None:
            raise own
        rank, (kind, message) = next((i, e) for i, e in enumerate(everyone) if e)
        if issubclass(kind, UnlearningError):
            raise kind(message)
        raise StrategyError(
            f"expected every process to go on, but process {rank} failed: "
            f"{kind.__name__}: {message}"
        )

    def first(self, make: Callable[[], T]) -> T:
        """What the first process makes, in every process."""
        if self.world == 1:
            return make()
        with self.together():
            value = make() if self.rank == 0 else None
        return self.broadcast(value)

    def agree(self, **values: object) -> None:
        """Raise `DataError` unless each value is the same in every process."""
        everyone = self.gather(values)
        for name, value in values.items():
            odd = [i for i, other in enumerate(everyone) if other[name] != value]
            if odd:
                raise DataError(
                    f"expected the same {name.replace('_', ' ')} in every process, got "
                    f"another in process {odd[0]} than in process {self.rank}: seed "
                    "what chooses it, read it from one file, or pass ckpt_path="
                )

    def dot(self, a: Tensor, b: Tensor) -> float:
        """Inner product of two vectors of which every process holds a part."""
        with self.summed(1) as (total,):
            total += float(a @ b)
        return float(total)

    def share(self, items: list[T]) -> list[T]:
        """The part of a list that is this process's to do."""
        return items[self.rank :: self.world]


def _portable(
    told: tuple[type[Exception], str] | None,
) -> tuple[type[Exception], str] | None:
    """An error of a class every process knows."""
    if told is None or issubclass(told[0], UnlearningError):
        return told
    return RuntimeError, f"{told[0].__name__}: {told[1]}"


#: The only process there is.
ALONE = Processes()
