"""Hyper-parameters as they were when training began, to tell what it wrote."""

import ast
import hashlib
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lightning_unlearn.weights.digests import entry_digest

#: Where a checkpoint holds those of the module and of the DataModule.
KEYS = ("hyper_parameters", "datamodule_hyper_parameters")

_LONGEST = 10_000  # characters of a value that is kept as it is
_ADDRESS = re.compile(r" at 0x[0-9a-f]+", re.IGNORECASE)


def written(module: object, datamodule: object) -> dict[str, dict[str, str]]:
    """Hyper-parameters in words.

    Args:
        module: The LightningModule.
        datamodule: The LightningDataModule, or None.

    Returns:
        By their key in a checkpoint, then by name: a plain value as Python writes it,
        of any other a digest after ``~``.
    """
    owners = dict(zip(KEYS, (module, datamodule), strict=True))
    return {key: in_words(getattr(o, "hparams", {})) for key, o in owners.items() if o}


def in_words(held: Mapping[Any, Any]) -> dict[str, str]:
    """See `written`; of one mapping."""
    return {str(name): _word(held[name]) for name in held}


def as_before(
    held: Mapping[Any, Any], before: Mapping[str, str]
) -> tuple[dict[Any, Any], list[str]]:
    """Hyper-parameters with what training has written taken back.

    Args:
        held: As they are.
        before: `in_words` when training began.

    Returns:
        As they were, without those whose value then is not known; and the names of
        those that were reset or left out.
    """
    now, kept, changed = in_words(held), {}, []
    for name in held:
        then = before.get(str(name))
        if then == now[str(name)]:
            kept[name] = held[name]
            continue
        changed.append(str(name))
        if then is not None and not then.startswith("~"):
            kept[name] = ast.literal_eval(then)
    for name, then in before.items():
        if name not in now and not then.startswith("~"):
            changed.append(name)
            kept[name] = ast.literal_eval(then)
    return kept, changed


def _word(value: object) -> str:
    text = repr(value)
    if len(text) <= _LONGEST and _is_plain(value):
        return text
    if isinstance(value, nn.Module):
        value = value.state_dict()
    sha = hashlib.sha256(_ADDRESS.sub("", text).encode(errors="replace"))
    for leaf in tree_leaves(value):
        if isinstance(leaf, Tensor):
            sha.update(entry_digest("", leaf).encode())
    return "~" + sha.hexdigest()


def _is_plain(value: object) -> bool:
    """Whether Python reads the value again from what it writes of it."""
    if isinstance(value, float):
        return abs(value) < float("inf")
    if type(value) is dict:
        return all(_is_plain(x) for pair in value.items() for x in pair)
    if type(value) is list or type(value) is tuple:
        return all(_is_plain(x) for x in value)
    return value is None or type(value) in (bool, int, str)
