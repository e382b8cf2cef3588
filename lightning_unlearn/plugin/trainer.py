"""``trainer.unlearn``: as a function, as a Trainer subclass, as an added method."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.seed import isolate_rng
from torch.utils.data import DataLoader

from lightning_unlearn.errors import SetupError
from lightning_unlearn.plugin import (
    _compat,
    data,
    inventory,
    spawned,
    strategies,
)
from lightning_unlearn.plugin.asked import Asked
from lightning_unlearn.plugin.callback import UnlearningCallback
from lightning_unlearn.plugin.forget import Forget
from lightning_unlearn.plugin.request import Request
from lightning_unlearn.plugin.result import UnlearningResult
from lightning_unlearn.scope import copies, put_back


def unlearn(
    trainer: pl.Trainer,
    forget: Forget,
    model: LightningModule | None = None,
    train_dataloaders: DataLoader | None = None,
    datamodule: LightningDataModule | None = None,
    ckpt_path: str | Path | None = None,
    weights_only: bool | None = None,
    save_to: str | Path | None = None,
    delete_stale: bool = False,
    resume_from: str | Path | None = None,
    by: str | None = None,
    find_duplicates: bool = False,
) -> UnlearningResult:
    """Remove the influence of some training samples from the model.

    Works right after ``fit``, and in a fresh process with ``model``, the training
    data and ``ckpt_path``. The weights move once, at the end: if anything fails, the
    model, its checkpoint and the record of earlier requests are as before.

    Args:
        trainer: With an `UnlearningCallback`.
        forget: Positions in the training dataset (indices, or the path of a .txt,
            .json, .npy or .csv file of them), a `Subset` of it, a DataLoader over one,
            or a predicate that is given each sample and returns True or False. With
            `by`, a list or a file of ids. If the DataModule (or the model) has a
            method ``forget_indices(request)``, lists and files go to it: it is given
            the listed values and returns positions.
        model: The module; by default the one the Trainer was last used with.
        train_dataloaders: The training loader; by default that of the last fit, of
            the datamodule, or of the model.
        datamodule: In place of ``train_dataloaders``.
        ckpt_path: Checkpoint to load first.
        weights_only: Passed to `torch.load` for the checkpoint (Lightning >= 2.6).
        save_to: New file for a clean checkpoint; the certificate is written beside
            it as ``<name>.certificate.json``.
        delete_stale: Once it is safe, delete the older checkpoints of this training
            that the Trainer, its callbacks and the record know of; the result lists
            them. Files that are not checkpoints of this training are left.
        resume_from: The callback's ``state_file`` of a request that was stopped: the
            same request goes on from there.
        by: What `forget` lists in place of positions: an attribute of the dataset with
            one value for each sample, such as ``user_id``; in a .csv or .json file
            also the column or key. An id that does not occur is an error.
        find_duplicates: Look for exact copies of forgotten samples among the retained
            ones (each sample is read once more); they are reported, not removed.

    Returns:
        The certificate, the solution, counts and seconds.

    Raises:
        UnlearningError: Of a kind that says what was expected, got and to do.
    """
    asked = Asked(
        forget=forget,
        by=by,
        save_to=None if save_to is None else Path(save_to),
        delete_stale=delete_stale,
        resume_from=None if resume_from is None else Path(resume_from).absolute(),
        find_duplicates=find_duplicates,
    )
    asked.check(trainer)
    return run_inside(
        trainer,
        _Unlearn(asked),
        model=model,
        train_dataloaders=train_dataloaders,
        datamodule=datamodule,
        ckpt_path=ckpt_path,
        weights_only=weights_only,
    )


@dataclass(frozen=True)
class Run:
    """What a stage of ours finds inside the Trainer's run."""

    trainer: pl.Trainer
    model: LightningModule
    callback: UnlearningCallback
    loader: DataLoader
    ckpt_path: str | None


# Objects, so that they reach a spawned process; no dataclasses, which Lightning would
# take apart on the way.
class _Unlearn:
    """The stage of `unlearn`."""

    def __init__(self, asked: Asked) -> None:
        self.asked = asked

    def __call__(self, run: Run) -> UnlearningResult:
        return Request(
            trainer=run.trainer,
            module=run.model,
            callback=run.callback,
            loader=run.loader,
            ckpt_path=run.ckpt_path,
            asked=self.asked,
        ).run()


class _Inside:
    """A stage of ours in each process of the run."""

    def __init__(
        self,
        stage: Callable[[Run], Any],
        trainer: pl.Trainer,
        model: LightningModule,
        callback: UnlearningCallback,
        loader: DataLoader | None,
        ckpt_path: str | None,
    ) -> None:
        self.stage, self.trainer, self.model = stage, trainer, model
        self.callback, self.loader, self.ckpt_path = callback, loader, ckpt_path

    def __call__(self) -> Any:
        if not _compat.is_spawning(self.trainer):
            return self.work()
        return spawned.pack(self.work, self.model, self.callback.state_dict)

    def work(self) -> Any:
        """Find the data and run the stage."""
        loader = self.loader
        if loader is None:
            source = getattr(self.trainer, "datamodule", None) or self.model
            loader = source.train_dataloader()
        loader = data.training_loader(loader)
        return self.stage(
            Run(self.trainer, self.model, self.callback, loader, self.ckpt_path)
        )


def run_inside(
    trainer: pl.Trainer,
    stage: Callable[[Run], Any],
    *,
    model: LightningModule | None,
    train_dataloaders: DataLoader | None,
    datamodule: LightningDataModule | None,
    ckpt_path: str | Path | None,
    weights_only: bool | None,
    changes_nothing: bool = False,
) -> Any:
    """Run a stage of ours under Lightning's `_run`, with model and data resolved.

    Args:
        trainer: With an `UnlearningCallback`.
        stage: Called with the `Run`; what it returns is returned.
        model: The module, or None for the Trainer's.
        train_dataloaders: The training loader, or None to find it.
        datamodule: In its place.
        ckpt_path: Checkpoint to load first.
        weights_only: For `torch.load`.
        changes_nothing: Whether to undo everything even if the stage succeeds.

    Returns:
        The stage's result.

    Raises:
        SetupError: If the callback, the model or the data is missing.
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
    strategies.adapter(trainer)  # refuse before any process is launched
    callback.look_home(trainer)
    given = train_dataloaders
    if given is None and datamodule is None:
        given = trainer.train_dataloader or callback.loader
        if given is None:
            datamodule = getattr(trainer, "datamodule", None) or callback.datamodule
        nowhere = given is None and datamodule is None
        if nowhere and not is_overridden("train_dataloader", model):
            raise SetupError(
                "expected the training data, got none: pass train_dataloaders= or "
                "datamodule= (processes that have ended took those of the fit along)"
            )

    if ckpt_path is None and not callback.belongs_to(model):
        raise SetupError(
            "expected the model this UnlearningCallback has watched, got another one: "
            "its record of data and requests would be wrong; use a new callback, or "
            "pass ckpt_path="
        )

    path = None if ckpt_path is None else str(ckpt_path)
    inside = _Inside(stage, trainer, model, callback, given, path)
    with (
        _unchanged(model, callback, path is not None, changes_nothing),
        isolate_rng() if changes_nothing else nullcontext(),
    ):
        result = _compat.run_stage(
            trainer,
            model,
            inside,
            datamodule=datamodule,
            ckpt_path=path,
            weights_only=weights_only,
            keep=not changes_nothing,
        )
        if _compat.is_spawning(trainer):
            result, weights, record = spawned.unpack(trainer, result)
            put_back(model, weights)
            callback.came_home(record, model, given, datamodule)
            inventory.forget_training(trainer, model, result.checkpoint_path)
        return result


@contextmanager
def _unchanged(
    model: LightningModule, callback: UnlearningCallback, loads: bool, always: bool
) -> Iterator[None]:
    """Undo the loading of a checkpoint if the request it was loaded for fails."""
    snapshot, requests = callback.snapshot(), callback.requests
    weights = copies(model) if loads or always else None
    done = False
    try:
        yield
        done = not always
    finally:
        committed = callback.requests != requests  # teardown may still fail after it
        if not (done or committed):
            callback.rewind(snapshot)
            if weights is not None:
                put_back(model, weights)


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
        delete_stale: bool = False,
        resume_from: str | Path | None = None,
        by: str | None = None,
        find_duplicates: bool = False,
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
            delete_stale=delete_stale,
            resume_from=resume_from,
            by=by,
            find_duplicates=find_duplicates,
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
