"""Lanczos, and what it and sampled differences say of an objective."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_unlearn._base import validate
from lightning_unlearn.errors import GuaranteeError, SolverError
from lightning_unlearn.solvers.observer import NOBODY, Observer, watched
from lightning_unlearn.weights.objective import Objective
from lightning_unlearn.weights.scope import Dot, Vector, plain_dot

LANCZOS_STEPS = 40
_SETTLED, _OVER = 0.05, 4  # part of the smallest value it may still move in 4 steps


class Ends(NamedTuple):
    """Both ends of a spectrum, as Lanczos sees them.

    Args:
        lowest: Smallest Ritz value.
        highest: Largest Ritz value.
        products: Spent on them.
        samples: Of the data that the matrix was made of; 0 if it was made of no data.
    """

    lowest: float
    highest: float
    products: int
    samples: int = 0


def lanczos_ends(
    matvec: Callable[[Vector], Vector],
    start: Vector,
    steps: int = LANCZOS_STEPS,
    until_settled: bool = False,
    keep_basis: bool = True,
    dot: Dot = plain_dot,
    observer: Observer = NOBODY,
) -> Ends:
    """Smallest and largest Ritz value after some Lanczos steps.

    A Ritz value never leaves the true spectrum: the smallest lies at or ABOVE
    lambda_min, the wrong side for a guarantee.

    Args:
        matvec: v -> Av for a symmetric A, on (p,) float64 vectors.
        start: Random start vector (p,), not zero.
        steps: Products to spend; fewer are used when the space is exhausted.
        until_settled: Stop as soon as the smallest Ritz value is negative and has moved
            by less than 5% in four steps.
        keep_basis: Orthogonalise against all earlier directions, which takes `steps`
            vectors. Without, three are enough (`start` is overwritten); values found
            once are then found again, and the ends leave the spectrum by rounding at
            most (Paige 1980).
        dot: Inner product, where a process holds a part of each vector and there is no
            basis.
        observer: Told of each product.

    Returns:
        The Ritz values.

    Raises:
        SolverError: If a product is not finite.
    """
    validate.count(steps=steps)
    if keep_basis:
        steps = min(steps, start.numel())
    matvec, rows = watched(matvec, steps, observer), steps if keep_basis else 0
    Q = torch.empty(rows, start.numel(), dtype=start.dtype, device=start.device)
    norm = math.sqrt(dot(start, start))
    q = torch.div(start, norm, out=Q[0]) if keep_basis else start.div_(norm)
    before = None
    del start
    diagonal: list[float] = []
    off_diagonal: list[float] = []
    lowest: list[float] = []
    for k in range(steps):
        w = matvec(q)
        diagonal.append(dot(w, q))
        if not math.isfinite(diagonal[-1]):
            raise SolverError(
                "expected finite curvature products, got NaN or infinity in Lanczos: "
                "check the model for overflow"
            )
        if until_settled:
            lowest.append(float(_ritz(diagonal, off_diagonal)[0]))
            if _settled(lowest):
                break
        if keep_basis:
            for _ in range(2):  # twice is enough (Parlett 1998, section 6.9)
                w = w - Q[: k + 1].T @ (Q[: k + 1] @ w)
        else:
            w.sub_(q, alpha=diagonal[-1])
            if before is not None:
                w.sub_(before, alpha=norm)
        norm = math.sqrt(dot(w, w))
        small = 1e-12 * max(1.0, max(abs(d) for d in diagonal))
        if k + 1 == steps or not norm > small:
            break
        off_diagonal.append(norm)
        if keep_basis:
            q = torch.div(w, norm, out=Q[k + 1])
        else:
            before, q = q, w.div_(norm)
    ritz = _ritz(diagonal, off_diagonal)
    return Ends(float(ritz[0]), float(ritz[-1]), len(diagonal))


def _ritz(diagonal: list[float], off_diagonal: list[float]) -> Tensor:
    """Eigenvalues of the tridiagonal matrix, increasing."""
    k = len(diagonal)
    T = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    if k > 1:
        off = torch.tensor(off_diagonal[: k - 1], dtype=torch.float64)
        T += torch.diag(off, 1) + torch.diag(off, -1)
    return torch.linalg.eigvalsh(T)


def _settled(lowest: list[float]) -> bool:
    if len(lowest) <= _OVER or not lowest[-1] < 0:
        return False
    return lowest[-1 - _OVER] - lowest[-1] <= _SETTLED * -lowest[-1]


def spectrum_ends(
    objective: Objective, samples: int | None = None, observer: Observer = NOBODY
) -> Ends:
    """Ritz values at both ends of the Hessian of F, by Lanczos.

    Args:
        objective: F.
        samples: Draw this many samples once instead of using all, and stop once the
            smallest value has settled; None, or n of them, uses all.
        observer: Told of each product.

    Returns:
        The ends; the smallest lies at or above the true one when all samples are used.
    """

    def generator() -> torch.Generator:
        return torch.Generator().manual_seed(0)

    matvec, used = objective.hessian, objective.n
    if samples is not None and samples < objective.n:
        used = samples
        matvec = objective.sampled_hessian(samples, generator())
    ends = lanczos_ends(
        matvec,
        _start(objective, generator()),  # nobody else holds it
        until_settled=used < objective.n,
        steps=min(LANCZOS_STEPS, objective.n_parameters),
        keep_basis=not objective.lean,
        dot=objective.dot,
        observer=observer,
    )
    return ends._replace(samples=used)


def _start(objective: Objective, generator: torch.Generator) -> Vector:
    random = torch.randn(objective.size, generator=generator, dtype=torch.float64)
    return random.to(objective.device, objective.dtype)


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


def lanczos_lambda_min_lower(
    *, ritz_min: float, ritz_max: float, steps: int, size: int, failure: float
) -> float:
    r"""A lower bound on lambda_min, true with probability 1 - failure.

    Lanczos from a start uniform on the sphere errs, for the largest eigenvalue of a
    positive semidefinite matrix, by more than a part e of it with probability at most
    ``1.648 sqrt(p) exp(-sqrt(e)(2k - 1))`` (Kuczynski & Wozniakowski 1992, Theorem
    4.2). Krylov spaces do not change under shifts and signs, so it holds for both
    ends with the spread S = lambda_max - lambda_min in place of the eigenvalue. With
    s the spread of the Ritz values, ``S <= s + 2 e S``, and so ``lambda_min >=
    ritz_min - e s / (1 - 2e)``; the two ends share the failure probability.

    Args:
        ritz_min: Smallest Ritz value.
        ritz_max: Largest.
        steps: k, products made.
        size: p, rows of the matrix.
        failure: Probability with which the bound may fail, over the start vector.

    Returns:
        The lower bound; minus infinity is never returned.

    Raises:
        ArgumentError: If an argument is outside its range.
        GuaranteeError: If there are too few steps to say anything.
    """
    validate.finite(ritz_min=ritz_min, ritz_max=ritz_max)
    validate.count(steps=steps, size=size)
    validate.probability(failure=failure)
    if steps >= size:  # the whole space was searched
        return ritz_min
    root = math.log(2 * 1.648 * math.sqrt(size) / failure) / (2 * steps - 1)
    e = root**2
    if not 2 * e < 1:
        raise GuaranteeError(
            f"expected enough Lanczos steps for a bound on lambda_min, got {steps} for "
            f"{size} weights at failure probability {failure:.3g}: take more steps"
        )
    return ritz_min - e * (ritz_max - ritz_min) / (1 - 2 * e)
