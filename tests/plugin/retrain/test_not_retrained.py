"""Trainings that could see what is to be forgotten: refused, and nothing moves."""

import pytest
import torch
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset

from lightning_unlearn import UnlearningCallback
from lightning_unlearn.errors import (
    ArgumentError,
    DataError,
    ForgetSetError,
    ModelError,
    SetupError,
)
from lightning_unlearn.guarantee.claims import Grade
from tests.helpers.lightning import Callback, EarlyStopping
from tests.helpers.nets import digits, same, trainer, weights
from tests.plugin.retrain.test_retraining import Deep, N, fitted, training


class Wrapped(Dataset):
    def __init__(self, inner):
        self.inner = inner

    def __len__(self):
        return len(self.inner)

    def __getitem__(self, index):
        return self.inner[index]


def _whole(data):
    return training(digits(N))


def _concat(data):
    return training(ConcatDataset([data, digits(N)]))


def _wrapped(data):
    return training(Wrapped(data))


class Reloading(Deep):
    """Takes another loader from the second epoch on."""

    given = None

    def train_dataloader(self):
        data = self.given if self.trainer.current_epoch == 0 else digits(N)
        return DataLoader(data, 60, shuffle=True)


def _reloading(data):
    own = trainer(UnlearningCallback(), 2, reload_dataloaders_every_n_epochs=1)
    net = Reloading()
    net.given = data
    return own, net, None


@pytest.mark.parametrize("make", [_whole, _concat, _wrapped, _reloading])
def test_a_training_that_could_draw_others_is_caught(make, tmp_path):
    net, own, _ = fitted(make)
    before, record = weights(net), own.callbacks[-1].record
    with pytest.raises(DataError, match="the retraining to draw from the very"):
        own.unlearn([1], how="retrain", save_to=tmp_path / "clean.ckpt")
    assert same(weights(net), before)
    assert own.callbacks[-1].record is record
    assert not [*tmp_path.iterdir()]


def test_positions_are_those_of_the_retained():
    def reads(data):
        assert [int(x) for x in data[0][0]] == [int(x) for x in digits(N)[1][0]]
        data[-1]

    _, own, _ = fitted(reads)
    with pytest.raises(DataError, match="expected a sample from 0 to 298 .* got -1"):
        own.unlearn([0], how="retrain")


def test_a_start_that_saw_the_samples_is_caught(tmp_path):
    net, own, dataset = fitted(lambda data: copied(data))

    def copied(data):
        made = training(data)
        made[1].load_state_dict(net.state_dict())
        return made

    with pytest.raises(ModelError, match=r"never saw the samples .* net\.0\.weight"):
        own.unlearn([1], how="retrain")
    own.save_checkpoint(tmp_path / "run.ckpt")

    def loaded(data):
        made = training(data)
        held = torch.load(tmp_path / "run.ckpt", weights_only=True)["state_dict"]
        last = {k: v for k, v in held.items() if k.startswith("net.3")}
        made[1].load_state_dict(last, strict=False)
        return made

    fresh, new, loader = training(dataset, retrain=loaded)
    with pytest.raises(ModelError, match=r"never saw the samples .* net\.3\.weight"):
        fresh.unlearn([1], model=new, train_dataloaders=loader,
                      ckpt_path=tmp_path / "run.ckpt", how="retrain")  # fmt: skip


class Counting(Callback):
    """Keeps something of a training."""

    n = 0

    def state_dict(self):
        return {"n": self.n}


def test_what_was_used_before_is_named():
    stop = EarlyStopping("train_loss", strict=False)
    shared = Counting()
    net, own, dataset = fitted(lambda data: make(data), callbacks=[shared, stop])
    calls = {
        "a new Trainer, got one": lambda d: (own, Deep(), DataLoader(d, 60)),
        "a new module, got one": lambda d: (trainer(), net, DataLoader(d, 60)),
        "UnlearningCallback of its own": lambda d: (trainer(), Deep(), DataLoader(d)),
        "got Counting of the old": lambda d: training(d, callbacks=[shared]),
        "got EarlyStopping of the old": lambda d: training(d, callbacks=[stop]),
    }
    before = weights(net)
    for message, make in calls.items():
        with pytest.raises(SetupError, match=message):
            own.unlearn([1], how="retrain")
    for make in (lambda d: None, lambda d: training(d)[:2], lambda d: (1, 2, 3)):
        with pytest.raises(ArgumentError, match="expected make_training to return"):
            own.unlearn([1], how="retrain")
    assert same(weights(net), before)
    make = training
    assert own.unlearn([1], how="retrain").certificate.grade is Grade.EXACT


def test_what_is_missing_or_another_is_named():
    net, own, _ = fitted(None)
    with pytest.raises(SetupError, match="expected UnlearningCallback.retrain=make"):
        own.unlearn([1], how="retrain")
    with pytest.raises(ArgumentError, match="expected retrain to be a function"):
        UnlearningCallback(retrain=3)

    class Wider(Deep):
        def __init__(self):
            super().__init__()
            self.net[3] = nn.Linear(16, 11)

    _, own, _ = fitted(lambda data: training(data, Wider))
    with pytest.raises(ModelError, match="expected make_training to make the same"):
        own.unlearn([1], how="retrain")
    _, own, _ = fitted(lambda data: training(data, epochs=0))
    with pytest.raises((ModelError, SetupError), match="expected a retraining"):
        own.unlearn([1], how="retrain")
    _, own, _ = fitted(training)
    for forget in ([], list(range(N)), [N]):
        with pytest.raises(ForgetSetError, match="expected"):
            own.unlearn(forget, how="retrain")


@pytest.mark.parametrize("where", ["root", "part", "by name"])
def test_the_forgotten_are_found_in_validation_whatever_they_are_picked_from(where):
    """The training data is picked, or put together, from what is validated on too."""
    root, part = digits(N), digits(60)
    dataset = Subset(root, range(20, N)) if where == "root" else None
    dataset = ConcatDataset([part, root]) if dataset is None else dataset
    shown = Subset(root, range(20, 40)) if where == "root" else part
    val = DataLoader(shown, 20)

    class Validated(Deep):
        def validation_step(self, batch, batch_idx):
            self.log("loss", self.net(batch[0]).mean())

        def val_dataloader(self):
            return {"one": val} if where == "by name" else val

    def make(data):
        return training(data, kind=Validated)

    _, own, _ = fitted(make, dataset, kind=Validated)
    with pytest.raises(DataError, match="reads none of the samples to be"):
        own.unlearn([5], how="retrain")
    last = len(dataset) - 1
    assert own.unlearn([last], how="retrain").certificate.grade is Grade.EXACT


def test_a_warning_ahead_is_of_a_step_and_is_given_once():
    """AdamW: no step can be taken, and retraining can."""
    own, net, loader = training(digits(N), retrain=training)
    with pytest.warns(UserWarning, match="after this training, except with how="):
        own.fit(net, loader)
    assert own.unlearn([1], how="retrain").certificate.grade is Grade.EXACT
