"""The objective of a `ConvexHead`, in closed form, in float64.

The head's features and targets are captured from the user's own loss function, so
that what is certified is what was trained; from then on a pass is two matrix
products and no automatic differentiation is involved.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_unlearn import _validate
from lightning_unlearn.certificate.rounding import gradient_rounding_upper
from lightning_unlearn.errors import GuaranteeError, ModelError
from lightning_unlearn.heads import ConvexHead, HeadCall
from lightning_unlearn.objective import Batches, LossFunction
from lightning_unlearn.scope import Vector

_CHUNK = 4096
#: Rows are kept in float64 between passes up to this size; casting them anew costs
#: more than multiplying with them.
DOUBLE_BYTES = 1 << 30


@dataclass(frozen=True)
class FeatureData:
    """Captured rows: features (n, d) and targets, as the head received them."""

    features: Tensor
    targets: Tensor

    @property
    def n(self) -> int:
        """Number of rows."""
        return len(self.features)


def capture(loss: LossFunction, head: ConvexHead, batches: Batches) -> FeatureData:
    """Read every sample once and keep what reaches the head.

    Must run inside `scope.passes` with exactly the head's weights in scope. The
    head is given fixed weights that depend on no data, so that nothing captured can
    depend on the weights to be unlearned, whatever the module does; that the captured
    rows do not depend on the head at all is then checked against the real weights.

    Args:
        loss: The module's loss of a batch.
        head: The head.
        batches: The retained samples (of this process).

    Returns:
        The rows, on the head's device, in the dtype of the passes.

    Raises:
        GuaranteeError: If the loss is not exactly ``head.loss(features, targets)`` of
            rows that depend neither on the head nor on the rest of the batch: strong
            convexity would not be proved.
        ModelError: If a feature, target or loss is not finite.
    """
    _check_head(head)
    _check_independent(loss, head, batches)
    features, targets = [], []
    with _fixed_weights(head):
        for index, (weight, batch) in enumerate(batches):
            call = _call(loss, head, batch, index, weight)
            if weight:
                features.append(call.features.detach())
                targets.append(call.targets)
    return FeatureData(torch.cat(features), torch.cat(targets))


@contextmanager
def _fixed_weights(head: ConvexHead) -> Iterator[None]:
    """Weights of the head that everybody knows, for the length of a block."""
    generator = torch.Generator().manual_seed(0)
    own = [p.detach().clone() for p in head.parameters()]
    try:
        with torch.no_grad():
            for p in head.parameters():
                drawn = torch.randn(p.shape, generator=generator)
                p.copy_(drawn / head.in_features**0.5)
        yield
    finally:
        with torch.no_grad():
            for p, value in zip(head.parameters(), own, strict=True):
                p.copy_(value)


def _check_head(head: ConvexHead) -> None:
    hooks = (head._forward_hooks, head._forward_pre_hooks, head._backward_hooks)
    if type(head) is not ConvexHead or any(hooks):
        raise GuaranteeError(
            f"expected a plain ConvexHead, got {type(head).__name__} with "
            f"{sum(map(len, hooks))} hooks: a subclass, parametrization or hook can "
            "change its loss; remove it"
        )


def _check_independent(loss: LossFunction, head: ConvexHead, batches: Batches) -> None:
    """The rows of the first samples: the same at other weights, in another batch."""
    count, batch = batches.take(range(min(16, batches.n)))
    own = _call(loss, head, batch, 0, count)
    with _fixed_weights(head):
        fixed = _call(loss, head, batch, 0, count)
    if not (
        torch.equal(own.features, fixed.features)
        and torch.equal(own.targets, fixed.targets)
    ):
        raise GuaranteeError(
            "expected features and targets that do not depend on the head's weights, "
            "got others at other weights (self-distillation, pseudo-labels, attention "
            "from the head?): the objective would remember the forgotten samples"
        )
    half, part = batches.take(range(max(1, count // 2)))
    alone = _call(loss, head, part, 0, half)
    if not (
        torch.allclose(alone.features, own.features[:half], rtol=1e-3, atol=1e-4)
        and torch.allclose(alone.targets, own.targets[:half])
    ):
        raise GuaranteeError(
            "expected the features of a sample to be its own, got others when the rest "
            "of its batch changed: normalise over features (LayerNorm), not over the "
            "batch"
        )


def _call(
    loss: LossFunction, head: ConvexHead, batch: object, index: int, weight: int
) -> HeadCall:
    with head.recording() as calls:
        out = loss(batch, index)
    if len(calls) != 1:
        raise GuaranteeError(
            "expected the loss to call head.loss(features, targets) exactly once, "
            f"got {len(calls)} calls: return self.head.loss(...).mean() from "
            "training_step, or use guarantee=NormBall()"
        )
    if weight:
        _check_call(head, calls[0], out, weight)
    return calls[0]


def _check_call(head: ConvexHead, call: HeadCall, out: Tensor, weight: int) -> None:
    for name in ("features", "targets", "losses"):
        if not bool(torch.isfinite(getattr(call, name)).all()):
            raise ModelError(
                f"expected finite {name} at the head, got NaN or infinite values: look "
                "for NaN in the data or a diverged model"
            )
    if call.features.requires_grad:
        raise GuaranteeError(
            "expected features that do not depend on the weights in scope, got "
            "features with a gradient: the head's weights are used before the head"
        )
    if len(call.losses) != weight:
        raise GuaranteeError(
            f"expected one loss for each of the {weight} samples of a batch, got "
            f"{len(call.losses)}"
        )
    # From the recorded rows alone, by the formula that will be certified.
    logits = torch.nn.functional.linear(call.features, head.weight, head.bias)
    losses = head.link.loss(logits, call.targets)
    expected = losses.mean() if out.dim() == 0 else losses
    same = out.shape == expected.shape and torch.allclose(
        out, expected, rtol=1e-4, atol=1e-6
    )
    if not same:
        raise GuaranteeError(
            "expected the loss to be head.loss(features, targets) or its mean, got "
            "another value: put the regulariser into l2= and leave other terms out, "
            "or use guarantee=NormBall()"
        )


class ConvexObjective:
    """F of a `ConvexHead` over captured rows; l2-strongly convex when l2 > 0.

    Weights are given as flat vectors (p,) float64 in the order weight, bias. Every
    per-sample Hessian in the logits is positive semidefinite (`heads.LINKS`), an
    affine map keeps convexity, and ``(l2/2)|w|^2`` covers every weight: mu = l2.

    Args:
        head: The head; only its shape and loss are read.
        data: The rows of this process.
        l2: Coefficient of the regulariser, > 0.
        n: Rows over all processes; those of this one by default.
        reduce: Sums a tensor over all processes.
        largest: Maximum of a tensor over all processes.
    """

    def __init__(
        self,
        head: ConvexHead,
        data: FeatureData,
        l2: float,
        n: int | None = None,
        reduce: Callable[[Tensor], Tensor] = lambda x: x,
        largest: Callable[[Tensor], Tensor] = lambda x: x,
    ) -> None:
        _validate.positive(l2=l2)
        self.link = head.link
        self.K, self.d = head.out_features, head.in_features
        self.bias = head.bias is not None
        self.data = data
        self.l2 = l2
        self._n = data.n if n is None else n
        self.reduce = reduce
        self.largest = largest
        self._fits = 8 * data.features.numel() <= DOUBLE_BYTES
        self._double: list[tuple[Tensor, Tensor]] | None = None
        self.at: Vector = torch.zeros(self.size, dtype=torch.float64)

    @property
    def size(self) -> int:
        """Number of weights."""
        return self.K * (self.d + self.bias)

    @property
    def n(self) -> int:
        """Rows over all processes."""
        return self._n

    def _chunks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The rows in float64, a chunk at a time; kept if all of them fit."""
        if self._double is not None:
            yield from self._double
            return
        kept: list[tuple[Tensor, Tensor]] = []
        for X, y in zip(
            self.data.features.split(_CHUNK),
            self.data.targets.split(_CHUNK),
            strict=True,
        ):
            chunk = X.double(), y.double() if y.is_floating_point() else y
            if self._fits:
                kept.append(chunk)
            yield chunk
        self._double = kept or None

    def logits(self, X: Tensor, w: Vector) -> Tensor:
        """Outputs (n, K) for rows X (n, d) and flat weights."""
        W = w[: self.K * self.d].view(self.K, self.d)
        Z = X @ W.T  # (n, K)
        return Z + w[self.K * self.d :] if self.bias else Z

    def _pull_back(self, X: Tensor, D: Tensor) -> Vector:
        parts = [(D.T @ X).reshape(-1)]  # (K, d)
        return torch.cat([*parts, D.sum(0)]) if self.bias else parts[0]

    @property
    def feature_norm(self) -> float:
        """Largest norm of a feature row, the 1 of the bias included."""
        rows = torch.stack([X.norm(dim=1).max() for X, _ in self._chunks()]).max()
        return float(self.largest(rows) ** 2 + self.bias) ** 0.5

    def gradient(self, w: Vector) -> tuple[Vector, float]:
        """The gradient (p,) at w and a bound on its rounding error.

        Returns:
            (gradient, bound on |computed - exact gradient|); the bound is infinite
            where exponentials overflow.
        """
        total = torch.zeros_like(w)
        sizes = torch.zeros(3, dtype=torch.float64, device=w.device)
        for X, y in self._chunks():
            Z = self.logits(X, w)
            D = self.link.residual(Z, y)
            total += self._pull_back(X, D)
            now = [X.norm(dim=1).max(), D.norm(dim=1).max(), Z.abs().max()]
            sizes = torch.maximum(sizes, torch.stack(now))
        gradient = self.reduce(total) / self.n + self.l2 * w
        rows, residuals, logits = self.largest(sizes).tolist()
        lipschitz = self.link.lipschitz(logits + 1e-6, self.K)
        if not (math.isfinite(residuals) and math.isfinite(lipschitz)):
            return gradient, math.inf  # exponentials overflow: nothing is known of it
        rounding = gradient_rounding_upper(
            n_retain=self.n,
            n_features=self.d + self.bias,
            n_outputs=self.K,
            row_norm=(rows**2 + self.bias) ** 0.5 * (1 + 1e-8),
            weight_norm=float(w.norm()) * (1 + 1e-8),
            link_residual_norm=residuals * (1 + 1e-8),
            link_lipschitz=lipschitz,
            link_norm=self.link.norm(logits + 1e-6, self.K),
            l2=self.l2,
        )
        return gradient, rounding

    def hvp(self, v: Vector) -> Vector:
        """Hessian at `self.at` times v, both (p,)."""
        total = torch.zeros_like(v)
        for X in self.data.features.split(_CHUNK):
            total += self._curved(X, v)
        return self.reduce(total) / self.n + self.l2 * v

    def sampled_hvp(
        self, v: Vector, batch_size: int, generator: torch.Generator
    ) -> Vector:
        """Hessian of one random mini-batch at `self.at`, plus l2, times v."""
        rows = torch.randint(self.data.n, (batch_size,), generator=generator)
        X = self.data.features[rows.to(self.data.features.device)]
        return self._curved(X, v) / batch_size + self.l2 * v

    def proxy(
        self, samples: int, generator: torch.Generator
    ) -> Callable[[Vector], Vector]:
        """The Hessian at `self.at` from rows drawn by how much they curve F.

        Row i is drawn with probability q_i proportional to ``(trace of its Hessian in
        the logits) |x_i|^2``, the trace of its Hessian in the weights, and counts
        1/(m n q_i): unbiased, positive definite, and close where F bends.

        Args:
            samples: m, rows to draw (with replacement).
            generator: Of the draws.

        Returns:
            Products with a cheaper matrix near the Hessian, regulariser included.
        """
        X, counts = self.draw(samples, generator)
        Z = self.logits(X, self.at.to(X.dtype))

        def products(v: Vector) -> Vector:
            curved = self.link.curvature(Z, self.logits(X, v.to(X.dtype)))
            return self._pull_back(X, curved * counts).double() + self.l2 * v

        return products

    def draw(self, samples: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Rows (m, d) drawn as in `proxy`, and how much each counts (m, 1)."""
        importance = torch.cat(
            [
                self.link.trace(self.logits(X, self.at))
                * (X.square().sum(1) + self.bias)
                for X, _ in self._chunks()
            ]
        )
        # Saturated rows curve nothing: none may have probability exactly zero.
        importance = importance + 1e-6 * importance.mean() + 1e-300
        q = importance / importance.sum()
        drawn = torch.multinomial(q.cpu(), samples, True, generator=generator)
        drawn = drawn.to(q.device)
        X = self.data.features[drawn]
        return X, (1 / (samples * self.data.n * q[drawn]))[:, None].to(X.dtype)

    def _curved(self, X: Tensor, v: Vector) -> Vector:
        """Summed Hessian of some rows times v, in the dtype of the rows."""
        Z = self.logits(X, self.at.to(X.dtype))
        U = self.link.curvature(Z, self.logits(X, v.to(X.dtype)))
        return self._pull_back(X, U).double()
