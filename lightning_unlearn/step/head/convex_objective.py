"""The objective of a `ConvexHead`, in closed form, in float64.

The head's features and targets are captured from the user's own loss function, so
that what is certified is what was trained; from then on a pass is two matrix
products and no automatic differentiation is involved.
"""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from lightning_unlearn._base import validate
from lightning_unlearn.guarantee.rounding import gradient_rounding_upper
from lightning_unlearn.step.head.convex_head import ConvexHead
from lightning_unlearn.step.head.links import LogitHessian
from lightning_unlearn.step.head.rows.drawn_rows import (
    Drawn,
    RowProxy,
    rough_inverse,
    spread,
)
from lightning_unlearn.step.head.rows.feature_data import FeatureData
from lightning_unlearn.weights.processes import ALONE, Processes
from lightning_unlearn.weights.scope import Vector, plain_dot

_CHUNK = 4096
#: Rows are kept in float64 between passes up to this size; casting them anew costs
#: more than multiplying with them.
DOUBLE_BYTES = 1 << 30


class ConvexObjective:
    """F of a `ConvexHead` over captured rows; l2-strongly convex when l2 > 0.

    Weights are given as flat vectors (p,) float64 in the order weight, bias. Every
    per-sample Hessian in the logits is positive semidefinite (`links.LINKS`), so is
    it times the weight of a sample, which is >= 0; an affine map keeps convexity, and
    ``(l2/2)|w|^2`` covers every weight: mu = l2. The mean is over samples, whatever
    their weights.

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
        self._double: list[FeatureData] | None = None
        self._row_norm: float | None = None
        self._squares: Tensor | None = None
        self._hessians: list[LogitHessian] = []
        self._logits: list[Tensor] = []  # where a gradient was taken last
        self._logits_at: Vector | None = None
        self.at: Vector = torch.zeros(self.size, dtype=torch.float64)

    def set_hessian_at(self, w: Vector) -> float:
        """Take curvature at w (p,) from now on.

        Returns:
            Passes: the half of one that gives logits, where no gradient gave them.
        """
        self.at, self._hessians = w, []
        known = self._logits_at is w and len(self._logits) > 0
        return 0.0 if known else 0.5

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

    def _chunks(self, keep: bool = True) -> Iterator[FeatureData]:
        """The rows in float64, a chunk at a time; kept if all of them fit."""
        if self._double is not None:
            yield from self._double
            return
        kept: list[FeatureData] = []
        for part in self.data.split(_CHUNK):
            chunk = self._here_as(part, torch.float64)
            if keep and self._fits:
                kept.append(chunk)
            yield chunk
        self._double = kept or None

    def _here_as(self, rows: FeatureData, dtype: torch.dtype) -> FeatureData:
        """Rows on the device, their floats in a dtype."""
        y, weights = rows.targets.to(self.device), rows.weights
        return FeatureData(
            rows.features.to(self.device, dtype),
            y.to(dtype) if y.is_floating_point() else y,
            None if weights is None else weights.to(self.device, dtype),
        )

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
                parts = self._chunks(keep=False)  # wanted once, if nothing else is
                rows = [_largest(c.features.norm(dim=1)) for c in parts]
                longest[self.processes.rank] = torch.stack(rows).max()
            found = float(longest.max() ** 2 + self.bias) ** 0.5
        self._row_norm = found
        return found

    def rough_gradient(self, w: Vector) -> Vector:
        """The gradient (p,) at w by products in the rows' own dtype.

        It says where to go, never that one has arrived.
        """
        own = w.to(self._own)
        self._forget_logits(w)
        with self._summed(self.size) as (total,):
            for part in self.data.split(_CHUNK):
                part = self._here_as(part, own.dtype)
                Z, D = self._residual(part, own)
                total += self._pull_back(part.features, D)
                self._keep_logits(Z)
        return total / self.n + self.l2 * w

    def gradient(self, w: Vector) -> tuple[Vector, float]:
        """The gradient (p,) at w and a bound on its rounding error.

        Returns:
            (gradient, bound on |computed - exact gradient|); the bound is infinite
            where exponentials overflow.
        """
        world, rank = self.processes.world, self.processes.rank
        self._forget_logits(w)
        with self._summed(self.size, 3 * world) as (total, all_sizes):
            sizes = all_sizes.view(world, 3)  # of each process; NaN stays NaN
            for part in self._chunks():
                Z, D = self._residual(part, w)
                total += self._pull_back(part.features, D)
                sizes[rank] = torch.maximum(sizes[rank], _sizes(part, Z, D))
                self._keep_logits(Z)
        gradient = total / self.n + self.l2 * w
        residuals, logits, heaviest = sizes.amax(0).tolist()
        lipschitz = heaviest * self.link.lipschitz(logits + 1e-6, self.K)
        weight_norm = float(w.norm())
        found = (residuals, lipschitz, weight_norm, self.feature_norm)
        if not all(map(math.isfinite, found)):
            return gradient, math.inf  # exponentials overflow: nothing is known of it
        rounding = gradient_rounding_upper(
            n_retain=self.n,
            n_features=self.d + self.bias,
            n_outputs=self.K,
            row_norm=self.feature_norm * (1 + 1e-8),
            weight_norm=weight_norm * (1 + 1e-8),
            link_residual_norm=residuals * (1 + 1e-8),
            link_lipschitz=lipschitz,
            link_norm=heaviest * self.link.norm(logits + 1e-6, self.K),
            l2=self.l2,
        )
        return gradient, rounding

    def shift_upper(self, w: Vector, difference: float) -> float:
        """How far the minimiser moves, at most, if every row moves by so much.

        At the minimiser w of these rows the gradient of the others is at most
        ``(B + L |W| (R + eta)) eta``, with eta the difference, B the largest residual,
        L its Lipschitz constant (sample weights included), R the largest row: a
        sample's part is D x', and
        |D' x' - D x| <= |D' - D| |x'| + |D| |x' - x|, |D' - D| <= L |W| eta
        (docs/theory.md section 4). Divided by l2 that bounds the distance.

        Args:
            w: The minimiser (p,), as near as it is known.
            difference: eta, a bound on the distance of two rows of one sample.

        Returns:
            The distance; infinite where exponentials overflow.
        """
        world, rank = self.processes.world, self.processes.rank
        weights = float(w[: self.K * self.d].norm())
        with self._summed(3 * world) as (all_sizes,):
            sizes = all_sizes.view(world, 3)
            for part in self._chunks():
                found = _sizes(part, *self._residual(part, w))
                sizes[rank] = torch.maximum(sizes[rank], found)
        residuals, logits, heaviest = sizes.amax(0).tolist()
        beyond = logits + weights * difference
        lipschitz = heaviest * self.link.lipschitz(beyond, self.K)
        longest = self.feature_norm + difference
        moved = (residuals + lipschitz * weights * longest) * difference / self.l2
        return moved if math.isfinite(moved) else math.inf

    def hvp(self, v: Vector) -> Vector:
        """Hessian at `self.at` times v, both (p,)."""
        chunks = self.data.features.split(_CHUNK)
        with self._summed(self.size) as (total,):
            for X, hessian in zip(chunks, self._logit_hessians(), strict=True):
                total += self._curved(X.to(self.device), hessian, v)
        return total / self.n + self.l2 * v

    def _residual(self, rows: FeatureData, w: Vector) -> tuple[Tensor, Tensor]:
        """Logits (n, K) of some rows, and the losses' derivatives there."""
        Z = self.logits(rows.features, w)
        return Z, self.link.residual(Z, rows.targets, rows.weights)

    def _logit_hessians(self) -> Iterator[LogitHessian]:
        """The second derivative of each chunk's rows; kept if that fits."""
        if self._hessians:
            yield from self._hessians
            return
        known = self._logits if self._logits_at is self.at else []
        kept: list[LogitHessian] = []
        for i, part in enumerate(self.data.split(_CHUNK)):
            if known:
                weights = self._here_as(part, part.features.dtype).weights
                hessian = self.link.hessian(known[i], weights)
            else:
                hessian = self.hessian_of(part, part.features.dtype)
            if self._logits_fit:
                kept.append(hessian)
            yield hessian
        self._hessians = kept
        self._forget_logits(None)

    @property
    def _logits_fit(self) -> bool:
        return 8 * self.data.n * self.K <= DOUBLE_BYTES

    def _forget_logits(self, w: Vector | None) -> None:
        self._logits, self._logits_at = [], w

    def _keep_logits(self, Z: Tensor) -> None:
        """Those of the next chunk, for the curvature there."""
        if self._logits_fit:
            self._logits.append(Z.to(self._own))

    def hessian_of(self, rows: FeatureData, dtype: torch.dtype) -> LogitHessian:
        """The second derivative of some rows' losses in their logits, at `self.at`."""
        rows = self._here_as(rows, dtype)
        Z = self.logits(rows.features, self.at.to(dtype))
        return self.link.hessian(Z, rows.weights)

    def sampled_hvp(
        self, v: Vector, batch_size: int, generator: torch.Generator
    ) -> Vector:
        """Hessian of one random mini-batch at `self.at`, plus l2, times v."""
        drawn = torch.randint(self.n, (batch_size,), generator=generator)
        with self._summed(self.size) as (total,):
            rows = self._rows(self._here(drawn)[1])
            hessian = self.hessian_of(rows, rows.features.dtype)
            total += self._curved(rows.features, hessian, v)
        return total / batch_size + self.l2 * v

    def proxy(self, samples: int, generator: torch.Generator) -> RowProxy:
        """The Hessian at `self.at` from rows drawn by how much they curve F.

        Row i is drawn with a probability q_i proportional to ``(trace of its Hessian
        in the logits) |x_i|^2``, the trace of its Hessian in the weights, at most 1,
        and counts 1/(n q_i): unbiased, positive definite, and close where F bends.

        Args:
            samples: m, rows to draw; at most all n are, once each.
            generator: Of the draws.

        Returns:
            Products with a cheaper matrix near the Hessian, regulariser included.
        """
        samples = min(samples, self.n)
        drawn = self.draw(samples, generator)
        X, hessian = drawn.rows.features, self.hessian_of(drawn.rows, self._own)

        def products(v: Vector) -> Vector:
            with self._summed(self.size) as (total,):
                curved = hessian.times(self.logits(X, v.to(X.dtype)))
                total += self._pull_back(X, curved * drawn.counts).double()
            return total + self.l2 * v

        near = rough_inverse(
            drawn,
            hessian,
            samples=samples,
            n=self.n,
            bias=self.bias,
            l2=self.l2,
            processes=self.processes,
        )
        return RowProxy(products, near, samples=samples, n=self.n, size=self.size)

    def draw(self, samples: int, generator: torch.Generator) -> Drawn:
        """Rows drawn as in `proxy`."""
        with self._summed(self.n) as (importance,):
            importance[self._places.to(importance.device)] = (
                torch.cat([h.curvatures().sum(1) for h in self._logit_hessians()])
                .to(importance)
                .mul(self._squared_norms().to(importance))
            )
        # Saturated rows curve nothing: none may have probability exactly zero.
        importance = importance + 1e-6 * importance.mean() + 1e-300
        drawn, counts = spread(importance.cpu(), samples, generator)
        order, rows = self._here(drawn)
        found, counts = self._rows(rows), counts[order] / self.n
        return Drawn(found, counts[:, None].to(found.features), order)

    def _squared_norms(self) -> Tensor:
        """Of the rows of this process, the 1 of the bias included."""
        if self._squares is None:
            chunks = self.data.features.split(_CHUNK)
            norms = [torch.linalg.vector_norm(X, dim=1) for X in chunks]
            self._squares = torch.cat(norms).double().square() + self.bias
        return self._squares

    def _here(self, drawn: Tensor) -> tuple[Tensor, Tensor]:
        """Which of some of the n rows this process has, and where it has them."""
        if self.processes.world == 1:
            return torch.arange(len(drawn)), drawn
        here = torch.full((self.n,), -1)
        here[self._places] = torch.arange(self.data.n)
        order = (here[drawn] >= 0).nonzero()[:, 0]
        return order, here[drawn[order]]

    @property
    def _own(self) -> torch.dtype:
        return self.data.features.dtype

    def _summed(self, *sizes: int) -> AbstractContextManager[list[Vector]]:
        return self.processes.summed(*sizes, device=self.device)

    def _rows(self, places: Tensor) -> FeatureData:
        return self._here_as(self.data[places], self._own)

    def _curved(self, X: Tensor, hessian: LogitHessian, v: Vector) -> Vector:
        """Summed Hessian of some rows times v, in the dtype of the rows."""
        U = hessian.times(self.logits(X, v.to(X.dtype)))
        return self._pull_back(X, U).double()


def _largest(x: Tensor) -> Tensor:
    """The largest entry; 0 if there is none."""
    return x.max() if x.numel() else x.new_zeros(())


def _sizes(rows: FeatureData, Z: Tensor, D: Tensor) -> Tensor:
    """Of some rows: the largest residual, logit and weight."""
    weights = Z.new_ones(1) if rows.weights is None else rows.weights
    return torch.stack([_largest(x) for x in (D.norm(dim=1), Z.abs(), weights)])
