import os
import re
from pathlib import Path

import pytest
import torch

from lightning_unlearn.errors import DataError
from lightning_unlearn.step.head.capture import capture, check_rows
from lightning_unlearn.step.head.convex_head import ConvexHead
from lightning_unlearn.step.head.convex_objective import ConvexObjective
from lightning_unlearn.step.head.rows import feature_data as features
from lightning_unlearn.step.head.rows.feature_data import FeatureData
from lightning_unlearn.weights import large_arrays as storage
from lightning_unlearn.weights.passes import passes
from lightning_unlearn.weights.scope import Scope
from tests.helpers.problems import ListBatches, classification

CPU = torch.device("cpu")


@pytest.fixture
def no_memory(monkeypatch, tmp_path):
    monkeypatch.setattr(storage, "free_bytes", lambda device: 0)
    monkeypatch.setattr(storage.tempfile, "tempdir", str(tmp_path))


def open_files(folder):
    maps = Path("/proc/self/maps")
    return re.findall(f"{folder}/\\S+", maps.read_text()) if maps.exists() else []


def test_what_fits_is_in_memory(tmp_path):
    there = storage.empty((3, 4), torch.float32, CPU)
    assert there.shape == (3, 4)
    assert not open_files(tmp_path)


def test_what_does_not_fit_is_in_a_file_without_a_name(no_memory, tmp_path):
    there = storage.empty((300, 4), torch.float64, CPU)
    there[:] = 3
    assert open_files(tmp_path)  # really mapped
    assert not os.listdir(tmp_path)  # and gone whatever happens
    assert float(there.sum()) == 3600


def test_a_full_disk_is_said(no_memory, monkeypatch, tmp_path):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage.os, "posix_fallocate", full)
    with pytest.raises(DataError, match="No space left.*TMPDIR at a larger disk"):
        storage.empty((300, 4), torch.float64, CPU)
    assert not os.listdir(tmp_path)


def test_a_mapped_head_gives_the_same_objective(no_memory, tmp_path):
    X, y = classification(n=40, dtype=torch.float32)
    head = ConvexHead(5, 3)

    def loss(batch, index):
        return head.loss(*batch)

    with passes(head, Scope(head, head.parameters()), torch.float32):
        rows = capture(loss, head, ListBatches(X, y))
    assert open_files(tmp_path)
    assert torch.equal(rows.features, X)
    w = torch.randn(18, dtype=torch.float64)
    mapped = ConvexObjective(head, rows, 0.1).gradient(w)
    plain = ConvexObjective(head, FeatureData(X, y), 0.1).gradient(w)
    assert torch.equal(mapped[0], plain[0])
    assert mapped[1] == plain[1]


def test_chosen_rows_are_copied_in_order(monkeypatch):
    monkeypatch.setattr(features, "_CHUNK", 3)
    X, y = classification(n=11)
    places = torch.tensor([10, 0, 4, 4, 7])
    some = FeatureData(X, y).select(places, CPU)
    assert torch.equal(some.features, X[places])
    assert torch.equal(some.targets, y[places])
    some.features.zero_()
    assert float(X.abs().min()) > 0  # a copy


def test_other_samples_than_those_captured_are_found():
    X, y = classification(n=20, dtype=torch.float32)
    head = ConvexHead(5, 3)

    def loss(batch, index):
        return head.loss(*batch)

    def check(features, targets):
        rows = FeatureData(features, targets)
        with passes(head, Scope(head, head.parameters()), torch.float32):
            check_rows(loss, head, ListBatches(X, y), rows)

    check(X, y)
    check(X * (1 + 1e-6), y)  # what the size of a batch does to rounding
    changed = X.clone()
    changed[13, 2] += 0.1
    with pytest.raises(DataError, match="the samples that were prepared.*prepare"):
        check(changed, y)
    with pytest.raises(DataError, match="the samples that were prepared"):
        check(X, y.roll(1))
    with pytest.raises(DataError, match="the samples that were prepared"):
        check(X[:10], y[:10])
