"""A request by exact retraining: the weights are there, and no noise is needed."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lightning_unlearn.certificate.words.theorems import Claim, retrained_claim
from lightning_unlearn.errors import StrategyError
from lightning_unlearn.plugin.callback import UnlearningCallback
from lightning_unlearn.plugin.plan.plan import Plan, Prepared
from lightning_unlearn.plugin.retrain.retrained import Retrained
from lightning_unlearn.plugin.retrain.transplant import Transplant
from lightning_unlearn.plugin.training.trained_marks import remember_rows, rows_of
from lightning_unlearn.plugin.training.training_record import TrainingRecord
from lightning_unlearn.solvers.base import Solution, Status
from lightning_unlearn.step.head.prepared_head import PreparedHead
from lightning_unlearn.step.step import Step
from lightning_unlearn.weights.passes import held
from lightning_unlearn.weights.scope import Vector


@dataclass(frozen=True, kw_only=True)
class RetrainPlan(Plan):
    """See `Plan`; every weight that the retraining moved is in scope.

    Args:
        retrained: What it has left.
        transplant: What the user's module gets of it besides its tensors.
    """

    retrained: Retrained
    transplant: Transplant

    @property
    def seconds_before(self) -> float:
        """See `Plan`."""
        return self.retrained.seconds

    def claim(self) -> Claim:
        """See `Plan`."""
        return retrained_claim(len(self.retrained.job.kept))

    def step(self, indices: list[int], proxy_samples: int | None = None) -> Step:
        """See `Plan`."""
        del indices, proxy_samples
        here, weights = self.scope.flatten(), self._weights()
        moved = Solution(
            x=here - weights,
            residual=0.0,
            status=Status.CONVERGED,
            steps=self.retrained.record.steps,
            matvecs=0.0,
        )
        return Step(weights=weights, solution=moved, claim=self.claim())

    def step_from(self, state: Any) -> tuple[Step, PreparedHead | None]:
        """See `Plan`; nothing that was prepared is of a model that is trained anew."""
        raise self._nothing_to_prepare()

    def prepare(self) -> Prepared:
        """See `Plan`."""
        raise self._nothing_to_prepare()

    def rebuilt_statistics(self, weights: Vector) -> dict[str, Tensor]:
        """See `Plan`: buffers, and what was frozen, as the retraining has them."""
        del weights
        state, moved = self.retrained.state, {*self.scope.names}
        return {
            name: state[name].to(t.device)
            for name, t in held(self.module).items()
            if name not in moved
        }

    def rebuilt_entries(self) -> tuple[str, ...]:
        """See `Plan`."""
        known = self.module.state_dict()
        return tuple(name for name in self.retrained.rebuilt if name in known)

    def record_after(self, record: TrainingRecord) -> TrainingRecord:
        """See `Plan`."""
        return self.retrained.record_after(record)

    def move_rest(self, callback: UnlearningCallback) -> Callable[[], None]:
        """See `Plan`: plain attributes and extra state are those of the new module."""
        before, rows = callback.attached, rows_of(self.module)
        undo = self.transplant.apply()
        callback.attached = replace(before, probe=None, bound_state=None)
        remember_rows(self.module, self.retrained.record.known_rows)

        def put_back() -> None:
            callback.attached = before
            remember_rows(self.module, rows)
            undo()

        return put_back

    def _weights(self) -> Vector:
        parts = [self.retrained.state[name].reshape(-1) for name in self.scope.names]
        return torch.cat([p.double() for p in parts]).to(self.device)

    @staticmethod
    def _nothing_to_prepare() -> StrategyError:
        return StrategyError(
            "expected a Newton step to prepare for, got a retraining: it needs nothing "
            "that is known of the old model"
        )
