"""Curvature-vector products of one batch: one function, one way to form them."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lightning_unlearn.curvature.graphs import (
    GaussNewtonGraph,
    Graph,
    HessianGraph,
    Parts,
)
from lightning_unlearn.curvature.outputs import BatchLoss
from lightning_unlearn.scope import Scope

Product = Callable[[BatchLoss, Scope, list[Tensor]], Parts]


def double_backward(loss: BatchLoss, scope: Scope, tangents: list[Tensor]) -> Parts:
    """Hessian-vector product by reverse over reverse (Pearlmutter 1994).

    Args:
        loss: The summed loss of the batch at the current weights.
        scope: The weights.
        tangents: v in the shapes of the weights.

    Returns:
        Hv in the shapes of the weights, None where it is zero by structure.
    """
    return HessianGraph(loss, scope).product(tangents, last=True)


def gauss_newton(loss: BatchLoss, scope: Scope, tangents: list[Tensor]) -> Parts:
    """Generalised Gauss-Newton product, see `GaussNewtonGraph`.

    Same arguments and result as `double_backward`.

    Raises:
        ModelError: If the loss does not call exactly one known convex loss.
    """
    return GaussNewtonGraph(loss, scope).product(tangents, last=True)


#: The products whose graph can be built once and used many times.
GRAPHS: dict[Product, Callable[[BatchLoss, Scope], Graph]] = {
    double_backward: HessianGraph,
    gauss_newton: GaussNewtonGraph,
}


class _Call(nn.Module):
    """Lets `functional_call` swap the weights a closure sees."""

    def __init__(self, module: nn.Module, loss: BatchLoss) -> None:
        super().__init__()
        self.module = module
        self.loss = loss

    def forward(self) -> Tensor:
        return self.loss()


def forward_over_reverse(
    loss: BatchLoss, scope: Scope, tangents: list[Tensor]
) -> Parts:
    """Hessian-vector product by forward over reverse (`torch.func.jvp` of `grad`).

    Same arguments and result as `double_backward`. Fails on operations without
    forward derivatives (fused recurrent layers, for one).
    """
    call = _Call(scope.module, loss)

    def value(weights: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(call, weights, ())

    names = [f"module.{name}" for name in scope.names]
    weights = {n: p.detach() for n, p in zip(names, scope.parameters, strict=True)}
    directions = dict(zip(weights, tangents, strict=True))
    out = torch.func.jvp(torch.func.grad(value), (weights,), (directions,))[1]
    return [out[n] for n in names]


def central_difference(loss: BatchLoss, scope: Scope, tangents: list[Tensor]) -> Parts:
    """Hessian-vector product by central differences of the gradient.

    For smooth networks only: on ReLU networks the relative error was .17 at every
    step size (docs/theory.md section 3). `curvature.checks.check_smooth` guards it.
    Same arguments and result as `double_backward`.
    """
    return difference(loss, scope, tangents)


def difference(
    loss: BatchLoss, scope: Scope, tangents: list[Tensor], shorter: float = 1.0
) -> Parts:
    """`central_difference` with a step that is `shorter` times as short."""
    dtype = tangents[0].dtype
    norm = float(sum(t.square().sum() for t in tangents)) ** 0.5
    if norm == 0:
        return [None] * len(scope.parameters)
    scale = max(1.0, float(sum(p.detach().square().sum() for p in scope.parameters)))
    h = torch.finfo(dtype).eps ** (1 / 3) * scale**0.5 / norm / shorter
    originals = [p.detach().clone() for p in scope.parameters]
    ends = []
    try:
        for step in (h, -h):
            with torch.no_grad():
                for p, o, t in zip(scope.parameters, originals, tangents, strict=True):
                    p.copy_(o + step * t)
            ends.append(
                torch.autograd.grad(loss(), scope.parameters, allow_unused=True)
            )
    finally:
        with torch.no_grad():
            for p, o in zip(scope.parameters, originals, strict=True):
                p.copy_(o)
    return [
        None if a is None or b is None else (a - b) / (2 * h)
        for a, b in zip(*ends, strict=True)
    ]


PRODUCTS: dict[str, Product] = {
    "hessian": double_backward,
    "hessian_forward": forward_over_reverse,
    "gauss_newton": gauss_newton,
    "central_difference": central_difference,
}


def graph_of(product: Product, loss: BatchLoss, scope: Scope) -> Graph:
    """The graph of a product, or what forms the product anew each time."""
    if product in GRAPHS:
        return GRAPHS[product](loss, scope)
    return _Formed(product, loss, scope)


class _Formed:
    """A product that has no graph to keep."""

    def __init__(self, form: Product, loss: BatchLoss, scope: Scope) -> None:
        self.form, self.loss, self.scope = form, loss, scope

    def product(self, tangents: list[Tensor], last: bool = False) -> Parts:
        """See `Graph`; there is nothing to free at the last."""
        del last
        return self.form(self.loss, self.scope, tangents)
