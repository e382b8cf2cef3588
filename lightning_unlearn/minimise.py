r"""Newton to a fixed gradient norm in a strongly convex scope."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol, runtime_checkable

import torch

from lightning_unlearn import _validate
from lightning_unlearn.certificate.claims import Bound
from lightning_unlearn.certificate.constants import Constant, Origin
from lightning_unlearn.errors import GuaranteeError, SolverError
from lightning_unlearn.newton import Step
from lightning_unlearn.scope import Vector
from lightning_unlearn.solvers import Damped, FlexibleCG, Solution, Solver, Status

_SHORTER = 0.7  # what a direction of the factor must make of the gradient
# Measured on MNIST pixels from Adam-trained weights: 31 passes; 36 with rtol .1 and
# 20 inner steps, 41 with 40.
_INNER_STEPS = 15
_LOOSEST = 0.03  # rtol of an inner solve


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
    at: Vector

    @property
    def feature_norm(self) -> float: ...

    @property
    def size(self) -> int: ...
    @property
    def n(self) -> int: ...
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
            used as long as it shortens the gradient by a third.

    Returns:
        The step; the constants do not include the measured gradient norm, which
        depends on the forgotten samples and is not covered by epsilon.

    Raises:
        GuaranteeError: If rounding alone exceeds the tolerance.
        SolverError: If the tolerance is not reached.
    """
    _validate.positive(tolerance=tolerance)

    def default(rtol: float) -> Solver:
        solver = FlexibleCG(rtol=rtol, inner_steps=_INNER_STEPS, check=False)
        if proxy_samples is None:
            return solver
        return replace(solver, samples=proxy_samples, share=1)

    w, steps, matvecs = w0.clone(), 0, 0.0
    method = "none: already there" if factor is None else "Newton by a stored factor"
    found = None
    if factor is not None and start is not None:
        longest = _SHORTER * float(start.norm())
        found = _try(objective, w - factor.solve(start), longest)
        steps, matvecs = 1, 1.0
        factor = None if found is None else factor  # too far from where it was made
    if found is None:
        found = w, *objective.gradient(w)
        matvecs += 1
    w, gradient, rounding = found
    while not _proved(gradient, rounding, tolerance):
        norm = float(gradient.norm())
        if not rounding < max(tolerance, norm / 10):
            raise GuaranteeError(
                f"expected a tolerance above the rounding error of float64 sums, "
                f"{rounding:.3g}, got tolerance={tolerance:.3g}: raise the tolerance"
            )
        if steps == max_steps:
            raise SolverError(
                f"expected |grad F| <= tolerance={tolerance:.3g} within {max_steps} "
                f"Newton steps, got {norm:.3g}: raise l2, max_steps "
                "or the tolerance; nothing was released"
            )
        steps += 1
        if factor is not None:
            found = _try(objective, w - factor.solve(gradient), _SHORTER * norm)
            matvecs += 1
            if found is not None:
                w, gradient, rounding = found
                continue
            factor = None
        objective.at = w
        # Superlinear far away, no tighter than needed at the end.
        rtol = max(min(_LOOSEST, norm**0.5), 0.5 * tolerance / norm)
        inner = (solver or default(rtol)).solve(Damped(objective, 0.0), gradient)
        method = f"Newton by {inner.method}"
        w, gradient, rounding, tried = _backtrack(objective, w, inner.x, norm)
        matvecs += inner.matvecs + tried
    return Step(
        weights=w,
        solution=Solution(
            x=w0 - w,
            residual=float(gradient.norm()),
            status=Status.CONVERGED,
            steps=steps,
            matvecs=matvecs,
            method=method,
        ),
        bound=Bound.STRONGLY_CONVEX,
        constants=_convex_constants(objective, tolerance),
        reference=(
            "the same head retrained without the forgotten samples, from any start, "
            "to the same tolerance, with the same noise"
        ),
    )


def _proved(gradient: Vector, rounding: float, tolerance: float) -> bool:
    """Whether |exact gradient| <= tolerance, whatever float64 did to either."""
    slack = 1 + (gradient.numel() + 8) * 2.0**-52  # the norm: a sum of p squares
    return float(gradient.norm()) * slack + rounding <= tolerance


def _try(
    objective: _StronglyConvex, w: Vector, longest: float
) -> tuple[Vector, Vector, float] | None:
    """(w, gradient, rounding) there, or None if the gradient is longer than that."""
    gradient, rounding = objective.gradient(w)
    # Far away it may overflow: "not <=" takes such a candidate as too long.
    if float(gradient.norm()) <= longest and rounding < math.inf:
        return w, gradient, rounding
    return None


def _backtrack(
    objective: _StronglyConvex, w: Vector, x: Vector, norm: float
) -> tuple[Vector, Vector, float, int]:
    t, tried = 1.0, 0
    while t > 1e-6:
        tried += 1
        found = _try(objective, w - t * x, (1 - 1e-4 * t) * norm)
        if found is not None:
            return *found, tried
        t /= 2
    raise SolverError(
        f"expected a shorter gradient along the Newton direction, got none below "
        f"{norm:.3g}: the tolerance is below what float64 resolves here; raise it"
    )


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
