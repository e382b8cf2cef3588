"""Batches of inputs and targets, from whatever holds them."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.data import DataLoader, Dataset

from lightning_unlearn.errors import DataError

_TARGETS = "labels"  # of a mapping, as transformers names them
_WEIGHTS = "sample_weight"  # of a mapping, as scikit-learn names it


def batches(data: Any, batch_size: int) -> Iterator[Any]:
    """Batches of inputs: tensors or mappings of them, n first."""
    if isinstance(data, Tensor):
        yield from data.split(batch_size)
        return
    if data is None or not isinstance(data, (Dataset, DataLoader)):
        raise DataError(
            "expected public_data= to be a tensor (n, ...), a Dataset or a DataLoader, "
            f"got {type(data).__name__}: inputs that are no training samples, for "
            'the statistics of the features and their shapes; with standardize="none" '
            "one of them will do"
        )
    loader = data if isinstance(data, DataLoader) else in_order(data, batch_size)
    yield from map(inputs_of, loader)


def in_order(data: Dataset | DataLoader, batch_size: int) -> DataLoader:
    """All samples in their order, though a loader shuffles or drops the last batch.

    It draws nothing from torch's global generator.
    """
    collate = None
    if isinstance(data, DataLoader):
        data, collate = data.dataset, data.collate_fn
    own = torch.Generator()
    return DataLoader(data, batch_size, collate_fn=collate, generator=own)


def split_batch(batch: Any) -> tuple[Any, Tensor]:
    """Inputs and targets of a batch.

    Args:
        batch: ``(inputs, targets)``, or a mapping whose "labels" are the targets and
            whose other entries are keywords of the model.

    Raises:
        DataError: If it is neither.
    """
    if isinstance(batch, Mapping) and _TARGETS in batch:
        return inputs_of(batch), batch[_TARGETS]
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch[0], batch[1]
    several = f" of {len(batch)}" if isinstance(batch, (tuple, list)) else ""
    raise DataError(
        f'expected batches (inputs, targets) or mappings with "{_TARGETS}", got '
        f"{type(batch).__name__}{several}: give the dataset or its collate_fn that "
        "form, say sample_weights=True if the third are weights of samples, or "
        "override inputs_and_targets(batch) of a module"
    )


def split_weights(batch: Any) -> tuple[Any, Tensor | None]:
    """A batch without the weights of its samples, and these (n,) if it has any.

    Args:
        batch: ``(inputs, targets, weights)``, or a mapping with "sample_weight".
    """
    if isinstance(batch, Mapping) and _WEIGHTS in batch:
        return {k: v for k, v in batch.items() if k != _WEIGHTS}, batch[_WEIGHTS]
    if isinstance(batch, (tuple, list)) and len(batch) == 3:
        return batch[:2], batch[2]
    return batch, None


def inputs_of(batch: Any) -> Any:
    """The inputs in a batch with or without targets; those of a mapping as a dict."""
    if isinstance(batch, Mapping):
        return {k: v for k, v in batch.items() if k != _TARGETS}
    return batch[0] if isinstance(batch, (tuple, list)) else batch


def first_batch(data: Any, batch_size: int) -> Any:
    """The first batch of inputs that holds a sample.

    Raises:
        DataError: If there is none.
    """
    for batch in batches(data, batch_size):
        if all(len(leaf) for leaf in leaves(batch)):
            return batch
    raise DataError("expected public_data= with at least one sample, got none")


def leaves(inputs: Any) -> list[Tensor]:
    """The tensors of inputs."""
    return [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]


def cast(inputs: Any, dtype: torch.dtype) -> Any:
    """Inputs with floating-point tensors in a dtype."""
    return tree_map_only(
        Tensor, lambda t: t.to(dtype) if t.is_floating_point() else t, inputs
    )


def to_device(inputs: Any, device: torch.device) -> Any:
    """Inputs with every tensor of them on a device."""
    return tree_map_only(Tensor, lambda t: t.to(device), inputs)
