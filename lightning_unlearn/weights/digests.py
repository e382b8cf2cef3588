"""SHA-256 digests of tensors."""

import hashlib
import json
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lightning_unlearn.weights.dtensors import gathered

_HASHED = 1 << 24  # bytes copied at once


def tensors_digest(named: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of tensors, in order."""
    sha = hashlib.sha256()
    for name, tensor in named:
        data = gathered(tensor.detach()).cpu().contiguous()
        sha.update(f"{name}|{data.dtype}|{tuple(data.shape)}|".encode())
        for part in data.reshape(-1).view(torch.uint8).split(_HASHED):
            # A copy: FSDP could not free what numpy has seen.
            sha.update(part.clone().numpy().data)
    return sha.hexdigest()


def state_digest(state: Mapping[str, object]) -> str:
    """SHA-256 of every tensor of a ``state_dict``, by name."""
    return tensors_digest(
        (name, value)
        for name, value in sorted(state.items())
        if isinstance(value, Tensor)
    )


def entry_digest(name: str, value: object) -> str:
    """SHA-256 of one entry of a ``state_dict``: a tensor, or extra state."""
    value = from_tensor(value)
    if isinstance(value, Tensor):
        return tensors_digest([(name, value)])
    sha = hashlib.sha256()
    for leaf in tree_leaves(value):
        part = tensors_digest([("", leaf)]) if isinstance(leaf, Tensor) else repr(leaf)
        sha.update(part.encode())
    return sha.hexdigest()


def as_tensor(state: Mapping[str, object]) -> Tensor:
    """Extra state in words and numbers as bytes of JSON: formats of tensors hold it."""
    text = _HEAD + json.dumps(state)
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8).clone()


def from_tensor(value: object) -> object:
    """What `as_tensor` was given, from what it returned; anything else as it is."""
    if not (isinstance(value, Tensor) and value.dtype == torch.uint8):
        return value
    data = bytes(value.cpu().flatten().tolist())
    if not data.startswith(_HEAD.encode()):
        return value
    try:
        return json.loads(data[len(_HEAD) :])
    except ValueError:
        return value


_HEAD = "lightning_unlearn extra state: "
