"""A certificate beside the model it speaks of: every entry, and what is public of it.

Digests are computed anew from a checkpoint, or from the file in which a public network
was published. torch is imported when a file is read, not before.
"""

import zipfile
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from lightning_unlearn._base.text import some
from lightning_unlearn.certificate.certificate import Certificate
from lightning_unlearn.certificate.fields import PublicPart
from lightning_unlearn.certificate.verification import Finding
from lightning_unlearn.errors import SetupError
from lightning_unlearn.guarantee.terms import CONVEX

State = Mapping[str, object]
#: What a checkpoint to be served may hold: Lightning's own, without the clock.
CHECKPOINT_KEYS = (
    *("epoch", "global_step", "pytorch-lightning_version", "state_dict", "callbacks"),
    *("optimizer_states", "lr_schedulers"),
    *("hparams_name", "hyper_parameters", "hparams_type"),
    *("datamodule_hparams_name", "datamodule_hyper_parameters"),
    "datamodule_hparams_type",
)
RECORD = "UnlearningCallback"  # of ours, among the callbacks' states
_few = partial(some, most=3)
_TRIED = 8  # ways to match names: the right one fits most entries


def load(path: Path) -> dict[str, object]:
    """The state_dict in a file, of which only tensors and plain values are unpickled.

    Args:
        path: A checkpoint with a ``state_dict``, a bare state_dict that was saved with
            ``torch.save``, or a safetensors file.

    Raises:
        SetupError: If there is none, or it cannot be read.
    """
    if not path.is_file():
        raise SetupError(f"expected a checkpoint at {path}, found none there")
    import torch

    try:
        content: Any
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
        state = content.get("state_dict", content)
        if not any(isinstance(value, torch.Tensor) for value in state.values()):
            raise TypeError("no tensors")
        return {str(name): value for name, value in state.items()}
    except Exception as error:  # torch.load raises whatever a damaged file provokes
        raise SetupError(
            f"expected a checkpoint or weights at {path} that torch.load(weights_only="
            f"True) or safetensors reads: {type(error).__name__}"
        ) from None


def check_model(c: Certificate, state: State) -> list[Finding]:
    """Whether every entry outside the scope is in a public part, bytes and all.

    Args:
        c: A certificate that verifies.
        state: The state_dict of the released checkpoint.

    Returns:
        One finding a check.
    """
    if c.schema == 1:
        text = "public parts: schema 1 does not say which entries of the model they are"
        return [Finding(None, text)]
    findings = [_scope(c, state)]
    listed = [pair for part in c.public_parts for pair in part.entries]
    moved = [n for n, d in listed if n in state and _digest(n, state[n]) != d]
    known = {*c.scope, *c.rebuilt, *c.unscrubbed, *(name for name, _ in listed)}
    rest = _not_listed(state, known)
    if moved:
        findings.append(_failed(f"public parts: other bytes in {_few(moved)}"))
    if rest:
        findings.append(
            _failed(
                "public parts: expected every entry outside the scope in one, got "
                f"{_few(rest)} in none: what they were made from is not said"
            )
        )
    away = [name for name, _ in listed if name not in state]
    if not moved and not rest:
        n = len(listed) - len(away)
        found = f"public parts: digests of all {n} entries outside the scope hold"
        if not n:
            found = "public parts: no entry is outside the scope"
        findings.append(Finding(True, found))
    if away:
        findings.append(
            Finding(
                None, f"public parts: {_few(away)} not in a checkpoint: not checked"
            )
        )
    return findings


def check_company(path: Path) -> list[Finding]:
    """Whether a file holds tensors besides the state_dict, and what else it holds.

    Args:
        path: A file that `load` reads.

    Returns:
        Findings; none for a bare state_dict, or if there is nothing else.
    """
    if path.suffix == ".safetensors":
        return []
    import torch
    from torch.utils._pytree import tree_leaves

    mapped = zipfile.is_zipfile(path)  # tensors are not read
    content: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    if "state_dict" not in content:
        return []
    others = {str(k): v for k, v in content.items() if k not in CHECKPOINT_KEYS}
    callbacks = content.get("callbacks", {})
    others |= {f"callbacks[{k!r}]": v for k, v in callbacks.items() if k != RECORD}
    for i, held in enumerate(content.get("optimizer_states", ())):
        if held.get("state"):
            others[f"optimizer_states[{i}]"] = held["state"]
    tensors = [
        name
        for name, value in others.items()
        if any(isinstance(leaf, torch.Tensor) for leaf in tree_leaves(value))
    ]
    rest = [name for name in others if name not in tensors]
    findings = []
    if tensors:
        findings.append(
            _failed(
                "whole file: expected tensors in state_dict alone, got others in "
                f"{_few(tensors)}: what they were made from is not said"
            )
        )
    if rest:
        findings.append(
            Finding(
                None,
                f"whole file: it also holds {_few(rest)}, which the certificate does "
                "not speak of: not checked",
            )
        )
    return findings


def check_published(c: Certificate, published: State, file: str) -> list[Finding]:
    """Whether a public part is the network that was published in a file.

    Names may have a prefix in the model, in the file, or both: it is taken off.

    Args:
        c: A certificate that verifies.
        published: The file's state_dict.
        file: Its name, for the findings.

    Returns:
        One finding a public part that is of this file.
    """
    findings = []
    for part in c.public_parts:
        names, ours, theirs = _matched(part, published)
        digests = dict(part.entries)
        same = [n for n, k in names.items() if _digest(n, published[k]) == digests[n]]
        if not same:
            continue
        other = sorted({*names} - {*same})
        if other:
            findings.append(
                _failed(f"backbone: {part.name} has other bytes than {file} in "
                        f"{_few(other)}")
            )  # fmt: skip
            continue
        taken = "".join(
            f"; prefix {prefix!r} in {where} taken off"
            for prefix, where in ((ours, "the model"), (theirs, "the file"))
            if prefix
        )
        text = f"backbone: {len(same)} entries of {part.name} are {file}{taken}"
        findings.append(Finding(True, text))
        rest = [name for name in digests if name not in names]
        if rest:
            text = f"backbone: {_few(rest)} of {part.name} not in {file}: not checked"
            findings.append(Finding(None, text))
    if not findings:
        where = ", ".join(part.name for part in c.public_parts) or "none"
        text = f"backbone: expected {file} to be a public part ({where}), got another"
        findings.append(_failed(text + " network"))
    return findings


def _scope(c: Certificate, state: State) -> Finding:
    from torch import Tensor

    held = {n: state[n] for n in c.scope if isinstance(state.get(n), Tensor)}
    tensors = [value for value in held.values() if isinstance(value, Tensor)]
    if len(tensors) < len(c.scope):
        missing = [name for name in c.scope if name not in held]
        return _failed(f"scope: expected {_few(missing)} in the checkpoint, got none")
    n = sum(tensor.numel() for tensor in tensors)
    if n != c.n_parameters:
        return _failed(f"scope: expected {c.n_parameters:,} weights, got {n:,}")
    if c.bound in CONVEX and not _is_affine(held):
        return _failed(
            "scope: expected the weight and bias of one affine head for the bound "
            f"{c.bound.value}, got {_few(c.scope)}"
        )
    return Finding(True, f"scope: {n:,} weights in {_few(c.scope)}")


def _is_affine(held: Mapping[str, object]) -> bool:
    """Whether entries are one matrix (K, d), alone or with a vector (K,)."""
    from torch import Tensor

    shapes = {
        name.rpartition(".")[2]: tuple(value.shape)
        for name, value in held.items()
        if isinstance(value, Tensor)
    }
    if len({name.rpartition(".")[0] for name in held}) != 1:
        return False
    weight, bias = shapes.pop("weight", ()), shapes.pop("bias", None)
    return not shapes and len(weight) == 2 and bias in (None, weight[:1])


def _not_listed(state: State, known: set[str]) -> list[str]:
    """Entries that are in no list, hold something, and equal none that is in one.

    A tied weight equals a listed one; a metric that was emptied holds nothing.
    """
    rest = [n for n, value in state.items() if n not in known and not _is_empty(value)]
    if not rest:
        return []
    listed = {_digest("", value) for name, value in state.items() if name in known}
    return [name for name in rest if _digest("", state[name]) not in listed]


def _is_empty(value: object) -> bool:
    """Whether an entry is without elements, or of zeros or one infinity alone."""
    from torch import Tensor

    if not isinstance(value, Tensor):
        return not value
    if not value.numel():
        return True
    first = float(value.reshape(-1)[0])
    return abs(first) in (0.0, float("inf")) and bool((value == first).all())


def _matched(part: PublicPart, published: State) -> tuple[dict[str, str], str, str]:
    """A part's entries by name in the file, and the prefixes in the model and there."""
    ends: dict[str, list[str]] = {}
    for key in published:
        ends.setdefault(key.rpartition(".")[2], []).append(key)
    prefixes = Counter(
        _prefixes(name, key)
        for name, _ in part.entries
        for key in ends.get(name.rpartition(".")[2], ())
    )
    best: tuple[dict[str, str], str, str] = ({}, "", "")
    for (ours, theirs), _ in prefixes.most_common(_TRIED):
        names = {
            name: theirs + name[len(ours) :]
            for name, _ in part.entries
            if name.startswith(ours) and theirs + name[len(ours) :] in published
        }
        if len(names) > len(best[0]):
            best = names, ours, theirs
    return best


def _prefixes(name: str, key: str) -> tuple[str, str]:
    """What is left of two names without the dotted end they share."""
    a, b = name.split("."), key.split(".")
    while a and b and a[-1] == b[-1]:
        a.pop()
        b.pop()
    return "".join(f"{x}." for x in a), "".join(f"{x}." for x in b)


def _digest(name: str, value: object) -> str:
    from lightning_unlearn.weights.digests import entry_digest

    return entry_digest(name, value)


def _failed(text: str) -> Finding:
    return Finding(False, text)
