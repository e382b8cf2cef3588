import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Subset, TensorDataset

from lightning_unlearn.plugin.data.exact_batches import ExactBatches, plain_batches


def tensors():
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(40, 2, 3, generator=generator)
    return TensorDataset(X, torch.arange(40), torch.arange(40) / 7)


class Shifted(TensorDataset):
    """A subclass may do anything with its samples."""

    def __getitem__(self, index):
        x, *rest = super().__getitem__(index)
        return (x + 1, *rest)


DATASETS = {
    "tensors": tensors,
    "subset": lambda: Subset(tensors(), [3, 1, 39, 3, 8, 0, 20, 21]),
    "range": lambda: Subset(tensors(), range(5, 25)),
    "nested": lambda: Subset(Subset(tensors(), torch.arange(30, 10, -1)), range(2, 12)),
    "subclass": lambda: Shifted(*tensors().tensors),
}


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("name", DATASETS)
def test_batches_are_those_of_a_loader(name, workers):
    dataset = DATASETS[name]()
    indices = [7, 0, 5, 6, 2]
    expected = list(DataLoader(Subset(dataset, indices), batch_size=2))
    loader = DataLoader(dataset, batch_size=4, shuffle=True, num_workers=workers)
    batches = ExactBatches(loader, indices, 2)
    for _ in range(2):  # read, and from memory
        found = list(batches)
        assert [weight for weight, _ in found] == [2, 2, 1]
        for (_, batch), other in zip(found, expected, strict=True):
            assert type(batch) is type(other)
            for one, two in zip(batch, other, strict=True):
                assert one.dtype == two.dtype
                assert torch.equal(one, two)
    weight, batch = batches.take([2, 0])
    assert weight == 2
    for one, two in zip(batch, zip(dataset[5], dataset[7], strict=True), strict=True):
        assert torch.equal(one, torch.stack(two))


class Base(torch.utils.data.Dataset):
    def __len__(self):
        return 40

    def __getitem__(self, index):
        return torch.ones(2) * index


def own_getitems(dataset):
    dataset.__getitems__ = lambda indices: [dataset[i] for i in reversed(indices)]
    return dataset


ODD = {
    "another dataset": Base,
    "subclass": lambda: Shifted(*tensors().tensors),
    "subset of a subclass": lambda: Subset(Shifted(*tensors().tensors), [0, 1]),
    "own __getitems__": lambda: own_getitems(tensors()),
    "subset with its own": lambda: own_getitems(Subset(tensors(), [0, 1])),
    "indices in a dictionary": lambda: Subset(tensors(), {0: 3, 1: 4}),
    "indices that are no integers": lambda: Subset(tensors(), [True, (1,)]),
}


@pytest.mark.parametrize("name", ODD)
def test_what_is_not_plain_is_read_sample_by_sample(name):
    assert plain_batches(ODD[name](), [0]) is None


def test_what_behaves_differently_is_read_sample_by_sample(monkeypatch):
    assert plain_batches(tensors(), [0, 39]) is not None

    def patched(self, index):
        return tuple(t[index] + 1 for t in self.tensors)

    monkeypatch.setattr(TensorDataset, "__getitem__", patched)
    assert plain_batches(tensors(), [0, 39]) is None

    def negated(samples):
        return [-torch.stack([s[0] for s in samples])]

    loader = DataLoader(tensors(), batch_size=4, collate_fn=negated)
    (_, batch), *_ = ExactBatches(loader, [3, 4], 2)
    assert torch.equal(batch[0], -tensors().tensors[0][3:5] - 1)


@pytest.mark.parametrize("kind", ["uint8", "int16", "uint16", "uint64", "torch.int32"])
def test_indices_of_any_width(kind):
    indices = np.array([7, 3, 39], dtype=kind.removeprefix("torch."))
    if kind.startswith("torch"):
        indices = torch.tensor(indices)
    dataset = Subset(tensors(), indices)
    _, batch = next(iter(ExactBatches(DataLoader(dataset, 4), [0, 1, 2], 3)))
    assert batch[1].tolist() == [7, 3, 39]


def test_blocks_hold_the_same_positions_whatever_is_missing():
    loader = DataLoader(tensors(), 4)
    for indices, parts in (
        (list(range(10)), [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]),
        ([0, 3, 4, 6, 7, 9], [[0, 3], [4, 6, 7], [9]]),
        ([1, 39], [[1], [39]]),
    ):
        batches = ExactBatches(loader, indices, 4, by_position=True)
        found = [(weight, batch[1].tolist()) for weight, batch in batches]
        assert [batch[:weight] for weight, batch in found] == parts
        for part, (_, batch) in zip(parts, found, strict=True):
            assert len(batch) == 4  # filled up by its own
            assert set(batch) == set(part)
        assert batches.n == len(indices)


def test_a_batch_is_a_copy():
    dataset = tensors()
    _, batch = next(iter(ExactBatches(DataLoader(dataset, 4), [0, 1], 2)))
    batch[0].zero_()
    assert float(dataset.tensors[0][:2].abs().min()) > 0
