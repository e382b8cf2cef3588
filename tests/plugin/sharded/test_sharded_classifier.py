"""An ensemble on shards: a deletion retrains what it touches, and nothing else."""

import signal

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset, TensorDataset

from lightning_unlearn import ShardedClassifier, UnlearningCallback
from lightning_unlearn.certificate.verification import verify_text
from lightning_unlearn.errors import (
    ArgumentError,
    DataError,
    ForgetSetError,
    SetupError,
    ShardError,
)
from lightning_unlearn.guarantee.claims import Grade
from lightning_unlearn.plugin.data.assignment import shard_of
from tests.helpers.lightning import L
from tests.helpers.nets import MLP, digits, same, trainer, weights

N, S = 300, 3


def data(n=N):
    """Digits of people with three or four samples each, far apart."""
    found = digits(n)
    found.user_id = [f"person {i % 80}" for i in range(n)]
    return found


class Dropping(MLP):
    """Draws random numbers for every sample of a training."""

    def __init__(self):
        super().__init__()
        self.net.insert(2, nn.Dropout(0.5))


def training(samples, retrain=None, **options):
    """What a user's own script makes, with a seed: so it can be done again by hand."""
    torch.manual_seed(7)
    own = UnlearningCallback(retrain=retrain or training, **options)
    return trainer(own, 2), MLP(), DataLoader(samples, 20, shuffle=True)


def fitted(make=training, dataset=None, **options):
    dataset = data() if dataset is None else dataset
    net = ShardedClassifier(make, shards=S, by="user_id", **options)
    net.fit(dataset)
    return net, dataset


def of_shard(net, shard):
    return weights(net.modules_of_shards[shard])


def by_hand(dataset, positions):
    """The oracle: a training by Lightning alone, on those samples."""
    torch.manual_seed(7)
    net = MLP()
    loader = DataLoader(Subset(dataset, positions), 20, shuffle=True)
    trainer(None, 2).fit(net, loader)
    return weights(net)


def one_of(net, dataset, shard):
    """A person of a shard."""
    return dataset.user_id[net.positions(shard)[0]]


def test_the_samples_of_a_person_lie_in_one_shard_and_every_sample_in_one():
    net, dataset = fitted()
    parts = [net.positions(j) for j in range(S)]
    assert sorted(i for part in parts for i in part) == list(range(N))
    people = [{dataset.user_id[i] for i in part} for part in parts]
    assert not (people[0] & people[1] | people[0] & people[2] | people[1] & people[2])
    for j, part in enumerate(parts):
        assert same(of_shard(net, j), by_hand(dataset, part))


def test_a_touched_shard_equals_an_independent_retraining_and_no_other_moves():
    net, dataset = fitted()
    before = [of_shard(net, j) for j in range(S)]
    person = one_of(net, dataset, 1)
    result = net.unlearn([person], by="user_id")
    gone = {i for i in range(N) if dataset.user_id[i] == person}
    assert len(gone) >= 3
    kept = [i for i in net.positions(1) if i not in gone]
    assert same(of_shard(net, 1), by_hand(dataset, kept))
    assert not same(of_shard(net, 1), before[1])
    for j in (0, 2):
        assert same(of_shard(net, j), before[j])
    assert result.touched == (1,)
    assert result.complete
    assert (result.epsilon, result.delta, result.n_forget) == (0, 0, len(gone))
    certificate = result.certificates[1]
    certificate.verify()
    assert certificate.grade is Grade.EXACT
    assert certificate.n_retain == len(kept)
    said = [text for text in certificate.not_covered if "3 shards" in text]
    assert len(said) == 1
    assert "not for one that was chosen by what they show" in said[0]


def test_an_untouched_shard_is_the_one_of_a_world_without_the_person():
    """Also with a seed that everybody knows, and no seed in make_training."""

    def make(samples):
        own = UnlearningCallback(retrain=make)
        return trainer(own, 1), Dropping(), DataLoader(samples, 20, shuffle=True)

    dataset = data()
    kept = [i for i in range(N) if dataset.user_id[i] != "person 6"]
    without = TensorDataset(*(t[kept] for t in dataset.tensors))
    without.user_id = [dataset.user_id[i] for i in kept]
    torch.manual_seed(3)
    net, _ = fitted(make, dataset)
    torch.manual_seed(3)
    other, _ = fitted(make, without)
    (touched,) = net.unlearn(["person 6"], by="user_id").touched
    assert touched == shard_of("person 6", S) == 0  # so the others come after it
    for j in (1, 2):
        assert same(of_shard(net, j), of_shard(other, j))


def test_a_forget_set_across_two_shards():
    net, dataset = fitted()
    before = [of_shard(net, j) for j in range(S)]
    gone = [net.positions(0)[3], net.positions(2)[5]]
    result = net.unlearn(gone)
    assert result.touched == (0, 2)
    for j in (0, 2):
        kept = [i for i in net.positions(j) if i not in gone]
        assert same(of_shard(net, j), by_hand(dataset, kept))
    assert same(of_shard(net, 1), before[1])


def test_the_output_is_the_mean_of_probabilities():
    net, dataset = fitted()
    x = dataset.tensors[0][:50]
    with torch.no_grad():
        wanted = sum(F.softmax(one(x), 1) for one in net.modules_of_shards) / S
        assert torch.allclose(net(x), wanted)
    assert torch.allclose(net(x).sum(1), torch.ones(50))


def test_it_predicts_in_eval_mode_after_fit_and_after_a_request():
    def make(samples):
        own, _, loader = training(samples, make)
        return own, Dropping(), loader

    net, dataset = fitted(make)
    x = dataset.tensors[0][:50]
    assert torch.equal(net(x), net(x))
    net.unlearn([0])
    assert torch.equal(net(x), net(x))


def test_what_is_printed():
    net, _ = fitted()
    result = net.unlearn([net.positions(1)[0], net.positions(1)[1]])
    first, shard, limit = str(result).splitlines()
    assert first.startswith(
        "EXACT: 1 of 3 shards retrained by this tool without these 2 samples, which "
        "the others never saw: epsilon = 0, delta = 0, for a request that does not "
        "depend on earlier models, taking what the training's code uses besides"
    )
    left = len(net.positions(1)) - 2
    assert f"shard 1     2 forgotten, {left} retained, " in shard
    assert "not covered requests that were chosen by what an earlier model" in limit
    assert "EXACT: 1 of 3" in result._repr_html_()


class Failing(L.Callback):
    """Fails in a shard's retraining, once."""

    def __init__(self, broken, problem=RuntimeError):
        self.broken, self.problem = broken, problem

    def on_train_epoch_start(self, trainer, pl_module):
        n = len(trainer.train_dataloader.dataset)
        if n in self.broken:
            self.broken.remove(n)
            raise self.problem("the power went")


def test_a_shard_that_fails_after_another_is_named_and_the_rest_is_asked_again(
    tmp_path,
):
    broken = []

    def make(samples):
        own, net, loader = training(samples, make)
        own.callbacks.append(Failing(broken))
        return own, net, loader

    net, dataset = fitted(make)
    before = [of_shard(net, j) for j in range(S)]
    gone = [net.positions(0)[3], net.positions(2)[5]]
    broken.append(len(net.positions(2)) - 1)
    clean = tmp_path / "clean"
    with pytest.raises(
        ShardError, match="a failure in shard 2 after shards 0 had"
    ) as e:
        net.unlearn(gone, save_to=clean)
    assert str(e.value.__cause__) == "the power went"
    result = e.value.result
    assert (result.touched, result.failed, result.waiting) == ((0,), 2, (2,))
    assert (result.complete, result.epsilon, result.delta) == (False, None, None)
    assert str(result).startswith("NOT DONE: shards 2 of 3 still hold samples that")
    half = of_shard(net, 0)
    assert same(half, by_hand(dataset, [i for i in net.positions(0) if i != gone[0]]))
    assert same(of_shard(net, 2), before[2])
    assert [p.name for p in clean.glob("*.ckpt")] == ["shard-0.ckpt"]
    with pytest.warns(UserWarning, match="already removed"):
        again = net.unlearn(gone, save_to=clean)
    assert again.touched == (2,)
    assert (clean / "shard-2.ckpt").exists()
    assert same(of_shard(net, 0), half)
    kept = [i for i in net.positions(2) if i not in gone]
    assert same(of_shard(net, 2), by_hand(dataset, kept))


def test_ctrl_c_after_a_shard_says_what_is_done():
    broken = []

    def make(samples):
        own, net, loader = training(samples, make)
        own.callbacks.append(Failing(broken, KeyboardInterrupt))
        return own, net, loader

    net, _ = fitted(make)
    gone = [net.positions(0)[3], net.positions(2)[5]]
    broken.append(len(net.positions(2)) - 1)
    handler = signal.getsignal(signal.SIGINT)
    try:
        with (
            pytest.warns(UserWarning, match="a failure in shard 2 after shards 0 had"),
            pytest.raises((KeyboardInterrupt, SystemExit)),
        ):
            net.unlearn(gone)
    finally:  # Lightning ignores further interrupts while it shuts down
        signal.signal(signal.SIGINT, handler)
    with pytest.warns(UserWarning, match="already removed"):
        assert net.unlearn(gone).touched == (2,)


def test_a_file_that_is_taken_is_seen_before_any_shard_is_retrained(tmp_path):
    net, _ = fitted()
    before = [of_shard(net, j) for j in range(S)]
    (tmp_path / "shard-2.ckpt").write_text("mine")
    with pytest.raises(SetupError, match="shard-2.ckpt"):
        net.unlearn([net.positions(0)[3], net.positions(2)[5]], save_to=tmp_path)
    assert all(same(of_shard(net, j), before[j]) for j in range(S))


class Rows(L.LightningDataModule):
    def __init__(self, samples):
        super().__init__()
        self.samples = samples

    def train_dataloader(self):
        return DataLoader(self.samples, 20, shuffle=True)


def test_a_datamodule_for_each_shard():
    def make(samples):
        own, net, _ = training(samples, make)
        return own, net, Rows(samples)

    net, dataset = fitted(make)
    gone = net.positions(1)[:2]
    assert net.unlearn(gone).touched == (1,)
    assert same(of_shard(net, 1), by_hand(dataset, net.positions(1)[2:]))


def test_a_first_shard_that_fails_leaves_all_as_it_was():
    broken = []

    def make(samples):
        own, net, loader = training(samples, make)
        own.callbacks.append(Failing(broken))
        return own, net, loader

    net, _ = fitted(make)
    before = [of_shard(net, j) for j in range(S)]
    broken.append(len(net.positions(0)) - 1)
    with pytest.raises(RuntimeError, match="the power went"):
        net.unlearn([net.positions(0)[3], net.positions(2)[5]])
    assert all(same(of_shard(net, j), before[j]) for j in range(S))


def test_nobody_is_refused():
    net, _ = fitted()
    with pytest.raises(ForgetSetError, match="at least one sample to forget, got none"):
        net.unlearn([])
    with pytest.raises(ForgetSetError, match="got 'nobody'|occur in 'user_id'"):
        net.unlearn(["nobody"], by="user_id")
    net.unlearn([4])
    with pytest.raises(ForgetSetError, match="already forgotten, all of them"):
        net.unlearn([4])


def test_a_shard_is_not_emptied():
    net, _ = fitted()
    before = [of_shard(net, j) for j in range(S)]
    with pytest.raises(ForgetSetError, match="retain in every shard, got all .* 1:"):
        net.unlearn([net.positions(0)[0], *net.positions(1)])
    assert all(same(of_shard(net, j), before[j]) for j in range(S))


def test_in_a_fresh_process(tmp_path):
    net, dataset = fitted()
    files = [tmp_path / f"run-{j}.ckpt" for j in range(S)]
    for j, file in enumerate(files):
        net.trainer(j).save_checkpoint(file)
    x = dataset.tensors[0][:50]

    def loaded(paths):
        fresh = ShardedClassifier(training, shards=S, by="user_id")
        fresh.load(dataset, paths)
        return fresh

    fresh = loaded(files)
    assert torch.equal(fresh(x), net(x))
    first, second = fresh.positions(1)[:2]
    result = fresh.unlearn([first], save_to=tmp_path / "clean", delete_stale=True)
    assert [file.exists() for file in files] == [True, False, True]
    clean = tmp_path / "clean" / "shard-1.ckpt"
    assert result.results[1].checkpoint_path == clean
    assert [p.name for p in (tmp_path / "clean").glob("*.ckpt")] == ["shard-1.ckpt"]
    text = clean.with_name("shard-1.certificate.json").read_text()
    assert not [f.text for f in verify_text(text) if f.holds is False]
    kept = [i for i in fresh.positions(1) if i != first]
    assert same(of_shard(fresh, 1), by_hand(dataset, kept))
    fresh.unlearn([second])  # and goes on in this process
    # A third process knows what the clean checkpoint has forgotten.
    third = loaded([files[0], clean, files[2]])
    assert same(of_shard(third, 1), by_hand(dataset, kept))
    with pytest.raises(ForgetSetError, match="already forgotten"):
        third.unlearn([first])
    third.unlearn([second])
    assert same(of_shard(third, 1), of_shard(fresh, 1))
    with pytest.raises(ArgumentError, match="one checkpoint for each of 3 shards"):
        loaded(files[:2])


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"retrain": None}, SetupError, r"UnlearningCallback\(retrain=make_training"),
        ({"ledger": "all.jsonl"}, SetupError, "without ledger=, got one file for 3"),
        ({"made": None}, ArgumentError, r"return \(Trainer, module, .* got NoneType"),
        ({"part": 5}, SetupError, "shard 0 to load the .* samples it is given, got"),
    ],
)
def test_a_training_that_could_not_be_retrained_is_refused(
    tmp_path, monkeypatch, change, error, words
):
    monkeypatch.chdir(tmp_path)

    def make(samples):
        known = {k: v for k, v in change.items() if k in ("retrain", "ledger")}
        options = {"retrain": make, **known}
        if "part" in change:
            samples = Subset(samples, range(change["part"]))
        made = (
            trainer(UnlearningCallback(**options), 1), MLP(),
            DataLoader(samples, 20, shuffle=True),
        )  # fmt: skip
        return change.get("made", made)

    with pytest.raises(error, match=words):
        fitted(make)


def test_use_before_and_after_its_time_is_refused():
    net = ShardedClassifier(training, shards=S, by="user_id")
    with pytest.raises(SetupError, match="expected shards that are trained, got none"):
        net(torch.zeros(1, 64))
    with pytest.raises(SetupError, match="expected shards that are trained, got none"):
        net.unlearn([1])
    net.fit(data())
    with pytest.raises(SetupError, match="trained once, got a second training"):
        net.fit(data())


def test_arguments():
    for shards in (0, 1.5, True):
        with pytest.raises(ArgumentError, match="shards to be an integer >= 1"):
            ShardedClassifier(training, shards=shards, by="user_id")
    for key in (b"", b"x" * 65, "text"):
        with pytest.raises(ArgumentError, match="expected key= to be 1 to 64 bytes"):
            ShardedClassifier(training, shards=S, by="user_id", key=key)
    with pytest.raises(ArgumentError, match="a function of the data, got NoneType"):
        ShardedClassifier(None, shards=S, by="user_id")
    with pytest.raises(ForgetSetError, match="column or attribute 'email'"):
        ShardedClassifier(training, shards=S, by="email").fit(data())
    alone = TensorDataset(torch.zeros(4, 64), torch.zeros(4, dtype=torch.long))
    alone.user_id = ["one"] * 4
    with pytest.raises(DataError, match="somebody in each of 3 parts, got nobody in"):
        ShardedClassifier(training, shards=S, by="user_id").fit(alone)
