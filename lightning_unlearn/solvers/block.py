"""Block conjugate gradients: several right-hand sides share their directions."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_unlearn import _validate
from lightning_unlearn.errors import ArgumentError
from lightning_unlearn.solvers.base import Operator, Solution, Status, residual_norm


@dataclass(frozen=True)
class BlockCG:
    """Conjugate gradients for ``A X = B`` with a few columns at once.

    O'Leary 1980, in the form of Dubrulle 2001 (BCGrQ), whose orthogonalised residuals
    stand columns that are nearly dependent. Every step costs a product for each column
    and searches all their directions together, so that fewer steps are needed than
    column by column where A has a few directions that are hard for all of them.

    Args:
        rtol: Stop when every column's residual is at most rtol times its norm.
        max_steps: Steps at most.
    """

    rtol: float = 1e-2
    max_steps: int = 1000

    def __post_init__(self) -> None:
        _validate.positive(rtol=self.rtol)
        _validate.count(max_steps=self.max_steps)

    def solve(self, A: Operator, B: Float[Tensor, "p k"]) -> list[Solution]:
        """Solve A X = B from X = 0, with one more product a column for the residuals.

        Args:
            A: The operator.
            B: Right-hand sides, one a column; no more than A has rows.

        Returns:
            A solution for each column. ``matvecs`` are those of the column's share.

        Raises:
            ArgumentError: If B is no matrix, has no column or more than rows.
        """
        if B.dim() != 2 or not 1 <= B.shape[1] <= len(B):
            raise ArgumentError(
                f"expected right-hand sides of shape (p, k), 1 <= k <= p, got "
                f"{tuple(B.shape)}: one a column"
            )
        k = B.shape[1]
        X, steps, status = self._iterate(A, B)
        return [
            Solution(
                x=X[:, j].contiguous(),
                residual=residual_norm(A, X[:, j].contiguous(), B[:, j]),
                status=status,
                steps=steps,
                matvecs=steps + 1.0,
                method=f"block conjugate gradients, {k} right-hand sides",
            )
            for j in range(k)
        ]

    def _iterate(
        self, A: Operator, B: Float[Tensor, "p k"]
    ) -> tuple[Float[Tensor, "p k"], int, Status]:
        X = torch.zeros_like(B)
        Q, S = torch.linalg.qr(B)  # the residual is Q S
        P, target = Q, self.rtol * B.norm(dim=0)
        steps = 0
        while not bool((S.norm(dim=0) <= target).all()):  # NaN goes on and fails
            if steps == self.max_steps:
                return X, steps, Status.MAX_STEPS
            AP = torch.stack([A.matvec(v.contiguous()) for v in P.T], dim=1)
            steps += 1
            PAP = P.T @ AP
            lower, failed = torch.linalg.cholesky_ex((PAP + PAP.T) / 2)
            if int(failed) or not bool(torch.isfinite(lower).all()):
                return X, steps, Status.INDEFINITE
            X += P @ torch.cholesky_solve(S, lower)
            inverse = torch.cholesky_inverse(lower)
            Q, C = torch.linalg.qr(Q - AP @ inverse)
            S = C @ S
            P = Q + P @ C.T
        return X, steps, Status.CONVERGED
