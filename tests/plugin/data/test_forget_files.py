"""Forget files, well formed, damaged and hostile."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from torch.utils.data import DataLoader, Subset, TensorDataset

from lightning_unlearn.errors import ForgetSetError, UnlearningError
from lightning_unlearn.plugin.data.forget_files import read_indices
from tests.helpers.nets import (
    HeadNet,
    UnlearningCallback,
    digits,
    fitted,
    trainer,
)
from tests.plugin.request.test_refusals import refused


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "1\nx\n", "expected one index a line in .*a.txt, got 'x'"),
        ("a.json", "{}", "expected a JSON list of indices"),
        ("a.json", "[1.5]", "hold integers, got 1.5"),
        ("a.json", "[" * 100_000, "expected indices in"),
        (
            "a.csv",
            "id\n1\nfoo\n",
            "column named 'index', or a single column .* got 'id'",
        ),
        ("a.csv", "3,14,15\n", "a column named 'index', or a single column without"),
        ("a.csv", "user_id,pos\n101,3\n", r"got columns \['user_id', 'pos'\]"),
        ("a.csv", ",index\n0,3\n1\n", "the same columns in every row"),
        ("a.csv", "amount,index\n1,234,7\n", "got 3 in row 2 and 2 names"),
        ("a.csv", "index,index\n1,2\n", "one column named 'index'"),
        ("a.txt", "3, 14, 15\n", "expected one index a line in .* got '3, 14, 15'"),
        ("a.txt", "1_0\n", "expected one index a line in .* got '1_0'"),
        ("a.txt", "9" * 5000, "expected one index a line in .* got '9999"),
        ("a.json", "[NaN]", "hold integers, got nan"),
        ("a.json", "[true, 1]", "hold integers, got True"),
    ],
)
def test_malformed_files(name, content, message, tmp_path):
    net, fit_trainer, callback, _ = fitted()
    path = tmp_path / name
    path.write_text(content)
    refused(ForgetSetError, message, net, fit_trainer, callback, str(path))


def header(shape, dtype="<i8"):
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


@pytest.mark.parametrize(
    "content",
    [
        b"", b"PK\x03\x04zip", b"\x93NUMPY\x01\x00", b"\x93NUMPY\x09\x00",
        header("(1000000000000,)"), header("(10, 99999999)"), header("(3,)", "<c16"),
    ],
)  # fmt: skip
def test_damaged_arrays(content, tmp_path):
    net, fit_trainer, callback, _ = fitted()
    path = tmp_path / "a.npy"
    path.write_bytes(content)
    refused(ForgetSetError, "expected indices in", net, fit_trainer, callback, path)


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    net, fit_trainer, callback, _ = fitted()
    path = tmp_path / "a.txt"
    with path.open("wb") as file:
        file.truncate(300 << 20)  # it takes no room
    refused(ForgetSetError, "at most 256 MiB, got", net, fit_trainer, callback, path)


@settings(max_examples=300, deadline=None)
@given(
    suffix=st.sampled_from([".txt", ".json", ".npy", ".csv"]),
    content=st.one_of(st.binary(max_size=100), st.text(max_size=50).map(str.encode)),
)
def test_any_file_gives_integers_or_a_named_error(suffix, content):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a{suffix}"
        path.write_bytes(content)
        try:
            found = read_indices(path)
        except ForgetSetError:
            return
    assert all(type(i) is int for i in found)


def test_pickles_in_npy_files_are_never_loaded(tmp_path):
    net, fit_trainer, callback, _ = fitted()
    path = tmp_path / "a.npy"
    np.save(path, np.array([{"x": 1}], dtype=object), allow_pickle=True)
    refused(ForgetSetError, "allow_pickle", net, fit_trainer, callback, path)
    np.save(path, np.array([3, 4]))
    assert fit_trainer.unlearn(path).n_forget == 2


class Odd(TensorDataset):
    """Its samples have another shape the second time."""

    def __getitem__(self, index):
        X, y = super().__getitem__(index)
        return X[: 5 + index], y


@pytest.mark.parametrize(
    ("training", "forget", "message"),
    [
        (lambda d: d, lambda d: Subset(Subset(d, [1, 2]), [5]), "to lie in its"),
        (lambda d: d, lambda d: Subset(d, [9_999]), "to lie in its dataset"),
        (lambda d: d, lambda d: Subset(Odd(*d.tensors), [1]), "a Subset|another"),
        (lambda d: Subset(d, [1, 2, 9_999]), lambda d: [0], "to lie in its dataset"),
    ],
)
def test_subsets_that_point_outside_are_named(training, forget, message):
    data = digits(200)
    own, net = UnlearningCallback(noise_std=0.0), HeadNet()
    with pytest.raises(UnlearningError, match=message):
        trainer(own).unlearn(
            forget(data), model=net, train_dataloaders=DataLoader(training(data), 64)
        )


def test_copies_under_negative_positions_are_forgotten_together():
    data = digits(100)
    own = UnlearningCallback()
    result = trainer(own).unlearn(
        [0], model=HeadNet(),
        train_dataloaders=DataLoader(Subset(data, [99, -1, *range(50)]), 16),
    )  # fmt: skip
    assert own.record.removed == [0, 1]
    assert result.n_forget == 2
