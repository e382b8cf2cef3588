"""Who is drawn in which stage: fixed by facts that nobody's deletion changes."""

import hashlib
import itertools

import pytest
from torch.utils.data import DataLoader, Subset, SubsetRandomSampler, TensorDataset

from lightning_unlearn import UnlearningCallback, stages_of
from lightning_unlearn.errors import ArgumentError, DataError, ForgetSetError
from lightning_unlearn.guarantee.claims import Bound
from tests.helpers.nets import digits, trainer
from tests.plugin.stages.test_rewinding import Script


def people(n=300, of=40):
    dataset = digits(n)
    dataset.user_id = [f"user-{i % of}" for i in range(n)]
    return dataset


def test_by_the_order_in_which_they_came():
    assert stages_of(digits(10), 3) == [
        [*range(3)], [*range(6)], [*range(10)],
    ]  # fmt: skip


def test_a_person_is_in_one_part_whoever_else_is_there():
    dataset, key = people(), b"ours"
    stages = stages_of(dataset, 4, by="user_id", key=key)
    assert stages[-1] == [*range(300)]
    for earlier, later in itertools.pairwise(stages):
        assert {*earlier} < {*later}
    for position, person in enumerate(dataset.user_id):
        digest = hashlib.blake2b(person.encode(), key=key, digest_size=16).digest()
        first = int.from_bytes(digest, "big") % 4
        assert [position in stage for stage in stages] == [k >= first for k in range(4)]
    fewer = TensorDataset(*(t[1:] for t in dataset.tensors))
    fewer.user_id = dataset.user_id[1:]
    left = [[i - 1 for i in stage if i > 0] for stage in stages]
    assert stages_of(fewer, 4, by="user_id", key=key) == left
    picked = Subset(dataset, [5, 0])
    assert {*stages_of(picked, 1, by="user_id")[0]} == {0, 1}


def test_what_cannot_be_split_is_refused_by_name():
    with pytest.raises(ArgumentError, match="expected stages to be"):
        stages_of(digits(10), 0)
    with pytest.raises(ArgumentError, match="expected key= to be 1 to 64 bytes, got s"):
        stages_of(people(), 2, by="user_id", key="text")
    with pytest.raises(DataError, match="expected somebody in each of 11 parts, got"):
        stages_of(digits(10), 11)
    with pytest.raises(DataError, match="take fewer, or ids by='user_id' of more"):
        stages_of(people(of=2), 9, by="user_id")
    with pytest.raises(ForgetSetError, match="expected a column or attribute 'nobody'"):
        stages_of(people(), 2, by="nobody")


def test_a_person_of_the_last_part_costs_the_last_stage(tmp_path):
    script, dataset = Script(tmp_path / "stages"), people()
    own = UnlearningCallback(retrain=script.make, **script.options)
    net, stages = script.kind(), stages_of(dataset, 3, by="user_id")
    for seen in stages:
        fit = trainer(own, max_epochs=-1, max_steps=script.steps)
        fit.fit(net, DataLoader(dataset, 50, sampler=SubsetRandomSampler(seen)))
    last = next(i for i in range(300) if i not in stages[1])
    result = fit.unlearn([dataset.user_id[last]], by="user_id", how="retrain")
    assert result.certificate.bound is Bound.REWOUND
    assert script.given == [300 - result.n_forget]
