"""Who is drawn and who is counted: samples, or people with all of their samples."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from lightning_unlearn.errors import DataError, ForgetSetError, GuaranteeError
from lightning_unlearn.plugin.data import forget_set
from lightning_unlearn.plugin.data.drawn import Drawable
from lightning_unlearn.plugin.training.training_record import TrainingRecord


def drawable(dataset: Any, record: TrainingRecord, by: str | None) -> Drawable:
    """Who may be drawn in a training.

    Args:
        dataset: Of the training.
        record: Of the training, its data recorded.
        by: Attribute or column that says whose a sample is; None if each is drawn for
            itself.

    Raises:
        ForgetSetError: If nothing says whose they are.
    """
    n = record.n_train or 0
    drawn = list(range(n)) if record.drawn is None else record.drawn
    if by is None:
        return Drawable(drawn)
    can, places = {*drawn}, forget_set.places_of(dataset, by).values()
    theirs = ([i for i in positions if i in can] for positions in places)
    return Drawable(drawn, sorted(positions for positions in theirs if positions))


def digest(drawn: Drawable, key: str) -> str | None:
    """What the people are known again by: which samples belong together.

    Args:
        drawn: Who may be drawn.
        key: Of the record; no id has a part in it.
    """
    if drawn.people is None:
        return None
    return hashlib.sha256(f"{key}|{json.dumps(drawn.people)}".encode()).hexdigest()


def forgotten(record: TrainingRecord, dataset: Any, removed: Sequence[int]) -> int:
    """How many of those that were drawn are forgotten: samples, or people.

    Of a person who stays with fewer samples nothing is known: the clip bounds what
    somebody adds who was not there at all.

    Args:
        record: Of a private training.
        dataset: Of it.
        removed: Positions of all that will be forgotten.

    Raises:
        DataError: If the ids are no longer those of the training.
        ForgetSetError: If some of a person's samples would stay.
    """
    steps = record.private
    assert steps is not None  # or nobody would have asked
    if steps.by is None:
        return len(removed)
    everyone = drawable(dataset, record, steps.by)
    if digest(everyone, record.lineage) != steps.people:
        raise DataError(
            f"expected the {steps.by!r} that the private training went by, got another "
            "that puts the samples together otherwise: whom a person's samples are is "
            "part of what was proved; pass the ids as they were, or how='retrain'"
        )
    gone = {*removed}
    touched = [p for p in everyone.people or () if not gone.isdisjoint(p)]
    in_part = [p for p in touched if not gone.issuperset(p)]
    if in_part:
        raise ForgetSetError(
            f"expected all samples of a person for a training by {steps.by!r}, got "
            f"some of those of {len(in_part)} of {len(touched)}: their gradient was "
            "clipped as one, and nothing is proved of a person who stays with fewer "
            f"samples; name people, with by={steps.by!r}, or how='retrain'"
        )
    return len(touched)


def check_enough(drawn: Drawable, world: int) -> None:
    """Refuse processes that would have nobody to draw from.

    Raises:
        GuaranteeError: If there are more of them than people or samples.
    """
    if len(drawn) < world:
        raise GuaranteeError(
            "expected a sample, or a person, for each process to draw from, got "
            f"{len(drawn)} for {world} processes: train with fewer"
        )
