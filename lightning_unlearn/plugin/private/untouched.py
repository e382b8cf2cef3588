"""That nothing but the private steps moves the weights, or what an optimizer keeps."""

import sys
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_unlearn.errors import ModelError
from lightning_unlearn.plugin.lightning import LightningModule, Trainer
from lightning_unlearn.plugin.private import decision_checks


@dataclass
class Untouched:
    """Weights and optimizer as the last private step has left them.

    Args:
        trainer: Of the training.
        module: That is trained.
        optimizer: Whose steps are taken over.
        names: Of the weights that are trained.
    """

    trainer: Trainer
    module: LightningModule
    optimizer: Optimizer
    names: list[str]
    _settings: list[dict[str, Any]] = field(default_factory=list)
    _memory: list[Any] = field(default_factory=list)
    _lag: int | None = None
    _weights: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._lag = decision_checks.schedule_lag(self.trainer)
        self.remember()

    def remember(self) -> None:
        """A private step has been taken."""
        self._settings = decision_checks.settings_of(self.optimizer)
        self._memory = decision_checks.memory_of(self.optimizer)
        named = dict(self.module.named_parameters())
        self._weights = {name: named[name].detach().clone() for name in self.names}

    def moved(self) -> list[str]:
        """Weights that are not those of the last step, by name."""
        named = dict(self.module.named_parameters())
        return [
            name
            for name, before in self._weights.items()
            if name not in named or not torch.equal(named[name].detach(), before)
        ]

    def check(self) -> None:
        """Refuse what something else has changed since the last step.

        Raises:
            UnlearningError: If something has.
        """
        named = dict(self.module.named_parameters())
        own = {id(named[name]) for name in self.names if name in named}
        free = [name for name, p in named.items() if p.requires_grad]
        held = [p for group in self.optimizer.param_groups for p in group["params"]]
        others = any(id(p) not in own and p.grad is not None for p in held)
        if free != self.names or others:
            raise ModelError(
                "expected the same trainable weights in every step of a private "
                "training, got others: freeze and unfreeze before it, not in it"
            )
        decision_checks.check_settings(self.trainer, self.optimizer, self._settings)
        decision_checks.check_lag(self._lag, decision_checks.schedule_lag(self.trainer))
        moved = self.moved()
        if moved:
            raise ModelError(
                "expected weights that nothing moves but the private steps, got "
                f"{', '.join(moved[:3])}, which a callback or a hook has changed"
            )
        if decision_checks.memory_of(self.optimizer) != self._memory:
            raise ModelError(
                "expected an optimizer whose state (momentum) only its private steps "
                "change, got another: a callback or a hook has written to it"
            )
        self._check_hooks()

    def _check_hooks(self) -> None:
        module_of = sys.modules[Optimizer.__module__]
        hooks = [
            hook
            for when in ("pre", "post")
            for hook in (
                *getattr(module_of, f"_global_optimizer_{when}_hooks", ()),
                *(
                    hook
                    for part in decision_checks.parts_of(self.optimizer)
                    for hook in getattr(part, f"_optimizer_step_{when}_hooks", ())
                ),
            )
        ]
        if hooks:
            raise ModelError(
                "expected no hook before the optimizer's step in a private training, "
                f"nor after it, got {len(hooks)}: it could change the private "
                "gradient, or the weights"
            )
