"""Which plan a request takes: of a head, of a network, of a network in shards."""

from pathlib import Path
from typing import Any

from lightning_unlearn.guarantee.kinds import NewtonStep, NormBall, StronglyConvex
from lightning_unlearn.plugin.plan.head_plan import HeadPlan
from lightning_unlearn.plugin.plan.network_plan import NetworkPlan
from lightning_unlearn.plugin.plan.plan import Plan
from lightning_unlearn.plugin.plan.sharded_plan import ShardedPlan, refuse_claim
from lightning_unlearn.step.head.convex_head import ConvexHead
from lightning_unlearn.weights.scope import Scope, Shards


def plan_for(
    scope: Scope,
    head: ConvexHead | None,
    guarantee: StronglyConvex | NormBall | NewtonStep | None,
    resume_from: Path | None,
    **fields: Any,
) -> Plan:
    """The plan for weights in scope and what is claimed of them.

    Args:
        scope: The weights in scope.
        head: The ConvexHead whose weights they are, or None.
        guarantee: Of `chosen_guarantee`: `StronglyConvex` only with a head.
        resume_from: Where a solve of the same request stood, or None.
        fields: The others of `Plan`.

    Raises:
        StrategyError: If the strategy cannot carry it out.
    """
    if isinstance(guarantee, StronglyConvex) and head is not None:
        if isinstance(scope, Shards):
            raise refuse_claim("StronglyConvex")
        return HeadPlan(scope=scope, head=head, guarantee=guarantee, **fields)
    assert not isinstance(guarantee, StronglyConvex)  # it was refused without a head
    if isinstance(scope, Shards):
        plan = ShardedPlan(scope=scope, head=head, guarantee=guarantee, **fields)
    else:
        plan = NetworkPlan(scope=scope, head=head, guarantee=guarantee, **fields)
    plan.check_possible(resume_from)
    return plan
