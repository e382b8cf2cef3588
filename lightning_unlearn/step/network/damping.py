"""The damped system (H + damping I) x = g, damped until it can be solved."""

from collections.abc import Callable
from dataclasses import replace

from lightning_unlearn.certificate.words.theorems import reported
from lightning_unlearn.errors import SolverError
from lightning_unlearn.guarantee.constants import Constant
from lightning_unlearn.solvers.base import (
    Damped,
    Solution,
    Solver,
    Status,
    residual_norm,
)
from lightning_unlearn.solvers.cg import CG, solve_lean
from lightning_unlearn.solvers.flexible import FlexibleCG
from lightning_unlearn.solvers.nystrom import NystromCG
from lightning_unlearn.solvers.observer import Observer
from lightning_unlearn.step.network.spectrum import Ends
from lightning_unlearn.weights.large_arrays import set_aside
from lightning_unlearn.weights.objective import Objective
from lightning_unlearn.weights.scope import Vector

_RAISES = 20


def way_to_solve(
    objective: Objective,
    gradient: Vector,
    solver: Solver,
    observer: Observer,
    measure: bool,
) -> Callable[[float], Solution]:
    """Damping -> the solution of (H + damping I) x = g.

    With `measure` the residual is taken by a product of our own: a solver's word
    supports no claim.
    """

    def solve(damping: float) -> Solution:
        A = Damped(objective, damping)
        found = solver.solve(A, gradient, observer.of(damping))
        if not measure or found.status is not Status.CONVERGED:
            return found
        residual = residual_norm(A, found.x, gradient)
        return replace(found, residual=residual, matvecs=found.matvecs + 1)

    if not objective.lean:
        return solve
    if not isinstance(solver, (CG, FlexibleCG, NystromCG)):
        raise SolverError(
            "expected conjugate gradients where memory is short, got "
            f"{type(solver).__name__}: leave solver='auto', or set low_memory=False "
            "where the weights are whole"
        )
    again, rtol, most = set_aside(gradient), solver.rtol, solver.max_steps

    def solve_in_little_memory(damping: float) -> Solution:
        A, looks_on = Damped(objective, damping), observer.of(damping)
        return solve_lean(A, again, rtol, most, objective.dot, looks_on)

    return solve_in_little_memory


def solve_damped(
    solve: Callable[[float], Solution],
    norm: float,
    damping: float | None,
    ends: Ends | None,
    spent: float,
) -> tuple[Solution, list[Constant]]:
    """Solve the system, with a damping that makes it positive definite.

    Args:
        solve: Of `way_to_solve`.
        norm: |g|.
        damping: lambda, or None to take it from the spectrum and to raise it.
        ends: Of the spectrum, if there is no damping.
        spent: Passes made before.

    Returns:
        The solution, and the constants that say how it came about.

    Raises:
        SolverError: If the solve did not end as converged.
    """
    told: list[Constant] = []
    auto = damping is None
    floor = 0.0
    if damping is None:
        assert ends is not None  # `look` was asked for them
        lowest, highest, _, samples = ends
        damping, floor = 2 * max(-lowest, 0.0), 1e-4 * max(-lowest, highest)
        told += [
            reported("ritz_min", lowest),
            reported("ritz_max", highest),
            reported("lanczos_samples", samples),
        ]
    solution, raises = solve(damping), 0
    while auto and solution.status is Status.INDEFINITE and raises < _RAISES:
        damping, raises = max(2 * damping, floor), raises + 1
        spent += solution.matvecs
        solution = solve(damping)
    solution = replace(solution, matvecs=solution.matvecs + spent)
    if solution.status is not Status.CONVERGED:
        raise SolverError(
            f"expected (H + damping I) x = g to be solved with damping={damping:.6g}, "
            f"got residual {solution.residual:.3g} for |g| = "
            f"{norm:.3g}: the solver {solution.status.value}"
        )
    reason = 0 if not auto else 1 if not raises else 2
    return solution, [*told, reported("damping", damping, reason)]
