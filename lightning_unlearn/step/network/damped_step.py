"""One damped Newton step of an ordinary network: (F, w, solver) -> (w~, claim)."""

import math
from dataclasses import dataclass, replace

from lightning_unlearn.certificate.words.theorems import reported, step_claim
from lightning_unlearn.errors import GuaranteeError
from lightning_unlearn.guarantee.kinds import NewtonStep, NormBall
from lightning_unlearn.guarantee.proofs import check_residual, check_start
from lightning_unlearn.solvers.base import Solution, Solver
from lightning_unlearn.solvers.flexible import FlexibleCG
from lightning_unlearn.solvers.observer import NOBODY, Observer
from lightning_unlearn.step.network.damping import solve_damped, way_to_solve
from lightning_unlearn.step.network.spectrum import Ends, hessian_change, spectrum_ends
from lightning_unlearn.step.step import Step, project
from lightning_unlearn.weights.objective import Objective
from lightning_unlearn.weights.scope import Vector

_RTOL = 1e-2


@dataclass(frozen=True, kw_only=True)
class GradientAndSpectrum:
    """What is known of F at the original weights before the solve.

    Args:
        gradient: Of F (p,), float64.
        ends: Ritz values at both ends of the Hessian, or None.
        passes: Over the samples that were spent on them in this request.
    """

    gradient: Vector
    ends: Ends | None
    passes: float


def look(
    objective: Objective, spectrum: bool, observer: Observer = NOBODY
) -> GradientAndSpectrum:
    """The gradient of F, and with `spectrum` what Lanczos finds on a part of it."""
    observer.stage("gradient")
    ends, passes = None, 1.0
    if spectrum:  # before there is a gradient to hold
        ends = spectrum_ends(objective, _spectrum_samples(objective.n), observer)
        passes += ends.products * ends.samples / objective.n
    _, gradient = objective.value_and_gradient()
    return GradientAndSpectrum(gradient=gradient, ends=ends, passes=passes)


def _spectrum_samples(n: int) -> int:
    """Measured on an MLP and a small CNN: 250 give lambda_min to 20%, 1,000 to 10%."""
    return min(n, 1000, max(250, n // 40))


def damped_step(
    objective: Objective,
    *,
    damping: float | None,
    solver: Solver | None,
    guarantee: NormBall | NewtonStep | None,
    max_norm: float | None,
    kinks: tuple[str, ...] = (),
    known: GradientAndSpectrum | None = None,
    observer: Observer = NOBODY,
) -> Step:
    r"""One step ``w0 - (H + damping I)^-1 g``, projected onto the norm ball.

    Zhang et al. 2024 (arXiv 2408.00920), Algorithms 1 and 2, with the exact retained
    gradient and a residual that is measured, not bounded in advance. Projection is
    non-expansive towards every point of the ball, so no bound gets worse.

    Args:
        objective: F at the original weights w0.
        damping: lambda, or None to take it from the spectrum.
        solver: For the linear system; None takes `FlexibleCG`, as tight as the
            guarantee asks.
        guarantee: What to claim; None claims nothing.
        max_norm: C; needed by both guarantees.
        kinks: Functions without a Lipschitz second derivative the model calls.
        known: If it is: saves a pass and the spectrum. A `NewtonStep` rests on the
            gradient, and takes it afresh.
        observer: Looks on at the solve.

    Returns:
        The step.

    Raises:
        SolverError: If the solve did not end as converged.
        GuaranteeError: If the guarantee needs what is not there.
    """
    claim = step_claim(guarantee, max_norm=max_norm, damping=damping, kinks=kinks)
    if isinstance(guarantee, NewtonStep) and max_norm is not None:
        _check_possible(objective, max_norm)
    if known is None or isinstance(guarantee, NewtonStep):
        known = look(objective, spectrum=damping is None, observer=observer)
    norm = math.sqrt(objective.dot(known.gradient, known.gradient))
    ends, passes = known.ends, known.passes
    chosen = solver or _default(norm, guarantee)
    measure = isinstance(guarantee, NewtonStep) or not getattr(chosen, "check", True)
    solve = way_to_solve(objective, known.gradient, chosen, observer, measure)
    del known  # where memory is short, the gradient lies on the disk now
    observer.stage("solving")
    solution, told = solve_damped(solve, norm, damping, ends, passes)
    if isinstance(guarantee, NewtonStep):
        check_residual(solution.residual, guarantee)
        _refute(objective, guarantee, solution, observer)
    w = objective.weights().sub_(solution.x)
    inside = w if max_norm is None else project(w, max_norm, objective.dot)
    if inside is not w:
        solution = replace(solution, x=objective.weights().sub_(inside))
        w = inside
    relative = solution.residual / max(norm, 1e-300)
    found = (
        []
        if relative <= 0.1
        else [
            f"the linear system is solved to {relative:.0%} of |g| only: x is a rough "
            "approximation of the Newton step"
        ]
    )
    claimed = {constant.name for constant in claim.constants}
    return Step(
        weights=w,
        solution=solution,
        claim=claim,
        measured=(
            *(constant for constant in told if constant.name not in claimed),
            reported("measured_residual", solution.residual),
            reported("measured_relative_residual", relative),
        ),
        warnings=tuple(found),
    )


def _default(norm: float, guarantee: NormBall | NewtonStep | None) -> Solver:
    """A residual of a hundredth moves |grad F| as far as one step can."""
    if not isinstance(guarantee, NewtonStep):
        return FlexibleCG(rtol=_RTOL)
    rtol = min(_RTOL, 0.5 * guarantee.residual / max(norm, 1e-300))
    return FlexibleCG(rtol=max(rtol, 1e-14), check=False)  # `measure` does


def with_difference_error(step: Step, error: float) -> Step:
    """A step that says how far products by differences were off.

    Args:
        step: The step.
        error: Estimated |error of Hv| / |Hv| along it.
    """
    stated = reported("measured_difference_error", error)
    warnings = list(step.warnings)
    if not error <= _RTOL:
        warnings.append(
            f"differences of gradients miss the curvature by about {error:.0%}: x is a "
            "rough approximation of the Newton step"
        )
    return replace(step, measured=(*step.measured, stated), warnings=tuple(warnings))


def _check_possible(objective: Objective, max_norm: float) -> None:
    """Refuse, before any work, what Theorem A cannot start from."""
    if objective.lean:
        raise GuaranteeError(
            "expected vectors in float64 for guarantee=NewtonStep, got low_memory: its "
            "residual is part of the claim; set low_memory=False"
        )
    check_start(float(objective.weights().norm()), max_norm)


def _refute(
    objective: Objective, guarantee: NewtonStep, solution: Solution, observer: Observer
) -> None:
    """Refuse constants the data refutes: every estimate here errs the other way."""
    lowest = spectrum_ends(objective, observer=observer).lowest
    if lowest < guarantee.lambda_min - 1e-9 * abs(guarantee.lambda_min):
        raise GuaranteeError(
            f"expected lambda_min={guarantee.lambda_min} to be a lower bound, but "
            f"Lanczos found {lowest:.4g} on all retained samples, which is not below "
            "the true one: the assumption is refuted; lower it"
        )
    sampled = hessian_change(objective, objective.weights(), solution.x)
    if sampled > guarantee.hessian_lipschitz:
        raise GuaranteeError(
            f"expected hessian_lipschitz={guarantee.hessian_lipschitz} to bound the "
            f"change of the Hessian, but along the step it changes by {sampled:.4g} "
            "per unit: the assumption is refuted; raise it"
        )
