"""A request on an ordinary network: one damped Newton step."""

from dataclasses import dataclass

import torch

from lightning_unlearn.certificate.words.theorems import Claim, step_claim
from lightning_unlearn.guarantee.kinds import NewtonStep, NormBall
from lightning_unlearn.plugin.data.exact_batches import ExactBatches
from lightning_unlearn.plugin.plan.plan import PassContext, Plan
from lightning_unlearn.step.batch_checks import check_in_place, check_repeatable
from lightning_unlearn.step.head.prepared_head import PreparedHead
from lightning_unlearn.step.network import derivative_checks, graph_memory
from lightning_unlearn.step.network.damped_step import (
    GradientAndSpectrum,
    damped_step,
    with_difference_error,
)
from lightning_unlearn.step.network.empirical_objective import EmpiricalObjective
from lightning_unlearn.step.network.prepared_network import (
    PreparedNetwork,
    prepare_network,
)
from lightning_unlearn.step.network.products import PRODUCTS
from lightning_unlearn.step.step import Step
from lightning_unlearn.weights.passes import passes

_FEW = 8  # samples on which products are compared with differences of gradients


def objective_over(
    context: PassContext,
    batches: ExactBatches,
    kept_graphs: int = 0,
    chunk: int = 256,
    lean: bool = False,
) -> EmpiricalObjective:
    """F over some batches, through automatic differentiation."""
    return EmpiricalObjective(
        context.loss,
        context.scope,
        batches,
        context.l2,
        PRODUCTS[context.options.curvature],
        processes=context.processes,
        kept=kept_graphs,
        chunk=chunk,
        lean=lean,
    )


@dataclass(frozen=True, kw_only=True)
class NetworkPlan(Plan):
    """See `Plan`; any weights are in scope."""

    guarantee: NormBall | NewtonStep | None

    @property
    def dtype(self) -> torch.dtype:
        """Of the passes: float64 where the residual is part of the claim."""
        auto = self.options.solve_precision == "auto"
        if auto and isinstance(self.guarantee, NewtonStep):
            return torch.float64
        return super().dtype

    @property
    def damping(self) -> float | None:
        """What the user gave, or None to take it from the spectrum."""
        return None if self.options.damping == "auto" else self.options.damping

    def claim(self) -> Claim:
        """See `Plan`; what the network calls is not looked at."""
        options = self.options
        return step_claim(
            self.guarantee, max_norm=options.max_norm, damping=self.damping
        )

    def step(self, indices: list[int], proxy_samples: int | None = None) -> Step:
        """See `Plan`."""
        del proxy_samples  # of a convex head
        with passes(self.module, self.scope, self.dtype):
            return self._damped_step(*self._checked_objective(indices))

    def step_from(self, state: PreparedNetwork) -> tuple[Step, PreparedHead | None]:
        """See `Plan`: nothing of it may be kept."""
        gone = sorted(set(state.positions.tolist()) - set(self.retained))
        with passes(self.module, self.scope, self.dtype):
            # What is prepared has its vectors in float64 already.
            objective, kinks = self._checked_objective(self.retained, roomy=True)
            known = None
            if not isinstance(self.guarantee, NewtonStep):  # it takes its own afresh
                part = objective_over(self, self.batches(self.loader, gone))
                forgotten = part.value_and_gradient()[1] if gone else None
                known = state.known(forgotten, len(gone))
            importance = state.importance_of(self.retained)
            if importance is not None:
                objective.importance = importance.to(objective.device)
            return self._damped_step(objective, kinks, known), None

    def prepare(self) -> PreparedNetwork:
        """See `Plan`."""
        with passes(self.module, self.scope, self.dtype):
            objective, _ = self._checked_objective(self.retained, roomy=True)
            return prepare_network(objective, self.retained, self.observer)

    def sizes(self, indices: list[int], roomy: bool = False) -> graph_memory.Sizes:
        """Batches and kept graphs that fit in memory; inside `passes` only.

        Args:
            indices: Positions of the samples.
            roomy: Take the vectors in float64 whatever the memory.

        Returns:
            The same in every process: batches are dealt out.
        """
        options = self.options
        with self.processes.together():
            probe = objective_over(self, self.batches(self.loader, indices))
            lean = options.low_memory
            if roomy or (lean == "auto" and isinstance(self.guarantee, NewtonStep)):
                lean = False
            found = graph_memory.sizes(
                probe, options.batch_size, options.graph_memory, lean
            )
        return graph_memory.agreed(self.processes.gather(found))

    def _damped_step(
        self,
        objective: EmpiricalObjective,
        kinks: tuple[str, ...],
        known: GradientAndSpectrum | None = None,
    ) -> Step:
        step = damped_step(
            objective,
            damping=self.damping,
            solver=self.solver,
            guarantee=self.guarantee,
            max_norm=self.options.max_norm,
            kinks=kinks,
            known=known,
            observer=self.observer,
        )
        error = objective.difference_error(step.solution.x)
        return step if error is None else with_difference_error(step, error)

    def _checked_objective(
        self, indices: list[int], roomy: bool = False
    ) -> tuple[EmpiricalObjective, tuple[str, ...]]:
        """F in batches that fit, after checks on some samples; the kinks they meet."""
        with self.processes.together():
            batches = self.batches(self.loader, indices)
            check_repeatable(batches)
            check_in_place(self.loss, batches)
            objective = objective_over(self, batches)
            derivative_checks.check_loss(objective)
            first = derivative_checks.first_batch_loss(objective)
            if self.options.curvature == "central_difference":
                derivative_checks.check_smooth(first)
            derivative_checks.check_exists(first, self.scope, self.options.curvature)
            kinks = derivative_checks.kinks(first)
        fit = self.sizes(indices, roomy)
        with self.processes.together():
            self._check_products(indices[:_FEW], fit.lean)
        met = {kink for some in self.processes.gather(kinks) for kink in some}
        batches = self.batches(self.loader, indices, fit.batch_size)
        sized = objective_over(self, batches, fit.kept, fit.batch_size, fit.lean)
        return sized, tuple(sorted(met))

    def _check_products(self, few: list[int], frugal: bool) -> None:
        """In float64, unless memory is short or the model cannot compute in it."""
        # Inside `passes` here, and in others below: weights have other dtypes there.
        curvature, own = self.options.curvature, self.dtype
        for dtype in (own,) if frugal else dict.fromkeys((torch.float64, own)):
            with passes(self.module, self.scope, dtype):
                batches = self.batches(self.loader, few, len(few), dtype=dtype)
                weight, batch = batches.take(range(len(few)))
                loss = objective_over(self, batches).batch_loss(batch, 0, weight)
                try:
                    loss()
                except RuntimeError:
                    if dtype is own:
                        raise
                    continue
                derivative_checks.check_symmetric(loss, self.scope, curvature)
                derivative_checks.check_second_derivative(
                    loss, self.scope, curvature, frugal
                )
                return
