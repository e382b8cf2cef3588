"""Masks, and requests of which a part is done: as people pass them."""

import json

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from lightning_unlearn.errors import ForgetSetError
from lightning_unlearn.plugin.data.forget_set import resolve

DATA = TensorDataset(torch.arange(20.0))
MASK = np.isin(np.arange(20), [3, 7])


class Series:
    """As pandas: values, an index, no list."""

    def __init__(self, values, index):
        self.array, self.index, self.ndim = np.asarray(values), index, 1

    def __iter__(self):
        return iter(self.array)


def shape(kind):
    return {
        "array": MASK,
        "tensor": torch.tensor(MASK),
        "list": MASK.tolist(),
        "series": Series(MASK, range(20)),
        "series with labels of its own": Series(MASK, [f"row {i}" for i in range(20)]),
        "flatnonzero": np.flatnonzero(MASK),
        "np.nonzero": np.nonzero(MASK),
        "argwhere": np.argwhere(MASK),
        "torch.nonzero": torch.tensor(MASK).nonzero(),
        "labels": Series([3, 7], range(2)),
    }[kind]


KINDS = [
    *("array", "tensor", "list", "series", "series with labels of its own"),
    *("flatnonzero", "np.nonzero", "argwhere", "torch.nonzero", "labels"),
]


@pytest.mark.parametrize("kind", KINDS)
def test_what_marks_two_samples(kind):
    assert resolve(shape(kind), DATA, []) == [3, 7]


def test_masks_in_files_and_of_the_users_own_hook(tmp_path):
    np.save(tmp_path / "mask.npy", MASK)
    (tmp_path / "mask.json").write_text(json.dumps(MASK.tolist()))
    assert resolve(tmp_path / "mask.npy", DATA, []) == [3, 7]
    assert resolve(tmp_path / "mask.json", DATA, []) == [3, 7]
    assert resolve(["u3"], DATA, [], hook=lambda ids: MASK) == [3, 7]


@pytest.mark.parametrize(
    ("forget", "message"),
    [
        (MASK[:-1], "one True or False for each of the 20 samples .* got 19"),
        (torch.tensor([True]), "for each of the 20 samples .* got 1"),
        (np.zeros(20, bool), "at least one sample to forget, got none"),
        (np.ones(20, bool), "got a request for all 20"),
        ([True, 3], r"hold integers, got True \(bool\)"),
        (Series(MASK, range(20)[::-1]), "in another order: pass mask.sort_index"),
        (MASK.reshape(4, 5), r"flat list of indices, got ndarray of shape \(4, 5\)"),
    ],
)
def test_masks_that_may_mean_others(forget, message):
    with pytest.raises(ForgetSetError, match=message):
        resolve(forget, DATA, [])


def test_what_is_forgotten_already_is_named_and_the_rest_is_forgotten():
    with pytest.warns(UserWarning, match="already removed 3: this one is for the oth"):
        assert resolve([3, 7], DATA, [3, 9]) == [7]
    with pytest.raises(ForgetSetError, match="got 3: already forgotten, all of"):
        resolve([3], DATA, [3, 9])


def test_people_who_are_forgotten_already_are_named():
    data = TensorDataset(torch.arange(20.0))
    data.user = [f"u{i % 5}" for i in range(20)]
    with pytest.warns(UserWarning, match="already removed 'u3': this one"):
        assert resolve(["u3", "u4"], data, [3, 8, 13, 18], by="user") == [4, 9, 14, 19]
    assert resolve(["u3"], data, [3], by="user") == [8, 13, 18]  # and nothing is said
