"""What the callback saw of the training run, kept in the checkpoint."""

import hashlib
import secrets
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader

from lightning_unlearn.certificate import Origin, PublicPart
from lightning_unlearn.errors import DataError
from lightning_unlearn.plugin import data, public, statistics
from lightning_unlearn.plugin.digests import NUMBER, outside_digests
from lightning_unlearn.processes import Processes
from lightning_unlearn.scope import Scope


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
        trained: Names of parameters that were in scope of a training run.
        removed: Positions forgotten so far.
        weights_digest: SHA-256 of the model's state when training ended, or None.
        gradient_norm: |grad F| over the training data then, if it was logged.
        lineage: Random name of a training on one dataset, kept when it goes on.
        ledger_key: Random key of the ledger's digests.
        saved: Checkpoints known to be older than the last request, and its own.
        ledger: The requests so far, as the text of `ledger.Ledger`.
        certificate: The last certificate as JSON, or None.
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
    trained: list[str] = field(default_factory=list)
    removed: list[int] = field(default_factory=list)
    weights_digest: str | None = None
    gradient_norm: float | None = None
    lineage: str = field(default_factory=lambda: secrets.token_hex(16))
    ledger_key: str = field(default_factory=lambda: secrets.token_hex(16))
    saved: list[str] = field(default_factory=list)
    ledger: str = ""
    certificate: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """For ``Callback.state_dict``."""
        return asdict(self)

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> "TrainingRecord":
        """From ``Callback.load_state_dict``; strict, as checkpoints may be tampered.

        Raises:
            DataError: If a field is missing, unknown or of another type.
        """
        blank = cls()
        known = {f.name for f in fields(cls)}
        if not isinstance(state, dict) or set(state) != known:
            raise DataError(
                f"expected the callback's state with the fields {sorted(known)}, got "
                f"{sorted(map(str, state)) if isinstance(state, dict) else type(state)}"
            )
        for name, value in state.items():
            if not _well_formed(name, value, getattr(blank, name)):
                raise DataError(
                    f"expected {name} of the callback's state as this version writes "
                    f"it, got {value!r:.60}: the checkpoint was altered"
                )
        return cls(**state)


_OPTIONAL: dict[str, tuple[type, ...]] = {
    "n_train": (int,),
    "fingerprint": (str,),
    "retained_fingerprint": (str,),
    "max_norm": (int, float),
    "l2": (int, float),
    "l2_problem": (str,),
    "outside": (dict,),
    "weights_digest": (str,),
    "gradient_norm": (float,),
    "certificate": (str,),
}
_KEYS = ("salt", "lineage", "ledger_key")


def _well_formed(name: str, value: object, blank: object) -> bool:
    if isinstance(value, bool):
        return False
    if name in _OPTIONAL:
        if value is None or not isinstance(value, _OPTIONAL[name]):
            return value is None
        items = value.items() if isinstance(value, dict) else ()
        return all(isinstance(k, str) and isinstance(v, str) for k, v in items)
    if not isinstance(value, type(blank)):
        return False
    if name in _KEYS:
        return len(str(value)) == 32 and set(str(value)) <= set("0123456789abcdef")
    kind = {"removed": int, "saved": str, "trained": str}.get(name)
    return kind is None or all(type(v) is kind for v in value)  # type: ignore[union-attr]


_CHANGED = "changed in training"

# On parameters that some callback of this process saw in scope of a training run: they
# cannot be public, even if a later run freezes them. An attribute: torch refuses to
# move FSDP's parameters to a device while somebody holds a weak reference.
_MARK = "trained_on_private_data"


def mark_trained(parameters: Iterable[nn.Parameter]) -> None:
    """Remember that these parameters were trained on private data."""
    for p in parameters:
        setattr(p, _MARK, True)


def was_trained(parameter: nn.Parameter) -> bool:
    """Whether a callback of this process saw this parameter trained."""
    return getattr(parameter, _MARK, False)


@dataclass(frozen=True)
class Outside:
    """The parts of a model outside the scope, as the certificate shows them.

    Args:
        public_parts: Parts that did not change in training, or are not known to have.
        unscrubbed: Names of entries that changed, or were trained.
        rebuilt: Layers of batch normalisation whose statistics are to be taken anew.
    """

    public_parts: tuple[PublicPart, ...]
    unscrubbed: tuple[str, ...]
    rebuilt: tuple[str, ...] = ()


def note_changed_numbers(module: nn.Module, record: TrainingRecord) -> None:
    """Mark the plain numbers that training has changed.

    A number that only differs between two processes is a setting (a learning rate);
    one that training moves is a statistic of the data.
    """
    before = record.outside
    if before is None:
        return
    now = outside_digests(module, module.parameters())
    for name in {**before, **now}:
        if name.endswith(NUMBER) and now.get(name) != before.get(name):
            before[name] = _CHANGED  # or made by it


def record_data(record: TrainingRecord, loader: DataLoader) -> None:
    """Note the data a training is about to see.

    Raises:
        DataError: If it is not what is left after the requests so far, alone or as the
            first part of a ConcatDataset.
    """
    dataset = loader.dataset
    n = len(dataset)  # type: ignore[arg-type]
    gone = len(record.removed)
    if gone and not _begins_with_the_rest(dataset, record):
        raise DataError(
            f"expected training to go on with the {(record.n_train or 0) - gone} "
            f"samples that were not unlearned, got {n}, or others: train on "
            "old = torch.utils.data.Subset(dataset, callback.retained_indices), with "
            "new samples on ConcatDataset([old, new]), or make a new model and a new "
            "UnlearningCallback for other data"
        )
    record.removed = []  # from now on positions are those of this dataset
    before = record.n_train, record.fingerprint
    record.n_train, record.fingerprint = n, data.fingerprint(dataset, record.salt)
    if before != (None, None) and before != (n, record.fingerprint):
        record.lineage = secrets.token_hex(16)  # its positions mean other samples


def _begins_with_the_rest(dataset: Any, record: TrainingRecord) -> bool:
    """Whether a dataset is what the requests have left, or that and a second part."""
    rest = (record.n_train or 0) - len(record.removed)
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
    return known is None or data.fingerprint(dataset, record.salt) in (None, known)


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
    now = data.fingerprint(dataset, record.salt, record.removed)
    if now is not None and now != record.fingerprint:
        raise DataError(
            "expected the training data the model was trained on, got other samples: "
            "indices would point at the wrong ones (an unseeded random_split?)"
        )


def merge_changes(record: TrainingRecord, processes: Processes) -> None:
    """Take as changed what training has changed in any process.

    Each trains a copy on samples of its own, and all compute with their copies.
    """
    changed = [name for name, d in (record.outside or {}).items() if d == _CHANGED]
    for names in processes.gather(changed):
        for name in names:
            if record.outside is not None:
                record.outside[name] = _CHANGED


def numbers(module: nn.Module, record: TrainingRecord) -> dict[str, str]:
    """Digests of the plain numbers that are not known to have changed in training."""
    before = record.outside or {}
    return {
        name: digest
        for name, digest in outside_digests(module, module.parameters()).items()
        if name.endswith(NUMBER) and before.get(name) != _CHANGED
    }


def outside_of(
    module: nn.Module, scope: Scope, record: TrainingRecord, rebuilds: bool = False
) -> Outside:
    """Compare everything outside the scope with what it was before training.

    Args:
        module: The module.
        scope: Its weights in scope.
        record: What was seen of the training.
        rebuilds: Whether statistics of batch normalisation will be taken anew.

    Raises:
        ModelError: If a normalisation layer keeps statistics of the training data.
    """
    now = outside_digests(module, scope.parameters)
    before = record.outside
    trained = [
        name
        for name, p in module.named_parameters()
        if (was_trained(p) or name in record.trained) and name in now
    ]
    changed = trained
    if before is not None:
        moved = [
            name
            for name in now
            if before.get(name) != now[name] and not name.endswith(NUMBER)
        ]
        moved += [name for name, digest in before.items() if digest == _CHANGED]
        changed = [*moved, *(name for name in trained if name not in moved)]
    known = before is not None
    rebuilt = tuple(statistics.stale_layers(module, scope, changed, known, rebuilds))
    made_anew = {
        f"{name}.{buffer}" for name in rebuilt for buffer in statistics.BUFFERS
    }
    changed = [name for name in changed if name not in made_anew]
    now = {name: digest for name, digest in now.items() if name not in made_anew}
    kept = {
        name: digest
        for name, digest in now.items()
        if name not in changed and not name.endswith(NUMBER)
    }
    backbones, groups = public.backbones(module), dict[str, list[str]]()
    for name, digest in kept.items():
        group = public.owner(name, backbones) or name.split(".")[0]
        groups.setdefault(group, []).append(f"{name}={digest}")
    origin = Origin.ASSUMED if before is None else Origin.ENFORCED
    parts = tuple(
        PublicPart(
            name=name,
            digest=backbones[name].digest if name in backbones else _join(entries),
            origin=origin,
            note=backbones[name].description if name in backbones else "",
        )
        for name, entries in groups.items()
    )
    return Outside(public_parts=parts, unscrubbed=tuple(changed), rebuilt=rebuilt)


def _join(entries: list[str]) -> str:
    return hashlib.sha256("|".join(entries).encode()).hexdigest()
