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

    def curvatures(self) -> Tensor:
        """The diagonal of each row's matrix, (n, K)."""
        ...

    def weighted(self, weights: Tensor) -> "LogitHessian":
        """That of losses times weights >= 0, (n, 1), or (n, K) where diagonal."""
        ...


@dataclass(frozen=True)
class Link:
    """The derivatives of a per-sample loss in its logits z, all in closed form.

    A sample's weight, (n, 1), or one for each of its outputs, (n, K) where the terms
    are (n, K), is a factor >= 0 of its terms: what is convex in z stays so.

    Args:
        terms: (z, y) -> (n, T), convex in z; the loss of a sample is their mean. T is
            K, each term of one output, or 1.
        derivative: (z, y) -> d loss / d z, shape (n, K), without weights.
        curvature: z -> its second derivative there, without weights.
        lipschitz: (largest |z| entrywise exponent, K) -> Lipschitz constant of the
            derivative in z where the logits lie.
        norm: Same arguments -> bound on the norm of the derivative's nonlinear part.
        longest: K -> bound on the norm of the derivative, whatever logits and targets
            are; None if there is none.
    """

    terms: Callable[[Tensor, Tensor], Tensor]
    derivative: Callable[[Tensor, Tensor], Tensor]
    curvature: Callable[[Tensor], LogitHessian]
    lipschitz: Callable[[float, int], float]
    norm: Callable[[float, int], float]
    longest: Callable[[int], float] | None = None

    def loss(self, z: Tensor, y: Tensor, weights: Tensor | None = None) -> Tensor:
        """Losses (n,) of logits (n, K) and targets."""
        terms = self.terms(z, y)
        return (terms if weights is None else weights * terms).mean(-1)

    def residual(self, z: Tensor, y: Tensor, weights: Tensor | None = None) -> Tensor:
        """The derivative of each loss in its logits, (n, K)."""
        found = self.derivative(z, y)
        return found if weights is None else weights * found

    def hessian(self, z: Tensor, weights: Tensor | None = None) -> LogitHessian:
        """The second derivative of each loss in its logits."""
        found = self.curvature(z)
        return found if weights is None else found.weighted(weights)


def _one_hot(y: Tensor, z: Tensor) -> Tensor:
    return y if y.is_floating_point() else F.one_hot(y, z.shape[-1]).to(z.dtype)


class _SoftmaxHessian:
    """w (diag(p) - p p')."""

    diagonal = False

    def __init__(self, p: Tensor, weights: Tensor | None = None) -> None:
        self.p = p  # (n, K)
        self.q = p if weights is None else weights * p

    def times(self, u: Tensor) -> Tensor:
        return self.q * (u - (self.p * u).sum(-1, keepdim=True))

    def curvatures(self) -> Tensor:
        return self.q * (1 - self.p)

    def weighted(self, weights: Tensor) -> "_SoftmaxHessian":
        return _SoftmaxHessian(self.p, weights)


class _DiagonalHessian:
    """diag(h), weights in it."""

    diagonal = True

    def __init__(self, h: Tensor) -> None:
        self.h = h

    def times(self, u: Tensor) -> Tensor:
        return self.h * u

    def curvatures(self) -> Tensor:
        return self.h

    def weighted(self, weights: Tensor) -> "_DiagonalHessian":
        return _DiagonalHessian(weights * self.h)


def class_weighted(
    loss: LossName,
    targets: Tensor,
    class_weights: Tensor,
    weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Targets and weights whose weighted loss is the one with weights of classes.

    Every label counts as much of its class as it says: a sample that is so much of each
    class has their weighted sum as its weight, and their weighted shares as its target.

    Args:
        loss: "cross_entropy", "mse" (shares of classes as numbers) or "bce".
        targets: Classes (n,), or (n, K).
        class_weights: (K,), >= 0. Of "bce" with one output (2,), of no and yes; with
            several the weights (K,) of each yes, where a no counts 1.
        weights: Of the samples (n,), a further factor.

    Returns:
        Targets, and weights (n,), or (n, K) of "bce".
    """
    targets, own = _by_class(loss, targets, class_weights)
    if weights is not None:
        own = own * weights.reshape(len(own), *[1] * (own.dim() - 1))
    return targets, own


def _by_class(
    loss: LossName, targets: Tensor, class_weights: Tensor
) -> tuple[Tensor, Tensor]:
    if not targets.is_floating_point():
        return targets, class_weights[targets]
    if loss == "bce":
        single = targets.shape[1] == 1
        no = class_weights[:1] if single else torch.ones_like(class_weights)
        yes = (class_weights[1:] if single else class_weights) * targets
        total = yes + no * (1 - targets)
        return torch.where(total > 0, yes / total, targets), total
    share = class_weights * targets
    total = share.sum(1)
    if loss == "mse":
        return targets, total
    return torch.where(total[:, None] > 0, share / total[:, None], targets), total


def _exp(z: float) -> float:
    return math.exp(z) if z < 700 else math.inf


LINKS: dict[str, Link] = {
    "cross_entropy": Link(
        terms=lambda z, y: (
            z.logsumexp(-1, keepdim=True) - (_one_hot(y, z) * z).sum(-1, keepdim=True)
        ),
        derivative=lambda z, y: z.softmax(-1) - _one_hot(y, z),
        curvature=lambda z: _SoftmaxHessian(z.softmax(-1)),
        lipschitz=lambda zmax, K: 0.5,  # |diag(p) - p p'| <= 1/2
        norm=lambda zmax, K: 1.0,
        # sqrt(1 + |y|^2), where soft targets may add up to 1.01 (`ConvexHead`), and as
        # much again where class weights make others of them.
        longest=lambda K: 1.44,
    ),
    "mse": Link(
        terms=lambda z, y: (z - y) ** 2,
        derivative=lambda z, y: 2 * (z - y) / z.shape[-1],
        curvature=lambda z: _DiagonalHessian(torch.full_like(z, 2 / z.shape[-1])),
        lipschitz=lambda zmax, K: 2 / K,
        norm=lambda zmax, K: 0.0,
    ),
    "bce": Link(
        terms=lambda z, y: F.binary_cross_entropy_with_logits(z, y, reduction="none"),
        derivative=lambda z, y: (z.sigmoid() - y) / z.shape[-1],
        curvature=lambda z: _DiagonalHessian(
            z.sigmoid() * (-z).sigmoid() / z.shape[-1]
        ),
        lipschitz=lambda zmax, K: 0.25 / K,
        norm=lambda zmax, K: 1 / math.sqrt(K),
        longest=lambda K: 1.01 / math.sqrt(K),
    ),
    "poisson": Link(
        terms=lambda z, y: z.exp() - y * z,
        derivative=lambda z, y: (z.exp() - y) / z.shape[-1],
        curvature=lambda z: _DiagonalHessian(z.exp() / z.shape[-1]),
        lipschitz=lambda zmax, K: _exp(zmax) / K,
        norm=lambda zmax, K: _exp(zmax) / math.sqrt(K),
    ),
}
