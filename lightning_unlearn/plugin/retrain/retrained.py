"""What a retraining is asked for, and what it leaves."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor, nn

from lightning_unlearn.certificate.fields import PublicPart
from lightning_unlearn.certificate.ledger import Ledger
from lightning_unlearn.errors import ModelError
from lightning_unlearn.plugin.lightning import LightningModule
from lightning_unlearn.plugin.training import public_backbones
from lightning_unlearn.plugin.training.outside import public_parts
from lightning_unlearn.plugin.training.outside_digests import (
    hidden_tensors,
    is_number,
    outside_digests,
)
from lightning_unlearn.plugin.training.trained_marks import (
    has_trained_value,
    telling,
    value_digest,
    was_trained,
)
from lightning_unlearn.plugin.training.training_record import Stage, TrainingRecord
from lightning_unlearn.weights.digests import state_digest
from lightning_unlearn.weights.passes import held
from lightning_unlearn.weights.scope import Scope


@dataclass(frozen=True)
class Job:
    """A retraining that is to be done.

    Args:
        chosen: Positions that the request forgets.
        removed: Those, and all that were forgotten before.
        retained: All others that the training could draw.
        n_train: Samples of the training dataset.
        lineage: Of the old record.
        key: Of that record, for digests of samples.
        ledger: So far.
        trained: Digests of the values that the old training has made, for a start to
            be compared with.
        kept: Stages of the old training that it goes on from the end of.
        parts: What the stages after them draw of the retained, the last one all; none
            if it is one training.
        part: Which of them this is, from 0 on.
        staged: Whether a later request shall go back to its end.
        coins: Drawn by the system, for the random numbers of the trainings.
    """

    chosen: list[int]
    removed: list[int]
    retained: list[int]
    n_train: int
    lineage: str
    key: str = field(repr=False)
    ledger: Ledger
    trained: frozenset[str] = field(default=frozenset(), repr=False)
    kept: tuple[Stage, ...] = ()
    parts: tuple[list[int], ...] = ()
    part: int = 0
    staged: bool = False
    coins: int = 0

    def each(self) -> tuple["Job", ...]:
        """The trainings that it takes, in their order."""
        if not self.parts:
            return (self,)
        return tuple(
            replace(self, retained=part, part=i) for i, part in enumerate(self.parts)
        )

    @property
    def token(self) -> str:
        """Names it: the same request of the same model has the same one again."""
        head = self.ledger.head
        text = f"{self.lineage}|{head}|{self.n_train}|{sorted(self.removed)}"
        if self.parts:
            text += f"|{[s.digest for s in self.kept]}|{len(self.parts)}|{self.part}"
        return hashlib.sha256(text.encode()).hexdigest()

    def check_same(self, other: "Job") -> None:
        """Raise `ModelError` if the request means something else by now."""
        if self.token != other.token or self.retained != other.retained:
            raise ModelError(
                "expected the model and its requests to stay while it was retrained, "
                "got another request that was done meanwhile: nothing was changed; ask "
                "again"
            )


def trained_values(module: nn.Module, record: TrainingRecord) -> frozenset[str]:
    """Digests of what a training has made of a module, by value.

    Args:
        module: That was trained.
        record: Of the training. What did not change in it may be public.
    """
    before, start = record.outside or {}, {*(record.start or {}).values()}
    now = outside_digests(module, ())
    values = {n: value_digest(t) for n, t in _values(module).items() if _telling(t)}
    return frozenset(
        digest
        for name, digest in values.items()
        if before.get(name) != now.get(name)
        and digest not in start
        # A setting is a number too, where nobody saw what was there before.
        and not (record.outside is None and is_number(name))
    )


def _values(module: nn.Module) -> dict[str, Tensor]:
    """Every tensor that a module holds, in plain attributes too."""
    return {**hidden_tensors(module), **held(module)}


def _telling(tensor: Tensor) -> bool:
    """Whether a value can be known again, and is no usual start, such as all ones."""
    if not telling(tensor) or tensor.numel() == 1:
        return telling(tensor)
    flat = tensor.detach().reshape(-1)
    return not bool((flat == flat[0]).all())


def check_fresh(module: LightningModule, job: Job, began: bool) -> None:
    """Raise `ModelError` if a retraining starts from what another training made.

    Args:
        module: About to be trained.
        job: The retraining.
        began: Whether it has begun, so that its own marks are on its weights.
    """
    if public_backbones.private_weights(module):
        raise ModelError(
            "expected the retraining to start from weights that never saw the samples "
            "to be forgotten, got a PrivatelyTrained backbone, which saw them with "
            "noise: train it anew without them as well, or leave out how='retrain'"
        )
    named = {name: t for name, t in _values(module).items() if _telling(t)}
    found = [name for name, t in named.items() if value_digest(t) in job.trained]
    if not began:
        found += [n for n, t in named.items() if was_trained(t) or has_trained_value(t)]
    if found:
        raise ModelError(
            "expected the retraining to start from weights that never saw the samples "
            f"to be forgotten, got those of an earlier training in "
            f"{', '.join(found[:3])}: make_training must make a new module, and load "
            "nothing that was trained on these samples"
        )


@dataclass(frozen=True)
class Start:
    """The end of a stage, which the next training goes on from.

    Args:
        state: Parameters and buffers by name, on the CPU.
        record: Of the trainings until then; its samples are not meant.
        attributes: Digests of plain attributes then, by name.
    """

    state: dict[str, Tensor] = field(repr=False)
    record: TrainingRecord = field(repr=False)
    attributes: dict[str, str] = field(default_factory=dict)

    def known_to(self, job: Job) -> Job:
        """A retraining to which these values are no sign of the forgotten samples."""
        own = {value_digest(t) for t in self.state.values()}
        return replace(job, trained=job.trained - own)


@dataclass(frozen=True)
class Retrained:
    """What a retraining has left.

    Args:
        job: It was asked for.
        state: Every parameter and buffer by name, on the CPU.
        record: Of its callback; positions are those of the retained samples.
        scope: Names of the parameters that it trained.
        rebuilt: Names of the buffers that it changed.
        public_parts: All others: its start, which it left as it was.
        seconds: How long it took.
        module: That was trained, where it is in this process.
        drew_from: Positions among the retained samples that it was made of.
        written: Checkpoints that it has left.
        stages: The kept ones, and those of it before the last.
    """

    job: Job
    state: dict[str, Tensor] = field(repr=False)
    record: TrainingRecord = field(repr=False)
    scope: tuple[str, ...]
    rebuilt: tuple[str, ...]
    public_parts: tuple[PublicPart, ...]
    seconds: float
    module: LightningModule | None = field(default=None, repr=False)
    drew_from: list[int] | None = field(default=None, repr=False)
    written: tuple[str, ...] = ()
    stages: tuple[Stage, ...] | None = None

    def record_after(self, old: TrainingRecord) -> TrainingRecord:
        """The record of the retrained model, in the positions of the old dataset."""
        job, own = self.job, self.record
        drawn = own.drawn
        places = range(len(job.retained)) if self.drew_from is None else self.drew_from
        places = places if drawn is None else [places[i] for i in drawn]
        found = sorted(job.retained[i] for i in places)
        whole = len(found) + len(job.removed) == job.n_train
        return replace(
            own,
            lineage=old.lineage,
            ledger_key=old.ledger_key,
            drawn=None if whole else found,
            others_before=False,
            saved=list(self.written),
            stages=None if self.stages is None else list(self.stages),
            ended=state_digest(self.state),
            retrains=None,
            steps=0,
        )


def going_on(before: TrainingRecord, own: TrainingRecord) -> TrainingRecord:
    """The record of two trainings: what was there before the first one is the start.

    Args:
        before: Of the first.
        own: Of the second, which went on from its end.
    """
    return replace(
        own,
        outside=before.outside,
        hyper_parameters=before.hyper_parameters,
        start=before.start,
        trained=sorted({*before.trained, *own.trained}),
        projections=before.projections + own.projections,
        rows_changed=before.rows_changed or own.rows_changed,
        rows_compared=before.rows_compared and own.rows_compared,
        made_at_start=sorted({*before.made_at_start, *own.made_at_start}),
    )


def left_by(
    module: LightningModule,
    state: dict[str, Tensor],
    record: TrainingRecord,
    job: Job,
    seconds: float,
) -> Retrained:
    """What a retraining has left, once it is done and its weights are whole.

    Args:
        module: That was trained, with `state` in it.
        state: Its parameters and buffers.
        record: Of its callback.
        job: The retraining.
        seconds: How long it took.
    """
    before = record.outside or {}
    now = outside_digests(module, ())
    moved = {name for name in now if before.get(name) != now[name]}
    named = dict(module.named_parameters())
    scope = tuple(n for n, p in named.items() if p.requires_grad or n in moved)
    rebuilt = tuple(n for n in dict(module.named_buffers()) if n in moved)
    trained = {*scope, *Scope(module, [named[n] for n in scope]).entries, *moved}
    rest = {
        name: now[name]
        for name in module.state_dict()
        if name in now and name not in trained
    }
    return Retrained(
        job, state, record, scope, rebuilt, public_parts(module, rest),
        seconds, module,
    )  # fmt: skip


def check_same_model(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Raise `ModelError` unless what is retrained fits into a model.

    Args:
        module: The user's.
        state: Parameters and buffers of what takes its place.
    """
    ours = {name: (tuple(t.shape), t.dtype) for name, t in held(module).items()}
    new = {n: (tuple(t.shape), t.dtype) for n, t in state.items()}
    other = sorted(n for n in {**ours, **new} if ours.get(n) != new.get(n))
    if other:
        name = other[0]
        raise ModelError(
            "expected make_training to make the same model as the one that is to be "
            f"replaced, got {new.get(name, 'nothing')} in place of "
            f"{ours.get(name, 'nothing')} for {name!r}: make it with the same settings"
        )
    if any(t.is_complex() for t in state.values()):
        raise ModelError(
            "expected real weights for how='retrain', got complex ones: keep their "
            "real and imaginary parts as two real parameters (torch.view_as_complex)"
        )
