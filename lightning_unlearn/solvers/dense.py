"""The dense solver: the matrix column by column, then Cholesky."""

from dataclasses import dataclass

import torch

from lightning_unlearn._base import validate
from lightning_unlearn.errors import SolverError
from lightning_unlearn.solvers.base import Operator, Solution, Status, residual_norm
from lightning_unlearn.solvers.observer import NOBODY, Observer, watched
from lightning_unlearn.weights.scope import Vector


@dataclass(frozen=True)
class Dense:
    """Direct solve for small p: p products, p^2 memory, a Cholesky factor.

    Args:
        max_size: Refuse matrices with more rows than this.
    """

    max_size: int = 3000

    def __post_init__(self) -> None:
        validate.count(max_size=self.max_size)

    def solve(self, A: Operator, b: Vector, observer: Observer = NOBODY) -> Solution:
        """Solve A x = b.

        Raises:
            SolverError: If A has more than max_size rows.
        """
        if A.size > self.max_size:
            raise SolverError(
                f"expected at most max_size={self.max_size} weights for the dense "
                f"solver, got {A.size}: use CG, or raise max_size"
            )
        eye = torch.eye(A.size, dtype=b.dtype, device=b.device)
        matvec = watched(A.matvec, A.size, observer)
        matrix = torch.stack([matvec(e) for e in eye])
        factor, info = torch.linalg.cholesky_ex((matrix + matrix.T) / 2)
        indefinite = bool(info) or not bool(torch.isfinite(factor).all())
        x = torch.zeros_like(b)
        if not indefinite:
            x = torch.cholesky_solve(b[:, None], factor)[:, 0]
        return Solution(
            x=x,
            residual=residual_norm(A, x, b),
            status=Status.INDEFINITE if indefinite else Status.CONVERGED,
            steps=1,
            matvecs=float(A.size + 1),
            method="dense Cholesky",
        )
