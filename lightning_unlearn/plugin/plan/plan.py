"""What a request would do: resolved and validated, nothing changed yet."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_unlearn.certificate.ledger import Ledger
from lightning_unlearn.certificate.words.theorems import Claim
from lightning_unlearn.guarantee.claims import Basis, Terms
from lightning_unlearn.guarantee.constants import Constant, Origin
from lightning_unlearn.guarantee.kinds import NewtonStep, NormBall, StronglyConvex
from lightning_unlearn.plugin.data.exact_batches import ExactBatches
from lightning_unlearn.plugin.lightning import (
    LightningModule,
    SIGTERMException,
    Trainer,
)
from lightning_unlearn.plugin.mixin import hooks
from lightning_unlearn.plugin.options import Options
from lightning_unlearn.plugin.run import strategies
from lightning_unlearn.plugin.run.progress import ENDED, Display, DisplayObserver
from lightning_unlearn.plugin.training import batch_norm
from lightning_unlearn.plugin.training.outside import Outside
from lightning_unlearn.plugin.training.training_record import TrainingRecord
from lightning_unlearn.plugin.training.weight_decay import known_l2
from lightning_unlearn.solvers.base import Solver
from lightning_unlearn.solvers.observer import NOBODY, Observer
from lightning_unlearn.step.head.convex_head import ConvexHead
from lightning_unlearn.step.head.prepared_head import PreparedHead
from lightning_unlearn.step.network.prepared_network import PreparedNetwork
from lightning_unlearn.step.step import Step
from lightning_unlearn.weights import opaque
from lightning_unlearn.weights.objective import LossFunction
from lightning_unlearn.weights.processes import Processes
from lightning_unlearn.weights.scope import Scope, Vector

Prepared = PreparedHead | PreparedNetwork
_DTYPES = {"float32": torch.float32, "float64": torch.float64}
_BATCH = 128  # where neither the user nor the loader says


@dataclass(frozen=True, kw_only=True)
class PassContext:
    """What a pass over samples needs: module, loss, weights in scope, devices."""

    trainer: Trainer
    module: LightningModule
    options: Options
    loader: DataLoader
    loss: LossFunction
    scope: Scope
    l2: float

    #: Whether batches that were read stay in memory for the next pass.
    keeps_batches = True

    @staticmethod
    def of(
        trainer: Trainer,
        module: LightningModule,
        options: Options,
        loader: DataLoader,
        trained_l2: float | None = None,
    ) -> "PassContext":
        """That of a module outside of a request; its strategy has gathered it.

        Args:
            trainer: In a run.
            module: With the hooks of a model to be unlearned.
            options: Of the callback.
            loader: The training loader.
            trained_l2: The weight decay that training was seen with, or None.

        Raises:
            ModelError: If the module cannot give a loss.
        """
        loss, in_scope, own_l2 = hooks(module)
        strategy = strategies.adapter(trainer, options.curvature)
        return PassContext(
            trainer=trainer,
            module=module,
            options=options,
            loader=loader,
            loss=loss,
            scope=strategy.scope(module, in_scope),
            l2=known_l2(options.l2, own_l2, trained_l2) or 0.0,
        )

    @property
    def own_dtype(self) -> torch.dtype:
        """Of the weights, float32 if passes cannot compute in it."""
        own = self.scope.parameters[0].dtype
        return own if own in _DTYPES.values() else torch.float32

    @property
    def device(self) -> torch.device:
        """On which the passes compute."""
        return self.scope.parameters[0].device

    @property
    def dtype(self) -> torch.dtype:
        """Of the passes."""
        return _DTYPES.get(self.options.solve_precision, self.own_dtype)

    @property
    def processes(self) -> Processes:
        """Those that share the samples."""
        return self.strategy.processes

    @property
    def strategy(self) -> strategies.Replicated:
        """What the Trainer's strategy means for this request."""
        return strategies.adapter(self.trainer, self.options.curvature)

    def batch_size(self, loader: DataLoader | None = None) -> int:
        """Samples of a batch: as the user said, else as in training."""
        return self.options.batch_size or (loader or self.loader).batch_size or _BATCH

    def batches(
        self,
        loader: DataLoader,
        indices: list[int],
        batch_size: int | None = None,
        by_position: bool = False,
        dtype: torch.dtype | None = None,
        alone: bool = False,
    ) -> ExactBatches:
        """Chosen samples of a loader's dataset, on the device, in the passes' dtype.

        With `alone` this process reads all of them.
        """
        strategy, trainer = self.strategy, self.trainer

        def transfer(batch: Any) -> Any:
            if trainer.received_sigterm:  # Lightning only notes it
                raise SIGTERMException(ENDED)
            return _cast(strategy.transfer(batch), dtype or self.dtype)

        return ExactBatches(
            loader,
            indices,
            batch_size or self.batch_size(loader),
            transfer,
            keep=self.keeps_batches,
            by_position=by_position,
            rank=0 if alone else self.processes.rank,
            world=1 if alone else self.processes.world,
        )


@dataclass(frozen=True, kw_only=True)
class Plan(PassContext, ABC):
    """A request that has been resolved and validated.

    Args:
        head: The ConvexHead whose weights are exactly those in scope, or None.
        chosen: Positions this request forgets.
        removed: Those and all that were forgotten before.
        retained: All others.
        outside: Parts of the model outside the scope.
        ledger: Of the requests before.
        guarantee: What will be claimed; None when the noise is chosen by hand.
        ways_checked: Whether every retained row was compared with the one of data that
            was rebuilt without the forgotten samples.
        solve_file: Keeps where the solve stands in a file, or does nothing.
        display: Shows it, or None.
    """

    head: ConvexHead | None
    chosen: list[int]
    removed: list[int]
    retained: list[int]
    outside: Outside
    ledger: Ledger
    guarantee: StronglyConvex | NormBall | NewtonStep | None
    ways_checked: bool = False
    solve_file: Observer = NOBODY
    display: Display | None = None

    @abstractmethod
    def claim(self) -> Claim:
        """What the step will claim, if it passes its checks.

        Raises:
            GuaranteeError: If a hypothesis does not hold.
        """

    @abstractmethod
    def step(self, indices: list[int], proxy_samples: int | None = None) -> Step:
        """The step for a retain set: of the request, or a part of it for a forecast."""

    @abstractmethod
    def step_from(self, state: Any) -> tuple[Step, PreparedHead | None]:
        """The request's step from prepared state, and what of it may be kept after."""

    @abstractmethod
    def prepare(self) -> Prepared:
        """What can be computed before a request is known, over all retained samples."""

    @property
    def terms(self) -> Terms:
        """What a release is agreed on."""
        return self.options.terms

    @property
    def seconds_before(self) -> float:
        """What was spent on the request before this plan was made."""
        return 0.0

    def rebuilt_entries(self) -> tuple[str, ...]:
        """Of the state_dict: what is made anew besides the weights in scope."""
        return self.outside.rebuilt_entries(self.module)

    def record_after(self, record: TrainingRecord) -> TrainingRecord:
        """What is known of the training, once the request is done."""
        return record

    def move_rest(self, callback: Any) -> Callable[[], None]:
        """Move what is neither weight nor buffer; what puts it back is returned.

        Args:
            callback: Ours.
        """
        del callback
        return lambda: None

    def check_possible(self, resume_from: Path | None) -> None:
        """Raise `StrategyError` if the strategy cannot carry this plan out."""

    @property
    def noise_seed(self) -> int | None:
        """For tests only."""
        return self.options.noise_seed

    @property
    def observer(self) -> Observer:
        """Who looks on at the solve: it is kept in a file, shown, or neither."""
        if self.display is None:
            return self.solve_file
        return DisplayObserver(self.display, self.solve_file)

    @property
    def solver(self) -> Solver | None:
        """The user's own, or None."""
        return None if self.options.solver == "auto" else self.options.solver

    def basis(self, constants: tuple[Constant, ...]) -> Basis:
        """What a claim from these constants rests on besides."""
        parts = self.outside.public_parts
        return Basis(
            bound=self.claim().bound,
            constants=constants,
            n_retain=len(self.retained),
            public_parts_enforced=all(p.origin is Origin.ENFORCED for p in parts),
            unscrubbed=self.outside.unscrubbed,
            release=len(self.ledger.entries) + 1,
            earlier_mus=self.ledger.mus,
            earlier_grades=self.ledger.grades,
        )

    def rebuilt_statistics(self, weights: Vector) -> dict[str, Tensor]:
        """Batch normalisation's statistics with released weights (p,), by buffer."""
        layers = self.outside.rebuilt
        if not layers:
            return {}
        size = batch_norm.batch_size_of(len(self.retained), self.batch_size())
        batches = self.batches(self.loader, self.retained, size, alone=True)
        return batch_norm.recomputed(
            self.scope, weights, layers, self.loss, batches, self.dtype
        )


def _cast(batch: Any, dtype: torch.dtype) -> Any:
    def cast(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return opaque.rewritten(x, cast)
        return x.to(dtype) if x.is_floating_point() else x

    return apply_to_collection(batch, (Tensor, opaque.Opaque), cast)
