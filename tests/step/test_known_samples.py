"""Samples known again: one name however padded, near copies and no others."""

import copy

import pytest
import torch
from torch import nn

from lightning_unlearn.errors import GuaranteeError
from lightning_unlearn.step.known_samples import (
    Sketches,
    Watch,
    blank_samples,
    public_ones,
    sample_names,
)
from tests.helpers.nets import digits

TEXTS = [[5, 6, 7], [5, 6], [8], [5, 6, 7, 0], [0], [6, 5]]


def padded(texts, length, pad=0, left=False, **more):
    ids = torch.full((len(texts), length), pad)
    mask = torch.zeros(len(texts), length, dtype=torch.long)
    for i, text in enumerate(texts):
        at = slice(length - len(text), length) if left else slice(0, len(text))
        ids[i, at], mask[i, at] = torch.tensor(text), 1
    return {"input_ids": ids, "attention_mask": mask, **more}


def test_a_text_has_one_name_however_it_is_padded():
    names = sample_names(padded(TEXTS, 4))
    assert len(set(names)) == len(TEXTS)  # no two of them are confused
    types = torch.zeros(6, 9, dtype=torch.long)
    for other in (
        padded(TEXTS, 9),
        padded(TEXTS, 9, pad=3),
        padded(TEXTS, 7, left=True),
        padded(TEXTS, 9, token_type_ids=types),  # all 0: the default
    ):
        assert sample_names(other) == names
    other = {k: v.to(torch.int32) for k, v in padded(TEXTS, 5).items()}
    assert sample_names(dict(reversed(other.items()))) == names
    bools = padded(TEXTS, 5)
    bools["attention_mask"] = bools["attention_mask"].bool()
    assert sample_names(bools) == names


def test_other_token_types_or_other_inputs_are_another_sample():
    names = sample_names(padded(TEXTS, 4))
    types = torch.zeros(6, 4, dtype=torch.long)
    types[0, 1] = 1
    second = sample_names(padded(TEXTS, 4, token_type_ids=types))
    assert [a != b for a, b in zip(names, second, strict=True)] == [True, *5 * [False]]
    pixels = torch.arange(12.0).reshape(6, 2)
    seen = [sample_names(padded(TEXTS, 4, pixels=x)) for x in (pixels, pixels + 1)]
    assert not set(seen[0]) & set(seen[1])
    # Without a mask every token counts.
    bare = [sample_names({"input_ids": padded(TEXTS, n)["input_ids"]}) for n in (4, 5)]
    assert not set(bare[0]) & set(bare[1])


def test_blank_samples_say_nothing():
    x = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    assert blank_samples(x) == [True, True, False]
    assert blank_samples(padded(TEXTS, 4)) == [False] * 6
    assert blank_samples(x[:, :1]) == [False] * 3  # one number is all there is
    known = torch.tensor(sample_names(x))
    assert public_ones(x, known) == [False, False, True]


def sketched(rows):
    made = Sketches()
    for part in rows.split(50):
        made.add(part)
    return made.closed()


@pytest.mark.parametrize("d", [2, 4, 8, 30])
def test_other_samples_of_the_same_kind_are_not_near(d):
    torch.manual_seed(d)
    net = nn.Sequential(nn.Linear(d, 24), nn.Tanh()).requires_grad_(False)
    x = torch.randn(3000, d)
    made = sketched(net(x[:800]))
    assert not made.near(net(x[800:])).any()


@pytest.mark.parametrize("noise", [0.0, 1e-3, 5e-3])
def test_near_copies_of_images_are_found_and_other_images_are_not(noise):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 48), nn.Tanh()).requires_grad_(False)
    x = digits().tensors[0]
    made = sketched(net(x[:600]))
    copies = x[:600] + noise * torch.randn(600, 64)
    assert made.near(net(copies)).float().mean() > 0.95
    assert not made.near(net(x[600:])).any()


def test_a_sketch_keeps_distances():
    torch.manual_seed(0)
    rows = torch.randn(300, 500)
    made = sketched(rows)
    moved = rows + 0.3 * torch.randn(300, 500)
    centred = [(r - rows[:100].mean(0)) / rows[:100].std(0) for r in (rows, moved)]
    true = 1 - torch.cosine_similarity(*centred)
    seen = made._apart(made._of(moved))
    assert float((seen / true).log().abs().max()) < 1  # a factor of 1 +- .18 each


def test_alike_public_samples_make_no_alarm():
    torch.manual_seed(0)
    rows = torch.zeros(200, 12)
    assert not sketched(rows).near(rows + 1e-3 * torch.randn(200, 12)).any()
    single = sketched(torch.randn(1, 12))
    assert not single.near(torch.randn(5, 12)).any()


def test_positions_are_named_and_a_copy_has_met_nobody():
    x = digits(40).tensors[0]
    watch, known = Watch(), torch.tensor(sample_names(x[:30]))
    watch.sketches = sketched(x[:30])
    watch.meet(x, known)  # nobody says they are private
    positions = list(range(100, 140))
    with watch.reading(lambda: positions[30:]):
        watch.look_at(x[30:], watch.meet(x[30:], known))
    assert watch.alike == {}
    with watch.reading(lambda: positions[:2]):
        watch.look_at(x[:2] + 1e-4, watch.meet(x[:2] + 1e-4, known))
    assert watch.alike == {100: "near", 101: "near"}
    with (
        watch.reading(lambda: positions),
        pytest.raises(GuaranteeError, match="30 in one .*positions 100, .* 20 more of"),
    ):
        watch.meet(x, known)
    again = copy.deepcopy(watch)
    assert (again.alike, again.sketches is None) == ({}, False)
    again.meet(x, known)
