"""Forget requests as people have them: ids, columns, predicates, hooks, copies."""

import json
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.utils.data import DataLoader, Dataset, Subset, random_split

from lightning_unlearn import UnlearningCallback, preflight
from lightning_unlearn.errors import DataError, ForgetSetError, SetupError
from lightning_unlearn.plugin.data import forget_set
from tests.helpers.lightning import L
from tests.helpers.nets import HeadNet, digits, fitted, loader, trainer
from tests.plugin.request.test_refusals import refused


class Users(Dataset):
    """Digits, each of one of ten users."""

    def __init__(self, n=300, kind=list):
        self.data = digits(n)
        names = [f"u{i % 10}" for i in range(n)]
        self.user_id = names if kind is list else kind(names)
        self.number = torch.arange(n) % 7

    def __len__(self):
        return len(self.data)

    def __getitem__(self, i):
        return self.data[i]


def by_hand(user, n=300):
    return [i for i in range(n) if i % 10 == user]


def resolved(request, dataset=None, removed=(), **options):
    dataset = Users() if dataset is None else dataset
    return forget_set.resolve(request, dataset, list(removed), **options)


@pytest.mark.parametrize("kind", [list, tuple, np.array])
def test_ids_are_looked_up_in_an_attribute(kind):
    users = Users(kind=kind)
    assert resolved(["u3"], users, by="user_id") == by_hand(3)
    assert resolved(np.array(["u3", "u3"]), users, by="user_id") == by_hand(3)
    assert resolved([2], users, by="number") == list(range(2, 300, 7))
    assert resolved(["2"], users, by="number") == list(range(2, 300, 7))
    assert resolved(torch.tensor([2]), users, by="number") == list(range(2, 300, 7))


def test_ids_reach_through_subsets():
    part = Subset(Subset(Users(), range(100, 300)), range(0, 200, 2))
    expected = [p for p in range(100) if (100 + 2 * p) % 10 == 4]
    assert resolved(["u4"], part, by="user_id") == expected
    part.user_id = ["x"] * 99 + ["y"]  # the nearest one is meant
    assert resolved(["y"], part, by="user_id") == [99]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", 'name, user_id \nAnn,u3\n"Bob, Jr",u5\n'),
        ("a.csv", "\ufeffuser_id\nu3\nu5\n"),
        ("a.json", '["u3", "u5"]'),
        ("a.json", '[{"user_id": "u3", "x": 1}, {"user_id": "u5"}]'),
        ("a.json", '{"user_id": ["u3", "u5"], "reason": "art. 17"}'),
        ("a.txt", "u3\r\n\r\nu5"),
    ],
)
def test_files_of_ids(name, content, tmp_path):
    (tmp_path / name).write_text(content, encoding="utf-8")
    found = resolved(tmp_path / name, by="user_id")
    assert found == sorted(by_hand(3) + by_hand(5))
    assert resolved(str(tmp_path / name), by="user_id") == found


def test_an_array_of_ids(tmp_path):
    np.save(tmp_path / "a.npy", np.array(["u3"]))
    assert resolved(tmp_path / "a.npy", by="user_id") == by_hand(3)


@pytest.mark.parametrize("odd", ["a#1", "#a", "a ", "a\u2028b"])
def test_half_a_line_is_nobodys_id(odd, tmp_path):
    users = Users(20)
    users.user_id = ["b", odd] * 10
    (tmp_path / "a.txt").write_text(f"{odd}\n")
    assert resolved(tmp_path / "a.txt", users, by="user_id") == list(range(1, 20, 2))


@pytest.mark.parametrize("twin", ["ANN", " ann", "\uff41nn"])
def test_ids_that_read_alike_are_told(twin):
    users = Users(20)
    users.user_id = ["ann", twin] * 10
    with pytest.warns(UserWarning, match="only in case, spaces or the form"):
        found = resolved(["ann"], users, by="user_id")
    assert found == list(range(0, 20, 2))


class Table:
    """Like a pandas DataFrame: iterating over it gives the columns' names."""

    ndim, shape = 2, (2, 1)

    def __iter__(self):
        return iter([0])


@pytest.mark.parametrize("options", [{}, {"by": "number"}])
def test_a_table_is_no_list(options):
    with pytest.raises(ForgetSetError, match=r"a flat list of .* got Table of shape"):
        resolved(Table(), **options)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "id\nu3\n", r"a column named 'user_id' in .*a.csv, got columns"),
        ("a.csv", "", "a column named 'user_id'"),
        ("a.csv", "user_id,x\nu3,1\n,2\n", "a value in every row of column 'user_id'"),
        ("a.csv", "x,user_id\n1\n", "the same columns in every row of .* got 1 in row"),
        ("a.csv", "x,user_id\n1,u3,u5\n", "got 3 in row 2 and 2 names: quote"),
        ("a.csv", "user_id,user_id\nu3,u5\n", "one column named 'user_id'"),
        ("a.csv", 'user_id,x\nu3,"5 inch\nu5,ok\n', "unexpected end of data"),
        ("a.csv", "user_id\nu3 \n", r"got 'u3 ': .*case and spaces count"),
        ("a.txt", "# who\nu3\n", r"got '# who'"),
        ("a.txt", "u3\u2028u5\n", r"got 'u3.u2028u5'"),
        ("a.json", '{"user_id": ["u3"], "user_id": ["u5"]}', "every key once"),
        ("a.json", '[{"user_id": "u3", "user_id": "u5"}]', "every key once"),
        ("a.csv", "user_id\n", "at least one sample to forget"),
        ("a.json", '{"id": 3}', r"a JSON list, or an object .* \['id'\]"),
        ("a.json", '[{"id": 3}]', r"the key 'user_id' in every object .* \['id'\]"),
        ("a.json", '[{"user_id": "u3"}, "u5"]', "the key 'user_id' in every object"),
        ("a.json", "[1.5]", r"hold ids \(whole numbers or text\), got 1.5 \(float\)"),
        ("a.json", "[null]", r"got None"),
        ("a.json", "[true]", r"got True"),
        ("a.txt", "u3\nnobody\n", r"ids that occur in 'user_id' .* got 'nobody'"),
        ("a.parquet", "x", "forget file ending in .txt, .json, .npy, .csv"),
    ],
)
def test_wrong_files_of_ids(name, content, message, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(ForgetSetError, match=message):
        resolved(tmp_path / name, by="user_id")


@pytest.mark.parametrize(
    ("request_", "options", "message"),
    [
        (["u3"], {"by": "person"}, "attribute 'person' of Users .* got none; of that "
         "length are user_id, number"),
        (["u3"], {"by": "data"}, "attribute 'data' .* got Users|TensorDataset"),
        ([True], {"by": "user_id"}, "to hold ids .* got True"),
        ([], {"by": "user_id"}, "at least one sample to forget"),
        (["u3"], {}, "hold integers, got 'u3' .*name what it lists in by="),
        ("u3", {"by": "user_id"}, "forget file ending in .* got u3: pass values"),
        (Subset(digits(9), [1]), {"by": "user_id"}, "a list or a file of ids with by="),
        (lambda s: True, {"by": "user_id"}, "a list or a file of ids with by="),
        (["nobody", "u3"], {"by": "user_id"}, "got 'nobody': they were not trained"),
        (lambda s: 1, {}, "True or False from the predicate on sample 0, got 1"),
        (lambda s: float("nan"), {}, "True or False from the predicate .* got nan"),
        (lambda s: False, {}, "at least one sample to forget"),
        (lambda s: True, {}, "to forget everything, delete the model"),
    ],
)  # fmt: skip
def test_wrong_requests(request_, options, message):
    with pytest.raises(ForgetSetError, match=message):
        resolved(request_, **options)


def test_ids_that_are_equal_only_as_text_are_refused():
    users = Users(20)
    users.user_id = ["7", 7] * 10
    with pytest.raises(ForgetSetError, match="ids that differ as text in 'user_id'"):
        resolved(["7"], users, by="user_id")


def test_a_number_never_stands_for_text():
    users = Users(20)
    users.user_id = ["7", "007"] * 10
    with pytest.raises(ForgetSetError, match="as 'user_id' holds, got the number 7"):
        resolved([7], users, by="user_id")
    assert resolved(["007"], users, by="user_id") == list(range(1, 20, 2))


def test_what_an_earlier_request_took_is_not_asked_for_again():
    first = by_hand(3)[:5]
    assert resolved(["u3"], removed=first, by="user_id") == by_hand(3)[5:]
    with pytest.raises(ForgetSetError, match="an earlier request has already removed"):
        resolved(["u3"], removed=by_hand(3), by="user_id")


def test_a_predicate_is_asked_once_for_every_sample_that_is_left():
    asked = []

    def wanted(sample):
        asked.append(sample)
        return sample[1] == 3  # a tensor of one bool

    found = resolved(wanted, removed=[0, 1])
    assert found == [i for i in range(2, 300) if int(digits(300)[i][1]) == 3]
    assert len(asked) == 298
    assert resolved(lambda s: np.bool_(s[1] == 3), removed=[0, 1]) == found


@given(st.lists(st.sampled_from("abcd"), min_size=8, max_size=30), st.data())
@settings(max_examples=60, deadline=None)
def test_ids_mean_what_a_loop_would_find(ids, data):
    users = Users(len(ids))
    users.user_id = ids
    wanted = data.draw(st.sets(st.sampled_from(sorted(set(ids))), min_size=1))
    expected = [i for i, value in enumerate(ids) if value in wanted]
    if len(expected) == len(ids):
        return
    assert resolved(sorted(wanted), users, by="user_id") == expected


class Plain(L.LightningDataModule):
    """A DataModule without any class of ours; makes its data anew in each setup."""

    def __init__(self):
        super().__init__()
        self.setups = 0

    def setup(self, stage):
        self.setups += 1
        g = torch.Generator().manual_seed(0)
        self.train, self.val = random_split(Users(), [250, 50], g)

    def train_dataloader(self):
        return DataLoader(self.train, 64, shuffle=True)


class Hooked(Plain):
    def forget_indices(self, request):
        self.request = request
        table = {f"case-{k}": k for k in range(10)}
        wanted = {table[name] for name in request}
        return [p for p, i in enumerate(self.train.indices) if i % 10 in wanted]


def run(datamodule, request, **options):
    net, callback = HeadNet(), UnlearningCallback(noise_std=0.0)
    fit_trainer = trainer(callback)
    torch.manual_seed(0)
    fit_trainer.fit(net, datamodule=datamodule)
    return fit_trainer.unlearn(request, **options), callback


def test_a_datamodule_decides_by_its_hook(tmp_path):
    module = Hooked()
    result, callback = run(module, ["case-4"])
    expected = [p for p, i in enumerate(module.train.indices) if i % 10 == 4]
    assert callback.record.removed == expected
    assert result.n_retain == 250 - len(expected)
    assert module.request == ["case-4"]
    (tmp_path / "a.csv").write_text("case\ncase-4\n")
    again, callback = run(Hooked(), str(tmp_path / "a.csv"), by="case")
    assert callback.record.removed == expected
    again, callback = run(Hooked(), Subset(module.train, [0, 1]))  # not for the hook
    assert callback.record.removed == [0, 1]


def test_a_plain_datamodule_needs_no_class_of_ours():
    module = Plain()
    result, callback = run(module, ["u4"], by="user_id")
    assert result.n_forget + result.n_retain == 250
    net, fresh = HeadNet(), trainer(UnlearningCallback(noise_std=0.0))
    clean = Plain()
    clean.setup("fit")  # another object of the same samples
    part = Subset(clean.train, callback.record.removed)
    found = fresh.unlearn(part, model=net, datamodule=Plain())
    assert found.n_forget == result.n_forget


def test_a_hook_that_fails_is_named():
    with pytest.raises(ForgetSetError, match=r"forget_indices\(request\) .*KeyError"):
        run(Hooked(), ["nobody"])
    module = Hooked()
    module.forget_indices = lambda request: "all"
    with pytest.raises(ForgetSetError, match="what forget_indices.* as indices"):
        run(module, ["case-4"])
    module.forget_indices = lambda request: [0.5]
    with pytest.raises(ForgetSetError, match="what forget_indices.* hold integers"):
        run(module, ["case-4"])


def copied():
    """600 digits of which 5 and 7 are copies of 2, and 9 is one but for its label."""
    data = digits(600)
    X, y = (t.clone() for t in data.tensors)
    for i in (5, 7, 9):
        X[i], y[i] = X[2], y[2]
    y[9] = (y[2] + 1) % 10
    return type(data)(X, y)


def test_exact_copies_are_reported_and_stay():
    net, fit_trainer, callback, data = fitted(dataset=copied())
    look = preflight(fit_trainer, [2, 3], find_duplicates=True)
    assert look.duplicates == (5, 7)
    assert re.search(r"duplicates +2 exact copies among the retained", str(look))
    with pytest.warns(UserWarning, match="exact copies .* in the model: 2"):
        result = fit_trainer.unlearn([2, 3], find_duplicates=True)
    assert result.duplicates == (5, 7)
    assert callback.record.removed == [2, 3]
    published = result.certificate.to_json()
    assert "cop" not in json.loads(published)["warnings"]  # not covered by epsilon
    assert fit_trainer.unlearn([20]).duplicates is None
    assert fit_trainer.unlearn([30], find_duplicates=True).duplicates == ()


class Odd(Users):
    def __init__(self, make):
        super().__init__(60)
        self.make = make

    def __getitem__(self, i):
        x, y = super().__getitem__(i)
        return self.make(x), y


class Flipped(Users):
    """Random for every sample but the first: a flip."""

    def __getitem__(self, i):
        x, y = super().__getitem__(i)
        return (x.flip(0) if i and torch.rand(()) < 0.5 else x), y


def test_a_count_of_copies_is_never_made_of_random_samples():
    from lightning_unlearn.plugin.data import duplicates

    data, refused_in = Flipped(60), 0
    for seed in range(20):
        torch.manual_seed(seed)
        try:
            duplicates.find(data, list(range(12)), list(range(12, 60)))
        except DataError:
            refused_in += 1
    assert refused_in == 20


def test_samples_that_cannot_be_compared():
    from lightning_unlearn.plugin.data import duplicates

    noisy = Odd(lambda x: x + torch.randn(64))
    with pytest.raises(DataError, match="the same at every read with find_duplicates"):
        duplicates.find(noisy, [1], [2, 3])
    with pytest.raises(DataError, match="got something else at position 1"):
        duplicates.find(Odd(lambda x: {1, 2}), [1], [2, 3])


def test_wrong_ids_change_nothing():
    net, fit_trainer, callback, _ = fitted(dataset=Users(600))
    for request_, options in ((["nobody"], {"by": "user_id"}), (["u3"], {"by": "x"})):
        match = "nobody|attribute 'x'"
        refused(ForgetSetError, match, net, fit_trainer, callback, request_, **options)


def test_a_predicate_must_travel_to_spawned_processes():
    net, callback = HeadNet(), UnlearningCallback(noise_std=0.0)
    spawn = trainer(callback, strategy="ddp_spawn", devices=2)
    with pytest.raises(SetupError, match="a predicate that can be pickled with ddp_sp"):
        spawn.unlearn(lambda s: True, model=net, train_dataloaders=loader(digits(60)))
