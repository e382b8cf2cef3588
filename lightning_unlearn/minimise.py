r"""Newton to a fixed gradient norm in a strongly convex scope."""

import math
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch

from lightning_unlearn import _validate
from lightning_unlearn.certificate.claims import Bound
from lightning_unlearn.certificate.constants import Constant, Origin
from lightning_unlearn.errors import GuaranteeError, SolverError
from lightning_unlearn.newton import Step
from lightning_unlearn.scope import Vector
from lightning_unlearn.solvers import Damped, FlexibleCG, Solution, Solver, Status


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
    def value(self, w: Vector) -> float: ...
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

    Returns:
        The step; the constants do not include the measured gradient norm, which
        depends on the forgotten samples and is not covered by epsilon.

    Raises:
        GuaranteeError: If rounding alone exceeds the tolerance.
        SolverError: If the tolerance is not reached.
    """
    _validate.positive(tolerance=tolerance)

    def default(rtol: float) -> Solver:
        if proxy_samples is None:
            return FlexibleCG(rtol=rtol)
        return FlexibleCG(rtol=rtol, samples=proxy_samples, share=1)

    w = w0.clone()
    gradient, rounding = objective.gradient(w)
    steps, matvecs = 0, 0.0
    while not _proved_norm(gradient, rounding) <= tolerance:
        norm = float(gradient.norm())
        if not rounding < tolerance and norm <= 10 * rounding:
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
        objective.at = w
        # Superlinear far away, no tighter than needed at the end.
        rtol = max(min(0.1, norm**0.5), 0.2 * tolerance / norm)
        inner = (solver or default(rtol)).solve(Damped(objective, 0.0), gradient)
        matvecs += inner.matvecs
        w, gradient, rounding = _backtrack(objective, w, inner.x, norm)
        steps += 1
    return Step(
        weights=w,
        solution=Solution(
            x=w0 - w,
            residual=float(gradient.norm()),
            status=Status.CONVERGED,
            steps=steps,
            matvecs=matvecs,
        ),
        bound=Bound.STRONGLY_CONVEX,
        constants=_convex_constants(objective, tolerance),
        reference=(
            "the same head retrained without the forgotten samples, from any start, "
            "to the same tolerance, with the same noise"
        ),
    )


def _proved_norm(gradient: Vector, rounding: float) -> float:
    """|exact gradient| at most; the norm itself is a float64 sum of p squares."""
    slack = 1 + (gradient.numel() + 8) * 2.0**-52
    return float(gradient.norm()) * slack + rounding


def _backtrack(
    objective: _StronglyConvex, w: Vector, x: Vector, norm: float
) -> tuple[Vector, Vector, float]:
    t = 1.0
    while t > 1e-6:
        candidate = w - t * x
        # Far away the loss may overflow: such a candidate is only too long.
        if math.isfinite(objective.value(candidate)):
            gradient, rounding = objective.gradient(candidate)
            if float(gradient.norm()) <= (1 - 1e-4 * t) * norm:
                return candidate, gradient, rounding
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
