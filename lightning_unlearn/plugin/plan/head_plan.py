"""A request on a convex head: solved to its optimum."""

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from lightning_unlearn.certificate.words.theorems import Claim, strongly_convex_claim
from lightning_unlearn.errors import GuaranteeError
from lightning_unlearn.guarantee.accounting.private_training import (
    Privacy,
    mechanism_of,
    privacy,
)
from lightning_unlearn.guarantee.accounting.served_head import ROUNDING
from lightning_unlearn.guarantee.claims import (
    Bound,
    Terms,
    noise_std_upper,
    sensitivity_upper,
)
from lightning_unlearn.guarantee.kinds import StronglyConvex
from lightning_unlearn.guarantee.strength import promised_mu
from lightning_unlearn.guarantee.tolerance import Tolerance
from lightning_unlearn.plugin.data.exact_batches import ExactBatches, own_positions
from lightning_unlearn.plugin.plan.plan import Plan
from lightning_unlearn.plugin.plan.size_of_noise import head_tolerance
from lightning_unlearn.plugin.run import compat
from lightning_unlearn.plugin.training.public_backbones import (
    check_not_private,
    fixed_row_norm,
    private_steps,
    reading_private,
    tell_near,
)
from lightning_unlearn.step.batch_checks import check_repeatable
from lightning_unlearn.step.head.capture import capture, row_difference
from lightning_unlearn.step.head.convex_head import ConvexHead
from lightning_unlearn.step.head.convex_objective import ConvexObjective
from lightning_unlearn.step.head.factor import cheap_factor
from lightning_unlearn.step.head.minimise import check_resolved, minimise
from lightning_unlearn.step.head.prepared_head import PreparedHead
from lightning_unlearn.step.head.rows.bounded import check_bounded
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
        if (steps := self._steps) is not None and (pair := self.pair) is not None:
            values = {**steps, "most_found": pair.most_found}
            values["head_epsilon"] = self.options.epsilon
            which = Bound.PRIVATE_BACKBONE
            return strongly_convex_claim(self.tolerance, self.l2, values, which)
        return strongly_convex_claim(self.tolerance, self.l2, self.served)

    @property
    def _steps(self) -> dict[str, float] | None:
        """Of the backbone's private training; all forgotten count as seen there."""
        steps, gone = private_steps(self.module), float(max(1, self.forgotten))
        return None if steps is None else {**steps, "forgotten": gone}

    @property
    def forgotten(self) -> int:
        """Samples forgotten so far, before the data grew too: a backbone saw them."""
        before = sum(entry.n_forget for entry in self.ledger.entries)
        return max(len(self.removed), before + len(self.chosen))

    @property
    def pair(self) -> Privacy | None:
        """What a privately trained backbone and the head tell; None of a public one."""
        steps, terms = self._steps, self.options.terms
        if steps is None:
            return None
        assert terms.delta is not None  # or noise was given by hand
        head = strongly_convex_claim(self.tolerance, self.l2)
        moved = sensitivity_upper(head.bound, head.constants)
        own = promised_mu(moved / noise_std_upper(terms, moved), terms.releases)
        return privacy(mechanism_of(steps), self.forgotten or 1, terms.delta, own)

    @property
    def terms(self) -> Terms:
        """See `Plan`: of backbone and head, where both are claimed."""
        terms, pair = self.options.terms, self.pair
        return terms if pair is None else replace(terms, epsilon=pair.epsilon)

    @property
    def served(self) -> dict[str, float] | None:
        """What a claim about heads that were served before rests on; None without."""
        covered, head = self.options.cover_served, self.head
        if covered is None:
            return None
        R, longest = fixed_row_norm(self.module, head), head.link.longest
        if R is None or longest is None:
            raise GuaranteeError(
                "expected the loss and backbone of the training with cover_served=, "
                "got others, for which it is not known how far one sample moves the "
                "head"
            )
        forgotten = len(self.removed)
        last = len(self.ledger.entries) + 1 == self.options.releases
        return {
            "residual_norm": longest(head.out_features) * self._heaviest,
            "row_norm": R,
            "samples": float(len(self.retained)),
            "covered": float(covered),
            "forgotten": float(forgotten),
            "left": 0.0 if last else float(covered - forgotten),
        }

    @property
    def _heaviest(self) -> float:
        """The largest factor of a sample's loss, by public weights of classes."""
        found = getattr(self.module, "class_weights", None)
        return 1.0 if found is None else max(1.0, float(found.max()))

    def step(self, indices: list[int], proxy_samples: int | None = None) -> Step:
        """See `Plan`; all of `retained` where no `proxy_samples` make it a forecast."""
        if proxy_samples is None:
            return self.step_from(self.nothing())[0]
        with passes(self.module, self.scope, self.dtype):
            # Not in blocks: a part of the data would leave hardly anything in each.
            batches = self.batches(self.loader, indices)
            rows = self._rows(batches)
            assert rows is not None  # there are samples to retain
            objective = ConvexObjective(
                self.head,
                rows,
                self.l2,
                processes=self.processes,
                n=batches.n,
                places=batches.places,
            )
            step = minimise(
                objective,
                self.scope.flatten(),
                tolerance=self.tolerance.value,
                max_steps=self.guarantee.max_steps,
                solver=self.solver,
                proxy_samples=proxy_samples,
                refactor=cheap_factor(objective),
                observer=self.observer,
            )
            return replace(step, claim=self.claim())

    def step_from(self, state: PreparedHead) -> tuple[Step, PreparedHead | None]:
        """See `Plan`; `PreparedHead.nothing` if nothing is known."""
        step, objective, rest = self._solved(state)
        with passes(self.module, self.scope, self.dtype):
            difference = self._difference(self.blocks(self.retained), rest)
        check_resolved(objective, step.weights, difference, self.tolerance.value)
        return replace(step, claim=self.claim()), rest

    def prepare(self, known: PreparedHead | None = None) -> PreparedHead:
        """See `Plan`; samples whose rows are known are not read again."""
        _, objective, state = self._solved(known or self.nothing())
        return state.with_factor(objective)

    def nothing(self) -> PreparedHead:
        """What is known before a sample was read."""
        return PreparedHead.nothing(self.batch_size())

    def own(self, positions: list[int]) -> list[int]:
        """Of some positions, those of the blocks that this process reads."""
        processes = self.processes
        return own_positions(
            positions, self.batch_size(), processes.rank, processes.world
        )

    def _solved(
        self, before: PreparedHead
    ) -> tuple[Step, ConvexObjective, PreparedHead]:
        """The optimum over the retained samples, from what is known, and their rows."""
        own, before = self.own(self.retained), before.share(self.processes)
        again = before.stale(own)
        with passes(self.module, self.scope, self.dtype):
            # A process without a sample learns from another's what form rows have.
            reading = again if own else self.retained
            fresh = self._rows(self.blocks(reading) if reading else None)
        rest = before.on(own, fresh, len(self.retained))
        served = self.served
        if served is not None:
            with self.processes.together():
                longest = ROUNDING * served["row_norm"]
                bias = self.head.bias is not None
                check_bounded(rest.rows, bias, longest, self._heaviest)
        rest = rest.with_gram(self.head, before)
        objective = rest.objective(self.head, self.l2, self.processes, self.retained)
        step = rest.step(
            objective,
            self.head,
            self.scope.flatten(),
            before,
            tolerance=self.tolerance.value,
            max_steps=self.guarantee.max_steps,
            solver=self.solver,
            observer=self.observer,
        )
        return step, objective, rest.at_optimum(step)

    def blocks(self, indices: list[int]) -> ExactBatches:
        """Batches in which a sample's row can depend on retained samples only.

        Which samples are read together follows from their positions: a block of the
        training dataset, less those that are not in `indices`.
        """
        return self.batches(self.loader, indices, by_position=True)

    def _difference(self, batches: ExactBatches, known: PreparedHead) -> float:
        """See `row_difference`; the largest of all processes."""
        world, rank = self.processes.world, self.processes.rank

        def solved_on(places: list[int]) -> Tensor | None:
            own = [self.retained[place] for place in places]
            # A filler's rows are another process's.
            here = set(own) <= set(known.positions.tolist())
            return known.of(own).features if here else None

        with self.processes.summed(world) as (found,):
            found[rank] = row_difference(self.loss, self.head, batches, solved_on)
        return float(found.max())

    def _rows(self, batches: ExactBatches | None) -> FeatureData | None:
        """What reaches the head of samples of this process; None if it reads none."""
        with self.processes.together():
            rows = None if batches is None else self._read(batches)
        tell_near(self.module, self.processes)
        return rows

    def _read(self, batches: ExactBatches) -> FeatureData:
        with reading_private(self.module, batches.now):
            check_repeatable(batches)
            elsewhen = partial(compat.clock_moved, self.trainer)
            if self.display is not None:
                batches.seen = self.display.reading(len(batches.places))
            data = capture(self.loss, self.head, batches, elsewhen)
        if private_steps(self.module) is None:
            check_not_private(data.features)
        return data
