"""What a request leaves behind: its line in the ledger, and the record after it."""

import secrets
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch.utils.data import Subset

from lightning_unlearn.certificate import ledger as ledgers
from lightning_unlearn.certificate.certificate import Certificate
from lightning_unlearn.plugin.data import training_data
from lightning_unlearn.plugin.files.stale_checkpoints import Stale
from lightning_unlearn.plugin.plan.plan import Plan
from lightning_unlearn.plugin.stages.kept_stages import Gone
from lightning_unlearn.plugin.training.training_record import TrainingRecord


def entry(plan: Plan, certificate: Certificate, before: str, key: str) -> ledgers.Entry:
    """The request's line; its place in the chain is filled in by `append`.

    The digest of weights trained on the forgotten samples is not written down, only
    that of an earlier release: it would let anyone test guesses of them by training
    again.

    Args:
        plan: The request.
        certificate: Of it.
        before: Digest of the weights it began with.
        key: Secret of the record, for the digest of the positions.
    """
    entries = plan.ledger.entries
    released = bool(entries) and entries[-1].weights_after == before
    return ledgers.Entry(
        ledger_id=secrets.token_hex(16),
        index=0,
        previous=ledgers.GENESIS,
        request_id=certificate.request_id,
        time=certificate.created,
        n_forget=certificate.n_forget,
        n_retain=certificate.n_retain,
        forget_digest=ledgers.forget_digest(key, plan.chosen),
        forget_indices=plan.chosen if plan.options.ledger_indices else None,
        weights_before=before if released else "not recorded",
        weights_after=certificate.weights_digest,
        certificate_digest=certificate.digest,
        grade=certificate.grade.value,
        mu=certificate.release_mus[-1] if certificate.release_mus else None,
        releases=certificate.releases,
        group=certificate.group,
    )


def after(
    record: TrainingRecord,
    plan: Plan,
    certificate: Certificate,
    ledger: ledgers.Ledger,
    old: Stale,
    save_to: Path | None,
) -> TrainingRecord:
    """The record once the request is done, free of what was forgotten.

    Args:
        record: As it was.
        plan: The request.
        certificate: Of it.
        ledger: With its line.
        old: Files from before it.
        save_to: Its own checkpoint, or None.
    """
    dataset: Any = plan.loader.dataset
    gone = Gone.of(record, dataset, plan.chosen)
    salt = secrets.token_hex(16)
    # This request's own file is old at the next one; those known now stay known.
    saved = [] if save_to is None else [str(save_to)]
    after_it = plan.record_after(record)
    seconds = None  # that the training took: the forgotten samples had a part in it
    if after_it is not record:  # a retraining, and the checkpoints it has left
        saved, seconds = [*after_it.saved, *saved], after_it.fit_seconds
    return replace(
        after_it,
        fit_seconds=seconds,
        weights_digest=certificate.weights_digest,
        gradient_norm=None,
        n_train=len(dataset),
        salt=salt,
        fingerprint=training_data.fingerprint(dataset, salt, removed=plan.removed),
        retained_fingerprint=training_data.fingerprint(
            Subset(dataset, plan.retained), salt
        ),
        removed=plan.removed,
        stepped=after_it is record,
        stages=gone.without(after_it.stages),
        validated=gone.left_of(after_it.validated),
        saved=[*old.checkpoints, *saved],
        ledger=ledger.to_text(),
        certificate=certificate.to_json(),
    )
