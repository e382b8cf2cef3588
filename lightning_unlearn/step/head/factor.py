"""An inverse near that of a head's Hessian: Newton directions without products."""

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_unlearn.errors import SolverError
from lightning_unlearn.step.head.convex_objective import ConvexObjective
from lightning_unlearn.step.head.rows.feature_data import FeatureData
from lightning_unlearn.weights.scope import Vector

_CHUNK = 8192  # rows
_COLUMNS = 512  # multiplied at once, so that many small blocks take few products
# Multiplications a factor of all rows may cost to be cheaper than products: measured on
# scikit-learn's digits and 64 features of CIFAR-100, where it is 2 times faster.
_CHEAP = 3e9


class Factor:
    """An inverse near that of the Hessian, in single precision: it proves nothing.

    A product with it reads p^2 floats once; two triangular solves take five times as
    long.

    Args:
        inverse: Symmetric, (p, p).
    """

    def __init__(self, inverse: Float[Tensor, "p p"]) -> None:
        self.inverse = inverse

    def solve(self, b: Vector) -> Vector:
        """The inverse times b, both (p,)."""
        return (self.inverse @ b.to(self.inverse.dtype)).to(b.dtype)


def cheap_factor(
    objective: ConvexObjective,
) -> Callable[[], Factor | None] | None:
    """Factors all rows at ``objective.at``, for heads so small that this is fastest."""
    p, n, K = objective.size, objective.n, objective.K
    # Products, Cholesky, and what is done entry by entry, which is dearer.
    if n * p**2 + p**3 / 3 + 20 * n * K**2 > _CHEAP:
        return None
    return partial(try_factorise, objective, n, torch.Generator())


def try_factorise(
    objective: ConvexObjective, rows: int, generator: torch.Generator
) -> Factor | None:
    """`factorise`, or None where single precision cannot hold the Hessian.

    A factor only saves time: without one the head is solved by products.
    """
    try:
        return factorise(objective, rows, generator)
    except SolverError:
        return None


def factorise(
    objective: ConvexObjective, rows: int, generator: torch.Generator
) -> Factor:
    """Factor of the Hessian at ``objective.at`` from rows drawn by their curvature.

    Costs ``p^2 rows`` multiplications and 4 p^2 floats for a moment. With rows = 2p a
    Newton step divides the gradient by two to four, with 4p by three to five, with all
    of 60,000 by about ten (7,850 weights on MNIST, up to 1,000 forgotten).

    Args:
        objective: F of the head.
        rows: Drawn with replacement; all are used once if there are no more.
        generator: Of the draws.

    Returns:
        The factor, regulariser included.

    Raises:
        SolverError: If the matrix is not positive definite in single precision.
    """
    data, device = objective.data, objective.at.device
    K, D = objective.K, objective.d + objective.bias
    drawn = objective.draw(rows, generator) if rows < objective.n else None
    size, single = (K * D) ** 2, torch.float32
    with objective.processes.summed(size, dtype=single, device=device) as (total,):
        blocks = total.view(K, D, K, D)
        if drawn is not None:
            _add_hessian(blocks, objective, drawn.rows, drawn.counts)
        else:
            for part in data.split(_CHUNK):
                counts = torch.full((part.n, 1), 1 / objective.n, device=device)
                _add_hessian(blocks, objective, part, counts)
    H = _in_order(blocks, objective.bias)
    H.diagonal().add_(objective.l2)
    lower, failed = torch.linalg.cholesky_ex(H)
    inverse = torch.cholesky_inverse(lower) if not int(failed) else lower
    if int(failed) or not bool(torch.isfinite(inverse).all()):
        raise SolverError(
            "expected a positive definite Hessian in single precision, got one that "
            f"is not, with l2={objective.l2:g}: raise l2, or go without a factor"
        )
    return Factor(inverse)


def _add_hessian(
    blocks: Float[Tensor, "K D K D"],
    objective: ConvexObjective,
    rows: FeatureData,
    n: Tensor,
) -> None:
    """Add the Hessian of m rows X, counted n (m, 1) times each, to its blocks.

    Only those of outputs a <= b: X' diag(h_ab) X, where h is each row's d2 loss / d z2.
    """
    K, D = blocks.shape[:2]
    hessian = objective.hessian_of(rows, torch.float32)
    X, n = rows.features.to(n.device, torch.float32), n.float()
    if objective.bias:
        X = torch.cat([X, torch.ones_like(X[:, :1])], dim=1)  # (m, D)
    unit, together = torch.zeros(len(X), K, device=X.device), max(1, _COLUMNS // D)
    for a in range(K):
        unit.zero_()[:, a] = 1
        h = hessian.times(unit) * n  # (m, K)
        for b in range(a, a + 1 if hessian.diagonal else K, together):
            end = min(b + together, a + 1 if hessian.diagonal else K)
            right = h[:, b:end, None] * X[:, None, :]  # (m, k, D)
            block = X.T @ right.flatten(1)
            blocks[a, :, b:end] += block.view(D, end - b, D)


def _in_order(blocks: Float[Tensor, "K D K D"], bias: bool) -> Float[Tensor, "p p"]:
    """The whole matrix in the order of the weights: weight (K, d), then bias (K,)."""
    K, D = blocks.shape[:2]
    d = D - bias
    H = torch.empty(K * D, K * D, device=blocks.device)
    parts = [(slice(0, d), slice(0, K * d), d)]
    if bias:
        parts.append((slice(d, D), slice(K * d, K * D), 1))
    for rows, at_rows, height in parts:
        for columns, at_columns, width in parts:
            part = blocks[:, rows][..., columns]
            H[at_rows, at_columns] = part.reshape(K * height, K * width)
    return _mirrored(H, K, d, bias)


def _mirrored(
    H: Float[Tensor, "p p"], K: int, d: int, bias: bool
) -> Float[Tensor, "p p"]:
    """Fill the blocks of outputs a > b from those of a < b."""
    output = torch.arange(K, device=H.device).repeat_interleave(d)
    if bias:
        output = torch.cat([output, torch.arange(K, device=H.device)])
    upper = output[:, None] <= output[None, :]
    return torch.where(upper, H, H.T)
