"""The losses of a convex head, as functions of its outputs."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional as F

LossName = Literal["cross_entropy", "mse", "bce", "poisson"]


@runtime_checkable
class LogitHessian(Protocol):
    """d2 loss / d z2 of some rows at the logits it was made at.

    Attributes:
        diagonal: Whether every row's matrix is.
    """

    diagonal: bool

    def times(self, u: Tensor) -> Tensor:
        """The product with u, (n, K) both; positive semidefinite."""
        ...

    def trace(self) -> Tensor:
        """The trace of each row's matrix, (n,)."""
        ...


@dataclass(frozen=True)
class Link:
    """The derivatives of a per-sample loss in its logits z, all in closed form.

    Args:
        loss: (z, y) -> losses of shape (n,). Convex in z.
        residual: (z, y) -> d loss / d z, shape (n, K).
        hessian: z -> its second derivative there.
        lipschitz: (largest |z| entrywise exponent, K) -> Lipschitz constant of the
            residual in z where the logits lie.
        norm: Same arguments -> bound on the norm of the residual's nonlinear part.
    """

    loss: Callable[[Tensor, Tensor], Tensor]
    residual: Callable[[Tensor, Tensor], Tensor]
    hessian: Callable[[Tensor], LogitHessian]
    lipschitz: Callable[[float, int], float]
    norm: Callable[[float, int], float]


def _one_hot(y: Tensor, z: Tensor) -> Tensor:
    return y if y.is_floating_point() else F.one_hot(y, z.shape[-1]).to(z.dtype)


class _SoftmaxHessian:
    """diag(p) - p p'."""

    diagonal = False

    def __init__(self, z: Tensor) -> None:
        self.p = z.softmax(-1)

    def times(self, u: Tensor) -> Tensor:
        return self.p * (u - (self.p * u).sum(-1, keepdim=True))

    def trace(self) -> Tensor:
        return 1 - self.p.square().sum(-1)


class _DiagonalHessian:
    """diag(h)."""

    diagonal = True

    def __init__(self, h: Tensor) -> None:
        self.h = h

    def times(self, u: Tensor) -> Tensor:
        return self.h * u

    def trace(self) -> Tensor:
        return self.h.sum(-1)


def _exp(z: float) -> float:
    return math.exp(z) if z < 700 else math.inf


def _mean(losses: Tensor) -> Tensor:
    return losses.mean(-1)


LINKS: dict[str, Link] = {
    "cross_entropy": Link(
        loss=lambda z, y: z.logsumexp(-1) - (_one_hot(y, z) * z).sum(-1),
        residual=lambda z, y: z.softmax(-1) - _one_hot(y, z),
        hessian=_SoftmaxHessian,
        lipschitz=lambda zmax, K: 0.5,  # |diag(p) - p p'| <= 1/2
        norm=lambda zmax, K: 1.0,
    ),
    "mse": Link(
        loss=lambda z, y: _mean((z - y) ** 2),
        residual=lambda z, y: 2 * (z - y) / z.shape[-1],
        hessian=lambda z: _DiagonalHessian(torch.full_like(z, 2 / z.shape[-1])),
        lipschitz=lambda zmax, K: 2 / K,
        norm=lambda zmax, K: 0.0,
    ),
    "bce": Link(
        loss=lambda z, y: _mean(
            F.binary_cross_entropy_with_logits(z, y, reduction="none")
        ),
        residual=lambda z, y: (z.sigmoid() - y) / z.shape[-1],
        hessian=lambda z: _DiagonalHessian(z.sigmoid() * (-z).sigmoid() / z.shape[-1]),
        lipschitz=lambda zmax, K: 0.25 / K,
        norm=lambda zmax, K: 1 / math.sqrt(K),
    ),
    "poisson": Link(
        loss=lambda z, y: _mean(z.exp() - y * z),
        residual=lambda z, y: (z.exp() - y) / z.shape[-1],
        hessian=lambda z: _DiagonalHessian(z.exp() / z.shape[-1]),
        lipschitz=lambda zmax, K: _exp(zmax) / K,
        norm=lambda zmax, K: _exp(zmax) / math.sqrt(K),
    ),
}
