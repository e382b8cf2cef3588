"""What the callback saw of the training run, kept in the checkpoint."""

import secrets
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_warn
from torch.utils.data import ConcatDataset, DataLoader, Subset

from lightning_unlearn._base.strict_json import from_plain
from lightning_unlearn.certificate.model_state import RECORD
from lightning_unlearn.errors import DataError
from lightning_unlearn.plugin.data import training_data
from lightning_unlearn.plugin.data.drawn import drawn_positions
from lightning_unlearn.plugin.mixin import is_record
from lightning_unlearn.plugin.training.trained_marks import KnownRows


@dataclass
class Stage:
    """One of several trainings that follow each other, each on more samples.

    Args:
        drawn: Positions that it could draw and that are not forgotten.
        digest: Of the parameters and buffers that it ended with.
        path: File of them; None once they hold what was forgotten.
        seconds: How long it took; None where that is not known.
        validated: Keyed digests of the samples that it was validated on; None if they
            cannot be compared.
    """

    drawn: list[int]
    digest: str
    path: str | None = None
    seconds: float | None = None
    validated: list[str] | None = field(default_factory=list)


@dataclass
class PrivateSteps:
    """The steps of a private training.

    Args:
        clip: c.
        noise_multiplier: z, in clips.
        sampling_rate: q.
        steps: All that it could take at most, so far.
        done: That it has taken.
        names: Weights that were trained, by their names.
        capacity: How many of those that are drawn may be forgotten within the
            callback's epsilon.
        by: Attribute that says whose a sample is, where people are drawn; else None.
        people: Digest of which samples belong together, or None.
        problem: Why nothing can be claimed, or None.
    """

    clip: float
    noise_multiplier: float
    sampling_rate: float
    steps: int
    done: int = 0
    names: list[str] = field(default_factory=list)
    capacity: int = 0
    by: str | None = None
    people: str | None = None
    problem: str | None = None


@dataclass
class TrainingRecord:
    """Plain Python values only, so that ``torch.load(weights_only=True)`` reads it.

    Args:
        n_train: Samples in the training dataset, or None before training.
        salt: Random key of the fingerprint; a new one after every request.
        fingerprint: Salted digest of the training data, or None.
        retained_fingerprint: The same of the retained samples as a dataset of their
            own, which a training that goes on must match.
        max_norm: Radius of the projection made in training, or None.
        projections: How often a step left the ball.
        l2: Coefficient found in the optimizer, or None.
        l2_problem: Why none was found.
        outside: Digest of every parameter and buffer outside the scope, before the
            first training step; None before training.
        hyper_parameters: Of module and DataModule before the first training step
            (`plugin.training.hyper_parameters`); None if it was not watched.
        trained: Names of parameters that were in scope of a training run.
        removed: Positions forgotten so far.
        drawn: Positions that the training could draw, if not all.
        drawn_problem: Why that is not known.
        others_before: Whether an earlier training was on other samples.
        rows_changed: What changed the rows that reach the head, in words; None if
            nothing did.
        rows_compared: Whether the rows before and after the training were compared.
        made_at_start: Names of what hooks made of the module's plain state before its
            training started, and what reaches the head.
        weights_digest: SHA-256 of the model's state when training ended, or None.
        gradient_norm: |grad F| over the training data then, if it was logged.
        lineage: Random name of a training on one dataset, kept when it goes on.
        ledger_key: Random key of the ledger's digests.
        saved: Checkpoints known to be older than the last request, and its own.
        ledger: The requests so far, as the text of `ledger.Ledger`.
        certificate: The last certificate as JSON, or None.
        whole: Whether all of this is known: a checkpoint to be served has no more than
            `public`.
        retrains: Name of the retraining that this training is, or None.
        steps: Optimizer steps when a retraining ended.
        fit_seconds: How long the training had taken, or None.
        start: Digest of the value of every parameter and buffer before the first
            training step, or None.
        stages: The trainings before the last one, in their order; None if some of the
            model was made otherwise, or nobody asked to keep them.
        validated: As of a `Stage`, of the training that is not one of them yet.
        ended: Digest of the parameters and buffers that the last training ended with.
        stepped: Whether a request has moved the weights by a step since.
        private: The steps of a private training; None of any other.
    """

    n_train: int | None = None
    salt: str = field(default_factory=lambda: secrets.token_hex(16))
    fingerprint: str | None = None
    retained_fingerprint: str | None = None
    max_norm: float | None = None
    projections: int = 0
    l2: float | None = None
    l2_problem: str | None = None
    outside: dict[str, str] | None = None
    hyper_parameters: dict[str, dict[str, str]] | None = None
    trained: list[str] = field(default_factory=list)
    removed: list[int] = field(default_factory=list)
    drawn: list[int] | None = None
    drawn_problem: str | None = None
    others_before: bool = False
    rows_changed: str | None = None
    rows_compared: bool = True
    made_at_start: list[str] = field(default_factory=list)
    weights_digest: str | None = None
    gradient_norm: float | None = None
    lineage: str = field(default_factory=lambda: secrets.token_hex(16))
    ledger_key: str = field(default_factory=lambda: secrets.token_hex(16))
    saved: list[str] = field(default_factory=list)
    ledger: str = ""
    certificate: str | None = None
    whole: bool = True
    retrains: str | None = None
    steps: int = 0
    fit_seconds: float | None = None
    start: dict[str, str] | None = None
    stages: list[Stage] | None = None
    validated: list[str] | None = field(default_factory=list)
    ended: str | None = None
    stepped: bool = False
    private: PrivateSteps | None = None

    @property
    def retained(self) -> list[int]:
        """Positions the training could draw, and no request has removed."""
        drawn = range(self.n_train or 0) if self.drawn is None else self.drawn
        gone = set(self.removed)
        return [position for position in drawn if position not in gone]

    @property
    def known_rows(self) -> KnownRows:
        """What it says of the rows that reach a head."""
        made = tuple(self.made_at_start)
        return KnownRows(self.rows_changed, made, self.rows_compared)

    def to_dict(self) -> dict[str, Any]:
        """For ``Callback.state_dict``."""
        return asdict(self)

    def public(self) -> dict[str, Any]:
        """What may be served with the model: nothing that the forgotten samples moved.

        The rest is in a file of its own (`plugin.files.private_file`).
        """
        return {
            "lineage": self.lineage,
            "certificate": self.certificate,
            "whole": False,
        }

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> "TrainingRecord":
        """From ``Callback.load_state_dict``; strict, as checkpoints may be tampered.

        Raises:
            DataError: If a field is missing, unknown or of another type.
        """
        what = "the callback's state in a checkpoint"
        served = state.get("whole") is False
        later = frozenset(f.name for f in fields(cls)) if served else _LATER
        record = from_plain(cls, state, DataError, what, later)
        # Nothing was compared by a version that could not.
        record.rows_compared = "rows_compared" in state and record.rows_compared
        for name in ("salt", "lineage", "ledger_key"):
            key = getattr(record, name)
            if len(key) != 32 or not set(key) <= set("0123456789abcdef"):
                raise DataError(
                    f"expected {name} in {what} to be 32 hexadecimal digits, got "
                    f"{key!r:.60}: it was altered"
                )
        return record


def adopt_record(states: dict[str, Any]) -> None:
    """Give a record that a subclass of the callback wrote its usual name.

    Args:
        states: What a checkpoint holds of callbacks, by their names.

    Raises:
        DataError: If it holds several.
    """
    found = [name for name, state in states.items() if is_record(state)]
    if len(found) > 1:
        raise DataError(
            f"expected one record of unlearning in a checkpoint, got {len(found)} "
            f"({', '.join(map(repr, found))}): which samples are forgotten is unknown; "
            "train with one UnlearningCallback"
        )
    if found and found[0] != STATE_KEY:
        states[STATE_KEY] = states.pop(found[0])


#: Name of the record among the callbacks' states of a checkpoint.
STATE_KEY = RECORD

#: Said of a checkpoint that somebody saves by hand after a request.
NOT_TO_BE_SERVED = (
    "this checkpoint holds the positions of forgotten samples, for the next request: "
    "keep it as secret as the data; a checkpoint to be served is what "
    "unlearn(save_to=) writes"
)

#: Fields that checkpoints of before them lack.
_LATER = frozenset(
    {
        *("drawn", "drawn_problem", "others_before"),
        *("rows_changed", "rows_compared", "made_at_start", "whole"),
        *("hyper_parameters", "retrains", "steps", "fit_seconds"),
        *("start", "stages", "validated", "ended", "stepped"),
        "private",
    }
)


def record_data(
    record: TrainingRecord, loader: DataLoader, batches: int | None = None
) -> None:
    """Note the data a training is about to see.

    Args:
        record: To note it in.
        loader: The training loader.
        batches: Of an epoch, where the Trainer takes fewer than the loader has.

    Raises:
        DataError: If it is not what is left after the requests so far, alone or as the
            first part of a ConcatDataset.
    """
    dataset = loader.dataset
    n = len(dataset)  # type: ignore[arg-type]
    gone = len(record.removed)
    if gone and not _begins_with_the_rest(dataset, record):
        raise DataError(
            f"expected training to go on with the {len(record.retained)} "
            f"samples that were not unlearned, got {n}, or others: train on "
            "old = torch.utils.data.Subset(dataset, callback.retained_indices), with "
            "new samples on ConcatDataset([old, new]), or make a new model and a new "
            "UnlearningCallback for other data"
        )
    before = record.n_train, record.fingerprint, record.drawn
    earlier = len(record.retained)
    unknown = record.drawn_problem is not None
    goes_on = gone > 0 or before[0] is None or _begins_with_all(dataset, record)
    if gone:
        _renumber(record)
    record.removed = []  # from now on positions are those of this dataset
    record.drawn, record.drawn_problem = None, None
    try:
        record.drawn = drawn_positions(loader, batches)
    except DataError as problem:
        record.drawn_problem = str(problem)
    record.n_train = n
    record.fingerprint = training_data.fingerprint(dataset, record.salt)
    same = before[:2] == (n, record.fingerprint)
    if before[0] is None or (same and _holds(record.drawn, before[2], unknown)):
        return
    record.lineage = secrets.token_hex(16)  # its positions mean other samples
    # It draws fewer of the same samples, or others, or only those that were added.
    fewer = same or not {*range(earlier)} <= {*record.retained}
    if not goes_on or fewer:
        record.others_before, record.stages = True, None
        rank_zero_warn(
            "this training is on other samples than the one before it: a request will "
            "keep what the samples of this one teach, and nothing else; train on "
            "torch.utils.data.ConcatDataset([old, new]) to keep both"
        )


def _renumber(record: TrainingRecord) -> None:
    """Give what stages drew the positions in a dataset of the retained samples."""
    place = {position: i for i, position in enumerate(record.retained)}
    for stage in record.stages or ():
        stage.drawn = [place[i] for i in stage.drawn if i in place]


def _holds(drawn: list[int] | None, before: list[int] | None, unknown: bool) -> bool:
    """Whether a training can draw all that the one before it, on the same data, did."""
    if drawn is None or (drawn == before and not unknown):
        return True
    return before is not None and not unknown and {*before} <= {*drawn}


def _begins_with_all(dataset: Any, record: TrainingRecord) -> bool:
    """Whether a dataset is the one before, or begins with it, all of it drawn."""
    if record.drawn is not None or record.drawn_problem is not None:
        return False
    n, compared = record.n_train or 0, False
    if isinstance(dataset, ConcatDataset) and len(dataset.datasets[0]) == n:  # type: ignore[arg-type]
        dataset = dataset.datasets[0]
    elif len(dataset) > n:  # a longer table, if it can be known again
        dataset, compared = Subset(dataset, range(n)), True
    now = training_data.fingerprint(dataset, record.salt)
    same = now == record.fingerprint or (now is None and not compared)
    return len(dataset) == n and same and not (compared and now is None)


def _begins_with_the_rest(dataset: Any, record: TrainingRecord) -> bool:
    """Whether a dataset is what the requests have left, or that and a second part."""
    rest = len(record.retained)
    if isinstance(dataset, ConcatDataset) and len(dataset) > rest:
        added, dataset = len(dataset) - rest, dataset.datasets[0]
        if min(record.removed) == rest and added >= len(record.removed):
            rank_zero_warn(
                f"the {len(record.removed)} samples that were unlearned were the last "
                f"of the old dataset, and {added} are added in their place: see that "
                "they are not the same ones, which would be learned again"
            )
    if len(dataset) != rest:
        return False
    known = record.retained_fingerprint
    return known is None or training_data.fingerprint(dataset, record.salt) in (
        None,
        known,
    )


def check_same_data(dataset: Any, record: TrainingRecord) -> None:
    """Raise `DataError` unless a dataset is that of the training."""
    n = len(dataset)
    if record.n_train is not None and n != record.n_train:
        raise DataError(
            f"expected the training data of {record.n_train} samples the model was "
            f"trained on, got {n} samples: pass the same dataset, forgotten samples "
            "included; the callback leaves them out by itself"
        )
    if record.fingerprint is None:
        return
    now = training_data.fingerprint(dataset, record.salt, record.removed)
    if now is not None and now != record.fingerprint:
        raise DataError(
            "expected the training data the model was trained on, got other samples: "
            "indices would point at the wrong ones. If random_split makes them, it "
            "splits anew in every process: split with "
            "generator=torch.Generator().manual_seed(0), before training and now; for "
            "this model pass the samples it was trained on, in their order, as "
            "train_dataloaders="
        )
