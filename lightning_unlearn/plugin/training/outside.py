"""What lies outside the weights in scope, and whether training changed it."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from lightning_unlearn.certificate.fields import PublicPart, entries_digest
from lightning_unlearn.certificate.words.backbone_words import NOTE
from lightning_unlearn.guarantee.constants import Origin
from lightning_unlearn.plugin.training import batch_norm, public_backbones
from lightning_unlearn.plugin.training.outside_digests import (
    attribute_of,
    hidden_tensors,
    is_number,
    outside_digests,
)
from lightning_unlearn.plugin.training.shifted import changed_attributes
from lightning_unlearn.plugin.training.trained_marks import (
    has_trained_value,
    was_trained,
)
from lightning_unlearn.plugin.training.training_record import TrainingRecord
from lightning_unlearn.step.head.backbone import PublicBackbone
from lightning_unlearn.weights.digests import tensors_digest
from lightning_unlearn.weights.processes import Processes
from lightning_unlearn.weights.scope import Scope

_CHANGED = "changed in training"
_UNREAD = "changed in training, and nothing computes with it"


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

    def rebuilt_entries(self, module: nn.Module) -> tuple[str, ...]:
        """Of the module's state_dict: the statistics that are taken anew."""
        made_anew = _statistics(self.rebuilt)
        return tuple(name for name in module.state_dict() if name in made_anew)


def _statistics(layers: Iterable[str]) -> set[str]:
    """Names of the buffers that layers of batch normalisation keep."""
    return {f"{name}.{buffer}" for name in layers for buffer in batch_norm.BUFFERS}


def note_changed_numbers(
    module: nn.Module,
    record: TrainingRecord,
    reached: Callable[[list[str]], Sequence[str]],
) -> None:
    """Mark the plain numbers that training has changed.

    A number that only differs between two processes is a setting (a learning rate);
    one that training moves is a statistic of the data, unless nothing computes with it
    (the last loss, kept for a plot).

    Args:
        module: The module.
        record: Of the training.
        reached: Those of some attributes on which what reaches the head depends.
    """
    before = record.outside
    if before is None:
        return
    now = outside_digests(module, module.parameters())
    changed = changed_attributes(module, before, now)
    unread = {*changed}.difference(reached(changed))
    for name in [n for n in before if attribute_of(n) in unread]:
        del before[name]
    before |= dict.fromkeys(unread, _UNREAD)
    for name in {**before, **now}:
        other = now.get(name) != before.get(name)
        if is_number(name) and other and attribute_of(name) not in unread:
            before[name] = _CHANGED  # or made by it


def merge_changes(record: TrainingRecord, processes: Processes) -> None:
    """Take as changed what training has changed in any process.

    Each trains a copy on samples of its own, and all compute with their copies.
    """
    changed = [name for name, d in (record.outside or {}).items() if d == _CHANGED]
    for names in processes.gather(changed):
        for name in names:
            if record.outside is not None:
                record.outside[name] = _CHANGED
    for changed, compared, made in processes.gather(
        (record.rows_changed, record.rows_compared, record.made_at_start)
    ):
        record.rows_changed = record.rows_changed or changed
        record.rows_compared = record.rows_compared and compared
        record.made_at_start = sorted({*record.made_at_start, *made})
    own = record.private
    problems = processes.gather(None if own is None else own.problem)
    if own is not None:
        own.problem = next(filter(None, [own.problem, *problems]), None)


def numbers(module: nn.Module, record: TrainingRecord) -> dict[str, str]:
    """Digests of the plain numbers that are not known to have changed in training."""
    before = record.outside or {}
    return {
        name: digest
        for name, digest in outside_digests(module, module.parameters()).items()
        if is_number(name) and before.get(name) != _CHANGED
    }


def outside_of(
    module: nn.Module,
    scope: Scope,
    record: TrainingRecord,
    rebuilds: bool = False,
    covers_private: bool = False,
) -> Outside:
    """Compare everything outside the scope with what it was before training.

    Args:
        module: The module.
        scope: Its weights in scope.
        record: What was seen of the training.
        rebuilds: Whether statistics of batch normalisation will be taken anew.
        covers_private: Whether the claim is of a privately trained backbone too; to
            any other it is a part that the samples have changed.

    Raises:
        ModelError: If a normalisation layer keeps statistics of the training data.
    """
    before = record.outside
    unread = {n for n, digest in (before or {}).items() if digest == _UNREAD}
    now = outside_digests(module, scope.parameters)
    now = {n: digest for n, digest in now.items() if attribute_of(n) not in unread}
    hidden = [(n, t) for n, t in hidden_tensors(module).items() if not is_number(n)]
    held = (*module.named_parameters(), *module.named_buffers(), *hidden)
    private = public_backbones.private_weights(module)
    trained = [
        name
        for name, t in held
        if name in now
        and not (covers_private and name in private)
        and (
            name in private
            or name in record.trained
            or was_trained(t)
            or has_trained_value(t)
        )
    ]
    changed = trained
    if before is not None:
        moved = [
            name
            for name in now
            if before.get(name) != now[name] and not is_number(name)
        ]
        moved += [name for name, digest in before.items() if digest == _CHANGED]
        changed = [*moved, *(name for name in trained if name not in moved)]
    known = before is not None
    rebuilt = tuple(batch_norm.stale_layers(module, scope, changed, known, rebuilds))
    made_anew = _statistics(rebuilt)
    changed = [name for name in changed if name not in made_anew]
    unscrubbed = list(dict.fromkeys(_attribute(name) for name in changed))
    now = {name: digest for name, digest in now.items() if name not in made_anew}
    kept = {
        name: digest
        for name, digest in now.items()
        if name not in changed and not is_number(name)
    }
    origin = Origin.ASSUMED if before is None else Origin.ENFORCED
    kept = _in_backbone(module, kept, private)
    parts = public_parts(module, _without_keys(kept), origin)
    if record.rows_changed is not None:
        unscrubbed = [*unscrubbed, record.rows_changed]
    if before is not None and not record.rows_compared:
        parts = (*parts, _UNCOMPARED)
    parts = (*parts, *map(_made, record.made_at_start))
    return Outside(public_parts=parts, unscrubbed=tuple(unscrubbed), rebuilt=rebuilt)


def public_parts(
    module: nn.Module, digests: dict[str, str], origin: Origin = Origin.ENFORCED
) -> tuple[PublicPart, ...]:
    """What a certificate lists of entries that no training has changed.

    Args:
        module: The module.
        digests: Of its entries, by name.
        origin: Of what is known of them.
    """
    backbones = public_backbones.backbones(module)
    groups: dict[str, list[tuple[str, str]]] = {}
    for name, digest in digests.items():
        group = public_backbones.part_of(name, backbones)
        groups.setdefault(group, []).append((name, digest))
    return tuple(
        PublicPart(
            name=name,
            digest=entries_digest(entries),
            origin=origin,
            note=_note(backbones[name]) if name in backbones else "",
            entries=tuple(entries),
        )
        for name, entries in groups.items()
    )


def _in_backbone(
    module: nn.Module, digests: dict[str, str], private: dict[str, str]
) -> dict[str, str]:
    """The same with the weights of a backbone by its own names for them."""
    named = dict(module.named_parameters()) | dict(module.named_buffers())
    found = {}
    for name, digest in digests.items():
        own = private.get(name, name)
        found[own] = digest if own == name else tensors_digest([(own, named[name])])
    return found


def _attribute(name: str) -> str:
    """Without keys and places: a dictionary's may be people, a list's count steps."""
    return name.partition("[")[0]


def _without_keys(digests: dict[str, str]) -> dict[str, str]:
    """The same by attribute, which is all that a certificate names."""
    inside: dict[str, list[tuple[str, str]]] = {}
    for name, digest in digests.items():
        inside.setdefault(_attribute(name), []).append((name, digest))
    return {
        name: digests[name] if name in digests else entries_digest(found)
        for name, found in inside.items()
    }


_UNCOMPARED = PublicPart(
    name="what the training changed on the way to the head",
    digest="not computed",
    origin=Origin.ASSUMED,
    note="rows at the head could not be compared before and after the training "
    "(random augmentation, or a loss that cannot be called before it)",
)


def _made(name: str) -> PublicPart:
    return PublicPart(
        name=name,
        digest="not computed",
        origin=Origin.ASSUMED,
        note="a hook of this run made it before the training started, and what "
        "reaches the head depends on it: it is not known to be made without the "
        "samples",
    )


def _note(backbone: PublicBackbone) -> str:
    """What a certificate says of a backbone, and the digest it was made with."""
    how = "" if backbone.private_steps is None else NOTE
    return f"{how}{backbone.description}; PublicBackbone.digest {backbone.digest}"
