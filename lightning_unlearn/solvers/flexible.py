"""Flexible conjugate gradients, preconditioned by a cheaper operator near A."""

from dataclasses import dataclass, replace

import torch

from lightning_unlearn._base import validate
from lightning_unlearn.solvers.base import (
    Operator,
    Preconditioned,
    Solution,
    proxy_of,
)
from lightning_unlearn.solvers.cg import CG, solve_preconditioned
from lightning_unlearn.solvers.observer import NOBODY, Observer, watched
from lightning_unlearn.weights.scope import Vector

_ROOM = 1 << 28  # bytes of directions that are kept in the inner solve
_BEGIN = 16  # of them that are made room for at first


@dataclass(frozen=True)
class FlexibleCG:
    """Conjugate gradients whose preconditioner is an inner solve (Notay 2000).

    The operator offers a proxy: a positive definite matrix near A that costs a part
    of a pass, made of samples drawn by importance. Each outer step solves with the
    proxy by a few inner steps. Without a proxy it is `CG`.

    Args:
        rtol: Stop when the residual is at most rtol |b|.
        max_steps: Full products to spend at most.
        samples: How many samples are drawn for the proxy; never more than n / share.
        share: See `samples`.
        inner_steps: Products with the proxy for each full one, at most.
        inner_rtol: The inner steps end when their residual is this times the first.
        seed: Seed of the draws. It has nothing to do with the noise.
        check: Recompute the residual at the end, by one more product; without, the
            reported one is that of the recurrence.
    """

    rtol: float = 1e-2
    max_steps: int = 1000
    samples: int = 2000
    share: int = 20
    inner_steps: int = 40
    inner_rtol: float = 1e-2
    seed: int = 0
    check: bool = True

    def __post_init__(self) -> None:
        validate.positive(rtol=self.rtol, inner_rtol=self.inner_rtol)
        validate.count(
            max_steps=self.max_steps,
            samples=self.samples,
            share=self.share,
            inner_steps=self.inner_steps,
        )
        validate.count(minimum=0, seed=self.seed)

    def solve(self, A: Operator, b: Vector, observer: Observer = NOBODY) -> Solution:
        """Solve A x = b from x = 0, with one more product for the residual."""
        inner = ProxySolve(self, A, observer)
        if inner.proxy is None:
            return CG(self.rtol, self.max_steps).solve(A, b, observer)
        found = solve_preconditioned(
            A.matvec,
            b,
            inner,
            rtol=self.rtol,
            max_steps=self.max_steps,
            observer=observer,
            check=self.check,
            method="",
        )
        return replace(
            found,
            matvecs=found.matvecs + inner.spent,
            method="conjugate gradients, preconditioned by "
            f"{inner.samples:,} samples drawn by their curvature",
        )


class ProxySolve:
    """A few steps of conjugate gradients with the proxy.

    Right-hand sides that follow each other are near each other. So directions of
    earlier calls are kept, as far as there is room, and at most one for each entry of
    a vector, with their products: what they span is solved at once, and new ones are
    made conjugate to them (Saad, Yeung, Erhel & Guyomarc'h 2000). A proxy with no
    inverse of its own is restarted in place of that.
    """

    def __init__(self, solver: FlexibleCG, A: Operator, observer: Observer) -> None:
        self.solver, self.A, self.observer = solver, A, observer
        self.spent = 0.0
        self.samples = min(solver.samples, A.n // solver.share)
        generator = torch.Generator().manual_seed(solver.seed)
        self.proxy = proxy_of(A, self.samples, generator)
        self.cost, self.inverse = self.samples / A.n, None
        if isinstance(self.proxy, Preconditioned):
            self.cost, self.inverse = self.proxy.cost, self.proxy.inverse
            self.spent = self.proxy.built
        self._kept: _Conjugate | None = None

    def __call__(self, b: Vector) -> Vector:
        """An approximation of A^-1 b."""
        x, taken = self._solve(b)
        self.spent += taken * self.cost
        return x if bool(x.any()) else b

    def _solve(self, b: Vector) -> tuple[Vector, int]:
        """The solution, and products made."""
        assert self.proxy is not None
        steps = self.solver.inner_steps
        matvec = watched(self.proxy, steps, self.observer)
        if self._kept is None or self.inverse is None:
            room = min(len(b), _ROOM // (2 * b.element_size() * len(b)))
            self._kept = _Conjugate(b, 1 if self.inverse is None else max(1, room))
        # Rounding at the end of a solve may stop it earlier.
        kept, target = self._kept, self.solver.inner_rtol * float(b.norm())
        x, r = torch.zeros_like(b), b.clone()
        kept.project(x, r)
        for taken in range(steps):
            if float(r.norm()) <= target:
                return x, taken
            z = kept.conjugate(r if self.inverse is None else self.inverse(r))
            if not kept.go(z, matvec(z), x, r):
                return x, taken + 1
        return x, steps


class _Conjugate:
    """Directions that are conjugate to each other, and their products.

    Args:
        like: A vector (p,).
        room: How many are kept; the last makes room for the next.
    """

    def __init__(self, like: Vector, room: int) -> None:
        self.room, self.count = room, 0
        self.directions = like.new_empty(min(room, _BEGIN), len(like))
        self.products = torch.empty_like(self.directions)
        self.curvature = like.new_empty(len(self.directions))

    def project(self, x: Vector, r: Vector) -> None:
        """Solve in what they span: x += z and r -= A z."""
        if self.count:
            k = slice(self.count)
            along = self.directions[k] @ r / self.curvature[k]
            x += along @ self.directions[k]
            r -= along @ self.products[k]

    def conjugate(self, z: Vector) -> Vector:
        """The part of z that is conjugate to all of them."""
        k = slice(self.count)
        along = self.products[k] @ z / self.curvature[k]
        return z - along @ self.directions[k]

    def go(self, z: Vector, Az: Vector, x: Vector, r: Vector) -> bool:
        """Go along z, and keep it; False if A is not positive there."""
        zAz = float(z @ Az)
        if not zAz > 0:
            return False
        step = float(z @ r) / zAz
        x += step * z
        r -= step * Az
        if self.count == len(self.directions) < self.room:
            self._grow(min(2 * self.count, self.room))
        self.count = min(self.count + 1, self.room)
        at = self.count - 1
        self.directions[at], self.products[at], self.curvature[at] = z, Az, zAz
        return True

    def _grow(self, size: int) -> None:
        for name in ("directions", "products", "curvature"):
            old = getattr(self, name)
            new = old.new_empty(size, *old.shape[1:])
            new[: self.count] = old
            setattr(self, name, new)
