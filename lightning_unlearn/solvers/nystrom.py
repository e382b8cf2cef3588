"""Conjugate gradients with a low-rank preconditioner of the largest curvature."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_unlearn._base import validate
from lightning_unlearn.solvers.base import Operator, Solution, proxy_of
from lightning_unlearn.solvers.cg import CG, solve_preconditioned
from lightning_unlearn.solvers.observer import NOBODY, Observer, watched
from lightning_unlearn.weights.scope import Vector


@dataclass(frozen=True)
class NystromCG:
    """Conjugate gradients, preconditioned by a randomised Nystrom approximation.

    Frangella, Tropp & Udell 2023 (SIAM J. Matrix Anal. Appl. 44(2)), Algorithm 5.3.
    The largest `rank` directions of the operator's proxy (a positive definite matrix
    near A that costs a part of a pass, see `FlexibleCG`) are found once and divided
    out; after that a step costs one full product and no more. Worth it where few
    directions curve much more than the rest and many steps are needed (small damping,
    a tight `rtol`). Without a proxy it is `CG`.

    Args:
        rtol: Stop when the residual is at most rtol |b|.
        max_steps: Full products to spend at most.
        rank: How many directions are found.
        samples: How many samples are drawn for the proxy; never more than n / share.
        share: See `samples`.
        seed: Seed of the draws. It has nothing to do with the noise.
    """

    rtol: float = 1e-2
    max_steps: int = 1000
    rank: int = 50
    samples: int = 2000
    share: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        validate.positive(rtol=self.rtol)
        validate.count(
            max_steps=self.max_steps,
            rank=self.rank,
            samples=self.samples,
            share=self.share,
        )
        validate.count(minimum=0, seed=self.seed)

    def solve(self, A: Operator, b: Vector, observer: Observer = NOBODY) -> Solution:
        """Solve A x = b from x = 0, with one more product for the residual."""
        samples = min(self.samples, A.n // self.share)
        generator = torch.Generator().manual_seed(self.seed)
        proxy, rank = proxy_of(A, samples, generator), min(self.rank, len(b))
        inverse = None
        if proxy is not None:
            proxy = watched(proxy, rank, observer)
            inverse = _low_rank_inverse(proxy, b, rank, generator)
        if inverse is None:
            return CG(self.rtol, self.max_steps).solve(A, b, observer)
        return solve_preconditioned(
            A.matvec,
            b,
            inverse,
            rtol=self.rtol,
            max_steps=self.max_steps,
            observer=observer,
            spent=rank * samples / A.n,
            method=f"conjugate gradients, preconditioned by {rank} directions of "
            f"{samples:,} samples drawn by their curvature",
        )


def _low_rank_inverse(
    matvec: Callable[[Vector], Vector],
    like: Vector,
    rank: int,
    generator: torch.Generator,
) -> Callable[[Vector], Vector] | None:
    """P^-1: exact on the directions found, 1 over the least of them elsewhere."""
    found = _nystrom(matvec, like, rank, generator)
    if found is None:
        return None
    U, values = found
    floor = float(values.min())

    def inverse(v: Vector) -> Vector:
        inside = U.T @ v  # (r,)
        return v / floor + U @ (inside / values - inside / floor)

    return inverse


def _nystrom(
    matvec: Callable[[Vector], Vector],
    like: Vector,
    rank: int,
    generator: torch.Generator,
) -> tuple[Float[Tensor, "p r"], Float[Tensor, " r"]] | None:
    """Directions (p, r) and values (r,) of a positive definite matrix (Algorithm 2.1).

    ``A Omega (Omega' A Omega)^-1 Omega' A``, with a shift for stability that is taken
    off again. None if the matrix is not positive definite after all.
    """
    drawn = torch.randn(len(like), rank, generator=generator, dtype=torch.float64)
    omega, _ = torch.linalg.qr(drawn.to(like.device))
    Y = torch.stack([matvec(column) for column in omega.T], dim=1)  # (p, r)
    # Float32 products make the sketch indefinite by about their rounding error.
    shift = 1e-7 * float(Y.norm())
    Y = Y + shift * omega
    core = omega.T @ Y
    lower, failed = torch.linalg.cholesky_ex((core + core.T) / 2)
    if int(failed) or not bool(torch.isfinite(lower).all()):
        return None
    B = torch.linalg.solve_triangular(lower, Y.T, upper=False).T  # Y L^-T
    U, singular, _ = torch.linalg.svd(B, full_matrices=False)
    smallest = 1e-12 * float(singular[0]) ** 2
    return U, (singular**2 - shift).clamp_min(smallest)
