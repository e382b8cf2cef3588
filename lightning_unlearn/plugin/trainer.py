"""``trainer.unlearn``: as a function, as a Trainer subclass, as an added method."""

import copy
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch.utils.data import DataLoader

from lightning_unlearn.errors import SetupError
from lightning_unlearn.plugin import _compat, checkpoint, data
from lightning_unlearn.plugin.callback import UnlearningCallback
from lightning_unlearn.plugin.forget import Forget
from lightning_unlearn.plugin.request import Request
from lightning_unlearn.plugin.result import UnlearningResult


def unlearn(
    trainer: pl.Trainer,
    forget: Forget,
    model: LightningModule | None = None,
    train_dataloaders: DataLoader | None = None,
    datamodule: LightningDataModule | None = None,
    ckpt_path: str | Path | None = None,
    weights_only: bool | None = None,
    save_to: str | Path | None = None,
) -> UnlearningResult:
    """Remove the influence of some training samples from the model.

    Works right after ``fit``, and in a fresh process with ``model``, the training
    data and ``ckpt_path``. The weights move once, at the end: if anything fails, the
    model, its checkpoint and the record of earlier requests are as before.

    Args:
        trainer: With an `UnlearningCallback`.
        forget: Positions in the training dataset (indices, or the path of a .txt,
            .json, .npy or .csv file of them), a `Subset` of it, or a DataLoader over
            one.
        model: The module; by default the one the Trainer was last used with.
        train_dataloaders: The training loader; by default that of the last fit, of
            the datamodule, or of the model.
        datamodule: In place of ``train_dataloaders``.
        ckpt_path: Checkpoint to load first.
        weights_only: Passed to `torch.load` for the checkpoint (Lightning >= 2.6).
        save_to: New file for a clean checkpoint; the certificate is written beside
            it as ``<name>.certificate.json``.

    Returns:
        The certificate, the solution, counts and seconds.

    Raises:
        UnlearningError: Of a kind that says what was expected, got and to do.
    """
    callback = _callback(trainer, model)
    model = model or trainer.lightning_module
    if not isinstance(model, LightningModule):
        raise SetupError(
            "expected a model: pass model=, or call trainer.fit first, got "
            f"{type(model).__name__}"
        )
    if train_dataloaders is not None and datamodule is not None:
        raise SetupError(
            "expected train_dataloaders= or datamodule=, got both: leave one out"
        )
    _check_checkpoint(ckpt_path)
    target = None if save_to is None else Path(save_to)
    if target is not None:
        checkpoint.check_target(target)
    given = train_dataloaders
    if given is None and datamodule is None:
        given = trainer.train_dataloader or callback.loader
    if given is None and datamodule is None:
        datamodule = getattr(trainer, "datamodule", None)
    stage = partial(
        _stage, trainer, model, callback, forget, given, target, str(ckpt_path or "")
    )
    with _unchanged_on_failure(model, callback, ckpt_path is not None):
        return _compat.run_stage(
            trainer,
            model,
            stage,
            datamodule=datamodule,
            ckpt_path=None if ckpt_path is None else str(ckpt_path),
            weights_only=weights_only,
        )


def _stage(
    trainer: pl.Trainer,
    model: LightningModule,
    callback: UnlearningCallback,
    forget: Forget,
    loader: Any,
    save_to: Path | None,
    ckpt_path: str,
) -> UnlearningResult:
    if loader is None:
        source = getattr(trainer, "datamodule", None) or model
        loader = source.train_dataloader()
    result = Request(
        trainer=trainer,
        module=model,
        callback=callback,
        forget=forget,
        loader=data.training_loader(loader),
        save_to=save_to,
        ckpt_path=ckpt_path or None,
    ).run()
    callback.committed(model, data.training_loader(loader))
    return result


class _unchanged_on_failure:  # noqa: N801  # reads as a sentence where it is used
    """Undo the loading of a checkpoint if the request it was loaded for fails."""

    def __init__(
        self, model: LightningModule, callback: UnlearningCallback, loads: bool
    ) -> None:
        self.model, self.callback = model, callback
        self.record, self.requests = callback.record, callback.requests
        self.weights = copy.deepcopy(model.state_dict()) if loads else None

    def __enter__(self) -> None:
        """Nothing to do: the copies are made."""

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        committed = self.callback.requests != self.requests
        if kind is None or committed:  # what is done is done: teardown may still fail
            return
        self.callback.record = self.record
        if self.weights is not None:
            with torch.no_grad():
                self.model.load_state_dict(self.weights)


def _check_checkpoint(ckpt_path: str | Path | None) -> None:
    name = str(ckpt_path or "")
    by_lightning = name in ("", "best", "last", "hpc") or name.startswith("registry")
    if not by_lightning and not Path(name).exists():
        raise SetupError(f"expected a checkpoint at {name}, found none there")


def _callback(trainer: pl.Trainer, model: LightningModule | None) -> UnlearningCallback:
    candidates = list(trainer.callbacks)  # type: ignore[attr-defined]
    if model is not None:
        extra = model.configure_callbacks()
        candidates += extra if isinstance(extra, (list, tuple)) else [extra]
    found = [c for c in candidates if isinstance(c, UnlearningCallback)]
    if not found:
        raise SetupError(
            "expected a Trainer with an UnlearningCallback, got one without: pass "
            "Trainer(callbacks=[UnlearningCallback(...)])"
        )
    return found[0]


class Trainer(pl.Trainer):
    """`lightning.pytorch.Trainer` with `unlearn`, for type checkers."""

    def unlearn(
        self,
        forget: Forget,
        model: LightningModule | None = None,
        train_dataloaders: DataLoader | None = None,
        datamodule: LightningDataModule | None = None,
        ckpt_path: str | Path | None = None,
        weights_only: bool | None = None,
        save_to: str | Path | None = None,
    ) -> UnlearningResult:
        """Remove the influence of some training samples; see `unlearn`."""
        return unlearn(
            self,
            forget,
            model=model,
            train_dataloaders=train_dataloaders,
            datamodule=datamodule,
            ckpt_path=ckpt_path,
            weights_only=weights_only,
            save_to=save_to,
        )


def attach() -> None:
    """Add ``unlearn`` to `lightning.pytorch.Trainer`, unless the name is taken."""
    present = getattr(pl.Trainer, "unlearn", None)
    if present is None:
        pl.Trainer.unlearn = unlearn  # type: ignore[attr-defined]
    elif present is not unlearn:
        warnings.warn(
            "lightning.pytorch.Trainer already has an `unlearn` of another package; "
            "use lightning_unlearn.unlearn(trainer, ...)",
            stacklevel=3,
        )
