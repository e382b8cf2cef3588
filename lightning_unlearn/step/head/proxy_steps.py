"""Steps of a quasi-Newton method that starts from the curvature of some rows."""

from lightning_unlearn.solvers.base import Damped, Preconditioned
from lightning_unlearn.solvers.flexible import ProxySolve
from lightning_unlearn.solvers.observer import NOBODY
from lightning_unlearn.step.head.descent import Iterate, StoredFactor, by_products
from lightning_unlearn.weights.scope import Vector

_SLOW = 0.55  # of the gradient's norm, left by a step: curvature is taken anew
_STALE = 0.15  # of the norm where curvature was taken; below that it changes no more
_SLOW_STEPS = 8  # in a row, after which products with all rows are better
_STEPS = 0.6  # for each Newton step that may be made
_PAIRS = 12


class ProxySteps:
    """The way of a system of some rows, corrected by the gradients on the way.

    A step costs one gradient, and a solve with the proxy. What the proxy has wrong, and
    what of F is not quadratic, shows in the differences of gradients: limited-memory
    BFGS updates of the proxy's inverse (Nocedal 1980; Morales & Nocedal 2000) mend
    both at once.

    Args:
        proxy_samples: Rows of the proxy, or None for its own choice.
        stored: Its factor goes before, while there is one.
        tolerance: tau.
        max_steps: Newton steps at most, if these steps do not get there.
    """

    def __init__(
        self,
        proxy_samples: int | None,
        stored: StoredFactor,
        tolerance: float,
        max_steps: int,
    ) -> None:
        self.proxy_samples, self.tolerance = proxy_samples, tolerance
        self.most = int(_STEPS * max_steps)
        self.stored = stored
        self.close = False  # started near the optimum: curvature hardly changes
        self.near: ProxySolve | None = None
        self.pairs: list[tuple[Vector, Vector, float]] = []
        self.ended, self.slow, self.left, self.since = False, 0, 1.0, 0.0

    def go(self, at: Iterate) -> bool:
        """See `Direction`."""
        if self.ended or self.stored.factor is not None or at.sampled >= self.most:
            return False
        if not self._draw(at):
            return False
        fresh = not self.pairs
        w, gradient, norm = at.w, at.gradient, at.norm
        x = self._solve(at, gradient)
        if not at.search(x, self.left * norm <= self.tolerance):
            self.near = None
            if not fresh:
                return self.go(at)
            self.ended = not at.sharpen()
            return not self.ended
        self.close = self.close or at.near
        at.before, at.near = norm, False
        at.method = "limited-memory BFGS from samples drawn by their curvature"
        self.left = at.norm / norm
        self._learn(at.w - w, at.gradient - gradient)
        self.slow = self.slow + 1 if self.left > _SLOW else 0
        stale = self.slow > 1 or at.norm > _STALE * self.since
        if self.slow and stale and not self.close:
            self.near = None
        self.ended = self.slow >= _SLOW_STEPS
        return True

    def _draw(self, at: Iterate) -> bool:
        """Whether there is a proxy, taken here if there was none."""
        if self.near is None:
            at.curve()
            solver = by_products(at.objective, 1.0, self.proxy_samples)
            self.near = ProxySolve(solver, Damped(at.objective, 0.0), NOBODY)
            self.pairs, self.since = [], at.norm
            self.ended = not isinstance(self.near.proxy, Preconditioned)
            at.passes += self.near.spent
        return not self.ended

    def _solve(self, at: Iterate, b: Vector) -> Vector:
        """The two loops of limited-memory BFGS, with the proxy between them."""
        assert self.near is not None
        r, parts = b.clone(), []
        for s, y, sy in reversed(self.pairs):
            part = float(s @ r) / sy
            parts.append(part)
            r -= part * y
        spent = self.near.spent
        x = self.near(r)
        at.passes += self.near.spent - spent
        for (s, y, sy), part in zip(self.pairs, reversed(parts), strict=True):
            x += (part - float(y @ x) / sy) * s
        return x

    def _learn(self, s: Vector, y: Vector) -> None:
        sy = float(s @ y)
        if sy > 1e-10 * float(s.norm() * y.norm()):
            self.pairs = [*self.pairs, (s, y, sy)][-_PAIRS:]
