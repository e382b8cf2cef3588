"""Lanczos, and what it and sampled differences say of an objective."""

from collections.abc import Callable

import torch

from lightning_unlearn import _validate
from lightning_unlearn.errors import SolverError
from lightning_unlearn.objective import Objective
from lightning_unlearn.scope import Vector

LANCZOS_STEPS = 40


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


def spectrum_ends(
    objective: Objective, samples: int | None = None
) -> tuple[float, float]:
    """Ritz values at both ends of the Hessian of F, by Lanczos.

    Args:
        objective: F.
        samples: Draw this many samples once instead of using all.

    Returns:
        (smallest, largest); the smallest lies at or above the true one when all
        samples are used.
    """

    def generator() -> torch.Generator:
        return torch.Generator().manual_seed(0)

    matvec = objective.hessian
    if samples is not None and samples < objective.n:
        matvec = objective.sampled_hessian(samples, generator())
    start = torch.randn(objective.size, generator=generator(), dtype=torch.float64)
    return lanczos_ends(matvec, start.to(objective.device), LANCZOS_STEPS)


def hessian_change(objective: Objective, w0: Vector, x: Vector) -> float:
    """Largest sampled |(H(w0 - t x) - H(w0)) v| / (t |x| |v|): a LOWER bound on M.

    Args:
        objective: F at w0.
        w0: Original weights (p,).
        x: The step (p,).

    Returns:
        The largest of six samples; 0.0 if the step is zero.
    """
    norm = float(x.norm())
    if norm == 0:
        return 0.0
    generator = torch.Generator().manual_seed(0)
    random = torch.randn(len(x), generator=generator, dtype=torch.float64)
    found = 0.0
    for v in (x / norm, (random / random.norm()).to(x.device)):
        here = objective.hvp(v)
        for t in (0.1, 0.5, 1.0):
            with objective.moved_to(w0 - t * x):
                change = objective.hvp(v) - here
            found = max(found, float(change.norm()) / (t * norm))
    return found
