"""LiSSA, the paper's solver, as published: a stochastic Neumann series."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from lightning_unlearn._base import validate
from lightning_unlearn.solvers.base import Operator, Solution, Status, residual_norm
from lightning_unlearn.solvers.observer import NOBODY, Observer, watched
from lightning_unlearn.weights.scope import Vector


@dataclass(frozen=True)
class LiSSA:
    """Stochastic Neumann series (Agarwal, Bullins, Hazan 2017).

    ``v_0 = b``, ``v_t = b + v_{t-1} - A_t v_{t-1} / scale``, ``x = v_steps / scale``,
    averaged over runs, A_t the matrix of one mini-batch drawn with replacement
    (Zhang et al. 2024, Proposition 3.5). On an eigen-direction h of A it applies
    ``(1 - (1 - h/scale)^(steps+1)) / h``: directions with h steps << scale are barely
    inverted. Kept as the paper's reference; `CG` is better on every problem measured.

    Args:
        scale: At least the largest eigenvalue of any A_t.
        steps: Length of the series.
        runs: Independent runs to average.
        batch_size: Samples in a mini-batch; 0 uses the full matrix at every step.
        rtol: The solve counts as converged when the residual is at most rtol |b|.
        seed: Seed of the mini-batch draws. It has nothing to do with the noise.
    """

    scale: float = 1000.0
    steps: int = 1000
    runs: int = 10
    batch_size: int = 10
    rtol: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        validate.positive(scale=self.scale, rtol=self.rtol)
        validate.count(steps=self.steps, runs=self.runs)
        validate.count(minimum=0, batch_size=self.batch_size, seed=self.seed)

    def solve(self, A: Operator, b: Vector, observer: Observer = NOBODY) -> Solution:
        """Approximate A^-1 b; the status says how the recomputed residual compares."""
        generator = torch.Generator().manual_seed(self.seed)

        def sampled(v: Vector) -> Vector:
            return A.sampled_matvec(v, self.batch_size, generator)

        full = self.batch_size == 0
        most = self.runs * self.steps
        matvec = watched(A.matvec if full else sampled, most, observer)
        x = torch.zeros_like(b)
        for _ in range(self.runs):
            x += self._run(matvec, b) / self.runs
        passes = most * (1.0 if full else self.batch_size / A.n)
        if not bool(torch.isfinite(x).all()):
            return self._ended(torch.zeros_like(b), float(b.norm()), passes, b)
        return self._ended(x, residual_norm(A, x, b), passes + 1, b)

    def _run(self, matvec: Callable[[Vector], Vector], b: Vector) -> Vector:
        v = b.clone()
        for _ in range(self.steps):
            Av = matvec(v)
            v = b + v - Av / self.scale
            if not bool(torch.isfinite(v).all()):
                break
        return v / self.scale

    def _ended(self, x: Vector, residual: float, matvecs: float, b: Vector) -> Solution:
        status = Status.MAX_STEPS
        if not bool(x.any()) and bool(b.any()):
            status = Status.DIVERGED
        elif residual <= self.rtol * float(b.norm()):
            status = Status.CONVERGED
        return Solution(
            x=x,
            residual=residual,
            status=status,
            steps=self.runs * self.steps,
            matvecs=matvecs,
            method="LiSSA",
        )
