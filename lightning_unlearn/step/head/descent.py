"""A descent to the optimum of a convex head: where it stands, and ways to go on.

Nothing here proves anything: whichever way is gone, the end is tested by itself.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch

from lightning_unlearn.guarantee.proofs import is_stationary
from lightning_unlearn.solvers.base import Damped, Solution, Solver, Status
from lightning_unlearn.solvers.cg import solve_preconditioned
from lightning_unlearn.solvers.flexible import FlexibleCG
from lightning_unlearn.solvers.observer import (
    NOBODY,
    State,
    count,
    numbers,
    snapshot,
    vector,
)
from lightning_unlearn.weights.scope import Vector

_SHORTER = 0.5  # what a direction of a factor must make of the gradient
_PATIENCE = 20  # products with a stored factor as the preconditioner
# Measured on MNIST pixels, 64 features of CIFAR-100 with 100 classes, and 768 with 200.
_SHARE, _MOST = 16, 4  # one row of so many makes the proxy, and at most
_PER_OUTPUT = 50  # rows at least, where there are many outputs
_INNER_STEPS, _INNER_RTOL = 30, 0.15
_LOOSEST = 0.3  # rtol of an inner solve: a part of the rows gives it
_NEAR = 0.02  # rtol of the first near the optimum: what is not linear leaves half of it
_AIM = 0.7  # of the tolerance, where an inner solve is to be the last


def proxy_rows(n: int, outputs: int) -> int:
    """Rows of the proxy of n rows."""
    return max(1, n // _SHARE, min(n // _MOST, _PER_OUTPUT * outputs))


@runtime_checkable
class Factored(Protocol):
    """Solves with a matrix it has factored."""

    def solve(self, b: Vector) -> Vector:
        """Its inverse times b, both (p,)."""
        ...


@runtime_checkable
class StronglyConvexObjective(Protocol):
    """A strongly convex F that can be evaluated anywhere (`ConvexObjective`)."""

    l2: float
    K: int

    @property
    def feature_norm(self) -> float:
        """Largest norm of a feature row."""
        ...

    @property
    def size(self) -> int:
        """Number of weights, p."""
        ...

    @property
    def n(self) -> int:
        """Samples."""
        ...

    @property
    def is_rough(self) -> bool:
        """Whether `rough_gradient` is cheaper than `gradient`."""
        ...

    def set_hessian_at(self, w: Vector) -> float:
        """Take curvature at w (p,) from now on; the passes that costs."""
        ...

    def rough_gradient(self, w: Vector) -> Vector:
        """The gradient (p,) at w, to go by."""
        ...

    def gradient(self, w: Vector) -> tuple[Vector, float]:
        """The gradient (p,) at w and a bound on its rounding error."""
        ...

    def hvp(self, v: Vector) -> Vector:
        """The Hessian times v, both (p,)."""
        ...

    def sampled_hvp(
        self, v: Vector, batch_size: int, generator: torch.Generator
    ) -> Vector:
        """That of one random mini-batch."""
        ...

    def proxy(
        self, samples: int, generator: torch.Generator
    ) -> Callable[[Vector], Vector]:
        """Products with a cheaper matrix near the Hessian."""
        ...


@runtime_checkable
class Direction(Protocol):
    """A way to go on."""

    def go(self, at: "Iterate") -> bool:
        """Move the descent, or sharpen its gradient; False if this way has ended."""
        ...


class Iterate:
    """Where the descent stands, and what it has cost.

    On the way gradients may be rough; only an exact one proves anything.

    Args:
        objective: F.
        w0: Where it starts (p,).
        gradient: There if it is known, taken as a rough one.
    """

    def __init__(
        self,
        objective: StronglyConvexObjective,
        w0: Vector,
        gradient: Vector | None = None,
    ) -> None:
        self.objective, self.w = objective, w0.clone()
        self.rounding = math.inf
        self.known, self.near = gradient is not None, gradient is not None
        self.gradient = torch.zeros_like(w0) if gradient is None else gradient
        self.exact = not objective.is_rough  # those to be taken
        self.sharp = False  # the one that was taken
        self.steps, self.sampled, self.passes = 0, 0, 0.0
        self.method = "none: already there"
        self.before: float | None = None  # norm at the last inner solve
        self._curved_at: Vector | None = None

    def state(self) -> State:
        """Where the descent stands, with the norm of the gradient before the last."""
        last = -1.0 if self.before is None else self.before
        return snapshot(self.exact, self.steps, self.passes, last, w=self.w)

    def go_on_from(self, state: State, max_steps: int) -> None:
        """Stand where a state says; the gradient is taken again."""
        self.w, self.known, self.near = vector(state, "w", self.w), False, False
        exact, steps, passes, before = numbers(state, 4)
        self.exact = self.exact or exact == 1
        self.steps = count(steps, max_steps)
        self.passes = min(max(passes, 0.0), 1e9)  # told, and used for nothing
        # A file may say anything: no ratio of norms to this one overflows.
        self.before = max(before, 1e-100) if before > 0 else None

    @property
    def norm(self) -> float:
        """Of the gradient."""
        return float(self.gradient.norm())

    def proves(self, tolerance: float) -> bool:
        """Whether |exact gradient| <= tolerance, whatever float64 did to either."""
        if not self.sharp and self.norm <= tolerance:
            self.sharpen()
        return is_stationary(self.norm, len(self.w), self.rounding, tolerance)

    def curve(self) -> None:
        """Take curvature where the descent stands."""
        if self._curved_at is not self.w:
            self.passes += self.objective.set_hessian_at(self.w)
            self._curved_at = self.w

    def evaluate(self) -> None:
        """Take the gradient at `w`."""
        self.gradient, self.rounding = self._look(self.w, self.exact)
        self.known, self.sharp = True, self.exact

    def sharpen(self) -> bool:
        """Take exact gradients from here on; False if they are already."""
        if self.exact and self.sharp:
            return False
        self.exact = True
        if not self.sharp:
            self.evaluate()
        return True

    def leap(self, x: Vector, method: str) -> bool:
        """Go to w - x if that halves the gradient."""
        accepted = self._go(self.w - x, _SHORTER * self.norm, self.exact)
        self.method = method if accepted else self.method
        return accepted

    def search(self, x: Vector, last: bool = False) -> bool:
        """Go along -x, as far as it shortens the gradient.

        If that may be the `last` step, the gradient at its end is an exact one.
        """
        t, norm, exact = 1.0, self.norm, self.exact or last
        while t > 1e-6:
            if self._go(self.w - t * x, (1 - 1e-4 * t) * norm, exact):
                return True
            t, exact = t / 2, self.exact
        return False

    def _go(self, w: Vector, longest: float, exact: bool) -> bool:
        gradient, rounding = self._look(w, exact)
        # Far away it may overflow: "not <=" takes such a candidate as too long.
        resolved = rounding < math.inf or not exact
        if not (float(gradient.norm()) <= longest and resolved):
            return False
        self.w, self.gradient, self.rounding = w, gradient, rounding
        self.known, self.sharp = True, exact
        return True

    def _look(self, w: Vector, exact: bool) -> tuple[Vector, float]:
        self.passes += 1
        if exact:
            return self.objective.gradient(w)
        return self.objective.rough_gradient(w), math.inf  # nothing is known of it


class StoredFactor:
    """The way of a factor that was made elsewhere, as long as it halves the gradient.

    Args:
        factor: Solves with a matrix near the Hessian without products, or None.
    """

    def __init__(self, factor: Factored | None) -> None:
        self.factor = factor
        self.works = factor is not None
        self.name = "Newton by a stored factor"

    def go(self, at: Iterate) -> bool:
        """See `Direction`."""
        if self.factor is None or not self.works:
            return False
        if at.leap(self.factor.solve(at.gradient), self.name):
            return True
        self.works = at.sharpen()
        return self.works


class FreshFactor:
    """The way of a factor of the Hessian where the descent stands.

    Args:
        refactor: Makes one, or None if single precision does not resolve the Hessian.
        stored: Goes on with it.
    """

    def __init__(
        self, refactor: Callable[[], Factored | None] | None, stored: StoredFactor
    ) -> None:
        self.refactor, self.stored = refactor, stored

    def go(self, at: Iterate) -> bool:
        """See `Direction`."""
        if self.refactor is None:
            return False
        at.curve()
        at.passes += 1
        factor = self.refactor()
        self.stored.factor, self.stored.works = factor, False
        if factor is not None and at.search(factor.solve(at.gradient)):
            at.method = self.stored.name = "Newton by a Cholesky factor"
            self.stored.works = True
            return True
        if at.sharpen():
            return True
        self.refactor = self.stored.factor = None
        return False


@dataclass
class InnerSolve:
    """The way of a Newton system solved by products, no tighter than needed.

    Args:
        solver: In place of the default one, or None.
        proxy_samples: Of the default one, or None for its own choice.
        stored: Its factor is the preconditioner, while that helps.
        tolerance: tau.
    """

    solver: Solver | None
    proxy_samples: int | None
    stored: StoredFactor
    tolerance: float

    def go(self, at: Iterate) -> bool:
        """See `Direction`."""
        at.curve()
        rtol = _forcing(at, self.tolerance)
        last = rtol * at.norm <= self.tolerance
        at.before, at.near = at.norm, False
        inner = self._by_factor(at, rtol)
        if inner is None:
            solver = self.solver or by_products(at.objective, rtol, self.proxy_samples)
            inner = solver.solve(Damped(at.objective, 0.0), at.gradient, NOBODY)
            at.passes += inner.matvecs
        at.method = f"Newton by {inner.method}"
        return at.search(inner.x, last) or at.sharpen()

    def _by_factor(self, at: Iterate, rtol: float) -> Solution | None:
        if self.stored.factor is None or self.solver is not None:
            return None
        inner = solve_preconditioned(
            at.objective.hvp,
            at.gradient,
            self.stored.factor.solve,
            rtol=rtol,
            max_steps=_PATIENCE,
            method="conjugate gradients, preconditioned by a stored factor",
            check=False,
        )
        at.passes += inner.matvecs
        if inner.status is not Status.CONVERGED:
            inner = self.stored.factor = None
        return inner


def by_products(
    objective: StronglyConvexObjective, rtol: float, proxy_samples: int | None
) -> FlexibleCG:
    """The default solver of a Newton system."""
    return FlexibleCG(
        rtol=rtol,
        inner_steps=_INNER_STEPS,
        inner_rtol=_INNER_RTOL,
        samples=proxy_samples or proxy_rows(objective.n, objective.K),
        share=1,
        check=False,
    )


def _forcing(at: Iterate, tolerance: float) -> float:
    """How well to solve for a direction: as well as the last one turned out.

    Eisenstat & Walker 1996, choice 2; just well enough if this can be the last one.
    """
    rtol = _NEAR if at.near else _LOOSEST
    if at.before is not None:
        rtol = min(_LOOSEST, 0.9 * (at.norm / at.before) ** 1.618)
    if rtol * at.norm > 5 * tolerance:
        return rtol
    return min(_AIM * tolerance / at.norm, 0.5)
