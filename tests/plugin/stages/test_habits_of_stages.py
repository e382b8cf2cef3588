"""Ordinary code in which the end of a stage had seen more than it drew."""

import shutil

import pytest
import torch
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
)

from lightning_unlearn import UnlearningCallback
from lightning_unlearn.guarantee.claims import Bound, Grade
from lightning_unlearn.plugin.stages import stage_end
from tests.helpers.lightning import Callback
from tests.helpers.nets import digits, trainer
from tests.plugin.data.test_drawn import Noisy
from tests.plugin.stages.test_rewinding import N, Net, Validated, files, script

__all__ = ["script"]


class WithId(Noisy):
    def __getitem__(self, i):
        return (*self.data[i], i)


class Loader:
    """Batches of tensors, faster than a DataLoader's, and nothing else."""

    def __init__(self, data):
        self.x, self.y = (torch.stack([*column]) for column in zip(*data, strict=True))

    def __iter__(self):
        yield self.x, self.y

    def __len__(self):
        return 1


class Unpacking(Validated):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch[:2], batch_idx)

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.log("loss", self.training_step(batch, batch_idx), batch_size=50)


def in_two(script, dataset, val=None, kind=Unpacking, callbacks=()):
    """January's 100 samples, validated on `val`; then 200 of them."""
    script.kind = kind
    own, net = UnlearningCallback(retrain=script.make, **script.options), kind()
    for n, validation in ((100, val), (200, None)):
        seen = SubsetRandomSampler(range(n))
        validates = {} if validation is not None else {"limit_val_batches": 0}
        fit = trainer(own, max_epochs=1, callbacks=[*callbacks], **validates)
        empty = DataLoader(dataset, 50)
        fit.fit(net, DataLoader(dataset, 50, sampler=seen), validation or empty)
    script.make = without_validation(script.make)
    object.__setattr__(own.options, "retrain", script.make)
    return net, fit, own


def without_validation(make):
    def made(data):
        fit, net, loader = make(data)
        net.validation_step = None
        return fit, net, loader

    return made


def bound(fit, forget):
    certificate = fit.unlearn(forget, how="retrain").certificate
    assert certificate.grade is Grade.EXACT
    return certificate.bound


FEBRUARY = Subset(digits(N), range(100, 200))
SEEN = {
    "augmented training": (Noisy, DataLoader(FEBRUARY, 50)),
    "no ids in validation": (WithId, DataLoader(FEBRUARY, 50)),
    "loaders by name": (None, {"next": DataLoader(FEBRUARY, 50)}),
    "a loader of its own": (None, Loader(FEBRUARY)),
}


@pytest.mark.parametrize("habit", SEEN)
@pytest.mark.filterwarnings("ignore:expected validation samples of tensors")
def test_who_was_validated_on_in_another_form_was_seen(script, habit):
    kind, val = SEEN[habit]
    dataset = digits(200)
    _, fit, own = in_two(script, dataset if kind is None else kind(dataset), val)
    assert own.record.stages[0].validated != []
    assert bound(fit, [150]) is Bound.RETRAINED


def test_others_that_were_validated_on_are_no_matter(script):
    val = DataLoader(Subset(digits(N), range(200, N)), 50)
    _, fit, own = in_two(script, digits(200), {"other": val})
    assert len(own.record.stages[0].validated) == 100
    assert bound(fit, [150]) is Bound.REWOUND


class Mean(Unpacking):
    """A running mean of the data, in a buffer that checkpoints leave out."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(64), persistent=False)

    def on_fit_start(self):
        self.mean.add_(1.0)


class Adds(Callback):
    def on_fit_start(self, trainer, pl_module):
        pl_module.mean.add_(1.0)


@pytest.mark.parametrize("callbacks", [(), (Adds(),)])
def test_the_end_of_a_stage_is_not_the_beginning_of_the_next(script, callbacks):
    _, _, own = in_two(script, digits(200), kind=Mean, callbacks=callbacks)
    state, _ = stage_end.read(own.record.stages[0], script.options["stages"])
    assert float(state["mean"].max()) == 1.0 + len(callbacks)


def test_a_buffer_that_moved_in_between_is_seen(script):
    own, net, dataset = UnlearningCallback(**script.options), Mean(), digits(200)
    few = {"max_epochs": 1, "limit_val_batches": 0}
    trainer(own, **few).fit(net, DataLoader(Subset(dataset, range(100)), 50), NONE)
    net.mean.add_(dataset.tensors[0].mean(0))
    with pytest.warns(UserWarning, match="other weights than the training before"):
        trainer(own, **few).fit(net, DataLoader(dataset, 50), NONE)
    assert own.record.stages is None


NONE = DataLoader(digits(10), 10)


def test_random_samples_are_known_by_their_dataset_alone(tmp_path):
    data = Noisy(digits(N))
    for other, kept in ((False, True), (True, False)):
        own, net = UnlearningCallback(stages=tmp_path / f"{other}"), Net()
        january, new = Subset(data, range(100)), Subset(data, range(100, 200))
        trainer(own, 1).fit(net, DataLoader(january, 50))
        grown = ConcatDataset([new, january] if other else [january, new])
        if kept:
            trainer(own, 1).fit(net, DataLoader(grown, 50))
            assert len(own.record.stages) == 1
        else:
            with pytest.warns(UserWarning, match="got random ones in another object"):
                trainer(own, 1).fit(net, DataLoader(grown, 50))
            assert own.record.stages is None


def test_a_training_that_nobody_watched_is_no_stage(script, tmp_path):
    net, dataset = Net(), digits(200)
    plain = trainer(None, 1)
    plain.fit(net, DataLoader(dataset, 50))
    plain.save_checkpoint(tmp_path / "plain.ckpt")
    own = UnlearningCallback(retrain=script.make, **script.options)
    few = DataLoader(Subset(dataset, range(100)), 50)
    with pytest.warns(UserWarning, match="earlier training that no record tells of"):
        trainer(own, 2).fit(Net(), few, ckpt_path=tmp_path / "plain.ckpt")
    assert own.record.stages is None


def test_after_a_step_that_was_measured_there_is_no_stage(script):
    net, fit, own = script.train(digits(N), stages=2)
    object.__setattr__(own.options, "noise_std", 0.0)
    fit.unlearn([150])
    grown = ConcatDataset(
        [Subset(digits(N), own.retained_indices), Subset(digits(N), range(200, N))]
    )
    with pytest.warns(UserWarning, match="got a step that a request has taken"):
        trainer(own, 1).fit(net, DataLoader(grown, 50))
    assert own.record.stages is None


class Words(Net):
    """Keeps a table of what it met, in a plain attribute."""

    def __init__(self):
        super().__init__()
        self.table = {}

    def training_step(self, batch, batch_idx):
        for label in batch[1].tolist():
            self.table.setdefault(label, len(self.table))
        return super().training_step(batch, batch_idx)


def test_what_a_stage_has_learnt_besides_weights_is_told_of(script):
    script.kind = Words
    _, fit, _ = script.train(digits(N))
    with pytest.warns(UserWarning, match="plain attributes that it has changed, table"):
        assert bound(fit, [250]) is Bound.REWOUND


def test_the_folder_may_be_gone_or_be_elsewhere(script, tmp_path):
    _, fit, own = script.train(digits(N))
    shutil.rmtree(script.options["stages"])
    with pytest.warns(UserWarning, match="cannot start from the end of stage . of 3"):
        assert bound(fit, [250]) is Bound.RETRAINED
    assert len(files(script)) == 2
    shutil.move(script.options["stages"], tmp_path / "moved")
    object.__setattr__(own.options, "stages", tmp_path / "moved")
    assert bound(fit, [251]) is Bound.REWOUND
    assert len([*(tmp_path / "moved").iterdir()]) == 2


def test_another_models_files_are_told_of(script):
    script.train(digits(N))
    with pytest.warns(UserWarning, match="holds ends of other trainings"):
        script.train(digits(N))


def test_one_training_then_a_request_then_more_data(script):
    net, fit, own = script.train(digits(100), stages=1)
    fit.unlearn([5], how="retrain")
    assert own.record.stages == []
    old = Subset(digits(100), own.retained_indices)
    grown = ConcatDataset([old, TensorDataset(*(t[100:] for t in digits(N).tensors))])
    fit = trainer(own, max_epochs=-1, max_steps=script.steps)
    fit.fit(net, DataLoader(grown, 50, shuffle=True))
    assert [len(s.drawn) for s in own.record.stages] == [99]
    assert bound(fit, [250]) is Bound.REWOUND


@pytest.mark.filterwarnings("ignore:this training is on other samples")
def test_only_the_new_ones_after_the_old(script):
    """The old samples can still be named: the weights were trained on them."""
    january, new = (Subset(digits(N), range(a, b)) for a, b in ((0, 100), (100, 200)))
    own, net = UnlearningCallback(retrain=script.make, **script.options), Net()
    trainer(own, 1).fit(net, DataLoader(january, 50))
    both, later = ConcatDataset([january, new]), SubsetRandomSampler(range(100, 200))
    fit = trainer(own, 1)
    fit.fit(net, DataLoader(both, 50, sampler=later))
    assert own.record.stages is None
    result = fit.unlearn([50], how="retrain")
    assert (result.n_forget, result.n_retain) == (1, 100)
    rest = Subset(both, own.retained_indices)
    trainer(own, 1).fit(net, DataLoader(ConcatDataset([rest, NONE.dataset]), 50))
    assert len(own.retained_indices) == 110


def test_coins_of_a_retraining_are_fresh(tmp_path):
    """A known seed, and the number of draws before, would else tell of the others."""
    found = []
    for n in (100, 100):
        torch.manual_seed(0)

        def make(data):
            found.append(torch.rand(()).item())
            return trainer(UnlearningCallback(), 1), Net(), DataLoader(data, 50)

        own, net = UnlearningCallback(retrain=make), Net()
        fit = trainer(own, 1)
        fit.fit(net, DataLoader(digits(n), 50, shuffle=True))
        fit.unlearn([1], how="retrain")
    assert len({*found}) == 2
