"""What else the Trainer holds that was computed on the forgotten samples."""

from pathlib import Path

import torch
import torchmetrics

from lightning_unlearn.plugin.callback import UnlearningCallback
from lightning_unlearn.plugin.lightning import (
    Checkpoint,
    EarlyStopping,
    LightningModule,
    ModelCheckpoint,
    Trainer,
    is_overridden,
)


def kept_states(trainer: Trainer) -> list[str]:
    """Names of callbacks, module and datamodule that keep a state of their own."""
    states = [
        type(callback).__name__
        for callback in trainer.callbacks  # type: ignore[attr-defined]
        if type(callback) not in (ModelCheckpoint, EarlyStopping)  # they forget theirs
        and not isinstance(callback, UnlearningCallback)
        and callback.state_dict()
    ]
    module = trainer.lightning_module
    datamodule = getattr(trainer, "datamodule", None)
    for owner in (module, datamodule):
        if owner is not None and is_overridden("on_save_checkpoint", owner):
            states.append(f"{type(owner).__name__} (on_save_checkpoint)")
    precision = trainer.precision_plugin
    if precision.state_dict() and getattr(precision, "scaler", None) is None:
        states.append(f"{type(precision).__name__} (precision)")
    if datamodule is not None and datamodule.state_dict():
        states.append(f"{type(datamodule).__name__} (state_dict)")
    return sorted(states)


def forget_scores(trainer: Trainer, clean: Path | None) -> None:
    """Make no callback remember scores, or weights from before the request.

    Otherwise ``trainer.validate()`` without a model would load the "best" one, and
    with it what was forgotten.
    """
    path = "" if clean is None else str(clean)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Checkpoint):
            values = {
                "best_model_path": path, "last_model_path": "",
                "kth_best_model_path": "", "best_k_models": {},
                "best_model_score": None, "current_score": None,
                "kth_value": _worst(getattr(callback, "mode", "min")),
            }  # fmt: skip
        elif isinstance(callback, EarlyStopping):
            worst = _worst(callback.mode)
            values = {"best_score": worst, "wait_count": 0, "stopped_epoch": 0}
        else:
            continue
        for name, value in values.items():
            if hasattr(callback, name):
                setattr(callback, name, value)


def _worst(mode: str) -> torch.Tensor:
    """The score any other one beats."""
    return torch.tensor(torch.inf if mode == "min" else -torch.inf)


def forget_training(
    trainer: Trainer, module: LightningModule, clean: Path | None
) -> None:
    """Drop gradients, moments, metrics and scores: they remember forgotten samples."""
    module.zero_grad(set_to_none=True)
    for metric in module.modules():
        if isinstance(metric, torchmetrics.Metric):
            metric.reset()
    trainer.optimizers = []
    trainer.strategy.lr_scheduler_configs = []  # some keep the best loss
    _forget_scale(trainer)
    forget_scores(trainer, clean)


def _forget_scale(trainer: Trainer) -> None:
    """That of 16-mixed precision knows which gradients overflowed."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    if scaler is None or not scaler.state_dict():  # it is off
        return
    new = torch.amp.GradScaler(trainer.strategy.root_device.type)  # type: ignore[attr-defined]
    scale = {"scale": new.get_scale(), "_growth_tracker": 0}
    scaler.load_state_dict({**scaler.state_dict(), **scale})
