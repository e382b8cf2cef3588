"""An affine layer under a convex loss: the scope whose certificate is proved."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_unlearn._base import validate
from lightning_unlearn.errors import ArgumentError
from lightning_unlearn.step.head.links import LINKS, Link, LossName


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
    weights: Tensor | None = None  # (n, 1), or (n, K)


def _check_classes(targets: Tensor, K: int) -> None:
    outside = (targets < 0) | (targets >= K)
    if bool(outside.any()):
        found = int(targets[outside][0])
        raise ArgumentError(
            f"expected class indices from 0 to {K - 1}, got {found} "
            f"({int(outside.sum())} of {targets.numel()} targets): count classes from "
            "0; a sample that is to be ignored (such as -100) gets weight 0 in "
            "head.loss(features, targets.clamp(min=0), (targets >= 0).float()), or is "
            "left out of the dataset"
        )


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
        validate.count(in_features=in_features, out_features=out_features)
        validate.one_of(LINKS, loss=loss)
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

    def loss(
        self, features: Tensor, targets: Tensor, weights: Tensor | None = None
    ) -> Tensor:
        """Losses of shape (n,) for features (n, d) and targets.

        Args:
            features: (n, d).
            targets: As the loss takes them.
            weights: Factor >= 0 of each sample's loss, (n,), or of each of its K
                outputs' losses, (n, K) (not for cross_entropy). It is the sample's own,
                the same every time. The objective stays a mean over samples: it is not
                divided by the sum of the weights.

        Raises:
            ArgumentError: If the shapes do not fit, or a weight is not >= 0 and finite.
        """
        if features.dim() != 2 or features.shape[1] != self.in_features:
            raise ArgumentError(
                f"expected features of shape (n, {self.in_features}), got "
                f"{tuple(features.shape)}: flatten or pool them first"
            )
        targets = self._targets(targets, len(features), features.dtype)
        if weights is not None:
            weights = self._weights(weights, len(features), features.dtype)
        losses = self.link.loss(self(features), targets, weights)
        if self._calls is not None:
            # Copies: a reused buffer must not change what was recorded.
            kept = None if weights is None else weights.detach().clone()
            call = HeadCall(features.clone(), targets.detach().clone(), losses, kept)
            self._calls.append(call)
        return losses

    def _weights(self, weights: Tensor, n: int, dtype: torch.dtype) -> Tensor:
        """(n, 1) or (n, K)."""
        shapes = [(n,), (n, 1)]
        if self.loss_name != "cross_entropy":
            shapes.append((n, self.out_features))
        if tuple(weights.shape) not in shapes:
            raise ArgumentError(
                f"expected weights of shape {' or '.join(map(str, shapes))} for "
                f"loss={self.loss_name!r}, got {tuple(weights.shape)}: one for each "
                "sample"
            )
        wrong = ~((weights >= 0) & (weights < torch.inf))
        if bool(wrong.any()):
            raise ArgumentError(
                "expected weights of samples that are finite and >= 0, got "
                f"{float(weights[wrong][0]):g}: only these keep the objective convex; "
                "leave a sample out with weight 0"
            )
        return weights.to(dtype).reshape(n, -1)

    def _targets(self, targets: Tensor, n: int, dtype: torch.dtype) -> Tensor:
        K = self.out_features
        indices = self.loss_name == "cross_entropy" and not targets.is_floating_point()
        if not indices:
            targets = targets.to(dtype)
            if K == 1 and targets.shape == (n,):
                targets = targets[:, None]
        if self.loss_name == "cross_entropy" and not indices:
            _check_distributions(targets)
        if indices and not torch.compiler.is_compiling():
            _check_classes(targets, K)
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
