"""What a user asks for in one request."""

import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_unlearn.certificate import receipts
from lightning_unlearn.certificate.receipts import Leaf
from lightning_unlearn.errors import SetupError
from lightning_unlearn.plugin.data import forget_set, training_data
from lightning_unlearn.plugin.data.forget_set import Forget, Hook
from lightning_unlearn.plugin.excluded import Guard
from lightning_unlearn.plugin.files import checkpoint, journal, replacement
from lightning_unlearn.plugin.lightning import Trainer, isolate_rng
from lightning_unlearn.plugin.options import Options
from lightning_unlearn.plugin.request.stage import StageContext
from lightning_unlearn.plugin.retrain.retrained import Retrained
from lightning_unlearn.plugin.run import compat
from lightning_unlearn.plugin.training.training_record import TrainingRecord


@dataclass(frozen=True, kw_only=True)
class Request:
    """See `unlearn`, which documents each.

    `retrained` is what a retraining left, `not_covered` what the certificate must say
    besides: whoever asks knows of more than this one model.
    """

    forget: Forget = ()
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
            if not self.save_to.name:
                raise SetupError(
                    f"expected save_to= to name a new file, got the folder "
                    f"{self.save_to}: give the checkpoint a name in it, such as "
                    f"{self.save_to / 'clean.ckpt'}"
                )
            taken = any(map(os.path.lexists, checkpoint.targets(self.save_to)))
            if taken and ledger is not None and trainer.is_global_zero:
                with journal.locked(ledger):
                    pass  # that is where it is finished, or undone
            if self.overwrite and trainer.is_global_zero:
                replacement.finish(self.save_to)
            if not (self.overwrite and os.path.lexists(self.save_to)):
                checkpoint.check_target(self.save_to)
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
