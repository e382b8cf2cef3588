"""A request that is resolved and validated, and the step it will take."""

from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException
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
from lightning_unlearn.factor import cheap_factor
from lightning_unlearn.features import FeatureData
from lightning_unlearn.heads import ConvexHead
from lightning_unlearn.minimise import minimise
from lightning_unlearn.newton import Step, damped_step, with_difference_error
from lightning_unlearn.objective import LossFunction
from lightning_unlearn.plugin import data, memory, public, sharded, strategies
from lightning_unlearn.plugin.options import Options
from lightning_unlearn.plugin.progress import ENDED, Display, Onlooker
from lightning_unlearn.plugin.record import Outside
from lightning_unlearn.prepared import (
    PreparedHead,
    PreparedNetwork,
    prepare_head,
    prepare_network,
)
from lightning_unlearn.processes import Processes
from lightning_unlearn.scope import Scope, Shards, passes
from lightning_unlearn.solvers import Solver
from lightning_unlearn.solvers.watch import NOBODY, Watch

_FEW = 8  # samples on which products are compared with differences of gradients
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
    watch: Watch = NOBODY
    display: Display | None = None

    @property
    def onlooker(self) -> Watch:
        """Who looks on at the solve: it is kept in a file, shown, or neither."""
        if self.display is None:
            return self.watch
        return Onlooker(self.display, self.watch)

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
    def processes(self) -> Processes:
        """Those that share the samples."""
        return self.strategy.processes

    @property
    def strategy(self) -> strategies.Replicated:
        """What the Trainer's strategy means for this request."""
        return strategies.adapter(self.trainer, self.options.curvature)

    @property
    def sharded(self) -> bool:
        """Whether each process holds shards of the weights and of every vector."""
        return isinstance(self.scope, Shards)

    @property
    def convex(self) -> bool:
        """Whether the scope is solved as a strongly convex one."""
        return isinstance(self.guarantee, StronglyConvex)

    def batches(
        self,
        loader: DataLoader,
        indices: list[int],
        batch_size: int | None = None,
        by_position: bool = False,
        dtype: torch.dtype | None = None,
        alone: bool = False,
    ) -> data.ExactBatches:
        """Chosen samples of a loader's dataset, on the device, in the passes' dtype.

        With `alone` this process reads all of them.
        """
        strategy, trainer = self.strategy, self.trainer

        def transfer(batch: Any) -> Any:
            if trainer.received_sigterm:  # Lightning only notes it
                raise SIGTERMException(ENDED)
            return _cast(strategy.transfer(batch), dtype or self.dtype)

        size = batch_size or self._batch_size(loader)
        return data.ExactBatches(
            loader,
            indices,
            size,
            transfer,
            keep=not self.convex,
            by_position=by_position,
            rank=0 if alone else self.processes.rank,
            world=1 if alone else self.processes.world,
        )

    def step(self, indices: list[int], proxy_samples: int | None = None) -> Step:
        """The step for a retain set: of the request, or a part of it for a forecast."""
        with passes(self.module, self.scope, self.dtype):
            if not isinstance(self.guarantee, StronglyConvex):
                return self._damped_step(indices, None)
            assert self.head is not None  # chosen_guarantee checks it
            # A forecast's part of the data would leave hardly anything in each block.
            whole = proxy_samples is None
            batches = self.batches(self.loader, indices, by_position=whole)
            rows = self._rows(self.head, batches)
            objective = convex.ConvexObjective(
                self.head,
                rows,
                self.l2,
                processes=self.processes,
                n=batches.n,
                places=batches.places,
            )
            return minimise(
                objective,
                self.scope.flatten(),
                tolerance=self.options.tolerance,
                max_steps=self.guarantee.max_steps,
                solver=self._solver,
                proxy_samples=proxy_samples,
                refactor=cheap_factor(objective),
                watch=self.onlooker,
            )

    def step_from(
        self, state: PreparedHead | PreparedNetwork
    ) -> tuple[Step, PreparedHead | None]:
        """The request's step from prepared state, and what of it may be kept after."""
        gone = sorted(set(state.positions.tolist()) - set(self.retained))
        with passes(self.module, self.scope, self.dtype):
            if isinstance(state, PreparedNetwork):
                return self._damped_step(self.retained, (state, gone)), None
            assert self.head is not None  # it was made from one
            again = state.touched(gone)
            fresh = self._rows(self.head, self.blocks(again)) if again else None
        assert isinstance(self.guarantee, StronglyConvex)
        rest = state.after(gone, fresh)
        step = state.step(
            self.head,
            self.scope.flatten(),
            gone,
            rest=rest,
            l2=self.l2,
            tolerance=self.options.tolerance,
            max_steps=self.guarantee.max_steps,
            solver=self._solver,
            watch=NOBODY if self.display is None else Onlooker(self.display),
        )
        return step, rest

    def prepare(self) -> PreparedHead | PreparedNetwork:
        """What can be computed before a request is known, over all retained samples."""
        with passes(self.module, self.scope, self.dtype):
            if not isinstance(self.guarantee, StronglyConvex):
                _, fit = self._check_first(self.retained, roomy=True)
                return prepare_network(
                    self.sized_objective(self.retained, fit), self.retained
                )
            assert self.head is not None  # chosen_guarantee checks it
            return prepare_head(
                self.head,
                self._rows(self.head, self.blocks(self.retained)),
                self.retained,
                self.scope.flatten(),
                block=self.block,
                l2=self.l2,
                tolerance=self.options.tolerance,
                max_steps=self.guarantee.max_steps,
            )

    @property
    def _solver(self) -> Solver | None:
        return None if self.options.solver == "auto" else self.options.solver

    @property
    def block(self) -> int:
        """Samples of a batch in which rows are read."""
        return self._batch_size(self.loader)

    def _batch_size(self, loader: DataLoader) -> int:
        return self.options.batch_size or loader.batch_size or 128

    def blocks(self, indices: list[int]) -> data.ExactBatches:
        """Batches in which a sample's row can depend on retained samples only.

        Which samples are read together follows from their positions: a block of the
        training dataset, less those that are not in `indices`.
        """
        return self.batches(self.loader, indices, by_position=True)

    def _rows(self, head: ConvexHead, batches: data.ExactBatches) -> FeatureData:
        with self.processes.together(), public.reading_private(self.module):
            checks.check_repeatable(batches)
            checks.check_in_place(self.loss, batches)
            return features.capture(self.loss, head, batches)

    def _check_first(
        self, indices: list[int], roomy: bool
    ) -> tuple[tuple[str, ...], memory.Sizes]:
        """Check what a pass means on some samples: the kinks they meet, what fits."""
        with self.processes.together():
            batches = self.batches(self.loader, indices)
            checks.check_repeatable(batches)
            checks.check_in_place(self.loss, batches)
            objective = self.objective(batches)
            checks.check_loss(objective)
            first = checks.first_batch_loss(objective)
            if self.options.curvature == "central_difference":
                checks.check_smooth(first)
            checks.check_exists(first, self.scope, self.options.curvature)
            kinks = checks.kinks(first)
        fit = self.sizes(indices, roomy)
        with self.processes.together():
            self._check_products(indices[:_FEW], fit.lean)
        met = {kink for some in self.processes.gather(kinks) for kink in some}
        return tuple(sorted(met)), fit

    def _check_products(self, few: list[int], frugal: bool) -> None:
        """In float64, unless memory is short or the model cannot compute in it."""
        curvature, dtypes = self.options.curvature, [torch.float64, self.dtype]
        for dtype in dtypes[1:] if frugal else dict.fromkeys(dtypes):
            with passes(self.module, self.scope, dtype):
                batches = self.batches(self.loader, few, len(few), dtype=dtype)
                weight, batch = batches.take(range(len(few)))
                loss = self.objective(batches).batch_loss(batch, 0, weight)
                try:
                    loss()
                except RuntimeError:
                    if dtype is self.dtype:
                        raise
                    continue
                checks.check_symmetric(loss, self.scope, curvature)
                checks.check_second_derivative(loss, self.scope, curvature, frugal)
                return

    def _damped_step(
        self, indices: list[int], prepared: tuple[PreparedNetwork, list[int]] | None
    ) -> Step:
        """Inside `scope.passes`; `prepared` names the samples it has too many of."""
        options, guarantee = self.options, self.guarantee
        assert not isinstance(guarantee, StronglyConvex)
        known, kinks = None, ()
        if self.sharded:
            objective = sharded.checked_objective(self, indices)
        else:
            # What is prepared has its vectors in float64 already.
            kinks, fit = self._check_first(indices, roomy=prepared is not None)
            objective = self.sized_objective(indices, fit)
        if prepared is not None:
            state, gone = prepared
            if not isinstance(guarantee, NewtonStep):
                part = self.objective(self.batches(self.loader, gone))
                forgotten = part.value_and_gradient()[1] if gone else None
                known = state.known(forgotten, len(gone))
            importance = state.importance_of(indices)
            if importance is not None:
                objective.importance = importance.to(objective.device)
        step = damped_step(
            objective,
            damping=None if options.damping == "auto" else options.damping,
            solver=self._solver,
            guarantee=guarantee,
            max_norm=options.max_norm,
            kinks=kinks,
            known=known,
            watch=self.onlooker,
        )
        error = objective.difference_error(step.solution.x)
        return step if error is None else with_difference_error(step, error)

    def plain_objective(self, indices: list[int]) -> EmpiricalObjective:
        """F over chosen samples in the loader's batches, unchecked."""
        if self.sharded:
            return sharded.objective(self, indices)
        return self.objective(self.batches(self.loader, indices))

    def objective(
        self,
        batches: data.ExactBatches,
        kept: int = 0,
        chunk: int = 256,
        lean: bool = False,
    ) -> EmpiricalObjective:
        """F over some batches, through automatic differentiation."""
        product = PRODUCTS[self.options.curvature]
        return EmpiricalObjective(
            self.loss,
            self.scope,
            batches,
            self.l2,
            product,
            processes=self.processes,
            kept=kept,
            chunk=chunk,
            lean=lean,
        )

    def sizes(self, indices: list[int], roomy: bool = False) -> memory.Sizes:
        """Batches and kept graphs that fit in memory; inside `scope.passes` only.

        Args:
            indices: Positions of the samples.
            roomy: Take the vectors in float64 whatever the memory.

        Returns:
            The same in every process: batches are dealt out.
        """
        options = self.options
        with self.processes.together():
            probe = self.objective(self.batches(self.loader, indices))
            lean = options.low_memory
            if roomy or (lean == "auto" and isinstance(self.guarantee, NewtonStep)):
                lean = False
            found = memory.sizes(probe, options.batch_size, options.graph_memory, lean)
        return memory.agreed(self.processes.gather(found))

    def sized_objective(
        self, indices: list[int], fit: memory.Sizes
    ) -> EmpiricalObjective:
        """F over chosen samples, in batches that fit in memory."""
        batches = self.batches(self.loader, indices, fit.batch_size)
        return self.objective(batches, fit.kept, chunk=fit.batch_size, lean=fit.lean)


def _cast(batch: Any, dtype: torch.dtype) -> Any:
    def cast(x: torch.Tensor) -> torch.Tensor:
        return x.to(dtype) if x.is_floating_point() else x

    return apply_to_collection(batch, torch.Tensor, cast)
