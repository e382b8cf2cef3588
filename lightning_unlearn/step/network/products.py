"""Curvature-vector products of one batch: one function, one way to form them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lightning_unlearn.step.network.graphs import (
    GaussNewtonGraph,
    Graph,
    HessianGraph,
    Parts,
)
from lightning_unlearn.step.network.outputs import BatchLoss
from lightning_unlearn.weights.scope import Scope

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
    grads = torch.autograd.grad(
        loss(), scope.parameters, create_graph=True, allow_unused=True
    )
    slopes = [
        (g * t).sum()
        for g, t in zip(grads, tangents, strict=True)
        if g is not None and g.requires_grad
    ]
    del grads  # only their graph is needed: one vector less while the rest is made
    if not slopes:  # the loss is linear in the weights
        return [None] * len(tangents)
    slope = torch.stack(slopes).sum()
    return list(torch.autograd.grad(slope, scope.parameters, allow_unused=True))


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
    step size (docs/theory.md section 3). `derivative_checks.check_smooth` guards it.
    Same arguments and result as `double_backward`.
    """
    return _difference(loss, scope, tangents, 1.0)


def half_difference(loss: BatchLoss, scope: Scope, tangents: list[Tensor]) -> Parts:
    """`central_difference` with half the step, to estimate its error."""
    return _difference(loss, scope, tangents, 0.5)


def _difference(
    loss: BatchLoss, scope: Scope, tangents: list[Tensor], shorter: float
) -> Parts:
    h = shorter * step_of(scope, tangents)
    if h == 0:
        return [None] * len(scope.parameters)
    ends = []
    for step in (h, -h):
        with shifted(scope, tangents, step):
            ends.append(
                torch.autograd.grad(loss(), scope.parameters, allow_unused=True)
            )
    return [
        None if a is None or b is None else (a - b) / (2 * h)
        for a, b in zip(*ends, strict=True)
    ]


def step_of(scope: Scope, tangents: list[Tensor]) -> float:
    """How far to go along v for differences: a cube root of the precision of |w|."""
    norm = float(sum(t.square().sum() for t in tangents)) ** 0.5
    if norm == 0:
        return 0.0
    scale = max(1.0, float(sum(p.detach().square().sum() for p in scope.parameters)))
    return torch.finfo(tangents[0].dtype).eps ** (1 / 3) * scale**0.5 / norm


@contextmanager
def shifted(scope: Scope, tangents: list[Tensor], step: float) -> Iterator[None]:
    """A block at w + step v; the weights are put back exactly, whatever happens."""
    originals = [p.data for p in scope.parameters]
    try:
        for p, o, t in zip(scope.parameters, originals, tangents, strict=True):
            p.data = torch.add(o, t, alpha=step)
        yield
    finally:
        for p, o in zip(scope.parameters, originals, strict=True):
            p.data = o


PRODUCTS: dict[str, Product] = {
    "hessian": double_backward,
    "hessian_forward": forward_over_reverse,
    "gauss_newton": gauss_newton,
    "central_difference": central_difference,
}


def graph_of(product: Product, loss: BatchLoss, scope: Scope, keep: bool) -> Graph:
    """The graph of a product if it is to be kept, or what forms the product anew."""
    if keep and product in GRAPHS:
        return GRAPHS[product](loss, scope)
    return _Formed(product, loss, scope)


class _Formed:
    """A product whose graph is not kept, or that has none."""

    def __init__(self, form: Product, loss: BatchLoss, scope: Scope) -> None:
        self.form, self.loss, self.scope = form, loss, scope

    def product(self, tangents: list[Tensor], last: bool = False) -> Parts:
        """See `Graph`; there is nothing to free at the last."""
        del last
        return self.form(self.loss, self.scope, tangents)
