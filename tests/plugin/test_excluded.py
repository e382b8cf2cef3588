"""Never again: what one project forgot is stopped in another project's fit."""

import hashlib
import hmac
import io
import json
import os
import re
import warnings
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, Subset, SubsetRandomSampler

import lightning_unlearn
from lightning_unlearn import CertifiedClassifier, RandomFeatures
from lightning_unlearn.certificate import exclusions as lists
from lightning_unlearn.certificate.certificate import Certificate
from lightning_unlearn.certificate.console import main
from lightning_unlearn.errors import (
    ArgumentError,
    DataError,
    ForgetSetError,
    SetupError,
    UnlearningError,
)
from lightning_unlearn.plugin.data.training_data import sample_digest
from lightning_unlearn.plugin.files import journal
from lightning_unlearn.step.batch_checks import spread_places
from tests.helpers.lightning import L, RichProgressBar, TQDMProgressBar
from tests.helpers.nets import (
    HeadNet,
    UnlearningCallback,
    digits,
    fitted,
    loader,
    same,
    trainer,
    weights,
)
from tests.plugin.helpers import forked
from tests.plugin.helpers.kill_job import at_file, in_child, stop
from tests.plugin.retrain.test_retraining import training

N = 60


class Rows(Dataset):
    """Dictionaries, as a table's rows are: columns in an order of their own."""

    def __init__(self, columns=("x", "text", "y"), start=0, n=N):
        X, y = digits(start + n).tensors
        self.columns = columns
        self.rows = [
            {"x": X[i], "text": f"row {i}", "y": y[i]} for i in range(start, start + n)
        ]
        self.user_id = [i // 3 for i in range(start, start + n)]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return {name: self.rows[i][name] for name in self.columns}


class RowNet(HeadNet):
    """Of a project that has dictionaries."""

    def training_step(self, batch, batch_idx):
        return super().training_step((batch["x"], batch["y"]), batch_idx)


class Validated(RowNet):
    def validation_step(self, batch, batch_idx):
        return None


@pytest.fixture
def org(tmp_path):
    """An organisation's list and key."""
    files = [str(tmp_path / "list.jsonl"), "--key-file", str(tmp_path / "org.key")]
    assert main(["exclusions", "new", *files]) == 0
    return tmp_path


def options(org, **more):
    found = {"exclusions": org / "list.jsonl", "exclusions_key": org / "org.key"}
    return found | more


def forget(org, request, dataset=None, net=None, **more):
    """A project of its own forgets something; its result."""
    by = more.pop("by", None)
    dataset = Rows() if dataset is None else dataset
    net = RowNet() if net is None else net
    _, own, _, _ = fitted(net, dataset, **options(org, exclude_by="user_id"), **more)
    return own.unlearn(request, by=by, save_to=org / "clean.ckpt")


def lines(org):
    text = (org / "list.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_a_dictionary_in_another_order_is_the_same_sample():
    one = {"x": torch.arange(3.0), "y": "text", "z": {"b": 1, "a": (2, None)}}
    two = {"z": {"a": (2, None), "b": 1}, "y": "text", "x": torch.arange(3.0)}
    assert list(one) != list(two)
    assert sample_digest(one) == sample_digest(two)
    leaves = [
        ("Tensor", torch.arange(3.0).numpy().tobytes()), ("str", b"'text'"),
        ("int", b"2"), ("NoneType", b"None"), ("int", b"1"),
    ]  # fmt: skip
    by_hand = b"|1|" + b"".join(
        f"{kind}|{len(data)}|".encode() + data for kind, data in leaves
    )
    assert sample_digest(one) == hashlib.sha256(by_hand).hexdigest()
    assert sample_digest(one) != sample_digest(one | {"y": "other"})
    assert sample_digest({1: "a", "1": "b"}) == sample_digest({"1": "b", 1: "a"})
    assert sample_digest({"a": object()}) is None


def test_a_planted_sample_stops_another_project_s_fit(org):
    result = forget(org, [4, 5])
    (line,) = lines(org)
    assert line["request_id"] == result.certificate.request_id
    assert line["people"] == []
    key = bytes.fromhex((org / "org.key").read_text())
    by_hand = [
        hmac.new(key, b"sample\0" + sample_digest(Rows()[i]).encode(), "sha256")
        for i in (4, 5)
    ]
    assert line["samples"] == sorted(found.hexdigest() for found in by_hand)

    planted = Rows(columns=("y", "x", "text"), start=N)  # nobody that is known
    own = trainer(UnlearningCallback(**options(org)))
    own.fit(RowNet(), loader(planted))
    planted.rows[17] = Rows().rows[4]
    net = RowNet()
    before, own = weights(net), trainer(UnlearningCallback(**options(org)))
    with pytest.raises(
        DataError,
        match=r"the training data without anybody .* got 1 of 60 .* at position 17",
    ):
        own.fit(net, loader(planted))
    assert same(weights(net), before)
    assert own.global_step == 0
    files = {"exclusions": org / "list.jsonl", "key": org / "org.key"}
    found = lightning_unlearn.excluded(planted, **files)
    assert found == [17]
    left = Subset(planted, [i for i in range(N) if i not in found])
    trainer(UnlearningCallback(**options(org))).fit(net, loader(left))
    # What a sampler never draws is not in the way.
    drawn = SubsetRandomSampler([i for i in range(N) if i != 17])
    again = trainer(UnlearningCallback(**options(org)))
    again.fit(RowNet(), DataLoader(planted, 16, sampler=drawn))
    assert again.global_step > 0


def test_people_are_known_by_their_ids_whatever_their_samples(org):
    """As numbers in one project, as text in another; 7 is not 07."""
    forget(org, [7], by="user_id")
    (line,) = lines(org)
    assert (len(line["people"]), len(line["samples"])) == (1, 3)
    other = Rows(start=N)
    other.user_id = ["07"] * N
    other.user_id[3] = other.user_id[9] = "7"
    own = trainer(UnlearningCallback(**options(org, exclude_by="user_id")))
    with pytest.raises(DataError, match=r"got 2 of 60 .* at positions 3, 9: .*user_id"):
        own.fit(RowNet(), loader(other))
    files = {"exclusions": org / "list.jsonl", "key": org / "org.key"}
    assert lightning_unlearn.excluded(other, **files, by="user_id") == [3, 9]
    with pytest.warns(UserWarning, match="names 1 people, and the data are not comp"):
        assert lightning_unlearn.excluded(other, **files) == []
    other.user_id[3] = other.user_id[9] = "8"
    own.fit(RowNet(), loader(other))
    # Without ids: contents only, and it is said.
    with pytest.warns(UserWarning, match="training data are not compared with their"):
        trainer(UnlearningCallback(**options(org))).fit(RowNet(), loader(other))
    with pytest.raises(ForgetSetError, match="attribute 'customer' of Rows"):
        trainer(UnlearningCallback(**options(org, exclude_by="customer"))).fit(
            RowNet(), loader(other)
        )


def test_validation_data_are_held_to_the_list_too(org):
    forget(org, [4])
    held = Rows(columns=("text", "y", "x"), start=N)
    held.rows[2] = Rows().rows[4]
    for sanity in (0, 2):
        net = Validated()
        before = weights(net)
        own = trainer(UnlearningCallback(**options(org)), num_sanity_val_steps=sanity)
        with pytest.raises(DataError, match="the validation data .* at position 2:"):
            own.fit(net, loader(Rows(start=N)), DataLoader(held, 16))
        assert sanity == 0 or same(weights(net), before)
    own = trainer(UnlearningCallback(**options(org)))
    own.validate(net, DataLoader(held, 16), verbose=False)  # nothing is trained


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter([Rows()[0]])


def test_a_stream_of_validation_data_is_told(org):
    forget(org, [4])
    own = trainer(UnlearningCallback(**options(org)))
    with pytest.warns(UserWarning, match="validation data without positions"):
        own.fit(Validated(), loader(Rows(start=N)), DataLoader(Stream(), 16))
    assert own.global_step > 0


class Noisy(Rows):
    def __getitem__(self, i):
        return super().__getitem__(i) | {"x": torch.rand(64)}


def test_random_samples_are_known_by_ids_alone_and_it_is_said(org):
    forget(org, [4])
    with pytest.warns(UserWarning, match="training data differ between two reads"):
        trainer(UnlearningCallback(**options(org))).fit(RowNet(), loader(Noisy()))


def test_a_fit_goes_on_as_if_nobody_had_looked(org):
    """Bitwise, whatever the list holds; data that draw random numbers too."""
    forget(org, [4])
    found = []
    for more in ({}, options(org)):
        for empty in (False, True):
            if empty and more:
                (org / "list.jsonl").write_text("")
            L.seed_everything(3, verbose=False)
            net = Validated()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                trainer(UnlearningCallback(**more)).fit(
                    net, loader(Noisy(start=N), 16), DataLoader(Rows(start=N), 16)
                )
            found.append(weights(net))
    assert all(same(found[0], other) for other in found[1:])


def test_every_sample_is_read_once(org):
    forget(org, [4])
    reads = []

    class Counted(Rows):
        def __getitem__(self, i):
            reads.append(i)
            return super().__getitem__(i)

    data = Counted(start=N, n=200)
    own = trainer(UnlearningCallback(**options(org)), max_epochs=1)
    own.fit(RowNet(), loader(data))
    with_list, reads[:] = len(reads), []
    trainer(UnlearningCallback(), max_epochs=1).fit(RowNet(), loader(data))
    # Besides: 32 are read twice, to see whether they are the same.
    assert with_list - len(reads) == 200 + 64


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"exclusions": "a.jsonl"}, "exclusions= and exclusions_key= together"),
        ({"exclusions_key": "a.key"}, "exclusions= and exclusions_key= together"),
        ({"exclude_by": "user_id"}, "and exclude_by= with them"),
        (
            {"exclusions": "s3://a/b", "exclusions_key": "k"},
            "exclusions= on a disk of this machine",
        ),
    ],
)
def test_options_that_do_not_fit(given, message):
    with pytest.raises(ArgumentError, match=message):
        UnlearningCallback(**given)


@pytest.mark.parametrize("taken", ["exclusions", "exclusions_key"])
def test_a_list_is_not_deleted_as_a_secret_file(taken, org):
    found = options(org)
    _, own, _, _ = fitted(RowNet(), Rows(), **found, prepared=found[taken])
    with pytest.raises((SetupError, DataError), match="file of its own|prepared"):
        own.unlearn([1], save_to=org / "clean.ckpt")
    assert found[taken].exists()


@pytest.mark.parametrize("name", ["list.jsonl", "org.key"])
def test_without_list_or_key_nothing_is_trained_or_forgotten(name, org):
    net, own, callback, _ = fitted(RowNet(), Rows(), **options(org))
    (org / name).unlink()
    before = weights(net)
    with pytest.raises(SetupError, match=r"lightning-unlearn exclusions new"):
        own.unlearn([1], save_to=org / "clean.ckpt")
    with pytest.raises(SetupError, match=r"lightning-unlearn exclusions new"):
        trainer(callback).fit(net, loader(Rows()))
    assert same(weights(net), before)
    assert callback.record.removed == []
    assert not (org / "clean.ckpt").exists()


class Odd(Rows):
    """With something in some samples that nobody can look into."""

    def __init__(self, places, **options):
        super().__init__(**options)
        self.places = places

    def __getitem__(self, i):
        note = object() if i in self.places else "plain"
        return super().__getitem__(i) | {"note": note}


def without_notes(samples):
    return {k: torch.stack([s[k] for s in samples]) for k in ("x", "y")}


@pytest.mark.parametrize("by", [None, "user_id"])
def test_what_will_not_be_known_again_is_told(by, org):
    data = DataLoader(Odd(range(N)), 16, shuffle=True, collate_fn=without_notes)
    own = trainer(UnlearningCallback(**options(org)))
    own.fit(RowNet(), data)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        own.unlearn([4], by=by)
    found = [str(w.message) for w in told if "recognised by" in str(w.message)]
    if by is None:
        (message,) = found
        assert message.startswith("1 of the 1 forgotten samples cannot be recognised")
        assert "name people with by=" in message
    else:
        assert not found
    (line,) = lines(org)
    assert (len(line["people"]), line["samples"]) == (int(by is not None), [])


def test_some_samples_that_cannot_be_compared_are_counted(org):
    forget(org, [4])
    unseen = {*range(N)} - {int(i) for i in spread_places(N)}
    files = {"exclusions": org / "list.jsonl", "key": org / "org.key"}
    with pytest.warns(UserWarning, match="1 of 60 samples of the data hold what"):
        assert lightning_unlearn.excluded(Odd([min(unseen)]), **files) == []


def test_a_request_that_fails_adds_nothing(org, monkeypatch):
    """Where the list cannot be written, and where something fails after it was."""
    ledger = org / "ledger.jsonl"
    net, own, callback, _ = fitted(RowNet(), Rows(), ledger=ledger, **options(org))
    before, text = weights(net), (org / "list.jsonl").read_text()

    def full(path, line):
        raise OSError("no space left")

    monkeypatch.setattr(lists, "append", full)
    with pytest.raises(OSError, match="no space left"):
        own.unlearn([1], save_to=org / "clean.ckpt")
    monkeypatch.undo()

    def late(*args):
        assert len(lines(org)) == 1
        raise RuntimeError("too late")

    monkeypatch.setattr(UnlearningCallback, "committed", late)
    with pytest.raises(RuntimeError, match="too late"):
        own.unlearn([1], save_to=org / "clean.ckpt")
    monkeypatch.undo()
    assert (org / "list.jsonl").read_text() == text
    assert same(weights(net), before)
    assert callback.record.removed == []
    assert not ledger.exists()
    assert not (org / "clean.ckpt").exists()
    own.unlearn([1], save_to=org / "clean.ckpt")
    assert len(lines(org)) == 1


def killed(org, when):
    """A request whose process ends where the list is written."""
    append = lists.append

    def dies(*args):
        if when == "after":
            append(*args)
        os._exit(9)

    lists.append = dies
    _, own, _, _ = fitted(RowNet(), Rows(), ledger=org / "ledger.jsonl", **options(org))
    own.unlearn([7], by="user_id", save_to=org / "clean.ckpt")


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_request_that_is_killed_is_completed_by_the_next(when, org):
    ended = forked.run(killed, org, when)
    assert ended.returncode == 9, ended.stderr[-3000:]
    assert len(lines(org)) == (when == "after")
    ledger = org / "ledger.jsonl"
    hidden = (org / "list.jsonl").rename(org / "elsewhere.jsonl")
    for _ in range(2):  # it is not given up where the list is missing
        with (
            pytest.raises(SetupError, match="an exclusion list at"),
            journal.locked(ledger),
        ):
            pass
    hidden.rename(org / "list.jsonl")
    with pytest.warns(UserWarning, match="has been completed"), journal.locked(ledger):
        pass
    with journal.locked(ledger):  # nothing is left to do
        pass
    (line,) = lines(org)
    certificate = Certificate.from_json((org / "clean.certificate.json").read_text())
    assert line["request_id"] == certificate.request_id
    read = lists.Exclusions.read(org / "list.jsonl", org / "org.key")
    assert read.has_person("7")
    # By hand, too, and not twice.
    files = ["--list", str(org / "list.jsonl"), "--key-file", str(org / "org.key")]
    assert main(["exclusions", "add", str(org / "clean.receipts.jsonl"), *files]) == 0
    assert lines(org) == [line]


@pytest.mark.slow
def test_a_line_stands_in_the_list_if_and_only_if_the_request_was_made(org):
    """Killed before each of its operations on files in the folder."""
    trained, left = org / "old.ckpt", []
    _, own, _, _ = fitted(RowNet(), Rows())
    own.save_checkpoint(trained)
    empty = (org / "list.jsonl").read_text()

    def work(number):
        at_file(org, number, stop)
        callback = UnlearningCallback(ledger=org / "ledger.jsonl", **options(org))
        trainer(callback).unlearn(
            [1, 2], model=RowNet(), train_dataloaders=loader(Rows(), 16),
            ckpt_path=trained, save_to=org / "clean.ckpt",
        )  # fmt: skip
        return 0

    for number in range(1, 100):
        ended = in_child(lambda n=number: work(n))
        if ended == 0:
            break
        assert ended == -9, Path("problem.txt").read_text()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            with journal.locked(org / "ledger.jsonl"):
                pass
        made = (org / "clean.ckpt").exists()
        assert len(lines(org)) == made, number
        left.append(made)
        (org / "list.jsonl").write_text(empty)
        for path in (*org.glob("clean.*"), *org.glob("ledger.jsonl")):
            path.unlink()
    assert len(left) >= 20
    assert {*left} == {True, False}


@pytest.mark.parametrize("kind", [TQDMProgressBar, RichProgressBar])
def test_the_reading_is_shown_in_the_user_s_own_bar(kind, org, capsys):
    forget(org, [4])
    screen = io.StringIO()
    more = {"console_kwargs": {"file": screen, "force_terminal": True, "width": 100}}
    bar = kind() if kind is TQDMProgressBar else kind(**more)
    callbacks = {"callbacks": [bar], "enable_progress_bar": True}
    own = trainer(UnlearningCallback(**options(org)), **callbacks)
    own.fit(RowNet(), loader(Rows(start=N)))
    captured = capsys.readouterr()
    shown = captured.out + captured.err + screen.getvalue()
    assert "Exclusions: " in shown
    assert "Epoch 1" in shown
    assert own.current_epoch == 2


def test_a_certified_module_is_not_solved_on_what_was_forgotten(org):
    net, own, _, _ = fitted(HeadNet(backbone=False), digits(100), **options(org))
    own.unlearn([4])
    other = CertifiedClassifier(RandomFeatures(64, shape=64), 10)
    before, own = weights(other), trainer(UnlearningCallback(**options(org)))
    held_out = DataLoader(Subset(digits(150), range(100, 150)), 64)
    with pytest.raises(DataError, match="training data .* at position 4: "):
        own.fit(other, loader(digits(90)), held_out)
    assert same(weights(other), before)


def test_retraining_is_stopped_by_what_it_draws_alone(org):
    """What was forgotten stays in the dataset, and the list; a copy of it does not."""
    data = digits(300)
    data.user_id = [str(i) for i in range(300)]
    own_options = options(org, exclude_by="user_id")

    def make(part):
        return training(part, **own_options)

    own, net, first = training(data, retrain=make, **own_options)
    own.fit(net, first)
    own.unlearn(["3"], by="user_id", how="retrain", save_to=org / "one.ckpt")
    second = own.unlearn(["8"], by="user_id", how="retrain", save_to=org / "two.ckpt")
    assert second.n_retain == 298
    assert [len(line["people"]) for line in lines(org)] == [1, 1]
    data.user_id[20] = "3"  # as if she had been overlooked
    before = weights(net)
    with pytest.raises(UnlearningError, match="got 1 of 297 .* at position 17"):
        own.unlearn([9], how="retrain", save_to=org / "three.ckpt")
    assert same(weights(net), before)
    assert len(lines(org)) == 2


def read_by_two(org):
    data = Rows(start=N)
    data.rows[17] = Rows().rows[4]
    data.rows[18] = Rows().rows[4]
    own = trainer(UnlearningCallback(**options(org)), strategy="ddp_fork", devices=2)
    own.fit(RowNet(), loader(data))


def test_a_list_is_read_under_two_processes(org):
    """Each reads its share, and all refuse."""
    forget(org, [4])
    ended = forked.run(read_by_two, org)
    assert ended.returncode != 0
    assert re.search("got 2 of 60 .* at positions 17, 18", ended.stderr), ended.stderr
