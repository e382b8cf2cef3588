"""What the callback saw of the training run, kept in the checkpoint."""

import hashlib
import secrets
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torchmetrics
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.utils._pytree import tree_leaves

from lightning_unlearn.certificate import Origin, PublicPart
from lightning_unlearn.errors import ModelError
from lightning_unlearn.scope import Scope, tensors_digest


@dataclass
class TrainingRecord:
    """Plain Python values only, so that ``torch.load(weights_only=True)`` reads it.

    Args:
        n_train: Samples in the training dataset, or None before training.
        salt: Random key of the fingerprint; a new one after every request.
        fingerprint: Salted digest of the training data, or None.
        max_norm: Radius of the projection made in training, or None.
        projections: How often a step left the ball.
        l2: Coefficient found in the optimizer, or None.
        l2_problem: Why none was found.
        outside: Digest of every parameter and buffer outside the scope, before the
            first training step; None before training.
        removed: Positions forgotten so far.
        weights_digest: SHA-256 of the model's state when training ended, or None.
        gradient_norm: |grad F| over the training data then, if it was logged.
        lineage: Random name of the training run this record began with.
        ledger_key: Random key of the ledger's digests.
        saved: Clean checkpoints written by earlier requests.
        ledger: The requests so far, as the text of `ledger.Ledger`.
        certificate: The last certificate as JSON, or None.
    """

    n_train: int | None = None
    salt: str = field(default_factory=lambda: secrets.token_hex(16))
    fingerprint: str | None = None
    max_norm: float | None = None
    projections: int = 0
    l2: float | None = None
    l2_problem: str | None = None
    outside: dict[str, str] | None = None
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
        """From ``Callback.load_state_dict``."""
        return cls(**state)


def outside_digests(module: nn.Module, scope: Iterable[nn.Parameter]) -> dict[str, str]:
    """Digest of everything a module keeps outside the scope.

    Parameters, buffers, extra state, and tensors and modules held in plain
    attributes, lists, tuples or dictionaries of any submodule.
    """
    ids = {id(p) for p in scope}
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    known = ids | {id(t) for t in tensors.values()}
    for prefix, layer in module.named_modules():
        if isinstance(layer, torchmetrics.Metric):
            continue  # emptied after every request
        tensors |= {
            f"{prefix}.{name}".lstrip("."): t
            for name, t in _hidden(layer)
            if id(t) not in known
        }
    found = {
        name: tensors_digest([(name, t)])
        for name, t in tensors.items()
        if id(t) not in ids
    }
    for name, value in module.state_dict().items():
        if name.endswith("_extra_state"):
            found[name] = _content_digest(value)
    return found


def _hidden(layer: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Tensors in plain attributes, also inside containers and unregistered modules."""
    own = {"_parameters", "_buffers", "_modules", "_trainer", "_fabric", "prepare"}
    for name, value in vars(layer).items():
        if name in own or name.endswith("_hooks"):
            continue
        for position, leaf in enumerate(tree_leaves(value)):
            label = f"{name}[{position}]"
            if isinstance(leaf, Tensor):
                yield label, leaf
            elif isinstance(leaf, nn.Module) and not isinstance(
                leaf, torchmetrics.Metric
            ):
                for key, tensor in leaf.state_dict(keep_vars=True).items():
                    if isinstance(tensor, Tensor):
                        yield f"{label}.{key}", tensor


def _content_digest(value: object) -> str:
    sha = hashlib.sha256()
    for leaf in tree_leaves(value):
        part = tensors_digest([("", leaf)]) if isinstance(leaf, Tensor) else repr(leaf)
        sha.update(part.encode())
    return sha.hexdigest()


# Parameters that some callback of this process saw in scope of a training run: they
# cannot be public, even if a later run freezes them.
_trained: dict[int, "weakref.ref[nn.Parameter]"] = {}


def mark_trained(parameters: Iterable[nn.Parameter]) -> None:
    """Remember that these parameters were trained on private data."""
    _trained.update({id(p): weakref.ref(p) for p in parameters})


def was_trained(parameter: nn.Parameter) -> bool:
    """Whether a callback of this process saw this parameter trained."""
    reference = _trained.get(id(parameter))
    return reference is not None and reference() is parameter


@dataclass(frozen=True)
class Outside:
    """The parts of a model outside the scope, as the certificate shows them.

    Args:
        public_parts: Parts that did not change in training, or are not known to have.
        unscrubbed: Names of entries that changed, or were trained.
    """

    public_parts: tuple[PublicPart, ...]
    unscrubbed: tuple[str, ...]


def outside_of(module: nn.Module, scope: Scope, record: TrainingRecord) -> Outside:
    """Compare everything outside the scope with what it was before training.

    Raises:
        ModelError: If a normalisation layer keeps statistics of the training data.
    """
    now = outside_digests(module, scope.parameters)
    before = record.outside
    trained = [
        name for name, p in module.named_parameters() if was_trained(p) and name in now
    ]
    changed = trained
    if before is not None:
        moved = [name for name in now if before.get(name) != now[name]]
        changed = [*moved, *(name for name in trained if name not in moved)]
    _check_normalisation(module, scope, changed, known=before is not None)
    kept = {name: digest for name, digest in now.items() if name not in changed}
    groups: dict[str, list[str]] = {}
    for name, digest in kept.items():
        groups.setdefault(name.split(".")[0], []).append(f"{name}={digest}")
    origin = Origin.ASSUMED if before is None else Origin.ENFORCED
    parts = tuple(
        PublicPart(name=name, digest=_join(entries), origin=origin)
        for name, entries in groups.items()
    )
    return Outside(public_parts=parts, unscrubbed=tuple(changed))


def _join(entries: list[str]) -> str:
    return hashlib.sha256("|".join(entries).encode()).hexdigest()


def _check_normalisation(
    module: nn.Module, scope: Scope, changed: list[str], known: bool
) -> None:
    in_scope = {id(p) for p in scope.parameters}
    for name, layer in module.named_modules():
        if not isinstance(layer, _NormBase):
            continue
        kind = type(layer).__name__
        if isinstance(layer, _BatchNorm) and layer.running_mean is None:
            raise ModelError(
                f"expected layers that treat each sample on its own, got {kind} at "
                f"{name!r} without running statistics: use GroupNorm or LayerNorm"
            )
        trained = any(id(p) in in_scope for p in layer.parameters(recurse=False))
        moved = any(entry.startswith(f"{name}.") for entry in changed)
        if layer.running_mean is not None and (moved or (trained and not known)):
            raise ModelError(
                f"expected no statistics of the training data, got {kind} at {name!r}, "
                "whose running mean and variance were computed on the forgotten "
                "samples too: replace it by GroupNorm or LayerNorm, or keep it frozen "
                "(call eval() on it in on_train_epoch_start, before any training step)"
            )
