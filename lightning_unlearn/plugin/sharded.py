"""A request on weights that stay shards: what it can do, checked by all together."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from lightning_unlearn.certificate.guarantees import NewtonStep, StronglyConvex
from lightning_unlearn.curvature import checks
from lightning_unlearn.errors import StrategyError
from lightning_unlearn.plugin.strategies import sharded_parts
from lightning_unlearn.release import Terms
from lightning_unlearn.scope import Shards
from lightning_unlearn.sharded import ShardedObjective

if TYPE_CHECKING:
    from lightning_unlearn.plugin.resolved import Resolved

_CHECKED = 32  # samples whose loss is compared with its gradient


def objective(ready: "Resolved", indices: list[int]) -> ShardedObjective:
    """F over chosen samples, in batches as in training: these fit."""
    assert isinstance(ready.scope, Shards)  # ready.sharded
    parts = sharded_parts(ready.module)

    def reshard() -> None:
        for part in parts:
            part.reshard()

    size = ready.options.batch_size or ready.loader.batch_size or 32
    return ShardedObjective(
        ready.loss,
        ready.scope,
        ready.batches(ready.loader, indices, size),
        ready.l2,
        processes=ready.processes,
        reshard=reshard,
        chunk=size,
    )


def checked_objective(ready: "Resolved", indices: list[int]) -> ShardedObjective:
    """F over chosen samples, of a loss that meets no kinks.

    The same samples are read in every process, so that all of them pass or fail.

    Raises:
        ModelError: If differences of gradients mean nothing for this model.
    """
    found = objective(ready, indices)
    with ready.processes.together():
        checks.check_repeatable(found.batches)
    checks.check_in_place(ready.loss, found.batches)
    checks.check_loss(found)
    first = range(min(_CHECKED, found.n))
    weight, batch = found.batches.take(first)
    loss = found.batch_loss(batch, 0, weight)
    checks.check_smooth(loss)
    found.check_gradient(_CHECKED)
    return found


def terms(ready: "Resolved") -> Terms:
    """Of the release; noise from a seed, for tests, differs between the shards."""
    stated = ready.options.terms
    if stated.noise_seed is None or not ready.sharded:
        return stated
    return replace(stated, noise_seed=stated.noise_seed + ready.processes.rank)


def check_possible(ready: "Resolved", resume_from: Path | None) -> None:
    """Raise `StrategyError` if a request needs whole weights and they stay shards."""
    if not ready.sharded:
        return
    gathered = "curvature='hessian', which gathers the weights, or one device or ddp"
    if isinstance(ready.guarantee, (StronglyConvex, NewtonStep)):
        raise StrategyError(
            "expected guarantee=NormBall() or None for weights that stay sharded "
            "(curvature='central_difference' under FSDP2), got "
            f"{type(ready.guarantee).__name__}, whose residual is part of the claim "
            f"and has the error of differences here: use {gathered}"
        )
    file = ready.options.state_file or resume_from
    if file is not None:
        raise StrategyError(
            "expected no state_file= or resume_from= for weights that stay sharded, "
            f"got {file}: no process holds the whole of where a solve "
            f"stands; use {gathered}"
        )
    if ready.outside.rebuilt:
        raise StrategyError(
            "expected no batch normalisation to be taken anew for weights that stay "
            f"sharded, got {', '.join(ready.outside.rebuilt[:3])}: use {gathered}"
        )
    own = ready.scope.parameters[0].dtype
    if own not in (torch.float32, torch.float64) or ready.dtype is not own:
        raise StrategyError(
            f"expected weights in float32 or float64 that are computed with as they "
            f"are, got weights in {own} and solve_precision="
            f"{ready.options.solve_precision!r}: leave solve_precision='auto', or use "
            f"{gathered}"
        )
