"""Private data that grows, changes and shrinks: the same solve, the same guarantee."""

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Subset, TensorDataset

from lightning_unlearn.certificate import ledger as ledgers
from lightning_unlearn.errors import DataError
from tests.plugin.helpers.publics import (
    accuracy,
    backbone,
    held_out,
    loader,
    private,
    solved,
)
from tests.plugin.test_certified import distance, features_of, logistic

L2, TAU = 1e-3, 1e-6


def fit(own, net, dataset):
    own.fit(net, loader(dataset), DataLoader(dataset, 256))


def some(indices):
    x, y = private().tensors
    return TensorDataset(x[list(indices)], y[list(indices)])


def optimum(net, *parts):
    """Of the union of datasets of tensors, by scipy."""
    rows, classes = zip(*(features_of(net, part) for part in parts), strict=True)
    return logistic(np.concatenate(rows), np.concatenate(classes), 5, L2)


def test_new_samples_after_a_deletion_and_a_deletion_after_them(tmp_path):
    first, new = some(range(300)), some(range(300, 450))
    net, own, callback, _ = solved(
        dataset=first, noise_std=0.0, ledger=tmp_path / "ledger.jsonl", tolerance=TAU
    )
    own.unlearn(range(20), save_to=tmp_path / "one.ckpt")
    grown = ConcatDataset([Subset(first, callback.retained_indices), new])
    fit(own, net, grown)
    assert (callback.record.n_train, callback.record.removed) == (430, [])
    solution = optimum(net, some(range(20, 450)))
    assert distance(net, solution) < 2 * TAU / L2
    result = own.unlearn([0, 429], save_to=tmp_path / "two.ckpt")  # an old, a new one
    assert (result.n_forget, result.certificate.release) == (2, 2)
    assert distance(net, optimum(net, some(range(21, 449)))) < TAU / L2
    assert len(ledgers.read(tmp_path / "ledger.jsonl").entries) == 2


def test_with_noise_every_release_is_certified_while_data_grow():
    data, rest = some(range(200)), 200
    net, own, callback, _ = solved(dataset=data, releases=10, tolerance=1e-8)
    for release in range(1, 4):
        certificate = own.unlearn([0, 1, 2]).certificate
        assert certificate.grade.value == "certified"
        assert certificate.release == release
        assert certificate.composed_epsilon <= 1
        new = some(range(rest, rest + 50))
        rest += 50
        data = ConcatDataset([Subset(data, callback.retained_indices), new])
        fit(own, net, data)
    assert accuracy(net, held_out()) > 0.85


@pytest.mark.parametrize(
    "wrong",
    [
        lambda old, new, kept: ConcatDataset([old, new]),  # the forgotten are in it
        lambda old, new, kept: ConcatDataset([new, Subset(old, kept)]),
        lambda old, new, kept: ConcatDataset([Subset(old, [*kept[1:], 0]), new]),
        lambda old, new, kept: TensorDataset(*(
            torch.cat(pair) for pair in zip(
                Subset(old, kept)[:], new.tensors, strict=True))),
    ],
)  # fmt: skip
def test_growth_that_does_not_begin_with_what_is_left_is_refused(wrong):
    first, new = some(range(200)), some(range(200, 260))
    net, own, callback, _ = solved(dataset=first)
    own.unlearn([0, 5])
    kept = callback.retained_indices
    before = net.head.weight.detach().clone()
    with pytest.raises(DataError, match=r"ConcatDataset\(\[old, new\]\)"):
        fit(own, net, wrong(first, new, kept))
    assert torch.equal(before, net.head.weight)
    assert callback.record.removed == [0, 5]


def test_a_part_that_was_unlearned_as_a_whole_and_comes_back_is_warned_of():
    first, second = some(range(200)), some(range(200, 230))
    both = ConcatDataset([first, second])
    net, own, callback, _ = solved(dataset=both)
    own.unlearn(range(200, 230))
    with pytest.warns(
        UserWarning, match="30 samples that were unlearned were the last"
    ):
        fit(own, net, both)


def test_relabelling_is_adding_the_new_and_forgetting_the_old():
    first = some(range(300))
    x, y = first.tensors
    old, right = list(range(15)), (y[:15] + 1) % 5
    net, own, callback, _ = solved(dataset=first, noise_std=0.0, tolerance=TAU)
    corrected = TensorDataset(x[:15], right)
    fit(own, net, ConcatDataset([first, corrected]))
    own.unlearn(old)
    expected = optimum(net, some(range(15, 300)), corrected)
    assert distance(net, expected) < TAU / L2
    assert (net(x[:15]).argmax(1) == right).float().mean() > 0.5


def test_a_user_who_came_later_goes_as_a_whole():
    first, new = some(range(200)), some(range(200, 240))
    first.user_id = [f"u{i % 20}" for i in range(200)]
    new.user_id = ["late"] * 40
    data = ConcatDataset([first, new])
    data.user_id = first.user_id + new.user_id
    net, own, _, _ = solved(dataset=data, noise_std=0.0, tolerance=TAU)
    result = own.unlearn(["late"], by="user_id")
    assert result.n_forget == 40
    assert distance(net, optimum(net, first)) < TAU / L2
    assert backbone().digest == net.backbone.digest
