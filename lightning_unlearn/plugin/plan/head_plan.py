"""A request on a convex head: solved to its optimum."""

from dataclasses import dataclass, replace
from functools import partial

import torch

from lightning_unlearn.certificate.words.theorems import Claim, strongly_convex_claim
from lightning_unlearn.guarantee.kinds import StronglyConvex
from lightning_unlearn.guarantee.tolerance import Tolerance
from lightning_unlearn.plugin.data.exact_batches import ExactBatches
from lightning_unlearn.plugin.plan.plan import Plan
from lightning_unlearn.plugin.plan.size_of_noise import head_tolerance
from lightning_unlearn.plugin.run import compat
from lightning_unlearn.plugin.run.progress import DisplayObserver
from lightning_unlearn.plugin.training.public_backbones import (
    reading_private,
    tell_near,
)
from lightning_unlearn.solvers.observer import NOBODY
from lightning_unlearn.step.batch_checks import check_in_place, check_repeatable
from lightning_unlearn.step.head.capture import capture, row_difference
from lightning_unlearn.step.head.convex_head import ConvexHead
from lightning_unlearn.step.head.convex_objective import ConvexObjective
from lightning_unlearn.step.head.factor import cheap_factor
from lightning_unlearn.step.head.minimise import check_resolved, minimise
from lightning_unlearn.step.head.prepared_head import PreparedHead, prepare_head
from lightning_unlearn.step.head.rows.feature_data import FeatureData
from lightning_unlearn.step.step import Step
from lightning_unlearn.weights.passes import passes


@dataclass(frozen=True, kw_only=True)
class HeadPlan(Plan):
    """See `Plan`; `head` is all that is in scope."""

    head: ConvexHead
    guarantee: StronglyConvex

    keeps_batches = False  # the rows of the head are kept in their place

    @property
    def dtype(self) -> torch.dtype:
        """Of the passes: rows are computed as in training, and solved in float64."""
        return self.own_dtype

    @property
    def tolerance(self) -> Tolerance:
        """What the head is solved to: known before a sample is read."""
        return head_tolerance(self.options, self.module, self.head, self.l2)

    def claim(self) -> Claim:
        """See `Plan`."""
        return strongly_convex_claim(self.tolerance, self.l2)

    def step(self, indices: list[int], proxy_samples: int | None = None) -> Step:
        """See `Plan`."""
        with passes(self.module, self.scope, self.dtype):
            # A forecast's part of the data would leave hardly anything in each block.
            all_rows = proxy_samples is None
            batches = self.batches(self.loader, indices, by_position=all_rows)
            rows = self._rows(batches)
            difference = self._difference(batches) if all_rows else 0.0
            objective = ConvexObjective(
                self.head,
                rows,
                self.l2,
                processes=self.processes,
                n=batches.n,
                places=batches.places,
            )
            tolerance = self.tolerance.value
            step = minimise(
                objective,
                self.scope.flatten(),
                tolerance=tolerance,
                max_steps=self.guarantee.max_steps,
                solver=self.solver,
                proxy_samples=proxy_samples,
                refactor=cheap_factor(objective),
                observer=self.observer,
            )
            check_resolved(objective, step.weights, difference, tolerance)
            return replace(step, claim=self.claim())

    def step_from(self, state: PreparedHead) -> tuple[Step, PreparedHead | None]:
        """See `Plan`."""
        gone = sorted(set(state.positions.tolist()) - set(self.retained))
        with passes(self.module, self.scope, self.dtype):
            again = state.touched(gone)
            fresh = self._rows(self.blocks(again)) if again else None
            difference = self._difference(self.blocks(self.retained))
        rest, tolerance = state.after(gone, fresh), self.tolerance.value
        step = state.step(
            self.head,
            self.scope.flatten(),
            gone,
            rest=rest,
            l2=self.l2,
            tolerance=tolerance,
            max_steps=self.guarantee.max_steps,
            solver=self.solver,
            observer=NOBODY if self.display is None else DisplayObserver(self.display),
        )
        objective = ConvexObjective(self.head, rest.rows, self.l2)
        check_resolved(objective, step.weights, difference, tolerance)
        return replace(step, claim=self.claim()), rest

    def prepare(self) -> PreparedHead:
        """See `Plan`."""
        with passes(self.module, self.scope, self.dtype):
            rows = self._rows(self.blocks(self.retained))
        return self.solved(rows)

    def solved(self, rows: FeatureData) -> PreparedHead:
        """What is prepared from the rows of all retained samples, read in blocks."""
        with passes(self.module, self.scope, self.dtype):
            return prepare_head(
                self.head,
                rows,
                self.retained,
                self.scope.flatten(),
                block=self.batch_size(),
                l2=self.l2,
                tolerance=self.tolerance.value,
                max_steps=self.guarantee.max_steps,
                observer=self.observer,
            )

    def blocks(self, indices: list[int]) -> ExactBatches:
        """Batches in which a sample's row can depend on retained samples only.

        Which samples are read together follows from their positions: a block of the
        training dataset, less those that are not in `indices`.
        """
        return self.batches(self.loader, indices, by_position=True)

    def _difference(self, batches: ExactBatches) -> float:
        """See `row_difference`; the largest of all processes."""
        world, rank = self.processes.world, self.processes.rank
        with self.processes.summed(world) as (found,):
            found[rank] = row_difference(self.loss, self.head, batches)
        return float(found.max())

    def _rows(self, batches: ExactBatches) -> FeatureData:
        reading = reading_private(self.module, batches.now)
        with self.processes.together(), reading:
            check_repeatable(batches)
            check_in_place(self.loss, batches)
            elsewhen = partial(compat.clock_moved, self.trainer)
            if self.display is not None:
                batches.seen = self.display.reading(len(batches.places))
            rows = capture(self.loss, self.head, batches, elsewhen)
        tell_near(self.module, self.processes)
        return rows
