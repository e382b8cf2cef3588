"""The objective of a `ConvexHead`, in closed form, in float64.

The head's features and targets are captured from the user's own loss function, so
that what is certified is what was trained; from then on a pass is two matrix
products and no automatic differentiation is involved.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from lightning_unlearn._base import validate
from lightning_unlearn.guarantee.rounding import gradient_rounding_upper
from lightning_unlearn.step.head.capture import FeatureData
from lightning_unlearn.step.head.convex_head import ConvexHead
from lightning_unlearn.step.head.links import LINKS, LogitHessian
from lightning_unlearn.weights.processes import ALONE, Processes
from lightning_unlearn.weights.scope import Vector, plain_dot

_CHUNK = 4096
#: Rows are kept in float64 between passes up to this size; casting them anew costs
#: more than multiplying with them.
DOUBLE_BYTES = 1 << 30


class ConvexObjective:
    """F of a `ConvexHead` over captured rows; l2-strongly convex when l2 > 0.

    Weights are given as flat vectors (p,) float64 in the order weight, bias. Every
    per-sample Hessian in the logits is positive semidefinite (`links.LINKS`), an
    affine map keeps convexity, and ``(l2/2)|w|^2`` covers every weight: mu = l2.

    Args:
        head: The head; only its shape and loss are read.
        data: The rows of this process.
        l2: Coefficient of the regulariser, > 0.
        processes: Those that share the rows.
        n: Rows over all processes; those of this one by default.
        places: Which of the n rows those of this process are, int64; all by default.
    """

    def __init__(
        self,
        head: ConvexHead,
        data: FeatureData,
        l2: float,
        processes: Processes = ALONE,
        n: int | None = None,
        places: Tensor | None = None,
    ) -> None:
        validate.positive(l2=l2)
        self.link = head.link
        self.K, self.d = head.out_features, head.in_features
        self.bias = head.bias is not None
        self.data = data
        self.device = head.weight.device
        self.l2 = l2
        self._n = data.n if n is None else n
        self.processes = processes
        self._places = torch.arange(data.n) if places is None else places
        self._fits = 8 * data.features.numel() <= DOUBLE_BYTES
        self._double: list[tuple[Tensor, Tensor]] | None = None
        self._row_norm: float | None = None
        self._hessians: list[LogitHessian] = []
        self.at: Vector = torch.zeros(self.size, dtype=torch.float64)

    def set_hessian_at(self, w: Vector) -> None:
        """Take curvature at w (p,) from now on."""
        self.at, self._hessians = w, []

    @property
    def size(self) -> int:
        """Number of weights."""
        return self.K * (self.d + self.bias)

    @property
    def n_parameters(self) -> int:
        """Number of weights: every process holds them all."""
        return self.size

    def dot(self, a: Vector, b: Vector) -> float:
        """Inner product of two vectors."""
        return plain_dot(a, b)

    @property
    def n(self) -> int:
        """Rows over all processes."""
        return self._n

    @property
    def is_rough(self) -> bool:
        """Whether `rough_gradient` is cheaper than `gradient`."""
        return self.data.features.dtype != torch.float64

    @property
    def rows_to_span(self) -> int:
        """Rows whose Hessians together can have full rank: each has one of K at most.

        That of a softmax has one less: adding a constant to all logits changes nothing.
        """
        softmax = self.K > 1 and self.link is LINKS["cross_entropy"]
        return -(-self.size // (self.K - softmax))

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
            y = y.to(self.device)
            chunk = (
                X.to(self.device, torch.float64),
                y.double() if y.is_floating_point() else y,
            )
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
        found = self._row_norm
        if found is None:
            with self._summed(self.processes.world) as (longest,):
                rows = [_largest(X.norm(dim=1)) for X, _ in self._chunks()]
                longest[self.processes.rank] = torch.stack(rows).max()
            found = float(longest.max() ** 2 + self.bias) ** 0.5
        self._row_norm = found
        return found

    def rough_gradient(self, w: Vector) -> Vector:
        """The gradient (p,) at w by products in the rows' own dtype.

        It says where to go, never that one has arrived.
        """
        own = w.to(self.data.features.dtype)
        with self._summed(self.size) as (total,):
            for X, y in zip(
                self.data.features.split(_CHUNK),
                self.data.targets.split(_CHUNK),
                strict=True,
            ):
                X = X.to(self.device)
                D = self.link.residual(self.logits(X, own), y.to(self.device))
                total += self._pull_back(X, D).double()
        return total / self.n + self.l2 * w

    def gradient(self, w: Vector) -> tuple[Vector, float]:
        """The gradient (p,) at w and a bound on its rounding error.

        Returns:
            (gradient, bound on |computed - exact gradient|); the bound is infinite
            where exponentials overflow.
        """
        world, rank = self.processes.world, self.processes.rank
        with self._summed(self.size, 2 * world) as (total, all_sizes):
            sizes = all_sizes.view(world, 2)  # of each process; NaN stays NaN
            for X, y in self._chunks():
                Z = self.logits(X, w)
                D = self.link.residual(Z, y)
                total += self._pull_back(X, D)
                now = torch.stack([_largest(D.norm(dim=1)), _largest(Z.abs())])
                sizes[rank] = torch.maximum(sizes[rank], now)
        gradient = total / self.n + self.l2 * w
        residuals, logits = sizes.amax(0).tolist()
        lipschitz = self.link.lipschitz(logits + 1e-6, self.K)
        weight_norm = float(w.norm())
        sizes = (residuals, lipschitz, weight_norm, self.feature_norm)
        if not all(map(math.isfinite, sizes)):
            return gradient, math.inf  # exponentials overflow: nothing is known of it
        rounding = gradient_rounding_upper(
            n_retain=self.n,
            n_features=self.d + self.bias,
            n_outputs=self.K,
            row_norm=self.feature_norm * (1 + 1e-8),
            weight_norm=weight_norm * (1 + 1e-8),
            link_residual_norm=residuals * (1 + 1e-8),
            link_lipschitz=lipschitz,
            link_norm=self.link.norm(logits + 1e-6, self.K),
            l2=self.l2,
        )
        return gradient, rounding

    def hvp(self, v: Vector) -> Vector:
        """Hessian at `self.at` times v, both (p,)."""
        chunks = self.data.features.split(_CHUNK)
        with self._summed(self.size) as (total,):
            for X, hessian in zip(chunks, self._logit_hessians(), strict=True):
                total += self._curved(X.to(self.device), hessian, v)
        return total / self.n + self.l2 * v

    def _logit_hessians(self) -> Iterator[LogitHessian]:
        """The second derivative of each chunk's rows; kept if that fits."""
        if self._hessians:
            yield from self._hessians
            return
        fits = 8 * self.data.n * self.K <= DOUBLE_BYTES
        kept: list[LogitHessian] = []
        for X in self.data.features.split(_CHUNK):
            hessian = self._hessian_of(X.to(self.device))
            if fits:
                kept.append(hessian)
            yield hessian
        self._hessians = kept

    def _hessian_of(self, X: Tensor) -> LogitHessian:
        return self.link.hessian(self.logits(X, self.at.to(X.dtype)))

    def sampled_hvp(
        self, v: Vector, batch_size: int, generator: torch.Generator
    ) -> Vector:
        """Hessian of one random mini-batch at `self.at`, plus l2, times v."""
        drawn = torch.randint(self.n, (batch_size,), generator=generator)
        with self._summed(self.size) as (total,):
            X = self._rows(self._here(drawn)[1])
            total += self._curved(X, self._hessian_of(X), v)
        return total / batch_size + self.l2 * v

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
        hessian = self._hessian_of(X)

        def products(v: Vector) -> Vector:
            with self._summed(self.size) as (total,):
                curved = hessian.times(self.logits(X, v.to(X.dtype)))
                total += self._pull_back(X, curved * counts).double()
            return total + self.l2 * v

        return products

    def draw(self, samples: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Rows drawn as in `proxy`: those of this process, and how much each counts.

        Returns:
            (m, d) and (m, 1); m adds up to `samples` over all processes.
        """
        chunks = self.data.features.split(_CHUNK)
        with self._summed(self.n) as (importance,):
            importance[self._places.to(importance.device)] = torch.cat(
                [
                    hessian.trace().double() * (X.double().square().sum(1) + self.bias)
                    for X, hessian in zip(chunks, self._logit_hessians(), strict=True)
                ]
            ).to(importance.device)
        # Saturated rows curve nothing: none may have probability exactly zero.
        importance = importance + 1e-6 * importance.mean() + 1e-300
        q = (importance / importance.sum()).cpu()
        drawn = torch.multinomial(q, samples, True, generator=generator)
        drawn, rows = self._here(drawn)
        X = self._rows(rows)
        return X, (1 / (samples * self.n * q[drawn]))[:, None].to(X)

    def _here(self, drawn: Tensor) -> tuple[Tensor, Tensor]:
        """Those of some of the n rows that this process has, and where it has them."""
        if self.processes.world == 1:
            return drawn, drawn
        here = torch.full((self.n,), -1)
        here[self._places] = torch.arange(self.data.n)
        drawn = drawn[here[drawn] >= 0]
        return drawn, here[drawn]

    def _summed(self, *sizes: int) -> AbstractContextManager[list[Vector]]:
        return self.processes.summed(*sizes, device=self.device)

    def _rows(self, places: Tensor) -> Tensor:
        features = self.data.features
        return features[places.to(features.device)].to(self.device)

    def _curved(self, X: Tensor, hessian: LogitHessian, v: Vector) -> Vector:
        """Summed Hessian of some rows times v, in the dtype of the rows."""
        U = hessian.times(self.logits(X, v.to(X.dtype)))
        return self._pull_back(X, U).double()


def _largest(x: Tensor) -> Tensor:
    """The largest entry; 0 if there is none."""
    return x.max() if x.numel() else x.new_zeros(())
