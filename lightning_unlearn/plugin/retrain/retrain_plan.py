"""A request by exact retraining: the weights are there, and no noise is needed."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_unlearn.certificate.words.theorems import Claim, retrained_claim
from lightning_unlearn.errors import StrategyError
from lightning_unlearn.plugin.callback import UnlearningCallback
from lightning_unlearn.plugin.plain_state import own_attributes
from lightning_unlearn.plugin.plan.plan import Plan, Prepared
from lightning_unlearn.plugin.retrain.retrained import Retrained
from lightning_unlearn.plugin.training.trained_marks import KnownRows, remember_rows
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
    """

    retrained: Retrained

    def claim(self) -> Claim:
        """See `Plan`."""
        return retrained_claim()

    def step(self, indices: list[int], proxy_samples: int | None = None) -> Step:
        """See `Plan`."""
        del indices, proxy_samples
        here, weights = self.scope.flatten(), self._weights()
        moved = Solution(
            x=here - weights,
            residual=0.0,
            status=Status.CONVERGED,
            steps=self.retrained.steps,
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
        before = callback.attached
        callback.attached = replace(before, probe=None, bound_state=None)
        undo = [lambda: setattr(callback, "attached", before)]
        if self.retrained.module is not None:
            undo.append(_take_state(self.module, self.retrained.module))
        remember_rows(self.module, KnownRows())

        def put_back() -> None:
            for way in reversed(undo):
                way()

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


def _take_state(old: nn.Module, new: nn.Module) -> Callable[[], None]:
    """Give a module the plain attributes and extra state of another one like it.

    What the old training left there (a running mean, a vocabulary) saw the samples.

    Returns:
        What puts the old ones back.
    """
    kept = list[tuple[nn.Module, dict[str, Any]]]()
    extra = list[tuple[Any, object]]()
    others = dict(new.named_modules())
    for name, layer in old.named_modules():
        if name not in others:
            continue
        kept.append((layer, dict(own_attributes(layer))))
        _replace(layer, dict(own_attributes(others[name])))
        if type(layer).get_extra_state is not nn.Module.get_extra_state:
            extra.append((layer, layer.get_extra_state()))
            layer.set_extra_state(others[name].get_extra_state())

    def undo() -> None:
        for layer, own in kept:
            _replace(layer, own)
        for layer, state in extra:
            layer.set_extra_state(state)

    return undo


def _replace(layer: nn.Module, attributes: dict[str, Any]) -> None:
    for key, _ in [*own_attributes(layer)]:
        del vars(layer)[key]
    vars(layer).update(attributes)
