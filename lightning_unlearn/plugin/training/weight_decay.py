"""l2="auto": the coupled weight decay of the optimizer, or an error."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer

from lightning_unlearn.errors import ModelError
from lightning_unlearn.plugin.lightning import LightningModule
from lightning_unlearn.plugin.training.training_record import TrainingRecord

# Their weight_decay adds `weight_decay * w` to the gradient: the gradient of
# (weight_decay/2)|w|^2, which is what F means by l2.
_COUPLED = (
    *(torch.optim.SGD, torch.optim.Adam, torch.optim.NAdam, torch.optim.RAdam),
    *(torch.optim.Adagrad, torch.optim.Adadelta, torch.optim.Adamax),
    *(torch.optim.RMSprop, torch.optim.ASGD),
)


def known_l2(
    option: float | Literal["auto"], own: float | None, trained: float | None
) -> float | None:
    """The l2 of the objective, where somebody says it.

    Args:
        option: Of the callback: it comes first.
        own: Of the module's ``unlearning_l2``, or None.
        trained: Of the record: the weight decay that training was seen with, or None.
    """
    found = own if option == "auto" else option
    found = trained if found is None else found
    return None if found is None else float(found)


def note_l2(
    record: TrainingRecord,
    optimizers: Sequence[Optimizer],
    scope: Iterable[nn.Parameter],
) -> None:
    """Note in the record the l2 of a training, or why it is not known."""
    try:
        record.l2, record.l2_problem = l2_of(optimizers, scope), None
    except ModelError as error:
        record.l2, record.l2_problem = None, str(error)


def l2_of(optimizers: Sequence[Optimizer], scope: Iterable[nn.Parameter]) -> float:
    """The one l2 coefficient that every weight in scope is trained with.

    Args:
        optimizers: The optimizers of the training run.
        scope: The weights in scope.

    Returns:
        The coefficient, 0.0 if there is no weight decay.

    Raises:
        ModelError: If the decay is decoupled, differs between weights, belongs to an
            unknown optimizer, or a weight has no optimizer.
    """
    found: dict[int, float] = {}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            decay = float(group.get("weight_decay", 0.0) or 0.0)
            if decay:
                _check_coupled(optimizer, group)
            found.update({id(p): decay for p in group["params"]})
    values = {found.get(id(p)) for p in scope}
    if None in values:
        raise ModelError(
            "expected every weight in scope in an optimizer, got some without: pass "
            "l2= to the UnlearningCallback"
        )
    if len(values) != 1:
        listed = sorted(v for v in values if v is not None)
        raise ModelError(
            f"expected one weight decay for all weights in scope, got {listed}: pass "
            "l2= to the UnlearningCallback to say which objective is meant"
        )
    (value,) = values
    return float(value or 0.0)


def _check_coupled(optimizer: Optimizer, group: dict[str, Any]) -> None:
    name = type(optimizer).__name__
    decoupled = isinstance(optimizer, torch.optim.AdamW) or group.get(
        "decoupled_weight_decay", False
    )
    if decoupled:
        raise ModelError(
            f"expected weight decay that is the gradient of an l2 term, got {name}, "
            "whose decay is decoupled: pass l2= to the UnlearningCallback, the "
            "coefficient of (l2/2)|w|^2 of the objective that is meant"
        )
    if not isinstance(optimizer, _COUPLED):
        raise ModelError(
            f"expected an optimizer whose weight decay is known, got {name}: pass l2= "
            "to the UnlearningCallback"
        )


def configured_optimizers(module: LightningModule) -> list[Optimizer]:
    """The optimizers of ``configure_optimizers``, without a training run."""
    configured = module.configure_optimizers()
    found: list[Optimizer] = []

    def collect(value: object) -> None:
        if isinstance(value, Optimizer):
            found.append(value)
        elif isinstance(value, dict):
            collect(value.get("optimizer"))
        elif isinstance(value, (list, tuple)):
            for item in value:
                collect(item)

    collect(configured)
    return found
