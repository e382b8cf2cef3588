"""Subsets of the training data -> positions in it."""

import sys
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data import (
    DataLoader,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
)

from lightning_unlearn._base.text import some
from lightning_unlearn.errors import ForgetSetError
from lightning_unlearn.plugin.data.forget_files import integers


def from_loader(loader: DataLoader, dataset: Any) -> Any:
    """What a loader of the forget set reads.

    Raises:
        ForgetSetError: If that cannot be told.
    """
    sampler = loader.sampler
    if loader.dataset is dataset and isinstance(sampler, SubsetRandomSampler):
        return list(sampler.indices)
    picks = isinstance(loader.dataset, Subset) or hasattr(loader.dataset, "select")
    if picks and isinstance(sampler, (SequentialSampler, RandomSampler)):
        return loader.dataset
    raise ForgetSetError(
        "expected a DataLoader over a Subset of the training dataset, got one over "
        f"{type(loader.dataset).__name__} with {type(sampler).__name__}: use "
        "DataLoader(Subset(train_dataset, indices))"
    )


def flatten(dataset: Any) -> tuple[Any, list[int]]:
    """The innermost dataset and the positions a nest of Subsets picks from it."""
    positions = list(range(len(dataset)))
    while isinstance(dataset, Subset):
        positions = through(dataset, positions)
        dataset = dataset.dataset
    return dataset, positions


def through(subset: Subset, positions: list[int]) -> list[int]:
    """Positions in a Subset as positions in its dataset, counted from the front."""
    base, own = subset.dataset, len(subset.indices)
    first, n = 0, sys.maxsize  # of a dataset that does not say how long it is
    if hasattr(base, "__len__"):
        n = len(base)  # type: ignore[arg-type]
        first = -n
    there = [i for i in positions if -own <= i < own]
    picked = integers([subset.indices[i] for i in there], "the Subset")
    outside = [i for i in positions if not -own <= i < own]
    outside += [i for i in picked if not first <= i < n]
    if outside:
        raise ForgetSetError(
            f"expected the indices of a Subset to lie in its dataset, got "
            f"{some(outside)}"
        )
    return [i % n for i in picked]


def from_subset(subset: Subset, dataset: Any) -> list[int]:
    """Positions in the training dataset of a Subset's samples.

    Raises:
        ForgetSetError: If one is not in it, or the datasets differ.
    """
    outer: Any = subset
    positions = list(range(len(subset)))
    while isinstance(outer, Subset) and outer is not dataset:
        positions = through(outer, positions)
        outer = outer.dataset
    if outer is dataset:
        return positions
    base, picked = flatten(subset)
    train_base, train_picked = flatten(dataset)
    if base is not train_base:
        if type(base) is not type(train_base) or len(base) != len(train_base):
            raise ForgetSetError(
                f"expected a Subset of the training dataset, got one of another "
                f"{type(base).__name__} with {len(base)} samples: a set that was never "
                "trained on cannot be forgotten"
            )
        _check_same_samples(base, train_base, picked)
    where = {index: position for position, index in enumerate(train_picked)}
    missing = [index for index in picked if index not in where]
    if missing:
        raise ForgetSetError(
            f"expected a Subset of the training data, got samples {some(missing)} "
            "that are not in it (a validation split?)"
        )
    return [where[index] for index in picked]


def _check_same_samples(base: Any, train_base: Any, picked: list[int]) -> None:
    """A dataset object made anew must hold, at these positions, the same samples."""
    for index in picked:
        try:
            ours, theirs = tree_leaves(train_base[index]), tree_leaves(base[index])
            same = len(ours) == len(theirs) and all(
                torch.equal(a, b)
                if isinstance(a, Tensor) and isinstance(b, Tensor)
                else bool(np.all(a == b))
                for a, b in zip(ours, theirs, strict=True)
            )
        except Exception as problem:  # whatever reading or comparing them provokes
            raise ForgetSetError(
                f"expected samples that can be compared at position {index} of the "
                f"forget set's dataset and of the training dataset, got another kind "
                f"({type(problem).__name__}: {problem!s:.200})"
            ) from None
        if not same:
            raise ForgetSetError(
                f"expected the forget set's dataset to be the training dataset, got "
                f"another sample at position {index}"
            )
