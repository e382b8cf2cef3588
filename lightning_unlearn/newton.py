r"""Where torch meets the certificate: (F, w, solver, guarantee) -> (w~, claim).

The damped step of an ordinary network. `minimise` does the same for a strongly
convex scope, `release` adds the noise; a reviewer of the guarantee reads these three
files and ``certificate/``, and nothing else.
"""

from dataclasses import dataclass, replace

import torch

from lightning_unlearn.certificate.claims import Bound
from lightning_unlearn.certificate.constants import Constant, Origin
from lightning_unlearn.certificate.guarantees import NewtonStep, NormBall
from lightning_unlearn.curvature.spectrum import lanczos_ends
from lightning_unlearn.errors import GuaranteeError, SolverError
from lightning_unlearn.objective import Objective
from lightning_unlearn.scope import Vector
from lightning_unlearn.solvers import Damped, Solution, Solver, Status

_LANCZOS_STEPS = 40
_LANCZOS_SAMPLES = 1000
_RAISES = 20


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


def damped_step(
    objective: Objective,
    w0: Vector,
    *,
    damping: float | None,
    solver: Solver,
    guarantee: NormBall | NewtonStep | None,
    max_norm: float | None,
    kinks: tuple[str, ...] = (),
) -> Step:
    r"""One step ``w0 - (H + damping I)^-1 g``, projected onto the norm ball.

    Zhang et al. 2024 (arXiv 2408.00920), Algorithms 1 and 2, with the exact retained
    gradient and a residual that is measured, not bounded in advance. Projection is
    non-expansive towards every point of the ball, so no bound gets worse.

    Args:
        objective: F at w0.
        w0: Original weights (p,), float64.
        damping: lambda, or None to take it from the spectrum.
        solver: For the linear system.
        guarantee: What to claim; None claims nothing.
        max_norm: C; needed by both guarantees.
        kinks: Functions without a Lipschitz second derivative the model calls.

    Returns:
        The step.

    Raises:
        SolverError: If the solve did not end as converged.
        GuaranteeError: If the guarantee needs what is not there.
    """
    _, gradient = objective.value_and_gradient()
    solution, damping, spectrum = _solve(objective, gradient, damping, solver)
    w = w0 - solution.x
    if max_norm is not None:
        w = project(w, max_norm)
    constants = [
        *spectrum,
        Constant(
            name="residual",
            value=solution.residual,
            origin=Origin.MEASURED,
            reason="|(H + damping I) x - g|, one more pass over the retained samples",
        ),
    ]
    step = Step(
        weights=w,
        solution=replace(solution, x=w0 - w),
        bound=Bound.NO_BOUND,
        constants=tuple(constants),
        reference="",
    )
    if guarantee is None:
        return step
    return _claim(step, guarantee, max_norm, kinks)


def project(w: Vector, max_norm: float) -> Vector:
    """The point of the ball |w| <= max_norm nearest to w."""
    norm = float(w.norm())
    return w if norm <= max_norm else w * (max_norm / norm)


def _claim(
    step: Step,
    guarantee: NormBall | NewtonStep,
    max_norm: float | None,
    kinks: tuple[str, ...],
) -> Step:
    if max_norm is None:
        raise GuaranteeError(
            "expected max_norm for this guarantee, got None: without a norm ball no "
            "finite distance to the retrained weights is known"
        )
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
    if kinks:
        raise GuaranteeError(
            "expected a network with a Lipschitz Hessian for guarantee=NewtonStep, "
            f"got {', '.join(kinks)}: use smooth activations (GELU, tanh) and average "
            "pooling, or guarantee=NormBall()"
        )
    informative = [c for c in step.constants if c.name != "lambda_min"]
    assumed = [
        Constant(
            name=name,
            value=getattr(guarantee, name),
            origin=Origin.ASSUMED,
            reason="given by the user in guarantee=NewtonStep(...), not checked",
        )
        for name in ("hessian_lipschitz", "lambda_min", "retrained_gradient_norm")
    ]
    return replace(
        step,
        bound=Bound.NEWTON_STEP,
        constants=(ball, *assumed, *informative),
        reference="the network retrained without the forgotten samples inside the "
        "same norm ball, with the same noise",
        warnings=(
            *step.warnings,
            "the sensitivity uses numbers measured on the data, so the size of the "
            "noise itself is not covered by epsilon",
        ),
    )


def _kinked(kinks: tuple[str, ...]) -> list[str]:
    if not kinks:
        return []
    return [
        f"the network calls {', '.join(kinks)}: its Hessian has no Lipschitz constant, "
        "so no bound better than the norm ball exists; smooth activations (GELU, tanh) "
        "and average pooling are needed for more"
    ]


def _solve(
    objective: Objective, gradient: Vector, damping: float | None, solver: Solver
) -> tuple[Solution, float, list[Constant]]:
    reported: list[Constant] = []
    auto = damping is None
    reason, floor = "given by the user", 0.0
    if damping is None:
        lowest, highest = _spectrum_ends(objective, gradient.device)
        damping, floor = 2 * max(-lowest, 0.0), 1e-4 * max(-lowest, highest)
        samples = min(objective.n, _LANCZOS_SAMPLES)
        reason = (
            f"twice the negative part of lambda_min = {lowest:.3g}, estimated by "
            f"Lanczos on {samples:,} samples (lambda_max {highest:.3g})"
        )
        reported.append(
            Constant(
                name="lambda_min",
                value=lowest,
                origin=Origin.ESTIMATED,
                reason=f"{_LANCZOS_STEPS} Lanczos steps on {samples:,} samples; a Ritz "
                "value lies above the true one",
            )
        )
    solution = solver.solve(Damped(objective, damping), gradient)
    raises = 0
    while auto and solution.status is Status.INDEFINITE and raises < _RAISES:
        damping, raises = max(2 * damping, floor), raises + 1
        spent = solution.matvecs
        solution = solver.solve(Damped(objective, damping), gradient)
        solution = replace(solution, matvecs=solution.matvecs + spent)
    if raises:
        reason += f"; doubled {raises} times on negative curvature"
    if solution.status is not Status.CONVERGED:
        raise SolverError(
            f"expected (H + damping I) x = g to be solved with damping={damping:.6g}, "
            f"got residual {solution.residual:.3g} for |g| = "
            f"{float(gradient.norm()):.3g}: the solver {solution.status.value}"
        )
    reported.append(
        Constant(name="damping", value=damping, origin=Origin.ENFORCED, reason=reason)
    )
    return solution, damping, reported


def _spectrum_ends(objective: Objective, device: torch.device) -> tuple[float, float]:
    def generator() -> torch.Generator:
        return torch.Generator().manual_seed(0)

    def sampled(v: Vector) -> Vector:  # the same samples for every product
        return objective.sampled_hvp(v, _LANCZOS_SAMPLES, generator())

    matvec = objective.hvp if objective.n <= _LANCZOS_SAMPLES else sampled
    start = torch.randn(objective.size, generator=generator(), dtype=torch.float64)
    return lanczos_ends(matvec, start.to(device), _LANCZOS_STEPS)
