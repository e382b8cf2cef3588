"""A head's Hessian from some of its rows, and a rough inverse of that.

They say where to go and prove nothing.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_unlearn.step.head.links import LogitHessian
from lightning_unlearn.step.head.rows.feature_data import FeatureData
from lightning_unlearn.weights.processes import Processes
from lightning_unlearn.weights.scope import Vector

_BUILDING = 0.5  # of a pass: what the rough inverse may cost
_RESOLVED = 1e-5  # of the largest eigenvalue
_EIGEN = 9  # k^3 multiplications and additions of an eigendecomposition


class Drawn(NamedTuple):
    """Rows that were drawn: those of this process.

    Attributes:
        rows: The rows.
        counts: How much each counts (m, 1).
        order: Their places in the draw (m,), int64.
    """

    rows: FeatureData
    counts: Tensor
    order: Tensor


def spread(
    importance: Float[Tensor, " n"], samples: int, generator: torch.Generator
) -> tuple[Tensor, Float[Tensor, " m"]]:
    """Rows drawn without replacement, by importance: systematic sampling.

    A row is in with a probability proportional to its importance, and surely where
    that would be more than 1. Rows laid in random order on a line, as long as they
    are likely, are met by m equally spaced points: the least variance for the least
    work (Madow 1949).

    Args:
        importance: > 0.
        samples: m, at most n.
        generator: Of the draws.

    Returns:
        The rows (m,) in random order, and 1 over the probability of each.
    """
    sure = torch.zeros(len(importance), dtype=torch.bool)
    while True:
        rest = importance.masked_fill(sure, 0)
        likely = rest * ((samples - int(sure.sum())) / rest.sum().clamp_min(1e-300))
        likely[sure] = 1
        if not bool((likely > 1).any()):
            break
        sure |= likely >= 1
    order = torch.randperm(len(likely), generator=generator)
    ends = likely[order].cumsum(0)
    start = torch.rand(1, generator=generator, dtype=torch.float64)
    points = (torch.arange(samples, dtype=torch.float64) + start) * (ends[-1] / samples)
    met = torch.searchsorted(ends, points, right=True).clamp_max(len(order) - 1)
    drawn = order[met]
    return drawn, 1 / likely[drawn]


class RoughInverse:
    """Of ``a_k S + l2`` for each output k: rows are taken to bend all outputs alike.

    Args:
        basis: Eigenvectors of S (D, r), the largest ones.
        values: Their eigenvalues (r,), >= 0.
        a: Curvature of each output (K,), >= 0.
        l2: Coefficient of the regulariser.
        bias: Whether the last of the D entries of a row belongs to a bias.
        built: Multiplications and additions that it cost.
    """

    def __init__(
        self,
        basis: Float[Tensor, "D r"],
        values: Float[Tensor, " r"],
        a: Float[Tensor, " K"],
        l2: float,
        bias: bool,
        built: float,
    ) -> None:
        self.basis, self.bias, self.built = basis, bias, built
        self.divisors = a[:, None] * values + l2  # (K, r)
        whole = basis.shape[0] == basis.shape[1]
        # What lies beside the basis bends less than anything in it.
        self.beside = None if whole else self.divisors.amin(1, keepdim=True)

    def __call__(self, v: Vector) -> Vector:
        """The inverse times v."""
        K, d = len(self.divisors), len(self.basis) - self.bias
        W = v.to(self.basis.dtype)
        parts = [W[: K * d].view(K, d)]
        if self.bias:
            parts.append(W[K * d :, None])
        W = torch.cat(parts, dim=1)  # (K, D)
        inside = W @ self.basis  # (K, r)
        scaled = inside / self.divisors
        if self.beside is not None:
            scaled = scaled - inside / self.beside
        found = scaled @ self.basis.T
        if self.beside is not None:
            found += W / self.beside
        return torch.cat([found[:, :d].reshape(-1), found[:, d:].reshape(-1)]).to(v)


class RowProxy:
    """Products with the Hessian of m rows; see `Preconditioned`.

    Args:
        products: v -> the Hessian of the rows, regulariser included, times v.
        near: Its rough inverse, or None if none could be made.
        samples: m.
        n: Rows in one pass.
        size: Number of weights, p.
    """

    def __init__(
        self,
        products: Callable[[Vector], Vector],
        near: RoughInverse | None,
        *,
        samples: int,
        n: int,
        size: int,
    ) -> None:
        self.products, self.near = products, near
        built, rank = (0.0, 0) if near is None else (near.built, near.basis.shape[1])
        self.built = samples / (2 * n) + built / (4 * n * size)
        self.cost = (samples + rank) / n

    def __call__(self, v: Vector) -> Vector:
        """The Hessian of the rows times v."""
        return self.products(v)

    def inverse(self, v: Vector) -> Vector:
        """A matrix near its inverse times v."""
        return v if self.near is None else self.near(v)


def rough_inverse(
    drawn: Drawn,
    hessian: LogitHessian,
    *,
    samples: int,
    n: int,
    bias: bool,
    l2: float,
    processes: Processes,
) -> RoughInverse | None:
    """That of the Hessian of some rows, from a part of them.

    The Hessian is ``sum_i c_i M_i (x) x_i x_i'``. Taken as if a row's curvature M_i and
    its direction had nothing to do with each other it is ``diag(a) (x) S``, with a the
    curvatures of the outputs and S the rows' mean of x x' by curvature: one
    eigendecomposition serves all outputs.

    Args:
        drawn: The rows of this process.
        hessian: Of their losses in the logits.
        samples: m, rows drawn over all processes.
        n: Rows in one pass.
        bias: Whether the head has one.
        l2: Coefficient of the regulariser.
        processes: Those that share the rows.

    Returns:
        None where the rows or their curvatures overflow.
    """
    X, order = drawn.rows.features, drawn.order.to(drawn.counts.device)
    curvatures = drawn.counts * hessian.curvatures()  # (m, K)
    K, D = curvatures.shape[1], X.shape[1] + bias
    taken, built = _few(samples, n, D, K)
    some = order < taken
    sizes = (taken * D, K, 1)
    with processes.summed(*sizes, dtype=X.dtype, device=X.device) as (flat, a, total):
        rows, by_row = flat.view(taken, D), curvatures[some].sum(1, keepdim=True)
        rows[order[some]] = by_row.sqrt() * _with_one(X[some], bias)
        a += curvatures.sum(0)
        total += by_row.sum()
    found = _largest(rows / total.sqrt())
    if found is None or not bool(torch.isfinite(a).all()):
        return None
    return RoughInverse(*found, a, l2, bias, built)


def _with_one(X: Tensor, bias: bool) -> Tensor:
    return torch.cat([X, torch.ones_like(X[:, :1])], dim=1) if bias else X


def _few(samples: int, n: int, D: int, K: int) -> tuple[int, float]:
    """Rows that make S: twice as many as its columns, unless they cost too much.

    Returns:
        Rows, and the multiplications and additions they take.
    """
    taken = min(samples, 2 * D)
    while True:
        short = min(taken, D)
        built = _EIGEN * short**3 + 2 * taken * D * short
        if built <= _BUILDING * 4 * n * K * D or taken <= 1:
            return taken, float(built)
        taken //= 2


def _largest(rows: Float[Tensor, "r D"]) -> tuple[Tensor, Tensor] | None:
    """Eigenvectors (D, k) and eigenvalues (k,) of rows' rows; None if they overflow."""
    r, D = rows.shape
    gram = rows @ rows.T if r < D else rows.T @ rows
    if not bool(torch.isfinite(gram).all()):
        return None
    values, vectors = torch.linalg.eigh(gram)
    if r >= D:
        return vectors, values.clamp_min(0)
    kept = values > _RESOLVED * values[-1]  # else the division below is by rounding
    values = values[kept]
    return rows.T @ vectors[:, kept] / values.sqrt(), values
