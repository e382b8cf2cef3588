"""What a user asks for in one request."""

import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lightning_unlearn._base.files import is_remote
from lightning_unlearn.certificate import receipts
from lightning_unlearn.certificate.inbox import inbox
from lightning_unlearn.certificate.inbox.answers import receipts_folder
from lightning_unlearn.certificate.receipts import Leaf
from lightning_unlearn.errors import DataError, ForgetSetError, SetupError
from lightning_unlearn.plugin.data import forget_set, training_data
from lightning_unlearn.plugin.data.forget_set import Forget, Hook
from lightning_unlearn.plugin.excluded import Guard
from lightning_unlearn.plugin.files import checkpoint, journal, replacement
from lightning_unlearn.plugin.lightning import Trainer, isolate_rng
from lightning_unlearn.plugin.options import Options
from lightning_unlearn.plugin.request import pending_rows
from lightning_unlearn.plugin.request.pending_rows import Pending
from lightning_unlearn.plugin.request.stage import StageContext, drawn_in_training
from lightning_unlearn.plugin.retrain.retrained import Retrained
from lightning_unlearn.plugin.run import compat
from lightning_unlearn.plugin.training.training_record import (
    TrainingRecord,
    check_same_data,
)

_WAIT = 60.0  # seconds
#: A process that has one of these runs beside others.
_RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")


@dataclass(frozen=True, kw_only=True)
class Request:
    """See `unlearn`, which documents each.

    `retrained` is what a retraining left, `not_covered` what the certificate must say
    besides: whoever asks knows of more than this one model. `pending` is what the file
    `requests` asks for, in the place of `forget`, once it is `opened`.
    """

    forget: Forget = ()
    requests: Path | None = None
    pending: Pending | None = None
    by: str | None = None
    save_to: Path | None = None
    overwrite: bool = False
    delete_stale: bool = False
    resume_from: Path | None = None
    find_duplicates: bool = False
    evaluate: bool = False
    retrained: Retrained | None = None
    not_covered: tuple[str, ...] = ()

    def check(self, trainer: Trainer, options: Options) -> None:
        """Refuse what needs no model to be refused.

        A request that was stopped while its files appeared is finished or undone first.
        If its checkpoint was there, it is refused because it is done, and a warning
        says so; if not, nothing of it is in the way.

        Args:
            trainer: Of the request.
            options: Of the callback.

        Raises:
            SetupError: If the new checkpoint is missing or cannot be written, or the
                request cannot travel to the processes that will run it.
            UnlearningError: If the exclusion list or its key cannot be read.
        """
        ledger = options.ledger_path
        Guard.of(options)
        if self.requests is not None and ledger is not None and trainer.is_global_zero:
            with journal.locked(ledger):
                pass  # who was answered is known once what was stopped is finished
        if callable(self.forget) and compat.pickles(trainer):
            try:
                pickle.dumps(self.forget)
            except Exception as problem:  # whatever cannot be pickled raises
                raise SetupError(
                    "expected a predicate that can be pickled with ddp_spawn, got "
                    f"{self.forget!r:.80} ({type(problem).__name__}): define it at the "
                    "top of a module, or pass positions"
                ) from None
        if self.save_to is not None:
            self._check_save_to(self.save_to, trainer, ledger)
        elif self.overwrite:
            raise SetupError(
                "expected save_to= with overwrite=True, got None: name the clean "
                "checkpoint that is to be replaced"
            )
        elif self.delete_stale:
            raise SetupError(
                "expected save_to= with delete_stale=True, got None: without a new "
                "checkpoint the model would be lost with the old ones"
            )

    def _check_save_to(
        self, clean: Path, trainer: Trainer, ledger: Path | None
    ) -> None:
        if not clean.name:
            raise SetupError(
                f"expected save_to= to name a new file, got the folder {clean}: give "
                f"the checkpoint a name in it, such as {clean / 'clean.ckpt'}"
            )
        folder = receipts_folder(clean)
        if self.requests is not None and _is_something_else(folder):
            raise SetupError(
                f"expected a folder or nothing at {folder}, where the receipts of "
                f"save_to={clean} go, got a file or a link: choose another name"
            )
        taken = any(map(os.path.lexists, checkpoint.targets(clean)))
        if taken and ledger is not None and trainer.is_global_zero:
            with journal.locked(ledger):
                pass  # that is where it is finished, or undone
        if self.overwrite and trainer.is_global_zero:
            replacement.finish(clean)
        if self.requests is None or not _has_company():
            self._check_free(clean)

    def _check_free(self, clean: Path) -> None:
        if not (self.overwrite and os.path.lexists(clean)):
            checkpoint.check_target(clean)

    def check_requests(self, options: Options) -> None:
        """Raise `SetupError` unless a file of requests can be completed after a kill.

        Args:
            options: Of the callback.
        """
        if self.requests is not None and (
            self.save_to is None or options.ledger is None
        ):
            raise SetupError(
                "expected save_to= and UnlearningCallback(ledger=) with requests=, got "
                f"{self.save_to} and {options.ledger}: without them nobody could tell "
                "after a kill which requests were done"
            )

    def nothing_pending(self, options: Options) -> bool:
        """Whether all in the file of requests is done, in a process without others.

        Such a process need not find checkpoint or data. With others, the first decides
        for all where they meet: in the Trainer's run.

        Args:
            options: Of the callback.

        Raises:
            UnlearningError: If the file cannot be read, or a request that was stopped
                cannot be finished.
        """
        if self.requests is None or _has_company():
            return False
        if options.ledger_path is not None:
            with journal.locked(options.ledger_path):
                pass  # what was stopped is finished, or undone
        return not inbox.Inbox(self.requests).pending

    @contextmanager
    def opened(self, context: StageContext, keeps: bool = True) -> Iterator["Request"]:
        """The request, with its file read by the first process; kept from others.

        Args:
            context: The Trainer's run.
            keeps: Whether the file may be written.

        Raises:
            NothingPendingError: If nothing in it is pending.
            UnlearningError: If it cannot be read, or none of it can be done.
        """
        path, processes = self.requests, context.processes
        if path is None:
            yield self
            return
        with ExitStack() as stack:
            with processes.together():
                if keeps and processes.rank == 0:
                    # What was retrained is not given up for another's moment.
                    wait = 0.0 if self.pending is None else _WAIT
                    stack.enter_context(inbox.locked(path, wait))
            found = self.pending
            if found is None:
                found = processes.first(lambda: self._read(context, path, keeps))
            yield replace(self, pending=found)

    def _read(self, context: StageContext, path: Path, keeps: bool) -> Pending:
        record, dataset = context.callback.record, context.loader.dataset
        check_same_data(dataset, record)  # else nobody would be found
        drawn = list(range(len(dataset)))  # type: ignore[arg-type]
        if not record.others_before:
            with suppress(DataError):  # whoever needs to know says so
                drawn = drawn_in_training(context)
        found = pending_rows.looked_up(
            path, dataset, drawn, record.removed, self.by, _hook(context)
        )
        if keeps and self.save_to is not None:
            self._check_free(self.save_to)
        pending_rows.tell(found)
        if keeps and not found.found:
            found.refusals().complete(())
        pending_rows.check_some(found)
        return found

    def check_replaced(self, record: TrainingRecord, gone: list[int]) -> None:
        """Raise `SetupError` if `overwrite` would replace anything but what it may.

        Args:
            record: Of the training.
            gone: Positions that will be forgotten once the request is done.
        """
        path = self.save_to
        if self.overwrite and path is not None and os.path.lexists(path):
            replacement.check(path, record, gone)

    def positions(
        self, context: StageContext, record: TrainingRecord, drawn: list[int]
    ) -> list[int]:
        """The positions to forget, sorted.

        Args:
            context: The Trainer's run.
            record: Of the training.
            drawn: Positions that it could draw.

        Raises:
            ForgetSetError: If there are none, they cannot be told, or were not
                trained on.
        """
        dataset, hook = context.loader.dataset, _hook(context)
        removed = record.removed
        if self.pending is not None:
            found = forget_set.resolve(self.pending.positions, dataset, removed)
            return forget_set.trained_on(found, drawn, removed, by_id=True)
        found = forget_set.resolve(self.forget, dataset, removed, by=self.by, hook=hook)
        if record.others_before:  # an earlier training may have drawn whatever it is
            drawn = sorted({*drawn, *found})
        return forget_set.trained_on(found, drawn, removed, by_id=self.by is not None)

    def leaves(self, context: StageContext, chosen: list[int]) -> tuple[Leaf, ...]:
        """What the certificate commits to: the samples, and whose they are.

        Args:
            context: The Trainer's run.
            chosen: Positions to forget.
        """
        dataset: Any = context.loader.dataset
        named = self.by is not None and _hook(context) is None
        people = forget_set.people(dataset, self.by) if named and self.by else None
        # Random samples, or of unknown types, have no digest.
        hashed = context.callback.record.fingerprint is not None
        with isolate_rng():
            return receipts.leaves(
                (
                    at,
                    None if people is None else people[at],
                    training_data.sample_digest(dataset[at]) if hashed else None,
                )
                for at in chosen
            )


def _hook(context: StageContext) -> Hook | None:
    """The user's own ``forget_indices(request)``: of the data, or of the model."""
    for owner in (getattr(context.trainer, "datamodule", None), context.module):
        hook: Callable[..., Any] | None = getattr(owner, "forget_indices", None)
        if callable(hook):
            return hook
    return None


def _has_company() -> bool:
    """Whether this process may run beside others, which decide with it."""
    return any(name in os.environ for name in _RANKS)


def _is_something_else(folder: Path) -> bool:
    return os.path.lexists(folder) and (folder.is_symlink() or not folder.is_dir())


def file_of_requests(forget: Forget, requests: str | Path | None) -> Path | None:
    """The file of requests, where one was passed in place of what to forget.

    Args:
        forget: What to forget, or None.
        requests: The file, or None.

    Raises:
        SetupError: If both were passed.
        ForgetSetError: If neither was.
    """
    if forget is None and requests is None:
        raise ForgetSetError(
            "expected the forget set as indices, a path, a Subset or a DataLoader over "
            "one, or requests= with a .csv file of requests, got neither"
        )
    if forget is not None and requests is not None:
        raise SetupError(
            "expected what to forget, or requests= with a .csv file of requests, got "
            "both: leave one out"
        )
    if requests is None:
        return None
    return Path(requests) if is_remote(requests) else Path(requests).resolve()
