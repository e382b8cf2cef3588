"""A Cholesky factor near the Hessian of a head: Newton directions without products."""

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_unlearn.convex import ConvexObjective
from lightning_unlearn.errors import SolverError
from lightning_unlearn.scope import Vector

_CHUNK = 8192
# Multiplications a factor of all rows may cost to be cheaper than products: measured on
# scikit-learn's digits and 64 features of CIFAR-100, where it is 2 times faster.
_CHEAP = 4e9
_CHEAP_SIZE = 4000  # weights


class Factor:
    """``L L'`` near the Hessian, in single precision: it speeds up, it proves nothing.

    Args:
        lower: L, lower triangular, (p, p).
    """

    def __init__(self, lower: Float[Tensor, "p p"]) -> None:
        self.lower = lower

    def solve(self, b: Vector) -> Vector:
        """(L L')^-1 b, both (p,)."""
        column = b.to(self.lower.dtype)[:, None]
        return torch.cholesky_solve(column, self.lower)[:, 0].to(b.dtype)


def cheap_factor(
    objective: ConvexObjective,
) -> Callable[[], Factor | None] | None:
    """Factors all rows at ``objective.at``, for heads so small that this is fastest."""
    p, n = objective.size, objective.data.n
    if p > _CHEAP_SIZE or n * p**2 > _CHEAP:
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

    Costs ``K^2 d^2 rows`` multiplications and p^2 floats. With rows = 2p a Newton step
    divides the gradient by two to four, with 4p by three to five, with all of 60,000 by
    about ten (7,850 weights on MNIST, up to 1,000 forgotten).

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
    H = torch.zeros(objective.size, objective.size, device=device)
    if rows < data.n:
        X, counts = objective.draw(rows, generator)
        _add_hessian(H, objective, X.float(), counts.float())
    else:
        for X in data.features.split(_CHUNK):
            counts = torch.full((len(X), 1), 1 / data.n, device=device)
            _add_hessian(H, objective, X.to(device, torch.float32), counts)
    H.diagonal().add_(objective.l2)
    lower, failed = torch.linalg.cholesky_ex(H)
    if int(failed) or not bool(torch.isfinite(lower).all()):
        raise SolverError(
            "expected a positive definite Hessian in single precision, got one that "
            f"is not, with l2={objective.l2:g}: raise l2, or go without a factor"
        )
    return Factor(lower)


def _add_hessian(
    H: Tensor, objective: ConvexObjective, X: Tensor, counts: Tensor
) -> None:
    """Add the Hessian of some rows, each times its count, to H."""
    K, d = objective.K, objective.d
    Z = objective.logits(X, objective.at.float())
    bend = objective.link.bend(Z)
    for a in range(K):
        unit = torch.zeros_like(Z)
        unit[:, a] = 1
        column = bend.times(unit) * counts  # (m, K)
        for b in range(a, K):
            if bool(column[:, b].any()):
                _add_block(H, X, column[:, b : b + 1], (a, b), (K, d), objective.bias)


def _add_block(
    H: Tensor,
    X: Tensor,
    column: Tensor,
    block: tuple[int, int],
    shape: tuple[int, int],
    bias: bool,
) -> None:
    """Add the block of outputs a and b, weights and biases, and its mirror image."""
    (a, b), (K, d) = block, shape
    at_a, at_b = slice(a * d, (a + 1) * d), slice(b * d, (b + 1) * d)
    end_a, end_b = K * d + a, K * d + b
    weighted = X * column
    weights, cross, both = X.T @ weighted, weighted.sum(0), column.sum()
    H[at_a, at_b] += weights
    if bias:
        H[at_a, end_b] += cross
        H[end_b, at_a] += cross
        H[end_a, end_b] += both
    if a != b:
        H[at_b, at_a] += weights.T
        if bias:
            H[at_b, end_a] += cross
            H[end_a, at_b] += cross
            H[end_b, end_a] += both
