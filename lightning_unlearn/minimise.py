r"""Newton to a fixed gradient norm in a strongly convex scope."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Protocol, runtime_checkable

import torch

from lightning_unlearn import _validate
from lightning_unlearn.certificate.claims import Bound
from lightning_unlearn.certificate.constants import Constant, Origin
from lightning_unlearn.errors import GuaranteeError, SolverError
from lightning_unlearn.newton import Step
from lightning_unlearn.scope import Vector
from lightning_unlearn.solvers import Damped, FlexibleCG, Solution, Solver, Status
from lightning_unlearn.solvers.cg import solve_preconditioned
from lightning_unlearn.solvers.watch import (
    NOBODY,
    State,
    Watch,
    count,
    kept,
    numbers,
    vector,
)

_SHORTER = 0.5  # what a direction of a factor must make of the gradient
# Measured on MNIST pixels and on 64 features of CIFAR-100 with 100 classes.
_INNER_STEPS = 15
_PATIENCE = 20  # products with a stored factor as the preconditioner
_PROXY_ROWS = 1000, 2000  # at least and at most
_FIRST, _LOOSEST = 0.1, 0.3  # rtol of the first inner solve, and of any later one


@runtime_checkable
class Direct(Protocol):
    """Solves with a matrix it has factored."""

    def solve(self, b: Vector) -> Vector:
        """Its inverse times b, both (p,)."""
        ...


@runtime_checkable
class _StronglyConvex(Protocol):
    """A strongly convex F that can be evaluated anywhere (`convex.ConvexObjective`)."""

    l2: float

    @property
    def feature_norm(self) -> float: ...

    @property
    def size(self) -> int: ...
    @property
    def n(self) -> int: ...
    @property
    def rows_to_span(self) -> int: ...
    @property
    def is_rough(self) -> bool: ...
    def bend_at(self, w: Vector) -> None: ...
    def rough_gradient(self, w: Vector) -> Vector: ...
    def gradient(self, w: Vector) -> tuple[Vector, float]: ...
    def hvp(self, v: Vector) -> Vector: ...
    def sampled_hvp(
        self, v: Vector, batch_size: int, generator: torch.Generator
    ) -> Vector: ...
    def proxy(
        self, samples: int, generator: torch.Generator
    ) -> Callable[[Vector], Vector]: ...


def minimise(
    objective: _StronglyConvex,
    w0: Vector,
    *,
    tolerance: float,
    max_steps: int = 50,
    solver: Solver | None = None,
    proxy_samples: int | None = None,
    start: Vector | None = None,
    factor: Direct | None = None,
    refactor: Callable[[], Direct | None] | None = None,
    watch: Watch = NOBODY,
) -> Step:
    r"""Newton steps until ``|grad F| + rounding <= tolerance``, else nothing.

    F is mu-strongly convex with mu = l2, so any w with |grad F(w)| <= tolerance is
    within tolerance/mu of the one minimiser, from wherever it started
    (`certificate.bounds.strongly_convex_upper`). Two such points, one made from the
    original weights and one from retrained weights, are within 2 tolerance/mu.
    Conjugate gradients inside; steps are halved until the gradient norm falls.

    Args:
        objective: F over the retained samples.
        w0: Starting weights (p,), float64.
        tolerance: tau, fixed before the data was seen.
        max_steps: Newton steps at most.
        solver: For the inner systems; by default conjugate gradients no tighter than
            needed. It cannot change the claim: the loop ends only at the tolerance.
        proxy_samples: Of the default solver; for a forecast on a part of the data,
            what the whole will use.
        start: The gradient at w0 if it is known, for the first step: it saves a pass
            and proves nothing.
        factor: Solves with a matrix near the Hessian at w0 without products; it is
            used as long as it halves the gradient, then as a preconditioner.
        refactor: Makes such a factor where curvature is taken, or None if there is
            none; used in place of the default solver.
        watch: Looks on, from Newton step to Newton step. Going on from one of them
            ends at a point that is proved in the same way.

    Returns:
        The step; the constants do not include the measured gradient norm, which
        depends on the forgotten samples and is not covered by epsilon.

    Raises:
        GuaranteeError: If rounding alone exceeds the tolerance.
        SolverError: If the tolerance is not reached.
    """
    _validate.positive(tolerance=tolerance)

    def default(rtol: float) -> Solver:
        few, many = _PROXY_ROWS
        solver = FlexibleCG(
            rtol=rtol,
            inner_steps=_INNER_STEPS,
            samples=min(max(2 * objective.rows_to_span, few), many),
            check=False,
        )
        if proxy_samples is None:
            return solver
        return replace(solver, samples=proxy_samples, share=1)

    at, before = _Iterate(objective, w0), None
    method, leaping = "Newton by a stored factor", factor is not None
    watch.stage("gradient")
    state = watch.start()
    if state is not None:
        before, leaping = at.go_on_from(state, max_steps), False
    elif factor is not None and start is not None:
        at.steps = 1
        leaping = at.leap(factor.solve(start), float(start.norm()), method)
    if not at.evaluated:
        at.evaluate()
    watch.stage("solving")
    while not at.proves(tolerance):
        _check_worthwhile(at, tolerance, max_steps)
        watch.milestone(at.norm, partial(at.state, before))
        at.steps += 1
        if factor is not None and leaping:
            leaped = at.leap(factor.solve(at.gradient), at.norm, method)
            if leaped or at.sharpen():
                continue
            leaping = False
        objective.bend_at(at.w)
        if refactor is not None and solver is None:
            at.passes += 1
            factor = refactor()
            if factor is not None and at.search(factor.solve(at.gradient)):
                at.method = method = "Newton by a Cholesky factor"
                leaping = True
                continue
            if at.sharpen():
                continue
            factor = refactor = None  # single precision does not resolve this Hessian
        rtol = _forcing(at.norm, before, tolerance)
        before = at.norm
        inner = None
        if factor is not None and solver is None:
            inner = _by_factor(objective, at.gradient, factor, rtol)
            at.passes += inner.matvecs
            if inner.status is not Status.CONVERGED:
                inner = factor = None
        if inner is None:
            A = Damped(objective, 0.0)
            inner = (solver or default(rtol)).solve(A, at.gradient)
            at.passes += inner.matvecs
        at.method = f"Newton by {inner.method}"
        if not (at.search(inner.x) or at.sharpen()):
            raise SolverError(
                "expected a shorter gradient along the Newton direction, got none "
                f"below {at.norm:.3g}: the tolerance is below what float64 resolves "
                "here; raise it"
            )
    return Step(
        weights=at.w,
        solution=Solution(
            x=w0 - at.w,
            residual=at.norm,
            status=Status.CONVERGED,
            steps=at.steps,
            matvecs=at.passes,
            method=at.method,
        ),
        bound=Bound.STRONGLY_CONVEX,
        constants=_convex_constants(objective, tolerance),
        reference=(
            "the same head retrained without the forgotten samples, from any start, "
            "to the same tolerance, with the same noise"
        ),
    )


def _by_factor(
    objective: _StronglyConvex, gradient: Vector, factor: Direct, rtol: float
) -> Solution:
    return solve_preconditioned(
        Damped(objective, 0.0),
        gradient,
        factor.solve,
        rtol=rtol,
        max_steps=_PATIENCE,
        method="conjugate gradients, preconditioned by a stored factor",
        check=False,
    )


def _forcing(norm: float, before: float | None, tolerance: float) -> float:
    """How well to solve for a direction: as well as the last one turned out.

    Eisenstat & Walker 1996, choice 2; just well enough if this can be the last one.
    """
    rtol = _FIRST
    if before is not None:
        rtol = min(_LOOSEST, 0.9 * (norm / before) ** 1.618)
    return rtol if rtol * norm > 5 * tolerance else min(0.5 * tolerance / norm, 0.5)


class _Iterate:
    """Where the descent stands, and what it has cost.

    On the way gradients may be rough; only an exact one proves anything.
    """

    def __init__(self, objective: _StronglyConvex, w0: Vector) -> None:
        self.objective, self.w = objective, w0.clone()
        self.gradient, self.rounding = torch.zeros_like(w0), math.inf
        self.exact = not objective.is_rough
        self.evaluated = False
        self.steps, self.passes = 0, 0.0
        self.method = "none: already there"

    def state(self, before: float | None) -> State:
        """Where the descent stands, with the norm of the gradient before the last."""
        last = -1.0 if before is None else before
        return kept(self.exact, self.steps, self.passes, last, w=self.w)

    def go_on_from(self, state: State, max_steps: int) -> float | None:
        """Stand where a state says; the gradient is taken again."""
        self.w = vector(state, "w", self.w)
        exact, steps, passes, before = numbers(state, 4)
        self.exact = self.exact or exact == 1
        self.steps = count(steps, max_steps)
        self.passes = min(max(passes, 0.0), 1e9)  # told, and used for nothing
        # A file may say anything: no ratio of norms to this one overflows.
        return max(before, 1e-100) if before > 0 else None

    @property
    def norm(self) -> float:
        return float(self.gradient.norm())

    def proves(self, tolerance: float) -> bool:
        """Whether |exact gradient| <= tolerance, whatever float64 did to either."""
        if not self.exact and self.norm <= tolerance:
            self.sharpen()
        return self.exact and _proved(self.gradient, self.rounding, tolerance)

    def evaluate(self) -> None:
        """Take the gradient at `w`."""
        self.gradient, self.rounding = self._look(self.w)
        self.evaluated = True

    def sharpen(self) -> bool:
        """Take exact gradients from here on; False if they are already."""
        if self.exact:
            return False
        self.exact = True
        self.evaluate()
        return True

    def leap(self, x: Vector, norm: float, method: str) -> bool:
        """Go to w - x if that halves a gradient of this norm."""
        accepted = self._go(self.w - x, _SHORTER * norm)
        self.method = method if accepted else self.method
        return accepted

    def search(self, x: Vector) -> bool:
        """Go along -x, as far as it shortens the gradient."""
        t, norm = 1.0, self.norm
        while t > 1e-6:
            if self._go(self.w - t * x, (1 - 1e-4 * t) * norm):
                return True
            t /= 2
        return False

    def _go(self, w: Vector, longest: float) -> bool:
        gradient, rounding = self._look(w)
        # Far away it may overflow: "not <=" takes such a candidate as too long.
        if not (float(gradient.norm()) <= longest and rounding < math.inf):
            return False
        self.w, self.gradient, self.rounding = w, gradient, rounding
        self.evaluated = True
        return True

    def _look(self, w: Vector) -> tuple[Vector, float]:
        self.passes += 1
        if self.exact:
            return self.objective.gradient(w)
        return self.objective.rough_gradient(w), 0.0


def _check_worthwhile(at: _Iterate, tolerance: float, max_steps: int) -> None:
    if not at.rounding < max(tolerance, at.norm / 10):
        raise GuaranteeError(
            f"expected a tolerance above the rounding error of float64 sums, "
            f"{at.rounding:.3g}, got tolerance={tolerance:.3g}: raise the tolerance"
        )
    if at.steps >= max_steps:
        raise SolverError(
            f"expected |grad F| <= tolerance={tolerance:.3g} within {max_steps} "
            f"Newton steps, got {at.norm:.3g}: raise l2, max_steps "
            "or the tolerance; nothing was released"
        )


def _proved(gradient: Vector, rounding: float, tolerance: float) -> bool:
    """Whether |exact gradient| <= tolerance, whatever float64 did to either."""
    slack = 1 + (gradient.numel() + 8) * 2.0**-52  # the norm: a sum of p squares
    return float(gradient.norm()) * slack + rounding <= tolerance


def _convex_constants(
    objective: _StronglyConvex, tolerance: float
) -> tuple[Constant, ...]:
    return (
        Constant(
            name="tolerance",
            value=tolerance,
            origin=Origin.ENFORCED,
            reason=(
                "set before the request, which fails unless |grad F| on the retained "
                "samples plus its rounding bound is below it"
            ),
        ),
        Constant(
            name="strong_convexity",
            value=objective.l2,
            origin=Origin.PROVED,
            reason=(
                "= l2: affine head, loss convex in the logits, (l2/2)|w|^2 on every "
                "weight in scope"
            ),
        ),
        Constant(
            name="feature_norm",
            value=objective.feature_norm,
            origin=Origin.MEASURED,
            reason=(
                "largest feature row retained; the noise moves a logit by about "
                "noise_std times it"
            ),
        ),
    )
