"""Forget sets out of a `datasets.Dataset`: what was picked from it, and columns."""

import pytest
import torch
from torch.utils.data import DataLoader, Subset

from lightning_unlearn.errors import ForgetSetError
from lightning_unlearn.plugin.data import forget_set

datasets = pytest.importorskip("datasets", reason="needs the package datasets")
N = 12


@pytest.fixture(autouse=True)
def _quiet():
    datasets.disable_progress_bars()


def table():
    return datasets.Dataset.from_dict({
        "input_ids": [[i, i + 1] for i in range(N)],
        "user_id": [f"u{i // 3}" for i in range(N)],
        "label": [i % 2 for i in range(N)],
    })  # fmt: skip


def third(row):
    return row["user_id"] == "u2"


@pytest.mark.parametrize(
    ("pick", "expected"),
    [
        (lambda d: d.select([7, 2, 4]), [2, 4, 7]),
        (lambda d: d.select(range(3, 6)), [3, 4, 5]),  # a slice of the table
        (lambda d: d.filter(third), [6, 7, 8]),
        (lambda d: d.select(range(2, 12)).filter(third).select([1]), [7]),
        (lambda d: d.shuffle(seed=1).filter(third).with_format("torch"), [6, 7, 8]),
        (lambda d: DataLoader(d.select([5, 1]), 2), [1, 5]),
        (lambda d: d.remove_columns("label").filter(third), [6, 7, 8]),
        (lambda d: d.select_columns("user_id").filter(third), [6, 7, 8]),
    ],
)
def test_rows_that_were_picked_are_known_again(pick, expected):
    dataset = table()
    assert forget_set.resolve(pick(dataset), dataset, []) == expected


def test_the_training_data_may_be_picked_themselves():
    whole = table()
    train = whole.shuffle(seed=3).select(range(2, 12))
    ours = [train[i]["input_ids"][0] for i in (3, 7)]  # as they stood before
    assert forget_set.resolve(whole.select(ours), train, []) == [3, 7]
    part = Subset(whole, [9, 6, 3])
    assert forget_set.resolve(whole.select([6]), part, []) == [1]
    twice = whole.select([4, 5, 4, 6])
    assert forget_set.resolve(whole.select([4]), twice, []) == [0, 2]
    both = datasets.concatenate_datasets([whole, table()])
    assert forget_set.resolve(whole.select([6]), both, []) == [6]


def test_rows_of_other_data_are_refused():
    dataset = table()
    train = dataset.select(range(6))
    with pytest.raises(ForgetSetError, match="2 of 3 that are not in its memory"):
        forget_set.resolve(dataset.select([5, 6, 7]), train, [])
    with pytest.raises(ForgetSetError, match="very dataset that was trained on"):
        forget_set.resolve(table().select([1]), dataset, [])
    plain = torch.utils.data.TensorDataset(torch.zeros(N))
    with pytest.raises(ForgetSetError, match="where these are TensorDataset"):
        forget_set.resolve(dataset.select([1]), plain, [])
    with pytest.raises(ForgetSetError, match="request for all"):
        forget_set.resolve(dataset, dataset, [])
    with pytest.raises(ForgetSetError, match="leave out by="):
        forget_set.resolve(dataset.select([1]), dataset, [], by="user_id")


@pytest.mark.parametrize("format", [None, "torch", "numpy"])
def test_ids_are_those_of_a_column(format):
    dataset = table().with_format(format)
    assert forget_set.resolve(["u1"], dataset, [], by="user_id") == [3, 4, 5]
    part = Subset(dataset, [9, 4, 3])
    assert forget_set.resolve(["u1"], part, [], by="user_id") == [1, 2]
    picked = dataset.select([11, 3, 5])
    assert forget_set.resolve(["u1"], picked, [], by="user_id") == [1, 2]


def test_a_name_that_is_no_column_is_refused_though_it_is_an_attribute():
    with pytest.raises(ForgetSetError, match="columns are input_ids, user_id, label"):
        forget_set.resolve([1], table(), [], by="shape")
    with pytest.raises(ForgetSetError, match="'u9'"):
        forget_set.resolve(["u9"], table(), [], by="user_id")
