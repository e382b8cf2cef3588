r"""The one objective: ``F(w) = (1/n) sum_i loss(w; x_i) + (l2/2) |w|^2``.

n counts the retained samples, each exactly once; the regulariser is counted once
and not scaled by the data. Gradient, Hessian-vector products, solvers and the
certificate all read this definition.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from lightning_unlearn import _validate
from lightning_unlearn.curvature.products import (
    BatchLoss,
    Product,
    double_backward,
    gauss_newton,
)
from lightning_unlearn.errors import ModelError
from lightning_unlearn.scope import Scope, Vector


@runtime_checkable
class Batches(Protocol):
    """The retained samples in batches, the same at every iteration."""

    @property
    def n(self) -> int:
        """Samples over all processes."""
        ...

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        """Yield (number of samples that count, batch); 0 for a filler batch."""
        ...

    def read(self, start: int, stop: int) -> tuple[int, Any]:
        """(number, batch) of the samples from start to stop, read afresh."""
        ...

    def sample(self, batch_size: int, generator: torch.Generator) -> tuple[int, Any]:
        """One batch of `batch_size` samples drawn uniformly with replacement."""
        ...


@runtime_checkable
class Objective(Protocol):
    """What newton.py and the solvers may ask of F at the module's weights."""

    l2: float

    @property
    def size(self) -> int:
        """Number of weights in scope, p."""
        ...

    @property
    def n(self) -> int:
        """Number of samples."""
        ...

    def value_and_gradient(self) -> tuple[float, Vector]:
        """F and its gradient (p,), in float64, in one pass."""
        ...

    @property
    def device(self) -> torch.device:
        """Where its vectors live."""
        ...

    def hvp(self, v: Vector) -> Vector:
        """Curvature of F (Hessian or Gauss-Newton) times v, (p,) float64, one pass."""
        ...

    def sampled_hvp(
        self, v: Vector, batch_size: int, generator: torch.Generator
    ) -> Vector:
        """Curvature of one random mini-batch (regulariser included) times v."""
        ...

    def hessian(self, v: Vector) -> Vector:
        """Hessian of F times v, whatever curvature the solver sees."""
        ...

    def sampled_hessian(
        self, v: Vector, batch_size: int, generator: torch.Generator
    ) -> Vector:
        """Hessian of one random mini-batch times v."""
        ...

    def moved_to(self, w: Vector) -> AbstractContextManager[None]:
        """Evaluate at other weights for the length of a block."""
        ...


LossFunction = Callable[[Any, int], Tensor]


class EmpiricalObjective:
    """F for any module: the loss of each batch through automatic differentiation.

    Per-batch results are computed in the dtype of the weights and summed in
    float64.

    Args:
        loss: ``loss(batch, batch_idx)``: losses of shape (batch,), or their mean.
        scope: The weights.
        batches: The retained samples.
        l2: Coefficient of (l2/2)|w|^2, >= 0.
        product: How a curvature-vector product of one batch is formed.
        reduce: Sums a tensor over all processes, in place or not.

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
        reduce: Callable[[Tensor], Tensor] = lambda x: x,
    ) -> None:
        _validate.non_negative(l2=l2)
        self.loss = loss
        self.scope = scope
        self.batches = batches
        self.l2 = l2
        self.product = product
        self.reduce = reduce

    @property
    def size(self) -> int:
        """Number of weights in scope."""
        return self.scope.size

    @property
    def n(self) -> int:
        """Number of samples over all processes."""
        return self.batches.n

    def value_and_gradient(self) -> tuple[float, Vector]:
        """F and its gradient (p,) in float64, in one pass.

        Raises:
            ModelError: If a loss is NaN or infinite, or a weight gets no gradient.
        """
        total = self._zeros(self.size + 1)
        reached = [False] * len(self.scope.parameters)
        for index, (weight, batch) in enumerate(self.batches):
            loss = self.batch_loss(batch, index, weight)()
            grads = torch.autograd.grad(loss, self.scope.parameters, allow_unused=True)
            reached = [r or g is not None for r, g in zip(reached, grads, strict=True)]
            total[0] += loss.detach()
            total[1:] += self._flat(grads)
        self._check_reached(reached)
        total = self.reduce(total)
        w = self.scope.flatten()
        value = float(total[0]) / self.n + self.l2 / 2 * float(w @ w)
        return value, total[1:] / self.n + self.l2 * w

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.scope.parameters[0].device

    def hvp(self, v: Vector) -> Vector:
        """Curvature of F times v, both (p,) float64, in one pass."""
        return self._full(self.product, v)

    def hessian(self, v: Vector) -> Vector:
        """Hessian of F times v, both (p,) float64, in one pass."""
        return self._full(self._second_derivative, v)

    @property
    def _second_derivative(self) -> Product:
        return double_backward if self.product is gauss_newton else self.product

    def _full(self, product: Product, v: Vector) -> Vector:
        total = self._zeros(self.size)
        for index, (weight, batch) in enumerate(self.batches):
            loss = self.batch_loss(batch, index, weight)
            total += self._batch_product(product, loss, v)
        return self.reduce(total) / self.n + self.l2 * v

    @contextmanager
    def moved_to(self, w: Vector) -> Iterator[None]:
        """Evaluate at other weights for the length of a block."""
        own = [p.detach().clone() for p in self.scope.parameters]
        try:
            self.scope.assign(w)
            yield
        finally:
            with torch.no_grad():
                for p, value in zip(self.scope.parameters, own, strict=True):
                    p.copy_(value)

    def sampled_hvp(
        self, v: Vector, batch_size: int, generator: torch.Generator
    ) -> Vector:
        """Curvature of the mean loss of one random mini-batch, plus l2, times v."""
        return self._sampled(self.product, v, batch_size, generator)

    def sampled_hessian(
        self, v: Vector, batch_size: int, generator: torch.Generator
    ) -> Vector:
        """Hessian of the mean loss of one random mini-batch, plus l2, times v."""
        return self._sampled(self._second_derivative, v, batch_size, generator)

    def _sampled(
        self, product: Product, v: Vector, size: int, generator: torch.Generator
    ) -> Vector:
        weight, batch = self.batches.sample(size, generator)
        loss = self.batch_loss(batch, 0, weight)
        return self._batch_product(product, loss, v) / weight + self.l2 * v

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
            if not bool(torch.isfinite(total)):
                raise ModelError(
                    f"expected a finite loss, got {float(total.detach())} on batch "
                    f"{index}: look for NaN in the data or a diverged model"
                )
            if not total.requires_grad:
                raise ModelError(
                    "expected a loss that depends on the weights in scope, got one "
                    f"without a gradient on batch {index}: is it computed under "
                    "no_grad, detached, or from other weights?"
                )
            return total

        return summed

    def _batch_product(self, product: Product, loss: BatchLoss, v: Vector) -> Vector:
        like = self.scope.parameters[0]
        tangents = self.scope.split(v.to(like.device, like.dtype))
        return self._flat(product(loss, self.scope, tangents))

    def _flat(self, parts: "tuple[Tensor | None, ...] | list[Tensor | None]") -> Vector:
        flat = [
            (torch.zeros_like(p) if g is None else g.detach()).reshape(-1)
            for p, g in zip(self.scope.parameters, parts, strict=True)
        ]
        return torch.cat(flat).to(torch.float64)

    def _zeros(self, size: int) -> Vector:
        return torch.zeros(size, dtype=torch.float64, device=self.device)

    def _check_reached(self, reached: list[bool]) -> None:
        missing = [n for n, r in zip(self.scope.names, reached, strict=True) if not r]
        if missing:
            raise ModelError(
                f"expected every weight in scope to receive a gradient, got none for "
                f"{', '.join(missing[:5])}: leave unused weights out of "
                "unlearning_parameters(), and use activation checkpointing with "
                "use_reentrant=False (the reentrant kind is silently wrong)"
            )
