r"""Where torch meets the certificate: (F, w, solver, guarantee) -> (w~, claim).

The damped step of an ordinary network. `minimise` does the same for a strongly
convex scope, `release` adds the noise; a reviewer of the guarantee reads these three
files and ``certificate/``, and nothing else.
"""

import math
from dataclasses import dataclass, replace

from lightning_unlearn.certificate.claims import Bound
from lightning_unlearn.certificate.constants import Constant, Origin
from lightning_unlearn.certificate.guarantees import NewtonStep, NormBall
from lightning_unlearn.curvature.spectrum import (
    Ends,
    hessian_change,
    spectrum_ends,
)
from lightning_unlearn.damped import solve_damped, way_to_solve
from lightning_unlearn.errors import GuaranteeError, SolverError
from lightning_unlearn.objective import Objective
from lightning_unlearn.scope import Dot, Vector, plain_dot
from lightning_unlearn.solvers import FlexibleCG, Solution, Solver
from lightning_unlearn.solvers.watch import NOBODY, Watch

_RTOL = 1e-2


@dataclass(frozen=True, kw_only=True)
class Step:
    """Weights before noise, and what is known about their distance to retraining.

    Args:
        weights: w~ (p,), float64. Secret: no noise has been added.
        solution: The solve; ``x`` is the whole displacement w0 - w~.
        bound: The theorem that applies.
        constants: What it rests on.
        reference: What w~ is compared with, in words.
        warnings: What the reader must know.
    """

    weights: Vector
    solution: Solution
    bound: Bound
    constants: tuple[Constant, ...]
    reference: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Known:
    """What is known of F at the original weights before the solve.

    Args:
        gradient: Of F (p,), float64.
        ends: Ritz values at both ends of the Hessian, or None.
        passes: Over the samples that were spent on them in this request.
    """

    gradient: Vector
    ends: Ends | None
    passes: float


def look(objective: Objective, spectrum: bool) -> Known:
    """The gradient of F, and with `spectrum` what Lanczos finds on a part of it."""
    ends, passes = None, 1.0
    if spectrum:  # before there is a gradient to hold
        ends = spectrum_ends(objective, _spectrum_samples(objective.n))
        passes += ends.products * ends.samples / objective.n
    _, gradient = objective.value_and_gradient()
    return Known(gradient=gradient, ends=ends, passes=passes)


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
    known: Known | None = None,
    watch: Watch = NOBODY,
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
        watch: Looks on at the solve.

    Returns:
        The step.

    Raises:
        SolverError: If the solve did not end as converged.
        GuaranteeError: If the guarantee needs what is not there.
    """
    _check_guarantee(guarantee, objective, damping, max_norm, kinks)
    watch.stage("gradient")
    if known is None or isinstance(guarantee, NewtonStep):
        known = look(objective, spectrum=damping is None)
    norm = math.sqrt(objective.dot(known.gradient, known.gradient))
    ends, passes = known.ends, known.passes
    chosen = solver or _default(norm, guarantee)
    measure = isinstance(guarantee, NewtonStep) or not getattr(chosen, "check", True)
    solve = way_to_solve(objective, known.gradient, chosen, watch, measure)
    del known  # where memory is short, the gradient lies on the disk now
    watch.stage("solving")
    solution, reported = solve_damped(solve, norm, damping, ends, passes)
    if isinstance(guarantee, NewtonStep):
        _check_constants(objective, guarantee, solution)
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
    return _claim(
        Step(
            weights=w,
            solution=solution,
            bound=Bound.NO_BOUND,
            constants=(*reported, _measured_residual(solution, relative)),
            reference="",
            warnings=tuple(found),
        ),
        guarantee,
        max_norm,
        kinks,
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
    stated = Constant(
        name="measured_difference_error",
        value=error,
        origin=Origin.MEASURED,
        reason="curvature is formed by differences of gradients: |error of H x| / "
        "|H x| along the step, estimated from half the step width",
    )
    warnings = list(step.warnings)
    if not error <= _RTOL:
        warnings.append(
            f"differences of gradients miss the curvature by about {error:.0%}: x is a "
            "rough approximation of the Newton step"
        )
    return replace(step, constants=(*step.constants, stated), warnings=tuple(warnings))


def _measured_residual(solution: Solution, relative: float) -> Constant:
    return Constant(
        name="measured_residual",
        value=solution.residual,
        origin=Origin.MEASURED,
        reason=(
            f"|(H + damping I) x - g|, {relative:.2g} of |g|: one more pass over the "
            "retained samples"
        ),
    )


def project(w: Vector, max_norm: float, dot: Dot = plain_dot) -> Vector:
    """The point of the ball |w| <= max_norm nearest to w."""
    norm = math.sqrt(dot(w, w))
    return w if norm <= max_norm else w * (max_norm / norm)


def _check_guarantee(
    guarantee: NormBall | NewtonStep | None,
    objective: Objective,
    damping: float | None,
    max_norm: float | None,
    kinks: tuple[str, ...],
) -> None:
    """Refuse, before any work, a guarantee whose hypotheses do not hold."""
    if guarantee is None:
        return
    if max_norm is None:
        raise GuaranteeError(
            "expected max_norm for this guarantee, got None: without a norm ball no "
            "finite distance to the retrained weights is known"
        )
    if isinstance(guarantee, NormBall):
        return
    if kinks:
        raise GuaranteeError(
            "expected a network with a Lipschitz Hessian for guarantee=NewtonStep, "
            f"got {', '.join(kinks)}: use smooth activations (GELU, tanh) and average "
            "pooling, or guarantee=NormBall()"
        )
    if damping is None:
        raise GuaranteeError(
            "expected damping as a number for guarantee=NewtonStep, got 'auto': a "
            "damping taken from the data would make the noise depend on it; 0.0 is "
            "best where lambda_min > 0"
        )
    if objective.lean:
        raise GuaranteeError(
            "expected vectors in float64 for guarantee=NewtonStep, got low_memory: its "
            "residual is part of the claim; set low_memory=False"
        )
    norm = float(objective.weights().norm())
    if not norm <= max_norm * (1 + 1e-6):
        raise GuaranteeError(
            f"expected weights in the ball of max_norm={max_norm}, got norm {norm:.4g}:"
            " train with the same max_norm in the callback, which projects"
        )


def _check_constants(
    objective: Objective, guarantee: NewtonStep, solution: Solution
) -> None:
    """Refuse constants the data refutes: every estimate here errs the other way."""
    if not solution.residual <= guarantee.residual:
        raise SolverError(
            f"expected a residual of at most {guarantee.residual} (NewtonStep), got "
            f"{solution.residual:.3g}: lower the solver's rtol or raise residual="
        )
    lowest = spectrum_ends(objective).lowest
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


def _claim(
    step: Step,
    guarantee: NormBall | NewtonStep | None,
    max_norm: float | None,
    kinks: tuple[str, ...],
) -> Step:
    if guarantee is None or max_norm is None:
        return step
    ball = Constant(
        name="max_norm",
        value=max_norm,
        origin=Origin.ENFORCED,
        reason="the weights are projected onto the ball before noise is added",
    )
    if isinstance(guarantee, NormBall):
        return replace(
            step,
            bound=Bound.NORM_BALL,
            constants=(ball, *step.constants),
            reference="any weights in the norm ball, the retrained ones among them, "
            "with the same noise",
            warnings=(*step.warnings, *_kinked(kinks)),
        )
    assumed = [
        Constant(
            name=name,
            value=getattr(guarantee, name),
            origin=Origin.ASSUMED,
            reason="given by the user; sampled values did not refute it",
        )
        for name in ("hessian_lipschitz", "lambda_min", "retrained_gradient_norm")
    ]
    residual = Constant(
        name="residual",
        value=guarantee.residual,
        origin=Origin.ENFORCED,
        reason="set before the request, which fails unless the solver reaches it",
    )
    return replace(
        step,
        bound=Bound.NEWTON_STEP,
        constants=(ball, *assumed, residual, *step.constants),
        reference="the network retrained without the forgotten samples inside the "
        "same norm ball, with the same noise",
    )


def _kinked(kinks: tuple[str, ...]) -> list[str]:
    if not kinks:
        return []
    return [
        f"the network calls {', '.join(kinks)}: its Hessian has no Lipschitz constant, "
        "so no bound better than the norm ball exists; smooth activations (GELU, tanh) "
        "and average pooling are needed for more"
    ]
