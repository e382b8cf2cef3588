"""``trainer.unlearn``: as a function, as a Trainer subclass, as an added method."""

import warnings
from pathlib import Path
from typing import Any, Literal, overload

from torch.utils.data import DataLoader

from lightning_unlearn._base import validate
from lightning_unlearn.plugin.data.forget_set import Forget
from lightning_unlearn.plugin.lightning import LightningDataModule, LightningModule, pl
from lightning_unlearn.plugin.request.execution import Unlearn
from lightning_unlearn.plugin.request.pending_rows import NothingPendingError
from lightning_unlearn.plugin.request.request import Request, file_of_requests
from lightning_unlearn.plugin.request.result import UnlearningResult
from lightning_unlearn.plugin.request.stage import callback_of, run_in_trainer
from lightning_unlearn.plugin.verbs.preflight import preflight
from lightning_unlearn.plugin.verbs.retraining import retrain

HOW = ("auto", "newton", "retrain")


@overload
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
    evaluate: bool = False,
    overwrite: bool = False,
    how: Literal["auto", "newton", "retrain"] = "auto",
) -> UnlearningResult: ...


@overload
def unlearn(
    trainer: pl.Trainer,
    forget: None = None,
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
    evaluate: bool = False,
    overwrite: bool = False,
    how: Literal["auto", "newton", "retrain"] = "auto",
    *,
    requests: str | Path,
) -> UnlearningResult | None: ...


def unlearn(
    trainer: pl.Trainer,
    forget: Forget = None,
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
    evaluate: bool = False,
    overwrite: bool = False,
    how: Literal["auto", "newton", "retrain"] = "auto",
    requests: str | Path | None = None,
) -> UnlearningResult | None:
    """Remove the influence of some training samples from the model.

    Works right after ``fit``, and in a fresh process with ``model``, the training
    data and ``ckpt_path``. The weights change once, at the end: if anything fails, the
    model, its checkpoint and the record of earlier requests are as before.

    Args:
        trainer: With an `UnlearningCallback`.
        forget: Positions in the training dataset (indices, or the path of a .txt,
            .json, .npy or .csv file of them), a mask with one True or False for every
            sample, a `Subset` of it, a DataLoader over one, or a predicate that is
            given each sample and returns True or False. With `by`, a list or a file of
            ids. If the DataModule (or the model) has a
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
            same request goes on from there. For a retraining: a checkpoint that its own
            ModelCheckpoint wrote.
        by: What `forget` lists in place of positions: an attribute of the dataset with
            one value for each sample, such as ``user_id``; in a .csv or .json file
            also the column or key. An id that does not occur is an error. Ids are read
            now, and nothing binds them to the training: keep them with the samples.
        find_duplicates: Look for exact copies of forgotten samples among the retained
            ones (each sample is read once more); they are reported, not removed.
        evaluate: Measure accuracy (or the loss) before and after, on the forgotten, the
            retained and your test or validation samples, for ``result.report``.
        overwrite: Let `save_to` replace the clean checkpoint that an earlier request of
            this model wrote, with its certificate, private file and receipts (hand
            these out first), and nothing else. Whatever stops the process, the old
            files are there or the new ones; the next request finishes what was begun.
        how: "newton": a step from the model as it is. "retrain": the model is trained
            again without the samples, as `UnlearningCallback(retrain=make_training)`
            says: grade ``exact`` for any network, in the time of a training. "auto" is
            "newton": nothing is retrained unless you ask for it.
        requests: In place of `forget`: a .csv file of requests, with the columns
            ``request`` (an id), ``person`` (an id of `by`) or ``positions`` (``3 7
            10-15``), ``received`` and ``due`` (dates such as 2026-11-30; where due is
            empty it is one month after received, GDPR Article 12(3)). All that are
            pending go into this one release; a warning names overdue ones first. A row
            that cannot be answered is refused alone. At the end ``state``, ``release``,
            ``certificate`` (its request_id), ``receipt`` (a file for that request
            alone), ``why`` and ``done_at`` are written into the file, whose other
            columns stay. Whatever stops the process, no request is lost or done twice.
            Needs `save_to` and ``ledger=``.

    Returns:
        The certificate, the solution, counts and seconds; None if no request in the
        file `requests` is pending, and nothing was done.

    Raises:
        UnlearningError: It says what was expected, what was got, and what to do.
    """
    request = Request(
        forget=forget,
        requests=file_of_requests(forget, requests),
        by=by,
        save_to=None if save_to is None else Path(save_to),
        delete_stale=delete_stale,
        resume_from=None if resume_from is None else Path(resume_from).absolute(),
        find_duplicates=find_duplicates,
        evaluate=evaluate,
        overwrite=overwrite,
    )
    validate.one_of(HOW, how=how)
    options = callback_of(trainer, model).options
    request.check_requests(options)
    if request.nothing_pending(options):
        return None
    request.check(trainer, options)
    where: dict[str, Any] = {
        "model": model,
        "train_dataloaders": train_dataloaders,
        "datamodule": datamodule,
        "ckpt_path": ckpt_path,
        "weights_only": weights_only,
    }
    try:
        if how == "retrain":
            return retrain(trainer, request, options.retrain, **where)
        return run_in_trainer(trainer, Unlearn(request), **where)
    except NothingPendingError:
        return None


_unlearn, _preflight = unlearn, preflight


class Trainer(pl.Trainer):
    """Lightning's Trainer with `unlearn` and `preflight`, for type checkers."""

    unlearn = _unlearn
    preflight = _preflight


def attach() -> None:
    """Add our methods to Lightning's Trainer, unless a name is taken."""
    for method in (unlearn, preflight):
        name = method.__name__
        present = getattr(pl.Trainer, name, method)
        if present is method:
            setattr(pl.Trainer, name, method)
        else:
            warnings.warn(
                f"{pl.__name__}.Trainer already has a method `{name}` of another "
                f"package; use lightning_unlearn.{name}(trainer, ...)",
                stacklevel=3,
            )
