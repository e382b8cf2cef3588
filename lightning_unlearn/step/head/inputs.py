"""Batches of inputs and targets, from whatever holds them."""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only
from torch.utils.data import DataLoader, Dataset

from lightning_unlearn.errors import DataError
from lightning_unlearn.step.head.reading.keywords import TARGETS
from lightning_unlearn.weights.opaque import tensors_in

_WEIGHTS = "sample_weight"  # of a mapping, as scikit-learn names it


class MapStyle(Protocol):
    """Samples by position: `datasets.Dataset`, a list, anything alike."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


Samples = Tensor | Dataset | DataLoader | MapStyle


def batches(data: Any, batch_size: int) -> Iterator[Any]:
    """Batches of inputs: tensors or mappings of them, n first."""
    if isinstance(data, Tensor):
        yield from data.split(batch_size)
        return
    read = isinstance(data, (Dataset, DataLoader)) or (
        hasattr(data, "__getitem__")
        and hasattr(data, "__len__")
        and not isinstance(data, (str, Mapping))
    )
    if not read:
        raise DataError(
            "expected public_data= to be a tensor (n, ...), a Dataset or a DataLoader, "
            f"got {type(data).__name__}: inputs that are no training samples, for "
            'the statistics of the features and their shapes; with standardize="none" '
            "one of them will do"
        )
    loader = data if isinstance(data, DataLoader) else in_order(data, batch_size)
    own = loader is not data
    batches_of = _put_together(loader, type(data).__name__) if own else loader
    for batch in batches_of:
        inputs = inputs_of(batch)
        _check_tensors(inputs)
        yield inputs


def _put_together(loader: DataLoader, name: str) -> Iterator[Any]:
    """Batches of a loader of ours, or `DataError` for samples of different sizes."""
    try:
        yield from loader
    except (RuntimeError, TypeError) as error:  # what torch's own collate_fn raises
        raise DataError(
            f"expected public_data= whose samples make batches as they are, got {name} "
            f"({type(error).__name__}: {str(error)[:200]}): give a DataLoader with the "
            "collate_fn that pads them, DataCollatorWithPadding(tokenizer) for texts"
        ) from error


def _check_tensors(inputs: Any) -> None:
    """Raise `DataError` for texts that were put together as lists."""
    ids = inputs.get("input_ids") if isinstance(inputs, Mapping) else None
    if ids is not None and not isinstance(ids, Tensor):
        raise DataError(
            f"expected input_ids (n, t) as one tensor, got {type(ids).__name__}: give "
            "a DataLoader with collate_fn=DataCollatorWithPadding(tokenizer)"
        )


def in_order(data: Dataset | DataLoader | MapStyle, batch_size: int) -> DataLoader:
    """All samples in their order, though a loader shuffles or drops the last batch.

    It draws nothing from torch's global generator.
    """
    collate = None
    if isinstance(data, DataLoader):
        data, collate = data.dataset, data.collate_fn
    own = torch.Generator()
    dataset: Any = data
    return DataLoader(dataset, batch_size, collate_fn=collate, generator=own)


def split_batch(batch: Any) -> tuple[Any, Tensor]:
    """Inputs and targets of a batch.

    Args:
        batch: ``(inputs, targets)``, or a mapping whose "labels" (or "label") are the
            targets and whose other entries are keywords of the model.

    Raises:
        DataError: If it is neither.
    """
    if isinstance(batch, Mapping):
        for name in TARGETS:
            if name in batch:
                return inputs_of(batch), batch[name]
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch[0], batch[1]
    several = f" of {len(batch)}" if isinstance(batch, (tuple, list)) else ""
    raise DataError(
        f'expected batches (inputs, targets) or mappings with "{TARGETS[0]}", got '
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
        return {k: v for k, v in batch.items() if k not in TARGETS}
    return batch[0] if isinstance(batch, (tuple, list)) else batch


def first_batch(data: Any, batch_size: int) -> Any:
    """The first batch of inputs that holds a sample.

    Raises:
        DataError: If there is none.
    """
    for batch in batches(data, batch_size):
        if all(len(leaf) for leaf in tensors_in(batch)):
            return batch
    raise DataError("expected public_data= with at least one sample, got none")


def cast(inputs: Any, dtype: torch.dtype) -> Any:
    """Inputs with floating-point tensors in a dtype."""
    return tree_map_only(
        Tensor, lambda t: t.to(dtype) if t.is_floating_point() else t, inputs
    )


def to_device(inputs: Any, device: torch.device) -> Any:
    """Inputs with every tensor of them on a device."""
    return tree_map_only(Tensor, lambda t: t.to(device), inputs)
