"""What a stage may be gone back to for, what not, and what stops in between."""

import pytest
import torch
from torch.utils.data import DataLoader, Subset, SubsetRandomSampler, TensorDataset

from lightning_unlearn import UnlearningCallback
from lightning_unlearn.errors import ArgumentError, DataError, SetupError
from lightning_unlearn.guarantee.claims import Bound, Grade
from tests.helpers.lightning import EarlyStopping
from tests.helpers.nets import digits, same, trainer, weights
from tests.plugin.retrain.test_retraining import Interrupting, stopped
from tests.plugin.stages.test_rewinding import N, Net, Script, Validated, files, script

__all__ = ["script"]


def bound(fit, forget, **options):
    certificate = fit.unlearn(forget, how="retrain", **options).certificate
    assert certificate.grade is Grade.EXACT
    return certificate.bound


def test_nothing_is_kept_unless_it_is_asked_for(tmp_path):
    script = Script(None)
    _, fit, own = script.train(digits(N))
    assert own.record.stages is None
    assert bound(fit, [250]) is Bound.RETRAINED
    assert script.given == [N - 1]
    with pytest.raises(ArgumentError, match="expected stages= on a disk"):
        UnlearningCallback(stages="s3://bucket/stages")
    (tmp_path / "file").write_text("")
    with pytest.raises(SetupError, match="expected a folder for stages="):
        Script(tmp_path / "file" / "stages").train(digits(N))


def test_one_training_alone_writes_nothing(script):
    script.train(digits(N), stages=1)
    assert not files(script)


@pytest.mark.filterwarnings("ignore:could not delete")
@pytest.mark.parametrize("damage", ["gone", "other", "cut", "foreign"])
def test_an_end_that_is_not_what_was_written_is_not_used(script, damage):
    _, fit, own = script.train(digits(N))
    one, two = files(script)
    if damage == "gone":
        two.unlink()
    elif damage == "other":
        two.write_bytes(one.read_bytes())
    elif damage == "cut":
        two.write_bytes(two.read_bytes()[:-8])
    else:
        two.write_text("mine")
    with pytest.warns(UserWarning, match="cannot start from the end of stage 2 of 3"):
        assert bound(fit, [250]) is Bound.REWOUND
    assert script.given == [200, N - 1]
    assert len(own.record.stages) == 2


def test_other_weights_between_two_trainings_are_not_the_end_of_a_stage(script):
    dataset, own, net = digits(N), UnlearningCallback(**script.options), Net()
    first, second = (SubsetRandomSampler(range(n)) for n in (100, 200))
    trainer(own).fit(net, DataLoader(dataset, 50, sampler=first))
    torch.nn.init.zeros_(net.net[2].weight)
    with pytest.warns(UserWarning, match="got other weights than the training before"):
        trainer(own).fit(net, DataLoader(dataset, 50, sampler=second))
    assert own.record.stages is None
    assert not files(script)


def test_a_start_that_was_trained_is_no_start(script):
    """By another callback, on the very samples."""
    dataset, net = digits(N), script.kind()
    trainer(UnlearningCallback()).fit(net, DataLoader(dataset, 50))
    other = script.kind()
    other.load_state_dict(net.state_dict())
    own = UnlearningCallback(retrain=script.make, **script.options)
    with pytest.warns(UserWarning, match="weights that an earlier training has made"):
        trainer(own).fit(other, DataLoader(Subset(dataset, range(100)), 50))
    assert own.record.stages is None


def test_a_training_on_other_samples_is_no_stage(script):
    own, net = UnlearningCallback(retrain=script.make, **script.options), script.kind()
    trainer(own).fit(net, DataLoader(digits(100), 50))
    x, y = digits(150).tensors
    other = TensorDataset(x + 1, y)
    with pytest.warns(UserWarning, match="on other samples than the one before"):
        trainer(own).fit(net, DataLoader(other, 50))
    assert own.record.stages is None


@pytest.mark.filterwarnings("ignore:expected weights and buffers to be all")
def test_who_was_validated_on_was_seen(script):
    """Next month's data choose when to stop, and are trained on a month later."""
    dataset = digits(N)
    copied = TensorDataset(*(t[100:200].clone() for t in dataset.tensors))
    script.kind, script.val = Validated, (DataLoader(copied, 50),)
    own = UnlearningCallback(retrain=script.make, **script.options)
    net = script.kind()
    early = EarlyStopping("loss", patience=1)
    for n, val in ((100, script.val), (200, ()), (N, ())):
        kind = trainer(own, max_epochs=3, callbacks=[early] if val else [])
        if not val:
            net.validation_step = None
        kind.fit(net, DataLoader(dataset, 50, sampler=sampler(n)), *val)
    assert own.record.stages[0].validated
    assert not own.record.stages[1].validated
    script.kind = Net
    assert bound(kind, [250]) is Bound.REWOUND  # nobody has seen it
    assert bound(kind, [150]) is Bound.RETRAINED
    assert len(own.record.stages[0].validated) == 0  # of the new first stage


def sampler(n):
    return SubsetRandomSampler(range(n))


def test_what_is_interrupted_goes_on_where_a_stage_was_done(script, capsys):
    net, fit, own = script.train(digits(N))
    before, old = weights(net), files(script)
    stop, calls = [3], []
    make = script.make

    def stopping(data):
        made = make(data)
        calls.append(len(data))
        if len(calls) == 2 and stop:
            made[0].callbacks.append(Interrupting(stop.pop()))
        return made

    object.__setattr__(own.options, "retrain", stopping)
    stopped(fit, [3])
    assert same(weights(net), before)
    assert len(files(script)) == len(old) + 1  # the stage that was done
    assert {*old} < {*files(script)}
    assert calls == [99, 199]
    assert bound(fit, [3]) is Bound.RETRAINED
    assert calls == [99, 199, 199, 299]  # the first is not done again
    assert len(files(script)) == 2
    assert not {*old} & {*files(script)}


def test_what_fails_in_the_end_leaves_the_stages(script, tmp_path):
    net, fit, own = script.train(digits(N))
    before, old = weights(net), {p: p.read_bytes() for p in files(script)}
    record = own.record.to_dict()
    (tmp_path / "clean.certificate.json").write_text("somebody's")
    with pytest.raises(SetupError, match="clean.certificate.json"):
        fit.unlearn([3], how="retrain", save_to=tmp_path / "clean.ckpt")
    assert same(weights(net), before)
    assert {p: p.read_bytes() for p in files(script) if p in old} == old
    assert own.record.to_dict() == record


def test_a_stage_cannot_draw_what_it_is_not_given(script):
    """A planted leak in a later stage."""
    dataset = digits(N)
    net, fit, own = script.train(dataset)
    make = script.make

    def leaking(data):
        made, new, loader = make(data)
        both = DataLoader(dataset, 50, sampler=sampler(N))
        return made, new, both if len(data) > 200 else loader

    object.__setattr__(own.options, "retrain", leaking)
    before = weights(net)
    with pytest.raises(DataError, match="the retraining to draw from the very"):
        fit.unlearn([150], how="retrain")
    assert same(weights(net), before)
