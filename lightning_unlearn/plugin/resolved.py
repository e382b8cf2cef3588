"""A request that is resolved and validated, and the step it will take."""

from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning_utilities.core.apply_func import apply_to_collection
from torch.utils.data import DataLoader

from lightning_unlearn import convex, features
from lightning_unlearn import ledger as ledgers
from lightning_unlearn.certificate.guarantees import (
    NewtonStep,
    NormBall,
    StronglyConvex,
)
from lightning_unlearn.curvature import checks
from lightning_unlearn.curvature.products import PRODUCTS
from lightning_unlearn.empirical import EmpiricalObjective
from lightning_unlearn.heads import ConvexHead
from lightning_unlearn.minimise import minimise
from lightning_unlearn.newton import Step, damped_step
from lightning_unlearn.objective import LossFunction
from lightning_unlearn.plugin import data, memory, strategies
from lightning_unlearn.plugin.options import Options
from lightning_unlearn.plugin.record import Outside
from lightning_unlearn.scope import Scope, passes

_DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """A request that has been resolved and validated, and has changed nothing."""

    trainer: Trainer
    module: LightningModule
    options: Options
    loader: DataLoader
    loss: LossFunction
    scope: Scope
    head: ConvexHead | None
    chosen: list[int]
    removed: list[int]
    retained: list[int]
    outside: Outside
    ledger: ledgers.Ledger
    l2: float
    guarantee: StronglyConvex | NormBall | NewtonStep | None

    @property
    def dtype(self) -> torch.dtype:
        """Of the passes: features of a head as trained, float64 where it is claimed."""
        own = self.scope.parameters[0].dtype
        if own not in _DTYPES.values():
            own = torch.float32
        if self.convex:
            return own
        precision = self.options.solve_precision
        if precision == "auto" and isinstance(self.guarantee, NewtonStep):
            return torch.float64
        return _DTYPES.get(precision, own)

    @property
    def convex(self) -> bool:
        """Whether the scope is solved as a strongly convex one."""
        return isinstance(self.guarantee, StronglyConvex)

    def batches(
        self, loader: DataLoader, indices: list[int], batch_size: int | None = None
    ) -> data.ExactBatches:
        """Chosen samples of a loader's dataset, on the device, in the passes' dtype."""
        strategy = strategies.adapter(self.trainer)

        def transfer(batch: Any) -> Any:
            return _cast(strategy.transfer(batch), self.dtype)

        size = batch_size or self.options.batch_size or loader.batch_size or 128
        return data.ExactBatches(loader, indices, size, transfer, keep=not self.convex)

    def step(self, indices: list[int], proxy_samples: int | None = None) -> Step:
        """The step for a retain set: of the request, or a part of it for a forecast."""
        options, scope = self.options, self.scope
        solver = None if options.solver == "auto" else options.solver
        w0 = scope.flatten()
        with passes(self.module, scope, self.dtype):
            batches = self.batches(self.loader, indices)
            checks.check_repeatable(batches)
            if isinstance(self.guarantee, StronglyConvex):
                assert self.head is not None  # chosen_guarantee checks it
                rows = features.capture(self.loss, self.head, batches)
                return minimise(
                    convex.ConvexObjective(self.head, rows, self.l2),
                    w0,
                    tolerance=options.tolerance,
                    max_steps=self.guarantee.max_steps,
                    solver=solver,
                    proxy_samples=proxy_samples,
                )
            objective = self.sized_objective(indices)
            checks.check_loss(objective)
            first = checks.first_batch_loss(objective)
            if options.curvature == "central_difference":
                checks.check_smooth(first)
            checks.check_symmetric(first, scope, options.curvature)
            return damped_step(
                objective,
                w0,
                damping=None if options.damping == "auto" else options.damping,
                solver=solver,
                guarantee=self.guarantee,
                max_norm=options.max_norm,
                kinks=checks.kinks(first),
            )

    def objective(
        self, batches: data.ExactBatches, kept: int = 0, chunk: int = 256
    ) -> EmpiricalObjective:
        """F over some batches, through automatic differentiation."""
        product = PRODUCTS[self.options.curvature]
        return EmpiricalObjective(
            self.loss, self.scope, batches, self.l2, product, kept=kept, chunk=chunk
        )

    def sizes(self, indices: list[int]) -> memory.Sizes:
        """Batches and kept graphs that fit in memory; inside `scope.passes` only."""
        probe = self.objective(self.batches(self.loader, indices))
        options = self.options
        return memory.sizes(probe, options.batch_size, options.graph_memory)

    def sized_objective(self, indices: list[int]) -> EmpiricalObjective:
        """F over chosen samples, in batches that fit in memory."""
        fit = self.sizes(indices)
        batches = self.batches(self.loader, indices, fit.batch_size)
        return self.objective(batches, fit.kept, chunk=fit.batch_size)


def _cast(batch: Any, dtype: torch.dtype) -> Any:
    def cast(x: torch.Tensor) -> torch.Tensor:
        return x.to(dtype) if x.is_floating_point() else x

    return apply_to_collection(batch, torch.Tensor, cast)
