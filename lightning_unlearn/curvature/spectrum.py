"""Lanczos: both ends of the spectrum from a few dozen products."""

from collections.abc import Callable

import torch

from lightning_unlearn import _validate
from lightning_unlearn.errors import SolverError
from lightning_unlearn.scope import Vector


def lanczos_ends(
    matvec: Callable[[Vector], Vector], start: Vector, steps: int = 40
) -> tuple[float, float]:
    """Smallest and largest Ritz value after some Lanczos steps.

    Full reorthogonalisation, so a Ritz value never leaves the true spectrum: the
    smallest lies at or ABOVE lambda_min, the wrong side for a guarantee.

    Args:
        matvec: v -> Av for a symmetric A, on (p,) float64 vectors.
        start: Random start vector (p,), not zero.
        steps: Products to spend; fewer are used when the space is exhausted.

    Returns:
        (smallest, largest) Ritz value.

    Raises:
        SolverError: If a product is not finite.
    """
    _validate.count(steps=steps)
    basis = [start / start.norm()]
    diagonal: list[float] = []
    off_diagonal: list[float] = []
    for _ in range(min(steps, start.numel())):
        w = matvec(basis[-1])
        if not bool(torch.isfinite(w).all()):
            raise SolverError(
                "expected finite curvature products, got NaN or infinity in Lanczos: "
                "check the model for overflow"
            )
        diagonal.append(float(w @ basis[-1]))
        for _ in range(2):  # twice is enough (Parlett 1998, section 6.9)
            Q = torch.stack(basis)
            w = w - Q.T @ (Q @ w)
        norm = float(w.norm())
        if not norm > 1e-12 * max(1.0, max(abs(d) for d in diagonal)):
            break
        off_diagonal.append(norm)
        basis.append(w / norm)
    k = len(diagonal)
    T = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    if k > 1:
        off = torch.tensor(off_diagonal[: k - 1], dtype=torch.float64)
        T += torch.diag(off, 1) + torch.diag(off, -1)
    ritz = torch.linalg.eigvalsh(T)
    return float(ritz[0]), float(ritz[-1])
