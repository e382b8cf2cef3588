"""F of any module, through automatic differentiation."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lightning_unlearn._base import validate
from lightning_unlearn.errors import ModelError
from lightning_unlearn.step.network.graphs import (
    GaussNewtonGraph,
    Graph,
    HessianGraph,
    Parts,
    watched,
)
from lightning_unlearn.step.network.outputs import BatchLoss
from lightning_unlearn.step.network.products import (
    GRAPHS,
    Product,
    central_difference,
    double_backward,
    gauss_newton,
    graph_of,
    half_difference,
)
from lightning_unlearn.weights.objective import Batches, LossFunction
from lightning_unlearn.weights.processes import ALONE, Processes
from lightning_unlearn.weights.scope import Scope, Vector

#: Part of an importance-weighted draw that is uniform: no sample may count for much
#: more than its share, for its weight is only an estimate.
_UNIFORM = 0.1


class EmpiricalObjective:
    """F for any module: the loss of each batch through automatic differentiation.

    Per-batch results are computed in the dtype of the weights and summed in that of
    the vectors. Graphs of the gradient are kept for some samples, so that a product of
    theirs is one backward pass; they belong to the weights they were built at, which
    only `moved_to` may change.

    Args:
        loss: ``loss(batch, batch_idx)``: losses of shape (batch,), or their mean.
        scope: The weights.
        batches: The retained samples.
        l2: Coefficient of (l2/2)|w|^2, >= 0.
        product: How a curvature-vector product of one batch is formed.
        processes: Those that share the samples.
        kept: Samples whose graphs may be kept in memory.
        chunk: Samples of a random draw that may be in one graph.
        lean: Memory is short: vectors are of the dtype of the weights in place of
            float64, and there is no proxy, whose solves take more of them.

    Attributes:
        importance: How much each of the n samples curves F at these weights (n,), up
            to a factor: found by `value_and_gradient` or given; None if it is not
            known.

    Raises:
        ArgumentError: If l2 is negative or not finite.
    """

    def __init__(
        self,
        loss: LossFunction,
        scope: Scope,
        batches: Batches,
        l2: float,
        product: Product = double_backward,
        processes: Processes = ALONE,
        kept: int = 0,
        chunk: int = 256,
        lean: bool = False,
    ) -> None:
        validate.non_negative(l2=l2)
        validate.count(minimum=0, kept=kept)
        validate.count(chunk=chunk)
        self.loss = loss
        self.scope = scope
        self.batches = batches
        self.l2 = l2
        self.product = product
        self.processes = processes
        self.kept = kept
        self.chunk = chunk
        self.lean = lean
        self.importance: Tensor | None = None
        self._graphs: dict[tuple[Product, int], Graph] = {}
        self._room = kept

    @property
    def size(self) -> int:
        """Number of weights in scope."""
        return self.scope.size

    @property
    def n_parameters(self) -> int:
        """Number of weights in scope over all processes."""
        return self.scope.n_parameters

    def dot(self, a: Vector, b: Vector) -> float:
        """Inner product of two vectors, over all processes if each holds a part."""
        return self.scope.dot(self.processes)(a, b)

    @property
    def n(self) -> int:
        """Number of samples over all processes."""
        return self.batches.n

    @property
    def dtype(self) -> torch.dtype:
        """Of the vectors."""
        return self.scope.parameters[0].dtype if self.lean else torch.float64

    def weights(self) -> Vector:
        """A copy of the weights (p,)."""
        return self.scope.flatten(self.dtype)

    def value_and_gradient(self) -> tuple[float, Vector]:
        """F and its gradient (p,) in one pass.

        Raises:
            ModelError: If a loss is NaN or infinite, or a weight gets no gradient.
        """
        n, weights = self.n, len(self.scope.parameters)
        room = 1 if self.lean else n + 1
        with self._summed(1, self.size, weights, room) as sums:
            value, gradient, reached, curved = sums
            traces: list[Tensor | None] = []
            for index, (weight, batch) in enumerate(self.batches):
                loss, grads, trace = self._batch_gradient(index, weight, batch)
                value += loss
                self._add(gradient, grads)
                reached += torch.tensor([float(g is not None) for g in grads]).to(value)
                del grads
                if weight and not self.lean:
                    traces.append(trace)
            known = [t for t in traces if t is not None]
            if len(known) < len(traces) or self.lean:
                curved[-1] = 1  # not known of some
            elif known:
                curved[self.batches.places.to(curved.device)] = torch.cat(known)
        self._check_reached(reached.tolist())
        self.importance = curved[:n] if float(curved[-1]) == 0 else None
        gradient.div_(n)
        penalty = 0.0
        for part, p in zip(
            self.scope.split(gradient), self.scope.parameters, strict=True
        ):
            part.add_(p.detach(), alpha=self.l2)
            norm = torch.linalg.vector_norm(p.detach(), dtype=torch.float64)
            penalty += self.l2 / 2 * float(norm) ** 2
        return float(value) / n + penalty, gradient

    def _batch_gradient(
        self, index: int, weight: int, batch: Any
    ) -> tuple[Tensor, Parts, Tensor | None]:
        loss = self.batch_loss(batch, index, weight)
        if self.product is double_backward and self._keeps(weight):
            graph = HessianGraph(loss, self.scope, weight)
            self._graphs[double_backward, index] = graph
            return graph.value, graph.gradient, graph.traces
        total, traces = watched(loss, weight)
        grads = torch.autograd.grad(total, self.scope.parameters, allow_unused=True)
        return total.detach(), list(grads), traces

    def _keeps(self, weight: int) -> bool:
        """Whether one more batch of graphs fits, which is then spoken for."""
        if weight > self._room:
            return False
        self._room -= weight
        return True

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.scope.parameters[0].device

    def hvp(self, v: Vector) -> Vector:
        """Curvature of F times v, both (p,), in one pass."""
        return self._full(self.product, v)

    def hessian(self, v: Vector) -> Vector:
        """Hessian of F times v, both (p,), in one pass."""
        return self._full(self._second_derivative, v)

    def difference_error(self, v: Vector) -> float | None:
        """Estimated |error of Hv| / |Hv| of products by differences; None for others.

        Truncation falls to a quarter and rounding doubles with half the step: what two
        products differ by is at least half of the larger one, up to chance.
        """
        if self.product is not central_difference:
            return None
        full, half = self.hvp(v), self._half_difference(v)
        size = math.sqrt(self.dot(half, half))
        half.sub_(full)
        return 2 * math.sqrt(self.dot(half, half)) / max(size, 1e-300)

    def _half_difference(self, v: Vector) -> Vector:
        return self._full(half_difference, v)

    @property
    def _second_derivative(self) -> Product:
        return double_backward if self.product is gauss_newton else self.product

    def _full(self, product: Product, v: Vector) -> Vector:
        tangents = self._tangents(v)
        with self._summed(self.size) as (total,):
            for index, (weight, batch) in enumerate(self.batches):
                graph = self._graphs.get((product, index))
                if graph is None:
                    loss = self.batch_loss(batch, index, weight)
                    keep = product in GRAPHS and self._keeps(weight)
                    graph = graph_of(product, loss, self.scope, keep)
                    if keep:
                        self._graphs[product, index] = graph
                self._add(total, graph.product(tangents))
        return total.div_(self.n).add_(v, alpha=self.l2)

    @contextmanager
    def moved_to(self, w: Vector) -> Iterator[None]:
        """Evaluate at other weights for the length of a block."""
        own = [p.data for p in self.scope.parameters]
        state = self._graphs, self._room, self.importance
        self._graphs, self._room, self.importance = {}, 0, None
        try:
            # New tensors in place of the old: kept graphs stay those of the old.
            for p, part in zip(self.scope.parameters, self.scope.cast(w), strict=True):
                p.data = part.clone()
            yield
        finally:
            for p, data in zip(self.scope.parameters, own, strict=True):
                p.data = data
            self._graphs, self._room, self.importance = state

    def sampled_hvp(
        self, v: Vector, batch_size: int, generator: torch.Generator
    ) -> Vector:
        """Curvature of the mean loss of one random mini-batch, plus l2, times v."""
        drawn = self.processes.share(self._draw(batch_size, generator))
        with self._summed(self.size) as (total,):
            if drawn:
                weight, batch = self.batches.take(drawn)
                loss = self.batch_loss(batch, 0, weight)
                self._add(total, self.product(loss, self.scope, self._tangents(v)))
        return total.div_(batch_size).add_(v, alpha=self.l2)

    def sampled_hessian(
        self, samples: int, generator: torch.Generator
    ) -> Callable[[Vector], Vector]:
        """Products with the Hessian of one random draw, plus l2."""
        form = self._second_derivative
        drawn = self.processes.share(self._draw(samples, generator))
        keep = len(drawn) <= self.kept
        with self.processes.together():
            builds = [
                partial(graph_of, form, loss, self.scope, keep)
                for _, loss in self._losses(drawn)
            ]
            return self._drawn(builds, len(drawn), 1 / samples)

    def proxy(
        self, samples: int, generator: torch.Generator
    ) -> Callable[[Vector], Vector] | None:
        """Gauss-Newton products, plus l2, from samples drawn by `importance`.

        Sample i is drawn with probability q_i and counts 1/(m n q_i): unbiased,
        positive semidefinite, and close where F bends. None if the importance is not
        known, or graphs of this product cannot be built.
        """
        if self.importance is None or self.product not in GRAPHS:
            return None
        uniform = torch.full_like(self.importance, 1 / len(self.importance))
        curved = self.importance / self.importance.sum().clamp_min(1e-300)
        q = ((1 - _UNIFORM) * curved + _UNIFORM * uniform).cpu()
        drawn = torch.multinomial(q, samples, True, generator=generator)
        own = self.processes.share(drawn.tolist())
        with self.processes.together():
            builds = [
                partial(GaussNewtonGraph, loss, self.scope, 1 / (samples * q[part]))
                for part, loss in self._losses(own)
            ]
            return self._drawn(builds, len(own), 1 / self.n)

    def _draw(self, samples: int, generator: torch.Generator) -> list[int]:
        return torch.randint(self.n, (samples,), generator=generator).tolist()

    def _losses(self, places: list[int]) -> list[tuple[list[int], BatchLoss]]:
        """The loss of a draw, a chunk of it at a time."""
        found = []
        for start in range(0, len(places), self.chunk):
            part = places[start : start + self.chunk]
            weight, batch = self.batches.take(part)
            found.append((part, self.batch_loss(batch, 0, weight)))
        return found

    def _drawn(
        self, builds: Sequence[Callable[[], Graph]], samples: int, scale: float
    ) -> Callable[[Vector], Vector]:
        """Products of a fixed draw; its graphs are kept if as many samples may be."""
        keep = samples <= self.kept
        if keep:
            builds = [partial(_same, build()) for build in builds]

        def products(v: Vector) -> Vector:
            tangents = self._tangents(v)
            with self._summed(self.size) as (total,):
                for build in builds:  # one at a time: no graph has a name here
                    self._add(total, build().product(tangents, last=not keep))
            return total.mul_(scale).add_(v, alpha=self.l2)

        return products

    def batch_loss(self, batch: Any, index: int, weight: int) -> BatchLoss:
        """The summed loss of one batch as a function of the current weights."""

        def summed() -> Tensor:
            out = self.loss(batch, index)
            if out.dim() == 0:
                total = out * weight
            elif weight == 0:
                total = out.sum() * 0
            elif out.shape == (weight,):
                total = out.sum()
            else:
                raise ModelError(
                    f"expected the loss of {weight} samples as their mean (a scalar) "
                    f"or with shape ({weight},), got shape {tuple(out.shape)}: return "
                    "one of the two from unlearning_loss or training_step"
                )
            self._check_finite(total.detach(), index)
            if not total.requires_grad:
                raise ModelError(
                    "expected a loss that depends on the weights in scope, got one "
                    f"without a gradient on batch {index}: is it computed under "
                    "no_grad, detached, or from other weights?"
                )
            return total

        return summed

    def _check_finite(self, total: Tensor, index: int) -> None:
        if not bool(torch.isfinite(total)):
            raise ModelError(
                f"expected a finite loss, got {float(total)} on batch {index}: look "
                "for NaN in the data or a diverged model"
            )

    def _tangents(self, v: Vector) -> list[Tensor]:
        like = self.scope.parameters[0]
        return self.scope.split(v.to(like.device, like.dtype))

    def _add(self, total: Vector, parts: Parts) -> None:
        for place, part in zip(self.scope.split(total), parts, strict=True):
            if part is not None:
                place.add_(part.detach())

    def _summed(self, *sizes: int) -> AbstractContextManager[list[Vector]]:
        return self.processes.summed(*sizes, dtype=self.dtype, device=self.device)

    def _check_reached(self, reached: list[float]) -> None:
        missing = [n for n, r in zip(self.scope.names, reached, strict=True) if not r]
        if missing:
            raise ModelError(
                f"expected every weight in scope to receive a gradient, got none for "
                f"{', '.join(missing[:5])}: leave unused weights out of "
                "unlearning_parameters(), and use activation checkpointing with "
                "use_reentrant=False (the reentrant kind is silently wrong)"
            )


def _same(graph: Graph) -> Graph:
    return graph
