"""Curvature-vector products of one batch: one function, one way to form them."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from lightning_unlearn.errors import ModelError
from lightning_unlearn.scope import Scope

BatchLoss = Callable[[], Tensor]
Product = Callable[[BatchLoss, Scope, list[Tensor]], list[Tensor | None]]


def double_backward(
    loss: BatchLoss, scope: Scope, tangents: list[Tensor]
) -> list[Tensor | None]:
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
    pairs = [
        (g, t)
        for g, t in zip(grads, tangents, strict=True)
        if g is not None and g.requires_grad
    ]
    if not pairs:  # the loss is linear in the weights
        return [None] * len(scope.parameters)
    return list(
        torch.autograd.grad(
            [g for g, _ in pairs],
            scope.parameters,
            grad_outputs=[t for _, t in pairs],
            allow_unused=True,
        )
    )


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
) -> list[Tensor | None]:
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


_CONVEX_LOSSES = {
    F.cross_entropy,
    F.mse_loss,
    F.binary_cross_entropy_with_logits,
    F.poisson_nll_loss,
}


class _Outputs(TorchFunctionMode):
    """Records the model outputs that enter a known loss function."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Tensor] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func in _CONVEX_LOSSES:
            outputs = args[0] if args else kwargs["input"]
            if isinstance(outputs, Tensor) and outputs.requires_grad:
                self.found.append(outputs)
        return func(*args, **kwargs)


def gauss_newton(
    loss: BatchLoss, scope: Scope, tangents: list[Tensor]
) -> list[Tensor | None]:
    """Generalised Gauss-Newton product ``J' (d2 loss / d outputs2) J v``.

    The outputs are the first argument of the one call of a convex torch loss
    (cross_entropy, mse_loss, binary_cross_entropy_with_logits, poisson_nll_loss)
    made while the batch's loss is computed; J is their Jacobian (Schraudolph 2002).
    Same arguments and result as `double_backward`.

    Raises:
        ModelError: If there is not exactly one such call.
    """
    with _Outputs() as outputs:
        total = loss()
    if len(outputs.found) != 1:
        raise ModelError(
            "expected exactly one call of cross_entropy, mse_loss, "
            "binary_cross_entropy_with_logits or poisson_nll_loss in the loss, got "
            f"{len(outputs.found)}: use curvature='hessian'"
        )
    z = outputs.found[0]
    parameters = scope.parameters
    dual = torch.zeros_like(z, requires_grad=True)  # J v by two reverse passes
    vjp = torch.autograd.grad(z, parameters, dual, create_graph=True, allow_unused=True)
    pairs = [(g, t) for g, t in zip(vjp, tangents, strict=True) if g is not None]
    (Jv,) = torch.autograd.grad(
        [g for g, _ in pairs], dual, [t for _, t in pairs], retain_graph=True
    )
    (dz,) = torch.autograd.grad(total, z, create_graph=True)
    if not dz.requires_grad:
        return [None] * len(parameters)
    (HJv,) = torch.autograd.grad(dz, z, Jv, retain_graph=True)
    return list(torch.autograd.grad(z, parameters, HJv, allow_unused=True))


def central_difference(
    loss: BatchLoss, scope: Scope, tangents: list[Tensor]
) -> list[Tensor | None]:
    """Hessian-vector product by central differences of the gradient.

    For smooth networks only: on ReLU networks the relative error was .17 at every
    step size (docs/theory.md section 3). `curvature.checks.check_smooth` guards it.
    Same arguments and result as `double_backward`.
    """
    dtype = tangents[0].dtype
    norm = float(sum(t.square().sum() for t in tangents)) ** 0.5
    if norm == 0:
        return [None] * len(scope.parameters)
    scale = max(1.0, float(sum(p.detach().square().sum() for p in scope.parameters)))
    h = torch.finfo(dtype).eps ** (1 / 3) * scale**0.5 / norm
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
