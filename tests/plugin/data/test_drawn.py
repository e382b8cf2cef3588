"""Which samples a training can draw, against what samplers really draw."""

import warnings

import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    DistributedSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from lightning_unlearn.errors import DataError, ForgetSetError
from lightning_unlearn.guarantee.claims import Grade
from lightning_unlearn.plugin.data.drawn import drawn_positions
from tests.helpers.nets import HeadNet, UnlearningCallback, digits, loader, trainer

DATA = digits(50)


class Odd(Sampler):
    """One of the user's own: every other sample."""

    def __iter__(self):
        return iter(range(0, 50, 2))

    def __len__(self):
        return 25


class Mine(RandomSampler):
    """Its class says nothing of what it draws."""

    def __iter__(self):
        return iter(range(10))


SAMPLERS = {
    "sequential": SequentialSampler(DATA),
    "random": RandomSampler(DATA),
    "with replacement": RandomSampler(DATA, replacement=True, num_samples=40),
    "subset": SubsetRandomSampler(range(3, 20)),
    "tensor": SubsetRandomSampler(torch.arange(30)),
    "weighted": WeightedRandomSampler([0.0] * 10 + [1.0] * 40, 60),
    "distributed": DistributedSampler(DATA, num_replicas=2, rank=0),
}


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("name", SAMPLERS)
def test_what_many_epochs_draw_is_what_is_told(name, drop_last):
    sampler = SAMPLERS[name]
    told = drawn_positions(DataLoader(DATA, 8, sampler=sampler, drop_last=drop_last))
    told = set(range(50)) if told is None else set(told)
    drawn = set()
    for epoch in range(300):
        if name == "distributed":
            sampler.set_epoch(epoch)
        batches = BatchSampler(sampler, 8, drop_last)
        drawn |= {int(i) for batch in batches for i in batch}
    assert drawn == told


@pytest.mark.parametrize(
    ("sampler", "batches", "last"),
    [
        (SequentialSampler(DATA), None, 48),
        (SequentialSampler(DATA), 2, 16),
        (DistributedSampler(DATA, num_replicas=2, rank=1, shuffle=False), 2, 32),
    ],
)
def test_a_fixed_order_is_cut_where_the_epoch_ends(sampler, batches, last):
    found = drawn_positions(
        DataLoader(DATA, 8, sampler=sampler, drop_last=True), batches
    )
    assert found == list(range(last))


@pytest.mark.parametrize(
    ("loader", "batches", "message"),
    [
        (DataLoader(DATA, 8, sampler=Odd()), None, "got Odd: which samples it draws"),
        (DataLoader(DATA, 8, sampler=Mine(DATA)), None, "got Mine: which samples"),
        (
            DataLoader(DATA, batch_sampler=[[1, 2], [3]]),
            None,
            "got batch_sampler=list.*Subset.dataset, positions.",
        ),
        (DataLoader(DATA, 8, shuffle=True), 2, "got 2 batches of 8 drawn at random"),
    ],
)
def test_draws_that_are_not_known_are_refused(loader, batches, message):
    with pytest.raises(DataError, match=message):
        drawn_positions(loader, batches)


def head(dataset, **options):
    """A solved head's Trainer, fitted on a loader with these options."""
    torch.manual_seed(0)
    own = UnlearningCallback(tolerance=1e-8)
    fit_trainer = trainer(own, **options.pop("trainer", {}))
    fit_trainer.fit(HeadNet(), DataLoader(dataset, 32, **options))
    return fit_trainer


def ends(fit_trainer):
    """Weights of a request before noise, which is tiny here."""
    return torch.cat(
        [p.detach().flatten() for p in fit_trainer.lightning_module.head.parameters()]
    )


def test_validation_samples_behind_a_sampler_are_not_trained_on():
    dataset = digits(300)
    split = SubsetRandomSampler(range(200))
    one, other = head(dataset, sampler=split), head(Subset(dataset, range(200)))
    result = one.unlearn([3, 14])
    other.unlearn([3, 14])
    assert result.certificate.grade is Grade.CERTIFIED
    assert result.n_retain == 198
    noise = result.certificate.noise_std * 330**0.5
    assert float((ends(one) - ends(other)).norm()) < 2 * noise
    assert float(ends(one).norm()) > 1000 * noise
    with pytest.raises(ForgetSetError, match="got 250, which the training's sampler"):
        one.unlearn([4, 250])
    again = one.unlearn([5])
    assert again.n_retain == 197


def test_a_person_s_validation_samples_are_left_out_and_told():
    dataset = digits(300)
    dataset.user = [i % 50 for i in range(300)]
    fit_trainer = head(dataset, sampler=SubsetRandomSampler(range(200)))
    with pytest.warns(UserWarning, match="2 of the 6 samples .* never drawn"):
        result = fit_trainer.unlearn([7], by="user")
    assert (result.n_forget, result.n_retain) == (4, 196)


@pytest.mark.parametrize(
    "options", [{"limit_train_batches": 2}, {"fast_dev_run": True}]
)
def test_epochs_cut_short_at_random_are_refused_and_said_at_fit(options):
    warnings.simplefilter("default")
    with pytest.warns(UserWarning, match="would be refused .*drawn at random"):
        fit_trainer = head(digits(300), shuffle=True, trainer=options)
    with pytest.raises(DataError, match="2?1? batches? of 32 drawn at random"):
        fit_trainer.unlearn([1])


@pytest.mark.parametrize(
    "options", [{"limit_train_batches": 2}, {"overfit_batches": 2}]
)
def test_the_first_batches_of_a_fixed_order_are_what_was_trained_on(options):
    fit_trainer = head(digits(300), trainer=options)
    result = fit_trainer.unlearn([1])
    assert (result.n_retain, result.certificate.grade) == (63, Grade.CERTIFIED)
    with pytest.raises(ForgetSetError, match="got 64, which the training's sampler"):
        fit_trainer.unlearn([64])


def test_all_that_was_drawn_is_everything():
    fit_trainer = head(digits(300), sampler=SubsetRandomSampler(range(3)))
    with pytest.raises(ForgetSetError, match="got a request for all 3 that were"):
        fit_trainer.unlearn([0, 1, 2])


def test_a_training_on_other_samples_is_said_and_in_the_certificate():
    own, net = UnlearningCallback(), HeadNet()
    trainer(own).fit(net, loader(digits(300)))
    other = TensorDataset(*(t[300:500] for t in digits(500).tensors))
    with pytest.warns(UserWarning, match="other samples than the one before"):
        trainer(own).fit(net, loader(other))
    last = trainer(own)
    result = last.unlearn([1], model=net, train_dataloaders=loader(other))
    assert any("on other samples" in text for text in result.certificate.warnings)


@pytest.mark.parametrize("how", ["newton", "retrain"])
def test_who_only_an_earlier_training_drew_can_be_named(how):
    """A model is tuned further on a part of its data."""
    dataset = digits(300)

    def make(data):
        own = UnlearningCallback(retrain=make)
        return trainer(own), HeadNet(), loader(data)

    own, net = UnlearningCallback(retrain=make), HeadNet()
    trainer(own).fit(net, loader(dataset))
    few, last = SubsetRandomSampler(range(100)), trainer(own)
    with pytest.warns(UserWarning, match="a request will keep what the samples of"):
        last.fit(net, DataLoader(dataset, 50, sampler=few))
    result = last.unlearn([150], how=how)
    assert (result.n_forget, result.n_retain) == (1, 100)
    grade = Grade.EXACT if how == "retrain" else Grade.CERTIFIED
    assert result.certificate.grade is grade
    # A retrained model has nothing of the others; of a solved one nobody keeps count.
    told = "never draws" if how == "retrain" else "got a request for all 101"
    with pytest.raises(ForgetSetError, match=told):
        last.unlearn([*range(100), 151], how=how)


@pytest.mark.parametrize("longer", ["plain", "subset", "other order", "random"])
def test_a_table_that_got_longer_begins_with_the_one_before(longer):
    own, net, data = UnlearningCallback(), HeadNet(), digits(500)
    trainer(own).fit(net, loader(digits(300)))
    x, y = data.tensors
    first = {
        "plain": data,
        "subset": Subset(data, range(400)),
        "other order": TensorDataset(x.flip(0), y.flip(0)),
        "random": Noisy(data),
    }[longer]
    fit_trainer = trainer(own)
    if longer in ("plain", "subset"):
        fit_trainer.fit(net, loader(first))
        assert fit_trainer.unlearn([3]).n_retain == len(first) - 1
        with pytest.raises(DataError, match="expected training to go on with the"):
            trainer(own).fit(net, loader(digits(600)))  # the forgotten one is in it
    else:
        with pytest.warns(UserWarning, match="on other samples than the one before"):
            fit_trainer.fit(net, loader(first))
    assert own.record.others_before == (longer in ("other order", "random"))


class Noisy(Dataset):
    """Samples with augmentation: other ones at every read."""

    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __getitem__(self, i):
        x, y = self.data[i]
        return x + torch.rand(()), y


@pytest.mark.parametrize("grows", [False, True])
def test_the_same_samples_again_or_more_of_them_need_no_word(grows):
    own, net, dataset = UnlearningCallback(), HeadNet(), digits(300)
    trainer(own).fit(net, loader(dataset))
    more = TensorDataset(*(t[300:] for t in digits(500).tensors))
    again = ConcatDataset([dataset, more]) if grows else dataset
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings(
            "ignore", message=".*LeafSpec.*|.*workers.*|.*number of"
        )
        trainer(own).fit(net, loader(again))
    assert not own.record.others_before
