"""First-order graphs of one batch, built once and used for many products."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from lightning_unlearn.errors import ModelError
from lightning_unlearn.step.network.outputs import BatchLoss, Outputs
from lightning_unlearn.weights.scope import Scope

Parts = list[Tensor | None]


@runtime_checkable
class Graph(Protocol):
    """Curvature of one batch at the weights the graph was built at."""

    def product(self, tangents: list[Tensor], last: bool = False) -> Parts:
        """Curvature times v, in the shapes of the weights; None where it is zero.

        Args:
            tangents: v in the shapes of the weights.
            last: Free the graph.
        """
        ...


class HessianGraph:
    """The gradient of a batch with its graph: building it costs one gradient.

    Every product is then one more backward pass (Pearlmutter 1994).

    Args:
        loss: The summed loss of the batch at the current weights.
        scope: The weights.

    Attributes:
        value: The loss, detached.
        gradient: In the shapes of the weights, None where unused.
        traces: See `Output.traces`; None if `count` is 0 or they are not known.
    """

    def __init__(self, loss: BatchLoss, scope: Scope, count: int = 0) -> None:
        self._parameters = scope.parameters
        total, self.traces = watched(loss, count)
        grads = torch.autograd.grad(
            total, self._parameters, create_graph=True, allow_unused=True
        )
        self.value = total.detach()
        self.gradient: Parts = [None if g is None else g.detach() for g in grads]
        self._curved = {
            i: g for i, g in enumerate(grads) if g is not None and g.requires_grad
        }

    def product(self, tangents: list[Tensor], last: bool = False) -> Parts:
        """Hessian times v."""
        if not self._curved:  # the loss is linear in the weights
            return [None] * len(self._parameters)
        return list(
            torch.autograd.grad(
                list(self._curved.values()),
                self._parameters,
                grad_outputs=[tangents[i] for i in self._curved],
                allow_unused=True,
                retain_graph=not last,
            )
        )


def watched(loss: BatchLoss, count: int) -> tuple[Tensor, Tensor | None]:
    """The loss, and how much each of its `count` samples curves it, if that is known.

    Nothing is recorded for count = 0.
    """
    if not count:
        return loss(), None
    with Outputs() as outputs:
        total = loss()
    return total, outputs.only.traces(count) if outputs.only else None


class GaussNewtonGraph:
    """``J' (d2 loss / d outputs2) J`` of a batch (Schraudolph 2002).

    The outputs are the first argument of the one call of a convex torch loss
    (cross_entropy, mse_loss, binary_cross_entropy_with_logits, poisson_nll_loss)
    made while the batch's loss is computed; J is their Jacobian.

    Args:
        loss: The summed loss of the batch at the current weights.
        scope: The weights.
        weights: How often each sample counts, (count,); once by default.

    Raises:
        ModelError: If there is not exactly one such call, or the outputs are not
            grouped by sample and weights are given.
    """

    def __init__(
        self, loss: BatchLoss, scope: Scope, weights: Tensor | None = None
    ) -> None:
        self._parameters = scope.parameters
        with Outputs() as outputs:
            total = loss()
        if outputs.only is None:
            raise ModelError(
                "expected exactly one call of cross_entropy, mse_loss, "
                "binary_cross_entropy_with_logits or poisson_nll_loss in the loss, got "
                f"{len(outputs.found)}: use curvature='hessian'"
            )
        z = self._z = outputs.only.z
        self._rows = None if weights is None else _per_row(weights, z)
        self._dual = torch.zeros_like(z, requires_grad=True)  # J v, by two reversals
        vjp = torch.autograd.grad(
            z, self._parameters, self._dual, create_graph=True, allow_unused=True
        )
        self._vjp = {i: g for i, g in enumerate(vjp) if g is not None}
        (self._dz,) = torch.autograd.grad(
            total, z, create_graph=True, retain_graph=True
        )

    def product(self, tangents: list[Tensor], last: bool = False) -> Parts:
        """Gauss-Newton matrix times v."""
        if not self._dz.requires_grad:
            return [None] * len(self._parameters)
        (Jv,) = torch.autograd.grad(
            list(self._vjp.values()),
            self._dual,
            [tangents[i] for i in self._vjp],
            retain_graph=True,
        )
        (HJv,) = torch.autograd.grad(self._dz, self._z, Jv, retain_graph=True)
        if self._rows is not None:
            HJv = HJv * self._rows
        return list(
            torch.autograd.grad(
                self._z,
                self._parameters,
                HJv,
                allow_unused=True,
                retain_graph=not last,
            )
        )


def _per_row(weights: Tensor, z: Tensor) -> Tensor:
    rows, odd = divmod(len(z), len(weights))
    if odd:
        raise ModelError(
            f"expected outputs grouped by sample, got {len(z)} rows for "
            f"{len(weights)} samples: use solver=CG()"
        )
    expanded = weights.to(z).repeat_interleave(rows)
    return expanded.view(-1, *[1] * (z.dim() - 1))


def saved_bytes(build: Callable[[], object], scope: Scope) -> int:
    """Bytes of tensors that building a graph keeps alive, the weights not counted."""
    own = {p.untyped_storage().data_ptr() for p in scope.parameters}
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # the tensor itself would keep its own graph alive

    with ExitStack() as stack:
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t))
        kept = build()
    total = sum(storages.values())
    del kept
    return total
