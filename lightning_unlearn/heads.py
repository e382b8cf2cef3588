"""An affine layer under a convex loss: the scope whose certificate is proved."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_unlearn import _validate
from lightning_unlearn.errors import ArgumentError

LossName = Literal["cross_entropy", "mse", "bce", "poisson"]


@runtime_checkable
class Bend(Protocol):
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
        bend: z -> its second derivative there.
        lipschitz: (largest |z| entrywise exponent, K) -> Lipschitz constant of the
            residual in z where the logits lie.
        norm: Same arguments -> bound on the norm of the residual's nonlinear part.
    """

    loss: Callable[[Tensor, Tensor], Tensor]
    residual: Callable[[Tensor, Tensor], Tensor]
    bend: Callable[[Tensor], Bend]
    lipschitz: Callable[[float, int], float]
    norm: Callable[[float, int], float]


def _one_hot(y: Tensor, z: Tensor) -> Tensor:
    return y if y.is_floating_point() else F.one_hot(y, z.shape[-1]).to(z.dtype)


class _SoftmaxBend:
    """diag(p) - p p'."""

    diagonal = False

    def __init__(self, z: Tensor) -> None:
        self.p = z.softmax(-1)

    def times(self, u: Tensor) -> Tensor:
        return self.p * (u - (self.p * u).sum(-1, keepdim=True))

    def trace(self) -> Tensor:
        return 1 - self.p.square().sum(-1)


class _Diagonal:
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
        bend=_SoftmaxBend,
        lipschitz=lambda zmax, K: 0.5,  # |diag(p) - p p'| <= 1/2
        norm=lambda zmax, K: 1.0,
    ),
    "mse": Link(
        loss=lambda z, y: _mean((z - y) ** 2),
        residual=lambda z, y: 2 * (z - y) / z.shape[-1],
        bend=lambda z: _Diagonal(torch.full_like(z, 2 / z.shape[-1])),
        lipschitz=lambda zmax, K: 2 / K,
        norm=lambda zmax, K: 0.0,
    ),
    "bce": Link(
        loss=lambda z, y: _mean(
            F.binary_cross_entropy_with_logits(z, y, reduction="none")
        ),
        residual=lambda z, y: (z.sigmoid() - y) / z.shape[-1],
        bend=lambda z: _Diagonal(z.sigmoid() * (-z).sigmoid() / z.shape[-1]),
        lipschitz=lambda zmax, K: 0.25 / K,
        norm=lambda zmax, K: 1 / math.sqrt(K),
    ),
    "poisson": Link(
        loss=lambda z, y: _mean(z.exp() - y * z),
        residual=lambda z, y: (z.exp() - y) / z.shape[-1],
        bend=lambda z: _Diagonal(z.exp() / z.shape[-1]),
        lipschitz=lambda zmax, K: _exp(zmax) / K,
        norm=lambda zmax, K: _exp(zmax) / math.sqrt(K),
    ),
}


def _check_distributions(targets: Tensor) -> None:
    off = (targets.sum(-1) - 1).abs().max() if targets.numel() else 0
    if not (float(off) <= 1e-2 and bool((targets >= 0).all())):
        raise ArgumentError(
            "expected soft targets that are probabilities (>= 0, each row summing to "
            f"1), got rows off by up to {float(off):.3g}: normalise them, or use "
            "loss='bce' for several labels at once"
        )


@dataclass(frozen=True)
class HeadCall:
    """One call of `ConvexHead.loss`: its inputs and its result."""

    features: Tensor
    targets: Tensor
    losses: Tensor


class ConvexHead(nn.Module):
    """An affine map of features with a convex loss of its own.

    When the weights in scope are exactly those of one ConvexHead, everything before
    it is frozen and ``training_step`` returns ``head.loss(features, targets)`` (or
    its mean), the objective is l2-strongly convex: PROVED, not assumed
    (docs/theory.md section 4).

    Args:
        in_features: d, length of a feature row.
        out_features: K, number of logits.
        loss: "cross_entropy" (targets: class indices (n,), or probabilities (n, K)),
            "mse" (n, K), "bce" with logits (n, K) in [0, 1], "poisson" with log rates
            and counts (n, K). For all but cross_entropy the loss of a sample is the
            mean over its K outputs, and targets may be (n,) when K = 1.
        bias: Whether the map has a bias. The regulariser covers it too.

    Raises:
        ArgumentError: If a size is not >= 1 or the loss has another name.

    Example:
        >>> head = ConvexHead(64, 10)
        >>> head.loss(torch.zeros(3, 64), torch.tensor([0, 1, 2])).shape
        torch.Size([3])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        loss: LossName = "cross_entropy",
        bias: bool = True,
    ) -> None:
        super().__init__()
        _validate.count(in_features=in_features, out_features=out_features)
        _validate.one_of(LINKS, loss=loss)
        self.in_features = int(in_features)
        self.out_features = int(out_features)
        self.loss_name: LossName = loss
        self.weight = nn.Parameter(torch.zeros(out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None
        self._calls: list[HeadCall] | None = None

    @property
    def link(self) -> Link:
        """The derivatives of this head's loss."""
        return LINKS[self.loss_name]

    def forward(self, features: Tensor) -> Tensor:
        """Logits (n, K) of features (n, d)."""
        return F.linear(features, self.weight, self.bias)

    def loss(self, features: Tensor, targets: Tensor) -> Tensor:
        """Losses of shape (n,) for features (n, d) and targets.

        Raises:
            ArgumentError: If the shapes do not fit.
        """
        if features.dim() != 2 or features.shape[1] != self.in_features:
            raise ArgumentError(
                f"expected features of shape (n, {self.in_features}), got "
                f"{tuple(features.shape)}: flatten or pool them first"
            )
        targets = self._targets(targets, len(features), features.dtype)
        losses = self.link.loss(self(features), targets)
        if self._calls is not None:
            # Copies: a reused buffer must not change what was recorded.
            call = HeadCall(features.clone(), targets.detach().clone(), losses)
            self._calls.append(call)
        return losses

    def _targets(self, targets: Tensor, n: int, dtype: torch.dtype) -> Tensor:
        K = self.out_features
        indices = self.loss_name == "cross_entropy" and not targets.is_floating_point()
        if not indices:
            targets = targets.to(dtype)
            if K == 1 and targets.shape == (n,):
                targets = targets[:, None]
        if self.loss_name == "cross_entropy" and not indices:
            _check_distributions(targets)
        shape = (n,) if indices else (n, K)
        if targets.shape != shape:
            raise ArgumentError(
                f"expected targets of shape {shape} for loss={self.loss_name!r}, got "
                f"{tuple(targets.shape)}"
            )
        return targets

    @contextmanager
    def recording(self) -> Iterator[list[HeadCall]]:
        """Collect every call of `loss` made inside the block."""
        calls: list[HeadCall] = []
        self._calls = calls
        try:
            yield calls
        finally:
            self._calls = None

    def extra_repr(self) -> str:
        """Sizes and loss, for printing."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"loss={self.loss_name!r}, bias={self.bias is not None}"
        )
