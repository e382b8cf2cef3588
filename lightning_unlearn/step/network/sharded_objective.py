"""F of a module whose weights are shards: gradients only, products by differences."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from lightning_unlearn.errors import ModelError
from lightning_unlearn.step.network.empirical_objective import EmpiricalObjective
from lightning_unlearn.step.network.products import central_difference
from lightning_unlearn.weights.dtensors import local
from lightning_unlearn.weights.objective import Batches, LossFunction
from lightning_unlearn.weights.processes import Processes
from lightning_unlearn.weights.scope import Shards, Vector

_Steps = Iterable[tuple[int, Any]]


class ShardedObjective(EmpiricalObjective):
    """F where each process holds shards of the weights (FSDP2), and of every vector.

    The weights are gathered layer by layer in each pass and freed again, as in
    training, so nothing whole of length p is ever in memory. Second derivatives do
    not exist this way: a product is a difference of two gradients. Every process
    takes every step, for each gathers from all.

    Args:
        loss: As for `EmpiricalObjective`.
        scope: The shards.
        batches: The retained samples.
        l2: Coefficient of (l2/2)|w|^2, >= 0.
        processes: Those that share samples and weights.
        reshard: Frees gathered weights, so that the next pass sees the shards.
        chunk: Samples of a random draw that may be in one graph.

    Raises:
        ArgumentError: If l2 is negative or not finite.
    """

    scope: Shards

    def __init__(
        self,
        loss: LossFunction,
        scope: Shards,
        batches: Batches,
        l2: float,
        processes: Processes,
        reshard: Callable[[], None],
        chunk: int,
    ) -> None:
        super().__init__(
            loss,
            scope,
            batches,
            l2,
            central_difference,
            processes=processes,
            chunk=chunk,
            lean=True,
        )
        self.reshard = reshard
        self._step = torch.finfo(self.dtype).eps ** (1 / 3)

    def value_and_gradient(self) -> tuple[float, Vector]:
        """F and this process's part of its gradient (p,), in one pass.

        Raises:
            ModelError: If the loss is NaN or infinite, or a weight gets no gradient.
        """
        value, gradient = self._sums(self.batches)
        w = self.weights()
        gradient.div_(self.n).add_(w, alpha=self.l2)
        return value / self.n + self.l2 / 2 * self.dot(w, w), gradient

    def hvp(self, v: Vector) -> Vector:
        """Curvature of F times v, both (p,), by differences: two passes."""
        return self._difference(lambda: self.batches, v, self.n)

    def hessian(self, v: Vector) -> Vector:
        """As `hvp`."""
        return self.hvp(v)

    def sampled_hvp(
        self, v: Vector, batch_size: int, generator: torch.Generator
    ) -> Vector:
        """Curvature of the mean loss of one random mini-batch, plus l2, times v."""
        return self.sampled_hessian(batch_size, generator)(v)

    def sampled_hessian(
        self, samples: int, generator: torch.Generator
    ) -> Callable[[Vector], Vector]:
        """Products with the Hessian of one random draw, plus l2, by differences."""
        drawn = self._draw(samples, generator)
        return lambda v: self._difference(lambda: self._dealt(drawn), v, samples)

    def _dealt(self, drawn: list[int]) -> Iterator[tuple[int, Any]]:
        """This process's part of a draw, in as many steps as every other takes."""
        rounds = -(-len(drawn) // (self.chunk * self.processes.world))
        own = self.processes.share(drawn)
        for start in range(0, rounds * self.chunk, self.chunk):
            part = own[start : start + self.chunk]
            weight, batch = self.batches.take(part or drawn[:1])
            yield (weight if part else 0), batch

    @contextmanager
    def moved_to(self, w: Vector) -> Iterator[None]:
        """Evaluate at other weights for the length of a block."""
        own = self.weights()
        try:
            self.scope.assign(w)
            self.reshard()
            yield
        finally:
            self.scope.assign(own)
            self.reshard()

    def _half_difference(self, v: Vector) -> Vector:
        return self._difference(lambda: self.batches, v, self.n, shorter=0.5)

    def check_gradient(self, samples: int) -> None:
        """Raise `ModelError` unless gradients are slopes of the loss.

        A communication hook, a divide factor or a precision of FSDP's own can change
        gradients on their way between processes.

        Args:
            samples: The first of them are used.
        """
        drawn = list(range(min(samples, self.n)))
        value, gradient = self._sums(self._dealt(drawn))
        slope = math.sqrt(self.dot(gradient, gradient))
        if slope == 0:
            return
        v, w = gradient.div_(slope), self.weights()
        h, ends = self._step * max(1.0, math.sqrt(self.dot(w, w))), []
        for sign in (1, -1):
            with self.moved_to(torch.add(w, v, alpha=sign * h)):
                ends.append(self._sums(self._dealt(drawn))[0])
        found = (ends[0] - ends[1]) / (2 * h)
        rounding = 50 * torch.finfo(self.dtype).eps * abs(value) / h
        if not abs(found - slope) <= 0.1 * slope + rounding:
            raise ModelError(
                f"expected gradients that are slopes of the loss, got {slope:.4g} "
                f"where the loss changes by {found:.4g} per unit: remove gradient "
                "divide factors, communication hooks and mixed precision from "
                "fully_shard, or run on one device or under ddp"
            )

    def _difference(
        self, steps: Callable[[], _Steps], v: Vector, count: int, shorter: float = 1.0
    ) -> Vector:
        norm = math.sqrt(self.dot(v, v))
        if norm == 0:
            return torch.zeros_like(v)
        w = self.weights()
        h = shorter * self._step * max(1.0, math.sqrt(self.dot(w, w))) / norm
        with self.moved_to(w.add_(v, alpha=h)):
            product = self._sums(steps())[1]
        with self.moved_to(w.sub_(v, alpha=2 * h)):
            product.sub_(self._sums(steps())[1])
        return product.div_(2 * h * count).add_(v, alpha=self.l2)

    def _sums(self, steps: _Steps) -> tuple[float, Vector]:
        """The loss summed over some batches of all processes, and its gradient."""
        self.scope.module.zero_grad(set_to_none=True)
        value = torch.zeros((), dtype=torch.float64, device=self.device)
        for index, (weight, batch) in enumerate(self._in_step(steps)):
            total = self.batch_loss(batch, index, weight)()
            total.backward()  # summed over processes and cut into shards by FSDP
            value += total.detach()
        with self.processes.summed(1) as (everything,):
            everything += float(value)
        if not math.isfinite(float(everything)):
            raise ModelError(
                f"expected a finite loss, got {float(everything)}: look for NaN in the "
                "data or a diverged model"
            )
        return float(everything), self._collected()

    def _in_step(self, steps: _Steps) -> Iterator[tuple[int, Any]]:
        """A batch that cannot be read in one process is an error in all of them."""
        iterator = iter(steps)
        while True:
            with self.processes.together():
                item = next(iterator, None)
            if item is None:
                return
            yield item

    def _collected(self) -> Vector:
        """The gradients as a vector; they are freed one by one."""
        weights = self.scope.parameters
        self._check_reached([float(p.grad is not None) for p in weights])
        gradient = torch.empty(self.size, dtype=self.dtype, device=self.device)
        for p, part in zip(weights, self.scope.split(gradient), strict=True):
            assert p.grad is not None  # just checked
            # FSDP takes the mean over processes.
            torch.mul(local(p.grad), self.processes.world, out=part)
            p.grad = None
        self.scope.module.zero_grad(set_to_none=True)
        return gradient

    def _check_finite(self, total: Tensor, index: int) -> None:
        """Not here: a process that raised in a step would leave the others waiting."""
