r"""Newton to a fixed gradient norm in a strongly convex scope."""

import math
from collections.abc import Callable, Sequence

import torch

from lightning_unlearn._base import validate
from lightning_unlearn.certificate.words.theorems import reported, strongly_convex_claim
from lightning_unlearn.errors import GuaranteeError, SolverError
from lightning_unlearn.guarantee.tolerance import Tolerance
from lightning_unlearn.solvers.base import Solution, Solver, Status
from lightning_unlearn.solvers.observer import NOBODY, Observer
from lightning_unlearn.step.head.convex_objective import ConvexObjective
from lightning_unlearn.step.head.descent import (
    Direction,
    Factored,
    FreshFactor,
    InnerSolve,
    Iterate,
    StoredFactor,
    StronglyConvexObjective,
)
from lightning_unlearn.step.head.proxy_steps import ProxySteps
from lightning_unlearn.step.step import Step
from lightning_unlearn.weights.scope import Vector

#: Of the sensitivity: what the rounding of rows may add to it, unsaid.
_UNSAID = 0.05


def check_resolved(
    objective: ConvexObjective, w: Vector, difference: float, tolerance: float
) -> None:
    """Raise unless the rows are known as well as the tolerance takes them to be.

    The noise is of the size of ``2 tolerance / l2``. Rows that differ between two ways
    of computing them move the minimiser itself, and a tolerance far below that would
    promise more than there is.

    Args:
        objective: Over the retained rows.
        w: Its minimiser (p,), to the tolerance.
        difference: Measured distance of rows of one sample (`row_difference`).
        tolerance: tau.

    Raises:
        GuaranteeError: If they may move it by more than a twentieth of that.
    """
    if difference == 0:
        return
    moved = objective.shift_upper(w, difference) * objective.l2
    if not moved <= _UNSAID * 2 * tolerance:
        least = 1.05 * moved / (2 * _UNSAID)
        raise GuaranteeError(
            f"expected a tolerance that the rows at the head can resolve, got "
            f"tolerance={tolerance:g} with rows that differ by {difference:.2g} when a "
            "sample is read again, in another company: the optimum may move by more "
            f"than {_UNSAID:.0%} of the sensitivity; take tolerance={least:.2g} or "
            "more, compute in float64 (module.double()), or use deterministic kernels "
            "(torch.use_deterministic_algorithms)"
        )


def minimise(
    objective: StronglyConvexObjective,
    w0: Vector,
    *,
    tolerance: float,
    max_steps: int = 50,
    solver: Solver | None = None,
    proxy_samples: int | None = None,
    start: Vector | None = None,
    factor: Factored | None = None,
    refactor: Callable[[], Factored | None] | None = None,
    observer: Observer = NOBODY,
) -> Step:
    r"""Newton steps until ``|grad F| + rounding <= tolerance``, else nothing.

    F is mu-strongly convex with mu = l2, so any w with |grad F(w)| <= tolerance is
    within tolerance/mu of the one minimiser, from wherever it started
    (`strongly_convex_upper`). Two such points, one made from the
    original weights and one from retrained weights, are within 2 tolerance/mu.
    Conjugate gradients inside; steps are halved until the gradient norm falls.

    Whether there is an answer must not depend on the forgotten samples: where no way
    leads on from the trained weights, which remember them, it starts again from zero.

    Args:
        objective: F over the retained samples.
        w0: Starting weights (p,), float64.
        tolerance: tau, fixed before the data was seen.
        max_steps: Newton steps at most, after quasi-Newton steps on a part of the rows,
            of which six for ten of these may be made first.
        solver: For the inner systems; by default conjugate gradients no tighter than
            needed. It cannot change the claim: the loop ends only at the tolerance.
        proxy_samples: Of the default solver; for a forecast on a part of the data,
            what the whole will use.
        start: The gradient at w0 if it is known, as it is near the optimum: it saves a
            pass and a step, and proves nothing.
        factor: Solves with a matrix near the Hessian at w0 without products; it is
            used as long as it halves the gradient, then as a preconditioner.
        refactor: Makes such a factor where curvature is taken, or None if there is
            none; used in place of the default solver.
        observer: Looks on, from Newton step to Newton step. Going on from one of them
            ends at a point that is proved in the same way.

    Returns:
        The step; the constants do not include the measured gradient norm, which
        depends on the forgotten samples and is not covered by epsilon.

    Raises:
        GuaranteeError: If rounding alone exceeds the tolerance.
        SolverError: If the tolerance is not reached, from zero neither.
    """
    validate.positive(tolerance=tolerance)

    def directions(at_start: StoredFactor) -> tuple[Direction, ...]:
        return (
            at_start,
            FreshFactor(None if solver is not None else refactor, at_start),
            *(
                []
                if solver
                else [ProxySteps(proxy_samples, at_start, tolerance, max_steps)]
            ),
            InnerSolve(solver, proxy_samples, at_start, tolerance),
        )

    at, stored = Iterate(objective, w0, start), StoredFactor(factor)
    observer.stage("gradient")
    state = observer.start()
    if state is not None:
        at.go_on_from(state, max_steps)
        stored.works = False
    try:
        _descend(at, directions(stored), tolerance, max_steps, observer)
    except (GuaranteeError, SolverError):
        if not bool(w0.any()):
            raise
        again = Iterate(objective, torch.zeros_like(w0))
        again.passes, before = at.passes, at.steps + at.sampled
        at, nothing = again, StoredFactor(None)
        _descend(at, directions(nothing), tolerance, max_steps, observer)
        at.steps += before
    return Step(
        weights=at.w,
        solution=Solution(
            x=w0 - at.w,
            residual=at.norm,
            status=Status.CONVERGED,
            steps=at.steps + at.sampled,
            matvecs=at.passes,
            method=at.method,
        ),
        claim=strongly_convex_claim(Tolerance(tolerance), objective.l2),
        measured=(reported("feature_norm", objective.feature_norm),),
        gradient=at.gradient,
    )


def _descend(
    at: Iterate,
    directions: Sequence[Direction],
    tolerance: float,
    max_steps: int,
    observer: Observer,
) -> None:
    """Go on until the tolerance is proved."""
    if not at.known:
        at.evaluate()
    if not math.isfinite(at.norm):
        raise SolverError(
            f"expected a finite gradient where the solve starts, got {at.norm}: the "
            "weights or features are beyond what the loss can be computed at"
        )
    observer.stage("solving")
    while not at.proves(tolerance):
        _check_worthwhile(at, tolerance, max_steps)
        observer.milestone(at.norm, at.state)
        way = next((way for way in directions if way.go(at)), None)
        if isinstance(way, ProxySteps):
            at.sampled += 1
        else:
            at.steps += 1
        if way is None:
            raise SolverError(
                "expected a shorter gradient along the Newton direction, got none "
                f"below {at.norm:.3g}: the tolerance is below what float64 resolves "
                "here; raise it"
            )


def _check_worthwhile(at: Iterate, tolerance: float, max_steps: int) -> None:
    if at.sharp and not at.rounding < max(tolerance, at.norm / 10):
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
