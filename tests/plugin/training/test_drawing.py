"""What a training draws is watched to its end, not read once at its beginning."""

import pytest
import torch
from torch.utils.data import (
    DataLoader,
    Dataset,
    Subset,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from lightning_unlearn import CertifiedClassifier
from lightning_unlearn.errors import DataError, ForgetSetError
from lightning_unlearn.guarantee.claims import Grade
from tests.helpers.nets import HeadNet, UnlearningCallback, digits, loader, trainer
from tests.plugin.helpers import publics

N = 300
DATA = digits(N)


def share(epoch):
    """Positions of an epoch's third."""
    return list(range(100 * (epoch % 3), 100 * (epoch % 3) + 100))


class Sampled(HeadNet):
    """Changes its sampler at the hook ``when``."""

    def __init__(self, when, sampler, change):
        super().__init__()
        self.sampler, self.change = [sampler], change
        setattr(self, when, self.changes)

    def changes(self, *args):
        self.change(self.sampler[0], self.current_epoch)


def grow(sampler, epoch):
    sampler.indices = list(range(100 * (epoch + 1)))


def weigh(sampler, epoch):
    sampler.weights = torch.zeros(N).index_fill(0, torch.tensor(share(epoch)), 1.0)


@pytest.mark.parametrize("when", ["on_train_epoch_start", "on_train_epoch_end"])
@pytest.mark.parametrize(
    ("sampler", "change"),
    [
        (lambda: SubsetRandomSampler(list(range(100))), grow),
        (lambda: WeightedRandomSampler(torch.ones(N), N), weigh),
    ],
)
def test_a_sampler_that_changes_is_refused_by_name(when, sampler, change):
    net = Sampled(when, sampler(), change)
    own = trainer(UnlearningCallback(), max_epochs=3)
    own.fit(net, DataLoader(DATA, 50, sampler=net.sampler[0]))
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(DataError, match="every epoch of the training to draw from the"):
        own.unlearn([3])
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


class Reloads(HeadNet):
    """Makes a loader for each epoch."""

    def __init__(self, make):
        super().__init__()
        self.make = make

    def train_dataloader(self):
        return self.make(self.trainer.current_epoch)

    def training_step(self, batch, batch_idx):
        several = isinstance(batch[0], (list, tuple))
        return super().training_step(batch[0] if several else batch, batch_idx)


class Noisy(Dataset):
    def __init__(self, positions=range(N)):
        self.positions = list(positions)

    def __len__(self):
        return len(self.positions)

    def __getitem__(self, i):
        x, y = DATA[self.positions[i]]
        return x + 0.01 * torch.randn(64), y


OTHERS = {
    "shards": lambda epoch: loader(Subset(DATA, share(epoch))),
    "longer": lambda epoch: loader(Subset(DATA, range(min(N, 100 * (epoch + 1))))),
    "random shards": lambda epoch: loader(Noisy(share(epoch))),
    "two loaders": lambda epoch: loader(DATA) if not epoch else [loader(DATA)] * 2,
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("epochs", [2, 4])
def test_other_data_in_a_later_epoch_are_refused_by_name(name, epochs, tmp_path):
    net = Reloads(OTHERS[name])
    own = trainer(
        UnlearningCallback(), max_epochs=epochs, reload_dataloaders_every_n_epochs=1
    )
    own.fit(net)
    own.save_checkpoint(tmp_path / "raw.ckpt")
    with pytest.raises(DataError, match="reload_dataloaders_every_n_epochs"):
        trainer(UnlearningCallback()).unlearn(
            [3], model=HeadNet(), train_dataloaders=OTHERS[name](0),
            ckpt_path=tmp_path / "raw.ckpt",
        )  # fmt: skip


def test_a_dataset_that_changes_with_the_epoch_is_refused():
    class Stages(Dataset):
        epoch = 0

        def __len__(self):
            return 100

        def __getitem__(self, i):
            return DATA[share(self.epoch)[i]]

    dataset = Stages()

    class Sets(HeadNet):
        def on_train_epoch_start(self):
            dataset.epoch = self.current_epoch

        def on_train_epoch_end(self):
            dataset.epoch = 0

    own = trainer(UnlearningCallback(), max_epochs=2)
    own.fit(Sets(), loader(dataset))
    with pytest.raises(DataError, match="draw from the same samples"):
        own.unlearn([3])


def test_a_training_on_all_afterwards_does_not_hide_other_data():
    own = UnlearningCallback()
    net = Reloads(OTHERS["shards"])
    trainer(own, max_epochs=2, reload_dataloaders_every_n_epochs=1).fit(net)
    last = trainer(own)
    with pytest.warns(UserWarning, match="other samples than the one before"):
        last.fit(net, loader(DATA))
    told = last.unlearn([3]).certificate.warnings
    assert any("on other samples" in text for text in told)


GOOD = {
    "reloaded": (lambda: loader(DATA), 1),
    "made anew": (lambda: loader(Subset(DATA, range(N))), 1),
    "weights of one support": (
        lambda: DataLoader(DATA, 50, sampler=WeightedRandomSampler(torch.ones(N), N)),
        0,
    ),
    "random samples": (lambda: loader(NOISY), 1),
}
NOISY = Noisy()


@pytest.mark.parametrize("name", [name for name in GOOD if name != "random samples"])
def test_the_same_data_in_every_epoch_stay_certified(name):
    make, every = GOOD[name]
    net = Reloads(lambda epoch: make())
    own = trainer(
        UnlearningCallback(), max_epochs=3, reload_dataloaders_every_n_epochs=every
    )
    own.fit(net)
    assert own.callbacks[0].record.drawn_problem is None
    assert own.unlearn([3]).certificate.grade is Grade.CERTIFIED


def test_random_samples_of_one_dataset_are_no_problem():
    make, every = GOOD["random samples"]
    own = trainer(
        UnlearningCallback(), max_epochs=3, reload_dataloaders_every_n_epochs=every
    )
    own.fit(Reloads(lambda epoch: make()))
    assert own.callbacks[0].record.drawn_problem is None
    assert not own.callbacks[0].record.others_before


class Stops(HeadNet):
    def on_train_batch_start(self, batch, batch_idx):
        return -1 if batch_idx >= 2 else None


def in_order(batch_size=50):
    return DataLoader(DATA, batch_size)


@pytest.mark.parametrize(
    ("net", "options", "drawn"),
    [
        (HeadNet, {"max_epochs": -1, "max_steps": 3}, 150),
        (Stops, {"max_epochs": 2}, 100),
        (HeadNet, {"max_epochs": -1, "max_steps": 8}, 300),
    ],
)
def test_what_a_fixed_order_never_came_to_was_not_trained_on(
    net, options, drawn, tmp_path
):
    own = trainer(UnlearningCallback(), **options)
    own.fit(net(), in_order())
    assert own.callbacks[0].retained_indices == list(range(drawn))
    if drawn < N:
        with pytest.raises(ForgetSetError, match="not trained on|never drawn|trained"):
            own.unlearn([drawn])
    result = own.unlearn([3])
    assert result.certificate.grade is Grade.CERTIFIED
    assert result.n_retain == drawn - 1


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended")
def test_a_training_that_goes_on_adds_to_what_was_drawn(tmp_path):
    own = UnlearningCallback()
    first = trainer(own, max_epochs=-1, max_steps=3)
    net = HeadNet()
    first.fit(net, in_order())
    first.save_checkpoint(tmp_path / "raw.ckpt")
    lineage = own.record.lineage
    trainer(own, max_epochs=1).fit(net, in_order())
    assert own.record.drawn is None
    assert (own.record.others_before, own.record.lineage) == (False, lineage)
    again = trainer(UnlearningCallback(), max_epochs=-1, max_steps=8)
    again.fit(HeadNet(), in_order(), ckpt_path=tmp_path / "raw.ckpt")
    assert again.callbacks[0].record.drawn is None
    assert again.unlearn([299]).certificate.grade is Grade.CERTIFIED


def test_a_few_more_steps_take_nothing_back():
    own, net = UnlearningCallback(), HeadNet()
    trainer(own).fit(net, in_order())
    last = trainer(own, max_epochs=-1, max_steps=2)
    last.fit(net, in_order())
    assert own.record.drawn is None
    assert last.unlearn([299]).certificate.grade is Grade.CERTIFIED


def test_a_training_that_was_cut_short_counts_as_far_as_it_came():
    class Fails(HeadNet):
        def on_train_batch_end(self, outputs, batch, batch_idx):
            if batch_idx == 1:
                raise RuntimeError("the disk is full")

    own = UnlearningCallback()
    with pytest.raises(RuntimeError, match="the disk is full"):
        trainer(own).fit(Fails(), in_order())
    assert own.record.drawn == list(range(100))


def test_a_certified_module_has_read_all_though_its_fit_ends_after_one_batch():
    data = publics.private()
    own = trainer(UnlearningCallback(), limit_val_batches=0)
    net = CertifiedClassifier(publics.backbone(), 5)
    held_out = publics.loader(publics.held_out())
    own.fit(net, DataLoader(data, 50), held_out)  # in a fixed order
    assert own.unlearn([len(data) - 1]).n_retain == len(data) - 1
