"""Conjugate gradients (Hestenes & Stiefel 1952) with a negative-curvature status."""

from dataclasses import dataclass

import torch

from lightning_unlearn import _validate
from lightning_unlearn.scope import Vector
from lightning_unlearn.solvers.base import Operator, Solution, Status, residual_norm


@dataclass(frozen=True)
class CG:
    """Conjugate gradients for a positive definite A.

    Stops at the first direction with v'Av not > 0, which proves that A is not
    positive definite.

    Args:
        rtol: Stop when the residual is at most rtol |b|.
        max_steps: Products to spend at most.
    """

    rtol: float = 1e-3
    max_steps: int = 1000

    def __post_init__(self) -> None:
        _validate.positive(rtol=self.rtol)
        _validate.count(max_steps=self.max_steps)

    def solve(self, A: Operator, b: Vector) -> Solution:
        """Solve A x = b from x = 0, with one more product for the residual."""
        x, r, p = torch.zeros_like(b), b.clone(), b.clone()
        rr = float(r @ r)
        target = (self.rtol**2) * rr
        steps, products, status = 0, 0, Status.CONVERGED
        while not rr <= target:  # "not <=" so that NaN goes on and fails below
            if steps == self.max_steps:
                status = Status.MAX_STEPS
                break
            Ap = A.matvec(p)
            products += 1
            pAp = float(p @ Ap)
            if not pAp > 0:
                status = Status.INDEFINITE
                break
            alpha = rr / pAp
            x += alpha * p
            r -= alpha * Ap
            rr, rr_old = float(r @ r), rr
            p = r + (rr / rr_old) * p
            steps += 1
        return Solution(
            x=x,
            residual=residual_norm(A, x, b),
            status=status,
            steps=steps,
            matvecs=float(products + 1),
        )
