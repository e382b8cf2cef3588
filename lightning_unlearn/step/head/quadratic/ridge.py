r"""A head with squared error, solved from the Gram matrix of its rows alone."""

import torch
from torch import Tensor

from lightning_unlearn._base import validate
from lightning_unlearn.certificate.words.theorems import reported, strongly_convex_claim
from lightning_unlearn.guarantee.proofs import is_stationary
from lightning_unlearn.guarantee.rounding import UNIT_ROUNDOFF, gamma
from lightning_unlearn.guarantee.tolerance import Tolerance
from lightning_unlearn.solvers.base import Solution, Status
from lightning_unlearn.solvers.observer import NOBODY, Observer
from lightning_unlearn.step.head.convex_objective import ConvexObjective
from lightning_unlearn.step.head.quadratic.gram import Gram
from lightning_unlearn.step.step import Step
from lightning_unlearn.weights.scope import Vector

_STEPS = 4  # one solves; further ones take away what rounding left


class Ridge:
    """F of a `ConvexHead` with loss "mse", the same as `ConvexObjective`'s.

    ``F(W) = (1/(K n)) sum a |W x - y|^2 + (l2/2) |W|^2`` has the gradient
    ``(2/(K n)) (W A - B) + l2 W``, with A and B of `Gram.products`.

    Args:
        gram: Of the rows.
        l2: Coefficient of the regulariser, > 0.
    """

    def __init__(self, gram: Gram, l2: float) -> None:
        validate.positive(l2=l2)
        self.known, self.bias, self.l2 = gram.products(), gram.bias, l2
        self.scale = 2 / (gram.n_outputs * gram.n)

    def gradient(self, w: Vector) -> tuple[Vector, float]:
        r"""The gradient (p,) at w and a bound on its rounding error.

        With c = 2/(K n), and norms of Frobenius:

        * A and B as such: ``c (|A - A*| |W| + |B - B*|)`` (`Gram.products`);
        * the product ``W A`` of rows of D numbers: ``gamma_D |W| |A|`` (Higham 2002,
          section 3.5); B taken away, c and its product, and the last addition, four
          more roundings: all together ``c gamma_{D+4} (|A| |W| + |B|)``;
        * the regulariser and its addition: ``4u l2 |W|``.

        One percent is added for products of these small terms.

        Returns:
            (gradient, bound on |computed - exact gradient|), NaN if A or B is too
            large for float64.
        """
        A, B, A_error, B_error = self.known
        W = self._matrix(w)
        gradient = self.scale * (W @ A - B) + self.l2 * W
        size, sums = float(W.norm()), float(A.norm()) * float(W.norm())
        rounding = A_error * size + B_error
        rounding += gamma(len(A) + 4) * (sums + float(B.norm()))
        rounding = self.scale * rounding + 4 * UNIT_ROUNDOFF * self.l2 * size
        return self._vector(gradient), 1.01 * rounding

    def _matrix(self, w: Vector) -> Tensor:
        """(K, D) of flat weights: weight (K, d), then bias (K,)."""
        K, D = self.known.B.shape
        if not self.bias:
            return w.view(K, D)
        cut = K * (D - 1)
        return torch.cat([w[:cut].view(K, D - 1), w[cut:, None]], dim=1)

    def _vector(self, W: Tensor) -> Vector:
        if not self.bias:
            return W.reshape(-1)
        return torch.cat([W[:, :-1].reshape(-1), W[:, -1]])

    def minimised(self, tolerance: float) -> tuple[Vector, float, int] | None:
        """Where |exact gradient| <= tolerance, proved by `is_stationary`.

        By Cholesky, from zero: it depends on the rows alone.

        Returns:
            (weights (p,), |computed gradient|, steps), or None if float64 does not get
            there: the matrix is not positive definite in it, or rounding is too much.
        """
        validate.positive(tolerance=tolerance)
        A, B = self.known.A, self.known.B
        H = self.scale * A
        H.diagonal().add_(self.l2)
        lower, failed = torch.linalg.cholesky_ex(H)
        if int(failed) or not bool(torch.isfinite(lower).all()):
            return None
        w = self._vector(torch.zeros_like(B))
        gradient, _ = self.gradient(w)
        for step in range(1, _STEPS + 1):
            x = torch.cholesky_solve(self._matrix(gradient).T, lower).T
            w = w - self._vector(x)
            gradient, rounding = self.gradient(w)
            norm = float(gradient.norm())
            if is_stationary(norm, len(w), rounding, tolerance):
                return w, norm, step
        return None


def ridge_step(
    gram: Gram,
    objective: ConvexObjective,
    w0: Vector,
    *,
    tolerance: float,
    passes: float,
    observer: Observer = NOBODY,
) -> Step | None:
    """`minimise` from a Gram matrix; no row is read but for the longest.

    Args:
        gram: Of the rows of `objective`.
        objective: F; asked for l2 and the norm of its rows.
        w0: The module's own weights (p,); where it ends does not depend on them.
        tolerance: tau, fixed before the data was seen.
        passes: Over the rows that the Gram matrix cost.
        observer: Looks on.

    Returns:
        The step from w0, or None if float64 does not get there this way.
    """
    observer.stage("solving")
    ridge = Ridge(gram, objective.l2)
    found = ridge.minimised(tolerance)
    if found is None:
        return None
    w, norm, steps = found
    gradient, w = ridge.gradient(w)[0], w.to(w0.device)
    return Step(
        weights=w,
        solution=Solution(
            x=w0 - w,
            residual=norm,
            status=Status.CONVERGED,
            steps=steps,
            matvecs=passes,
            method="the Gram matrix, by Cholesky",
        ),
        claim=strongly_convex_claim(Tolerance(tolerance), objective.l2),
        measured=(reported("feature_norm", objective.feature_norm),),
        gradient=gradient,
    )
