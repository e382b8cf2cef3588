"""A request on weights that stay shards: what it can do, checked by all together."""

from dataclasses import dataclass
from pathlib import Path

import torch

from lightning_unlearn.errors import StrategyError
from lightning_unlearn.guarantee.kinds import NewtonStep
from lightning_unlearn.plugin.plan.network_plan import NetworkPlan
from lightning_unlearn.plugin.plan.plan import PassContext
from lightning_unlearn.plugin.run.strategies import sharded_parts
from lightning_unlearn.step.batch_checks import check_in_place, check_repeatable
from lightning_unlearn.step.network import derivative_checks
from lightning_unlearn.step.network.empirical_objective import EmpiricalObjective
from lightning_unlearn.step.network.sharded_objective import ShardedObjective
from lightning_unlearn.weights.scope import Shards

_CHECKED = 32  # samples whose loss is compared with its gradient
_GATHERED = "curvature='hessian', which gathers the weights, or one device or ddp"


def sharded_objective(
    context: PassContext, scope: Shards, indices: list[int]
) -> ShardedObjective:
    """F over chosen samples, in batches as in training: these fit."""
    parts = sharded_parts(context.module)

    def reshard() -> None:
        for part in parts:
            part.reshard()

    size = context.batch_size()
    return ShardedObjective(
        context.loss,
        scope,
        context.batches(context.loader, indices, size),
        context.l2,
        processes=context.processes,
        reshard=reshard,
        chunk=size,
    )


def refuse_claim(name: str) -> StrategyError:
    """Why a guarantee cannot be had for weights that stay sharded."""
    return StrategyError(
        "expected guarantee=NormBall() or None for weights that stay sharded "
        f"(curvature='central_difference' under FSDP2), got {name}, whose residual is "
        f"part of the claim and has the error of differences here: use {_GATHERED}"
    )


@dataclass(frozen=True, kw_only=True)
class ShardedPlan(NetworkPlan):
    """See `Plan`; each process holds shards of the weights and of every vector."""

    scope: Shards

    @property
    def noise_seed(self) -> int | None:
        """For tests only: it differs between the shards."""
        seed = self.options.noise_seed
        return None if seed is None else seed + self.processes.rank

    def check_possible(self, resume_from: Path | None) -> None:
        """See `Plan`."""
        if isinstance(self.guarantee, NewtonStep):
            raise refuse_claim("NewtonStep")
        file = self.options.state_path or resume_from
        if file is not None:
            raise StrategyError(
                "expected no state_file= or resume_from= for weights that stay "
                f"sharded, got {file}: no process holds the whole of where a solve "
                f"stands; use {_GATHERED}"
            )
        if self.outside.rebuilt:
            raise StrategyError(
                "expected no batch normalisation to be taken anew for weights that "
                f"stay sharded, got {', '.join(self.outside.rebuilt[:3])}: use "
                f"{_GATHERED}"
            )
        own = self.scope.parameters[0].dtype
        if own not in (torch.float32, torch.float64) or self.dtype is not own:
            raise StrategyError(
                f"expected weights in float32 or float64 that are computed with as "
                f"they are, got weights in {own} and solve_precision="
                f"{self.options.solve_precision!r}: leave solve_precision='auto', or "
                f"use {_GATHERED}"
            )

    def _checked_objective(
        self, indices: list[int], roomy: bool = False
    ) -> tuple[EmpiricalObjective, tuple[str, ...]]:
        """F over chosen samples, of a loss that meets no kinks.

        The same samples are read in every process, so that all of them pass or fail.

        Raises:
            ModelError: If differences of gradients mean nothing for this model.
        """
        del roomy  # vectors are in shards
        found = sharded_objective(self, self.scope, indices)
        with self.processes.together():
            check_repeatable(found.batches)
        check_in_place(self.loss, found.batches)
        derivative_checks.check_loss(found)
        first = range(min(_CHECKED, found.n))
        weight, batch = found.batches.take(first)
        loss = found.batch_loss(batch, 0, weight)
        derivative_checks.check_smooth(loss)
        found.check_gradient(_CHECKED)
        return found, ()
