"""The training data behind a loader, and what it is known again by."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, IterableDataset

from lightning_unlearn.errors import DataError
from lightning_unlearn.step.batch_checks import spread_places


def check_passed(loader: object) -> None:
    """Refuse what was passed to a training as its data, before anything is made.

    Args:
        loader: What was passed; None if a module makes it later.

    Raises:
        DataError: As `training_loader`.
    """
    if loader is not None:
        training_loader(loader)


def training_loader(loader: object) -> DataLoader:
    """The one map-style DataLoader the model trains on.

    Raises:
        DataError: If there is none, or several, or the dataset is iterable.
    """
    if not isinstance(loader, DataLoader):
        raise DataError(
            "expected one torch DataLoader as the training data, got "
            f"{type(loader).__name__}: with an UnlearningCallback pass one "
            "train_dataloaders=DataLoader(...), over a ConcatDataset or a dataset of "
            "tuples if there are several; several loaders at once (a list, a dict, a "
            "CombinedLoader) have no single set of samples to forget from"
        )
    dataset = loader.dataset
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        raise DataError(
            "expected a map-style training dataset with __len__ and __getitem__, got "
            f"{type(dataset).__name__}: samples of an IterableDataset have no "
            "positions to forget; index them first, or train without the "
            "UnlearningCallback"
        )
    if loader.batch_sampler is None:
        raise DataError(
            "expected a DataLoader that batches samples, got batch_size=None: "
            "positions would be those of ready-made batches; let the loader batch "
            "single samples"
        )
    return loader


def loaders_in(found: Any) -> list[Any]:
    """The single loaders in what a Trainer has for validation."""
    if found is None:
        return []
    if hasattr(found, "flattened"):  # a CombinedLoader
        found = found.flattened
    if isinstance(found, Mapping):
        found = list(found.values())
    if isinstance(found, (list, tuple)):
        return [one for part in found for one in loaders_in(part)]
    return [found]


def rebuilder(trainer: Any, dataset: Any) -> Any:
    """Who offers ``dataset_without(positions)``: the DataModule, the data, or None."""
    owners = getattr(trainer, "datamodule", None), dataset
    return next((o for o in owners if callable(getattr(o, "dataset_without", 0))), None)


def fingerprint(dataset: Any, salt: str, removed: Sequence[int] = ()) -> str | None:
    """Salted SHA-256 of the length and 32 evenly spaced samples of a dataset.

    Args:
        dataset: The training dataset.
        salt: Random key.
        removed: Positions left out: nothing kept may depend on forgotten samples.

    Returns:
        The digest, or None if a sample differs between two reads or is of a type
        that cannot be hashed.
    """
    n = len(dataset)
    left_out = np.asarray(removed, dtype=int)
    kept = np.setdiff1d(np.arange(n), left_out, assume_unique=True)  # no sorting
    positions = kept[spread_places(len(kept))]
    first, second = (
        _digest([dataset[int(i)] for i in positions], n, salt) for _ in range(2)
    )
    return first if first == second else None


def sample_digest(sample: Any, salt: str = "") -> str | None:
    """SHA-256 of one sample, or None if it holds what cannot be hashed.

    In whatever order its dictionaries were filled: a sample of two tables whose
    columns stand in another order is one.
    """
    return _digest([_ordered(sample)], 1, salt)


def _ordered(sample: Any) -> Any:
    """The same leaves, those of dictionaries by the order of their keys."""
    if isinstance(sample, dict):
        keys = sorted(sample, key=lambda key: (type(key).__name__, repr(key)))
        return [_ordered(sample[key]) for key in keys]
    if isinstance(sample, (list, tuple)):
        return [_ordered(part) for part in sample]
    return sample


def _digest(samples: list[Any], n: int, salt: str) -> str | None:
    sha = hashlib.sha256(f"{salt}|{n}|".encode())
    for leaf in tree_leaves(samples):
        if isinstance(leaf, Tensor):
            leaf = leaf.detach().cpu().contiguous()
            data = leaf.reshape(-1).view(torch.uint8).numpy().tobytes()
        elif isinstance(leaf, np.ndarray):
            data = np.ascontiguousarray(leaf).tobytes()
        elif hasattr(leaf, "tobytes"):  # PIL images, numpy scalars
            data = leaf.tobytes()
        elif isinstance(leaf, (str, bytes, int, float, bool, type(None))):
            data = repr(leaf).encode()
        else:
            return None  # nothing is known of what is inside
        sha.update(f"{type(leaf).__name__}|{len(data)}|".encode())
        sha.update(data)
    return sha.hexdigest()
