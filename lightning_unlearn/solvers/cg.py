"""Conjugate gradients (Hestenes & Stiefel 1952) with a negative-curvature status."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch

from lightning_unlearn._base import validate
from lightning_unlearn.errors import SolverError
from lightning_unlearn.solvers.base import Operator, Solution, Status, residual_norm
from lightning_unlearn.solvers.observer import (
    NOBODY,
    Observer,
    count,
    numbers,
    snapshot,
    vector,
)
from lightning_unlearn.weights.scope import Dot, Vector, plain_dot


@dataclass(frozen=True)
class CG:
    """Conjugate gradients for a positive definite A.

    Stops at the first direction with v'Av not > 0, which proves that A is not
    positive definite.

    Args:
        rtol: Stop when the residual is at most rtol |b|.
        max_steps: Products to spend at most.
    """

    rtol: float = 1e-2
    max_steps: int = 1000

    def __post_init__(self) -> None:
        validate.positive(rtol=self.rtol)
        validate.count(max_steps=self.max_steps)

    def solve(self, A: Operator, b: Vector, observer: Observer = NOBODY) -> Solution:
        """Solve A x = b from x = 0, with one more product for the residual."""
        end = iterate(A.matvec, b, self.rtol, self.max_steps, observer=observer)
        return Solution(
            x=end.x,
            residual=residual_norm(A, end.x, b),
            status=end.status,
            steps=end.steps,
            matvecs=float(end.products + 1),
            method="conjugate gradients",
        )


class Iterate(NamedTuple):
    """Where the iteration ended: no residual has been recomputed yet."""

    x: Vector
    status: Status
    steps: int
    products: int


def iterate(
    matvec: Callable[[Vector], Vector],
    b: Vector,
    rtol: float,
    max_steps: int,
    consume: bool = False,
    dot: Dot = plain_dot,
    observer: Observer = NOBODY,
) -> Iterate:
    """Conjugate gradients from x = 0, by products alone.

    With `consume` the right-hand side is used up, to save a vector.
    """
    x, r, p = torch.zeros_like(b), b if consume else b.clone(), b.clone()
    rr = dot(r, r)
    target = (rtol**2) * rr
    steps, products, status = 0, 0, Status.CONVERGED
    state = observer.start()
    if state is not None:
        x, r, p = (vector(state, name, b) for name in ("x", "r", "p"))
        rr, steps, products = numbers(state, 3)
        steps, products = count(steps, max_steps), count(products, max_steps)
    while not rr <= target:  # "not <=" so that NaN goes on and fails below
        if steps >= max_steps:
            status = Status.MAX_STEPS
            break
        Ap = matvec(p)
        products += 1
        pAp = dot(p, Ap)
        if not pAp > 0:
            status = Status.INDEFINITE
            break
        alpha = rr / pAp
        x.add_(p, alpha=alpha)  # in place: these vectors are what memory goes to
        r.sub_(Ap, alpha=alpha)
        del Ap
        rr, rr_old = dot(r, r), rr
        p.mul_(rr / rr_old).add_(r)
        steps += 1
        state = partial(snapshot, rr, steps, products, x=x, r=r, p=p)
        observer.step(steps, math.sqrt(rr), state)
    return Iterate(x, status, steps, products)


def solve_preconditioned(
    matvec: Callable[[Vector], Vector],
    b: Vector,
    inverse: Callable[[Vector], Vector],
    *,
    rtol: float,
    max_steps: int,
    method: str,
    spent: float = 0.0,
    check: bool = True,
    observer: Observer = NOBODY,
) -> Solution:
    """Flexible conjugate gradients from x = 0: `inverse` may differ at every step.

    Args:
        matvec: v -> A v.
        b: Right-hand side (p,).
        inverse: r -> an approximation of A^-1 r.
        rtol: Stop when the residual is at most rtol |b|.
        max_steps: Full products to spend at most.
        method: For the solution.
        spent: Passes made before, counted in the solution.
        check: Recompute the residual by one more product.
        observer: Looks on.

    Returns:
        The solution (Notay 2000).
    """
    x, r = torch.zeros_like(b), b.clone()
    target = rtol * float(b.norm())
    products, status = 0, Status.CONVERGED
    p, Ap, pAp = torch.zeros_like(b), torch.zeros_like(b), 1.0
    state = observer.start()
    if state is not None:
        x, r, p, Ap = (vector(state, name, b) for name in ("x", "r", "p", "Ap"))
        pAp, made = numbers(state, 2)
        products = count(made, max_steps)
        if not pAp > 0:
            raise SolverError(
                f"expected p'Ap > 0 in the state of a solve, got {pAp}: start without "
                "it"
            )
    left = float(r.norm())
    while not left <= target:  # "not <=" so that NaN fails below
        if products >= max_steps:
            status = Status.MAX_STEPS
            break
        z = inverse(r)
        p = z - (float(z @ Ap) / pAp) * p  # conjugate to the last direction
        Ap = matvec(p)
        products += 1
        pAp = float(p @ Ap)
        if not pAp > 0:
            status = Status.INDEFINITE
            break
        alpha = float(p @ r) / pAp
        x += alpha * p
        r -= alpha * Ap
        left = float(r.norm())
        state = partial(snapshot, pAp, products, x=x, r=r, p=p, Ap=Ap)
        observer.step(products, left, state)
    return Solution(
        x=x,
        residual=float((matvec(x) - b).norm()) if check else left,
        status=status,
        steps=products,
        matvecs=spent + products + check,
        method=method,
    )


def solve_lean(
    A: Operator,
    b: Callable[[], Vector],
    rtol: float,
    max_steps: int,
    dot: Dot = plain_dot,
    observer: Observer = NOBODY,
) -> Solution:
    """`CG` with the fewest vectors: the right-hand side is fetched when it is needed.

    Args:
        A: The operator.
        b: Gives the right-hand side (p,), a new one each time.
        rtol: Stop when the residual is at most rtol |b|.
        max_steps: Products to spend at most.
        dot: Inner product of vectors, of which a process may hold a part.
        observer: Looks on.

    Returns:
        The solution, its residual recomputed by one more product.
    """

    def norm(v: Vector) -> float:
        return math.sqrt(dot(v, v))

    run = partial(iterate, A.matvec, consume=True, dot=dot)
    x, status, steps, products = run(b(), rtol, max_steps, observer=observer)
    target = rtol * norm(b())
    r = b().sub_(A.matvec(x))
    products, residual = products + 1, norm(r)
    # In single precision the recurrence drifts off: solve for what is left.
    while status is Status.CONVERGED and not residual <= target:
        again = run(r, target / residual, max_steps - steps)
        x.add_(again.x)
        status, steps = again.status, steps + again.steps
        r, before = b().sub_(A.matvec(x)), residual
        products, residual = products + again.products + 1, norm(r)
        if status is Status.CONVERGED and not residual <= before / 2:
            status = Status.MAX_STEPS if residual > target else status
            break
    return Solution(
        x=x,
        residual=residual,
        status=status,
        steps=steps,
        matvecs=float(products),
        method="conjugate gradients with few vectors",
    )
