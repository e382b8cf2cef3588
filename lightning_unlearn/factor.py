"""A Cholesky factor near the Hessian of a head: Newton directions without products."""

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_unlearn.convex import ConvexObjective
from lightning_unlearn.errors import SolverError
from lightning_unlearn.scope import Vector


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
    if rows < objective.data.n:
        X, counts = objective.draw(rows, generator)
    else:
        X = objective.data.features
        counts = torch.full_like(X[:, :1], 1 / objective.data.n)
    H = _hessian(objective, X.float(), counts.float())
    H.diagonal().add_(objective.l2)
    lower, failed = torch.linalg.cholesky_ex(H)
    if int(failed) or not bool(torch.isfinite(lower).all()):
        raise SolverError(
            "expected a positive definite Hessian in single precision, got one that "
            f"is not, with l2={objective.l2:g}: raise l2, or go without a factor"
        )
    return Factor(lower)


def _hessian(objective: ConvexObjective, X: Tensor, counts: Tensor) -> Tensor:
    K, d = objective.K, objective.d
    Z = objective.logits(X, objective.at.float())
    H = torch.zeros(objective.size, objective.size, device=X.device)
    places = [slice(a * d, (a + 1) * d) for a in range(K)]
    for a in range(K):
        unit = torch.zeros_like(Z)
        unit[:, a] = 1
        column = objective.link.curvature(Z, unit) * counts  # (m, K)
        for b in range(a, K):
            if not bool(column[:, b].any()):
                continue
            weighted = X * column[:, b : b + 1]
            H[places[a], places[b]] = X.T @ weighted
            if objective.bias:
                ends = K * d + a, K * d + b
                cross = weighted.sum(0)
                H[places[a], ends[1]] = H[places[b], ends[0]] = cross
                H[ends[0], places[b]] = H[ends[1], places[a]] = cross
                H[ends] = H[ends[::-1]] = column[:, b].sum()
            H[places[b], places[a]] = H[places[a], places[b]].T
    return H
