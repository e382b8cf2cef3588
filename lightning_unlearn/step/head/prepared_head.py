r"""What is known of a head before a request: it speeds up, it proves nothing.

The rows of the samples, the optimum on them, perhaps curvature there. It is as secret
as the samples, kept apart from the model's checkpoint, and bound to what it was made
from. After a request it is of the retained samples alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import torch
from torch import Tensor

from lightning_unlearn.solvers.base import Solver
from lightning_unlearn.solvers.observer import NOBODY, Observer
from lightning_unlearn.step.head.convex_head import ConvexHead
from lightning_unlearn.step.head.convex_objective import ConvexObjective
from lightning_unlearn.step.head.factor import Factor, cheap_factor, try_factorise
from lightning_unlearn.step.head.minimise import minimise
from lightning_unlearn.step.head.quadratic.gram import Gram, gram_of
from lightning_unlearn.step.head.quadratic.ridge import ridge_step
from lightning_unlearn.step.head.rows.feature_data import FeatureData
from lightning_unlearn.step.step import Step, places
from lightning_unlearn.weights.processes import ALONE, Processes
from lightning_unlearn.weights.scope import Vector

# Rows of the factor: more of them save passes, and cost p^2 multiplications each.
_ROWS_PER_WEIGHT = 4
_SAVED = 10  # passes that a factor saves the next request
_NOTHING = 1e9  # multiplications that are over in no time
_MANY = 0.5  # of the samples: with more of them gone or new, the gradient is taken anew


@dataclass(frozen=True, kw_only=True)
class PreparedHead:
    """The rows of a head (of this process), the optimum on all, and curvature there.

    Args:
        rows: What reaches the head, of every sample that is still in.
        positions: Where each row's sample stands in the training dataset (m,), int64,
            increasing.
        block: A row was read together with those whose positions have the same quotient
            by this.
        n: Rows of all processes together.
        start: Weights (p,) at which F over all rows is least, to the tolerance; None if
            it is not known.
        gradient: Of F there, (p,).
        factor: Of the Hessian there; None where it does not pay, or single precision
            cannot hold it. Of all samples that were in when it was made, so that it
            serves one request.
        gram: Of just these rows, to the last bit, where one serves (`gram_of`): a
            request is then solved from it, and the proof is made from it.
        passes: Over the rows that were spent.
    """

    rows: FeatureData
    positions: Tensor
    block: int
    n: int
    start: Vector | None = None
    gradient: Vector | None = None
    factor: Factor | None = None
    gram: Gram | None = None
    passes: float = 0.0

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All of it, by name; `stored_head.head_from` makes it of them again."""
        found = {
            "features": self.rows.features,
            "targets": self.rows.targets,
            "weights": self.rows.weights,
            "positions": self.positions,
            "block": torch.tensor(self.block),
            "start": self.start,
            "gradient": self.gradient,
            "factor": None if self.factor is None else self.factor.inverse,
            "gram": None if self.gram is None else self.gram.limbs,
            "gram_counts": None if self.gram is None else self.gram.counts,
        }
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    @staticmethod
    def nothing(block: int) -> "PreparedHead":
        """What is known before a sample was read."""
        none = FeatureData(torch.empty(0, 0), torch.empty(0))
        empty = torch.empty(0, dtype=torch.int64)
        return PreparedHead(rows=none, positions=empty, block=block, n=0)

    def of(self, positions: list[int]) -> FeatureData:
        """A copy of the rows of some samples it has, in their order."""
        return self.rows.select(
            places(self.positions, positions), self.rows.features.device
        )

    def share(self, processes: Processes) -> "PreparedHead":
        """What of it is this process's: the rows of the blocks that it reads."""
        mine = self.positions // self.block % processes.world == processes.rank
        if bool(mine.all()):
            return self
        at = mine.nonzero()[:, 0]
        rows = self.rows.select(at, self.rows.features.device)
        return replace(self, rows=rows, positions=self.positions[at])

    def stale(self, positions: list[int]) -> list[int]:
        """Of some positions, those to be read: their rows are not known.

        A row may depend on what it was read with. So it is known only if it was read
        with just those samples of its block that are among `positions`.

        Args:
            positions: Increasing; of this process.
        """
        known = _blocks(self.positions.tolist(), self.block)
        now = _blocks(positions, self.block)
        return [p for at, part in now.items() if known.get(at) != part for p in part]

    def is_of(self, positions: list[int]) -> bool:
        """Whether it has the rows of just these samples."""
        return self.positions.tolist() == positions and not self.stale(positions)

    def on(
        self, positions: list[int], fresh: FeatureData | None, n: int
    ) -> "PreparedHead":
        """The rows of some samples, and of no others.

        Args:
            positions: Increasing; of this process.
            fresh: The rows of ``stale(positions)``, in that order; None if there are
                none.
            n: Samples of all processes.
        """
        at, again = torch.tensor(positions, dtype=torch.int64), self.stale(positions)
        parts, read = [], torch.tensor(again, dtype=torch.int64)
        if fresh is not None:
            whole = torch.arange(len(read))
            parts.append((fresh, whole, torch.searchsorted(at, read)))
        kept = at[~torch.isin(at, read)]
        if len(kept) or fresh is None:
            source = places(self.positions, kept.tolist())
            parts.append((self.rows, source, torch.searchsorted(at, kept)))
        device = parts[0][0].features.device
        alone = fresh is not None and len(read) == len(at)
        rows = fresh if alone else FeatureData.of_parts(len(at), *parts, device=device)
        assert rows is not None
        return PreparedHead(rows=rows, positions=at, block=self.block, n=n)

    def with_gram(self, head: ConvexHead, before: "PreparedHead") -> "PreparedHead":
        """The same with their Gram matrix, if they are all the rows and one serves.

        Args:
            head: The head; only its shape and loss are read.
            before: What was known: of its matrix rows that are gone are subtracted.
        """
        if len(self.positions) < self.n:
            return self
        gram, read = before._gram_on(self)
        if gram is None:
            gram, read = gram_of(head, self.rows), self.n
        return self if gram is None else replace(self, gram=gram, passes=read / self.n)

    def _gram_on(self, rest: "PreparedHead") -> tuple[Gram | None, int]:
        """That of other rows, from this one; None if it is quicker made anew."""
        if self.gram is None:
            return None, 0
        again = torch.tensor(self.stale(rest.positions.tolist()), dtype=torch.int64)
        again = again[torch.isin(again, self.positions)].tolist()
        changed = self.of(again).changed(rest.of(again)) if again else torch.empty(0)
        moved = [again[i] for i in changed.nonzero()[:, 0].tolist()]
        gone, new = (sorted(some + moved) for some in self._gone_and_new(rest))
        if 2 * (len(gone) + len(new)) >= rest.n:
            return None, 0
        found = self.gram.plus(rest.of(new)) if new else self.gram
        if found is not None and gone:
            found = found.without(self.of(gone))
        return found, len(gone) + len(new)

    def _gone_and_new(self, rest: "PreparedHead") -> tuple[list[int], list[int]]:
        """Samples that are here and not in other rows, and those only there."""
        own, its = self.positions, rest.positions
        gone, new = own[~torch.isin(own, its)], its[~torch.isin(its, own)]
        return gone.tolist(), new.tolist()

    def objective(
        self,
        head: ConvexHead,
        l2: float,
        processes: Processes = ALONE,
        everywhere: list[int] | None = None,
    ) -> ConvexObjective:
        """F over these rows, and those of the other processes.

        Args:
            head: The head; only its shape and loss are read.
            l2: Coefficient of the regulariser.
            processes: Those that share the samples.
            everywhere: Positions of all samples, increasing; None if this process has
                them all.
        """
        at = None
        if everywhere is not None:
            every = torch.tensor(everywhere, dtype=torch.int64)
            at = places(every, self.positions.tolist())
        return ConvexObjective(head, self.rows, l2, processes, self.n, at)

    def step(
        self,
        objective: ConvexObjective,
        head: ConvexHead,
        w0: Vector,
        before: "PreparedHead",
        *,
        tolerance: float,
        max_steps: int,
        solver: Solver | None = None,
        observer: Observer = NOBODY,
    ) -> Step:
        """`minimise` over these rows, from what was known before.

        The claim rests on the gradient at the end, which is computed from the rows, or
        from the Gram matrix of just these, and on nothing else that was known: any
        start and any direction may be used.

        Args:
            objective: F over these rows, see `objective`.
            head: The head; only its shape and loss are read.
            w0: The module's own weights (p,).
            before: What was known, of these samples and others.
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
        if self.gram is not None and solver is None:
            known = ridge_step(
                self.gram,
                objective,
                w0,
                tolerance=tolerance,
                passes=self.passes,
                observer=observer,
            )
            if known is not None:
                return known
        start, gradient, factor, moved = w0, None, None, 0
        if before.start is not None and before.start.shape == w0.shape:
            start = before.start.to(w0.device)
            gradient, moved = before._gradient_on(self, objective, head, start)
            if before.factor is not None and solver is None:
                factor = Factor(before.factor.inverse.to(w0.device))
        step = minimise(
            objective,
            start,
            tolerance=tolerance,
            max_steps=max_steps,
            solver=solver,
            start=gradient,
            factor=factor,
            refactor=cheap_factor(objective),
            observer=observer,
        )
        passes = self.passes + step.solution.matvecs + moved / objective.n
        solution = replace(step.solution, x=w0 - step.weights, matvecs=passes)
        return replace(step, solution=solution)

    def _gradient_on(
        self,
        rest: "PreparedHead",
        objective: ConvexObjective,
        head: ConvexHead,
        start: Vector,
    ) -> tuple[Vector | None, int]:
        """The gradient over other rows at its own optimum, without a pass over them.

        Exact but for rounding: ``(n G - n_gone G_gone + n_new G_new) / n'``, with the
        same ``l2 w`` in every term (docs/theory.md section 4).

        Returns:
            It, or None if that would save nothing; and how many rows were read for it.
        """
        if self.gradient is None:
            return None, 0
        gone, new = self._gone_and_new(rest)
        processes = objective.processes
        with processes.summed(2) as (counts,):
            counts += torch.tensor([len(gone), len(new)]).to(counts)
        went, came = (int(count) for count in counts)
        if not went + came <= _MANY * rest.n:
            return None, 0
        with processes.summed(len(start), device=start.device) as (moved,):
            for sign, state, some in ((-1, self, gone), (1, rest, new)):
                if some:
                    part = ConvexObjective(head, state.of(some), objective.l2)
                    moved += sign * len(some) * part.rough_gradient(start)
        whole = self.n * self.gradient.to(start.device)
        return (whole + moved) / (self.n + came - went), went + came

    def at_optimum(self, step: Step) -> "PreparedHead":
        """The same rows with the optimum on them that a step has come to."""
        return replace(
            self,
            start=step.weights.cpu(),
            gradient=None if step.gradient is None else step.gradient.cpu(),
            passes=step.solution.matvecs,
        )

    def with_factor(self, objective: ConvexObjective) -> "PreparedHead":
        """The same with a factor of the Hessian at the optimum, where that pays."""
        assert self.start is not None
        rows = None if self.gram is not None else _rows_that_pay(objective)
        if rows is None:
            return self
        objective.set_hessian_at(self.start.to(objective.device))
        generator = torch.Generator().manual_seed(0)
        factor = try_factorise(objective, rows, generator)
        return replace(self, factor=factor, passes=self.passes + (factor is not None))


def _blocks(positions: Sequence[int], size: int) -> dict[int, list[int]]:
    """Positions by the block they are read in."""
    return {at: list(part) for at, part in groupby(positions, lambda p: p // size)}


def _rows_that_pay(objective: ConvexObjective) -> int | None:
    """Rows of a factor that costs fewer multiplications than the passes it saves.

    It serves one request: what is kept after that must not remember the forgotten.

    Returns:
        None if there is no such factor.
    """
    p, n = objective.size, objective.n
    worth = max(_NOTHING, _SAVED * 2 * n * p) - p**3
    rows = min(n, int(2 * worth / p**2))
    return rows if rows >= min(n, _ROWS_PER_WEIGHT * p) else None
