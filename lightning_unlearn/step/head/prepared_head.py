r"""What can be computed before a request is known: it speeds up, it proves nothing.

Of a squared error the Gram matrix of the rows is kept beside them. That does prove: it
is these rows' own, to the last bit, and knows of no others (`quadratic.gram`).

Everything here depends on the samples that may be asked to be forgotten. It is kept
apart from the model's checkpoint, bound to what it was made from, and dropped once a
request is done.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_unlearn.solvers.base import Solver
from lightning_unlearn.solvers.observer import NOBODY, Observer
from lightning_unlearn.step.head.convex_head import ConvexHead
from lightning_unlearn.step.head.convex_objective import ConvexObjective
from lightning_unlearn.step.head.factor import Factor, cheap_factor, try_factorise
from lightning_unlearn.step.head.minimise import minimise
from lightning_unlearn.step.head.quadratic.gram import Gram, gram_of
from lightning_unlearn.step.head.quadratic.ridge import Ridge, ridge_step
from lightning_unlearn.step.head.rows.feature_data import FeatureData
from lightning_unlearn.step.step import Step, places, retained_gradient
from lightning_unlearn.weights import large_arrays
from lightning_unlearn.weights.scope import Vector

# Rows of the factor: more of them save passes, and cost p^2 multiplications each.
_ROWS_PER_WEIGHT = 4
_MULTIPLICATIONS = 1e12
_LARGEST = 12_000  # weights of a head that is factored: 0.6 GB, some minutes
_SHARE = 0.5  # of the free memory, for the matrix and its factor


@dataclass(frozen=True, kw_only=True)
class PreparedHead:
    """The rows of a head, the optimum on all of them, and curvature there.

    Args:
        rows: What reaches the head, of every sample that is still in.
        positions: Where each row's sample stands in the training dataset (n,), int64,
            increasing.
        block: A row was read together with those whose positions have the same quotient
            by this.
        start: Weights (p,) at which F over all rows is least; None once a request has
            been done.
        gradient: Of F there, (p,).
        factor: Of the Hessian there; None if it would be too large, or single precision
            cannot hold it.
        gram: Of just these rows, where one serves (`gram_of`): a request is then
            solved from it, and the proof is made from it.
        passes: Over the rows that were spent.
    """

    rows: FeatureData
    positions: Tensor
    block: int
    start: Vector | None = None
    gradient: Vector | None = None
    factor: Factor | None = None
    gram: Gram | None = None
    passes: float = 0.0

    def of(self, positions: list[int]) -> FeatureData:
        """A copy of the rows of some samples it has, in their order."""
        return self.rows.select(
            places(self.positions, positions), self.rows.features.device
        )

    def touched(self, forgotten: list[int]) -> list[int]:
        """Samples that were read in one block with forgotten ones, without these."""
        gone, positions = torch.tensor(forgotten, dtype=torch.int64), self.positions
        read_again = torch.isin(positions // self.block, gone // self.block)
        return positions[read_again & ~torch.isin(positions, gone)].tolist()

    def after(self, forgotten: list[int], fresh: FeatureData | None) -> "PreparedHead":
        """The rows of all other samples: what may be kept once some are forgotten.

        Args:
            forgotten: Positions.
            fresh: The rows of ``touched(forgotten)``, read again without the forgotten
                samples; None if there are none.
        """
        gone = torch.isin(self.positions, torch.tensor(forgotten, dtype=torch.int64))
        kept = (~gone).nonzero()[:, 0]
        rows = self.rows.select(kept, self.rows.features.device)
        positions = self.positions[kept]
        if fresh is not None:
            at = places(positions, self.touched(forgotten))
            features, targets = rows.features, rows.targets
            features[at.to(features.device)] = fresh.features.to(features.device)
            targets[at.to(targets.device)] = fresh.targets.to(targets.device)
            if rows.weights is not None and fresh.weights is not None:
                weights = rows.weights
                weights[at.to(weights.device)] = fresh.weights.to(weights.device)
        return PreparedHead(
            rows=rows,
            positions=positions,
            block=self.block,
            gram=self._gram_after(forgotten, fresh, rows),
        )

    def _gram_after(
        self, forgotten: list[int], fresh: FeatureData | None, rest: FeatureData
    ) -> Gram | None:
        """That of the rest: what is gone or changed is subtracted, or all made anew."""
        found, gone = self.gram, list(forgotten)
        if found is None:
            return None
        bias = found.bias
        if fresh is not None:
            again = self.touched(forgotten)
            changed = self.of(again).changed(fresh).nonzero()[:, 0]
            gone += [again[i] for i in changed.tolist()]
            if len(changed) and 2 * len(gone) < rest.n:
                found = found.plus(fresh[changed])
        if 2 * len(gone) >= rest.n:
            found = None  # quicker
        elif found is not None and gone:
            found = found.without(self.of(gone))
        return Gram.of(rest, bias) if found is None else found

    def step(
        self,
        head: ConvexHead,
        w0: Vector,
        forgotten: list[int],
        *,
        rest: "PreparedHead",
        l2: float,
        tolerance: float,
        max_steps: int,
        solver: Solver | None = None,
        observer: Observer = NOBODY,
    ) -> Step:
        """`minimise` over all rows but the forgotten ones, from what is known.

        The claim rests on the gradient at the end, which is computed from the rows, or
        from the Gram matrix of just these, and on nothing else that was prepared: any
        start and any direction may be used.

        Args:
            head: The head; only its shape and loss are read.
            w0: The module's own weights (p,).
            forgotten: Positions.
            rest: See `after`: the rows the claim speaks of.
            l2: Coefficient of the regulariser; that of the preparation.
            tolerance: tau.
            max_steps: Newton steps at most.
            solver: Used in place of the factor and the Gram matrix.
            observer: Looks on, from Newton step to Newton step.

        Returns:
            The step from w0.

        Raises:
            GuaranteeError: As `minimise`.
            SolverError: As `minimise`.
        """
        retained = ConvexObjective(head, rest.rows, l2)
        if rest.gram is not None and solver is None:
            known = ridge_step(
                rest.gram,
                retained,
                w0,
                tolerance=tolerance,
                passes=len(forgotten) / retained.n,
                observer=observer,
            )
            if known is not None:
                return known
        if self.start is None or self.gradient is None:
            return minimise(
                retained,
                w0,
                tolerance=tolerance,
                max_steps=max_steps,
                solver=solver,
                refactor=cheap_factor(retained),
                observer=observer,
            )
        start, gradient = self.start.to(w0.device), self.gradient.to(w0.device)
        factor = None
        if self.factor is not None and solver is None:
            factor = Factor(self.factor.inverse.to(w0.device))
        n_forget = len(forgotten)
        if forgotten:
            part = ConvexObjective(head, self.of(forgotten), l2)
            gone = part.rough_gradient(start)
            gradient = retained_gradient(gradient, self.rows.n, gone, n_forget)
        step = minimise(
            retained,
            start,
            tolerance=tolerance,
            max_steps=max_steps,
            solver=solver,
            start=gradient,
            factor=factor,
            refactor=cheap_factor(retained),
            observer=observer,
        )
        passes = step.solution.matvecs + n_forget / retained.n
        solution = replace(step.solution, x=w0 - step.weights, matvecs=passes)
        return replace(step, solution=solution)


def prepare_head(
    head: ConvexHead,
    rows: FeatureData,
    positions: list[int],
    w0: Vector,
    *,
    block: int,
    l2: float,
    tolerance: float,
    max_steps: int,
    observer: Observer = NOBODY,
) -> PreparedHead:
    """Solve the head on all its rows, and factor the Hessian there.

    A squared error needs neither Newton steps nor a factor where the Gram matrix of the
    rows resolves the tolerance.

    A request may start from that optimum in place of the trained weights: it ends at
    the same tolerance from wherever it starts.

    Args:
        head: The head; only its shape and loss are read.
        rows: Of all samples.
        positions: Where they stand in the training dataset, increasing.
        w0: Weights to start from (p,).
        block: See `PreparedHead`.
        l2: Coefficient of the regulariser, > 0.
        tolerance: Of the solve.
        max_steps: Newton steps at most.
        observer: Looks on, from Newton step to Newton step.

    Returns:
        What a request over these rows can use.

    Raises:
        GuaranteeError: As `minimise`.
        SolverError: As `minimise`.
    """
    objective, gram = ConvexObjective(head, rows, l2), gram_of(head, rows)
    if gram is not None:
        step = ridge_step(
            gram, objective, w0, tolerance=tolerance, passes=1.0, observer=observer
        )
        if step is not None:
            return PreparedHead(
                rows=rows,
                positions=torch.tensor(positions),
                block=block,
                start=step.weights,
                gradient=Ridge(gram, l2).gradient(step.weights.cpu())[0],
                gram=gram,
                passes=step.solution.matvecs,
            )
    step = minimise(
        objective,
        w0,
        tolerance=tolerance,
        max_steps=max_steps,
        refactor=cheap_factor(objective),
        observer=observer,
    )
    objective.set_hessian_at(step.weights)
    factor = None
    if _fits(objective):
        p = objective.size
        drawn = max(_ROWS_PER_WEIGHT * p, int(_MULTIPLICATIONS / p**2))
        generator = torch.Generator().manual_seed(0)
        factor = try_factorise(objective, min(objective.n, drawn), generator)
    return PreparedHead(
        rows=rows,
        positions=torch.tensor(positions),
        block=block,
        start=step.weights,
        gradient=objective.gradient(step.weights)[0],
        factor=factor,
        passes=step.solution.matvecs + 1,
    )


def _fits(objective: ConvexObjective) -> bool:
    needed = 4 * 4 * objective.size**2
    room = _SHARE * large_arrays.free_bytes(objective.device)
    return objective.size <= _LARGEST and needed <= room
