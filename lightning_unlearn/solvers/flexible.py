"""Flexible conjugate gradients, preconditioned by a cheaper operator near A."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from lightning_unlearn._base import validate
from lightning_unlearn.solvers.base import Operator, Solution, proxy_of
from lightning_unlearn.solvers.cg import CG, iterate, solve_preconditioned
from lightning_unlearn.solvers.observer import NOBODY, Observer, watched
from lightning_unlearn.weights.scope import Vector


@dataclass(frozen=True)
class FlexibleCG:
    """Conjugate gradients whose preconditioner is an inner solve (Notay 2000).

    The operator offers a proxy: a positive definite matrix near A that costs a part
    of a pass, made of samples drawn by importance. Each outer step solves with the
    proxy by a few inner steps. Without a proxy it is `CG`.

    Args:
        rtol: Stop when the residual is at most rtol |b|.
        max_steps: Full products to spend at most.
        samples: Drawn for the proxy, at most n / share of them.
        share: See `samples`.
        inner_steps: Products with the proxy for each full one.
        seed: Of the draws. It has nothing to do with the noise.
        check: Recompute the residual at the end, by one more product; without, the
            reported one is that of the recurrence.
    """

    rtol: float = 1e-2
    max_steps: int = 1000
    samples: int = 2000
    share: int = 20
    inner_steps: int = 40
    seed: int = 0
    check: bool = True

    def __post_init__(self) -> None:
        validate.positive(rtol=self.rtol)
        validate.count(
            max_steps=self.max_steps,
            samples=self.samples,
            share=self.share,
            inner_steps=self.inner_steps,
        )
        validate.count(minimum=0, seed=self.seed)

    def solve(self, A: Operator, b: Vector, observer: Observer = NOBODY) -> Solution:
        """Solve A x = b from x = 0, with one more product for the residual."""
        samples = min(self.samples, A.n // self.share)
        generator = torch.Generator().manual_seed(self.seed)
        proxy = proxy_of(A, samples, generator)
        if proxy is None:
            return CG(self.rtol, self.max_steps).solve(A, b, observer)
        inner = _Inner(proxy, self.inner_steps, observer)
        found = solve_preconditioned(
            A,
            b,
            inner,
            rtol=self.rtol,
            max_steps=self.max_steps,
            observer=observer,
            check=self.check,
            method="conjugate gradients, preconditioned by "
            f"{samples:,} samples drawn by their curvature",
        )
        spent = inner.products * samples / A.n
        return replace(found, matvecs=found.matvecs + spent)


class _Inner:
    """A few steps of conjugate gradients with the proxy."""

    def __init__(
        self, matvec: Callable[[Vector], Vector], steps: int, observer: Observer
    ) -> None:
        self.matvec, self.steps, self.observer = matvec, steps, observer
        self.products = 0

    def __call__(self, b: Vector) -> Vector:
        # A residual of a hundredth is enough for a preconditioner; rounding at the end
        # of a solve may stop it earlier.
        matvec = watched(self.matvec, self.steps, self.observer)
        end = iterate(matvec, b, 1e-2, self.steps)
        self.products += end.products
        return end.x if bool(end.x.any()) else b
