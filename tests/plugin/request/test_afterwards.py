"""What stays true after a request, a failed one, or another training."""

import pytest
import torch
import torchmetrics
from torch.utils.data import DataLoader, Subset

from lightning_unlearn import UnlearningCallback, preflight
from lightning_unlearn.certificate import ledger as ledgers
from lightning_unlearn.errors import DataError, GuaranteeError, ModelError, SetupError
from lightning_unlearn.guarantee.claims import Grade
from tests.helpers.lightning import (
    Callback,
    L,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from tests.helpers.nets import (
    MLP,
    HeadNet,
    digits,
    fitted,
    loader,
    same,
    trainer,
    weights,
)


def test_validate_after_unlearning_does_not_bring_the_old_weights_back(tmp_path):
    class Net(HeadNet):
        def validation_step(self, batch, batch_idx):
            self.log(
                "val_loss", self.head.loss(self.backbone(batch[0]), batch[1]).mean()
            )

    net, callback = Net(), UnlearningCallback()
    fit_trainer = L.Trainer(
        accelerator="cpu", max_epochs=3, logger=False, enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[
            callback, ModelCheckpoint(tmp_path, monitor="val_loss", save_top_k=2)
        ],
    )  # fmt: skip
    fit_trainer.fit(net, loader(digits(600)), DataLoader(digits(100), 50))
    kept = [str(p) for p in tmp_path.glob("*.ckpt")]
    result = fit_trainer.unlearn([1, 2], save_to=tmp_path / "clean.ckpt")
    after = weights(net)
    assert len(kept) == 2
    assert sorted(result.stale.checkpoints) == sorted(kept)
    with pytest.warns(UserWarning, match="best model of the previous `fit`"):
        fit_trainer.validate(dataloaders=DataLoader(digits(100), 50), verbose=False)
    assert same(weights(net), after)
    assert fit_trainer.unlearn([5]).n_retain == 597
    later = fit_trainer.unlearn([6]).stale.checkpoints
    assert {*later} == {*kept, str(tmp_path / "clean.ckpt")}


def test_weights_from_before_a_request_are_noticed(tmp_path):
    net, fit_trainer, callback, dataset = fitted(MLP(), noise_std=0.0)
    fit_trainer.save_checkpoint(tmp_path / "old.ckpt")
    old = weights(net)
    fit_trainer.unlearn([1, 2])
    assert not fit_trainer.unlearn([3]).certificate.warnings
    net.load_state_dict(old)  # behind the callback's back
    (warning,) = fit_trainer.unlearn([4]).certificate.warnings
    assert "not those the last training or request ended with" in warning
    told = "before 4 samples were unlearned"
    with (
        pytest.warns(UserWarning, match=f"{told}: they are"),
        pytest.raises(SetupError, match=f"{told}, as a request in this process"),
    ):
        fit_trainer.unlearn([5], model=net, ckpt_path=tmp_path / "old.ckpt")
    assert callback.record.removed == [1, 2, 3, 4]
    with pytest.warns(UserWarning, match=f"{told}: they are"):
        fit_trainer.unlearn(range(1, 6), model=net, ckpt_path=tmp_path / "old.ckpt")
    assert callback.record.removed == [1, 2, 3, 4, 5]


def test_averaged_copies_of_the_weights_are_refused_and_other_states_listed():
    class Remembers(Callback):
        def state_dict(self):
            return {"best": 0.1}

    dataset = digits(200)
    callback = UnlearningCallback()
    swa = trainer(callback, callbacks=[StochasticWeightAveraging(swa_lrs=1e-2)])
    swa.fit(HeadNet(), loader(dataset))
    with pytest.raises(
        ModelError, match="copies of the trained weights, got Stochastic"
    ):
        swa.unlearn([1])
    other = trainer(UnlearningCallback(), callbacks=[Remembers()])
    other.fit(HeadNet(), loader(dataset))
    assert "the state kept by Remembers" in (other.unlearn([1]).certificate.not_covered)


def test_a_teardown_that_fails_after_the_request_does_not_undo_it(tmp_path):
    class Net(HeadNet):
        def teardown(self, stage):
            raise RuntimeError("in teardown")

    _, fit_trainer, _, dataset = fitted()
    fit_trainer.save_checkpoint(tmp_path / "run.ckpt")
    net, callback = Net(), UnlearningCallback()
    before = weights(net)
    with pytest.raises(RuntimeError, match="in teardown"):
        trainer(callback).unlearn(
            [1], model=net, train_dataloaders=loader(dataset),
            ckpt_path=tmp_path / "run.ckpt",
        )  # fmt: skip
    assert not same(weights(net), before)
    assert callback.record.removed == [1]


def test_a_failing_request_leaves_trainer_and_metrics_alone():
    class Net(HeadNet):
        def __init__(self):
            super().__init__()
            self.accuracy = torchmetrics.SumMetric()

        def training_step(self, batch, batch_idx):
            self.accuracy(batch[1].float())
            return super().training_step(batch, batch_idx)

    net, fit_trainer, callback, _ = fitted(Net(), noise_std=0.0)
    net.accuracy.reset()
    net.accuracy.update(torch.tensor(5.0))
    other = HeadNet()
    with pytest.raises(
        SetupError, match="the model this UnlearningCallback has watched"
    ):
        fit_trainer.unlearn([1], model=other, train_dataloaders=loader(digits(50)))
    assert fit_trainer.lightning_module is net
    callback.options.__dict__["tolerance"] = 1e-30
    with pytest.raises(GuaranteeError):
        fit_trainer.unlearn([1])
    assert float(net.accuracy.metric_state["sum_value"]) == 5.0
    callback.options.__dict__["tolerance"] = 1e-6
    net.log = "the user's own"
    fit_trainer.unlearn([1])
    assert net.log == "the user's own"
    assert float(net.accuracy.metric_state["sum_value"]) == 0.0


def test_other_training_data_after_a_request_is_refused():
    net, fit_trainer, _, _ = fitted()
    fit_trainer.unlearn([5])
    fit_trainer.fit_loop.max_epochs = 3
    with pytest.raises(DataError, match="go on with the 599 samples .* got 650"):
        fit_trainer.fit(net, loader(digits(650)))


def test_unlearn_then_fit_in_one_process_remembers():
    dataset = digits(200)
    callback = UnlearningCallback(l2=1e-3)
    both = trainer(callback)
    net = HeadNet()
    both.unlearn([1], model=net, train_dataloaders=loader(dataset))
    with pytest.raises(DataError, match="go on with the 199 samples"):
        both.fit(net, loader(dataset))


def test_the_result_does_not_hold_the_noise():
    net, fit_trainer, _, _ = fitted()
    before = torch.cat([p.detach().double().reshape(-1) for p in net.head.parameters()])
    result = fit_trainer.unlearn([1])
    after = torch.cat([p.detach().double().reshape(-1) for p in net.head.parameters()])
    torch.testing.assert_close(before - result.solution.x, after, atol=1e-6, rtol=0)
    assert "tensor" not in repr(result)


def test_a_checkpoint_loaded_for_a_forecast_leaves_no_trace(tmp_path):
    dataset = digits(300)
    watched = UnlearningCallback()
    with_callback = trainer(watched, max_epochs=1)
    with_callback.fit(HeadNet(), loader(dataset))
    with_callback.save_checkpoint(tmp_path / "with.ckpt")
    without = trainer(max_epochs=1)
    without.fit(HeadNet(), loader(dataset))
    without.save_checkpoint(tmp_path / "without.ckpt")
    both = trainer(UnlearningCallback(), max_epochs=2)
    preflight(
        both, [1], model=HeadNet(), train_dataloaders=loader(dataset),
        ckpt_path=tmp_path / "with.ckpt",
    )  # fmt: skip
    both.fit(HeadNet(), loader(dataset), ckpt_path=tmp_path / "without.ckpt")
    assert both.unlearn([1]).certificate.grade is Grade.CONDITIONAL


def test_a_failure_after_the_commit_keeps_weights_and_record_together():
    class ReadOnly(ModelCheckpoint):
        best_model_path = property(
            lambda self: "", lambda self, value: self.refuse(value)
        )

        def refuse(self, value):
            if getattr(self, "armed", False):
                raise AttributeError("read only")

    checkpoint = ReadOnly(save_top_k=0)
    callback = UnlearningCallback()
    fit_trainer = trainer(callback, callbacks=[checkpoint], enable_checkpointing=True)
    net = HeadNet()
    fit_trainer.fit(net, loader(digits(300)))
    before = weights(net)
    checkpoint.armed = True
    with pytest.raises(AttributeError, match="read only"):
        fit_trainer.unlearn([1])
    assert not same(weights(net), before)
    assert callback.record.removed == [1]
    checkpoint.armed = False
    assert fit_trainer.unlearn([2]).n_retain == 298


def test_an_interrupt_at_the_very_end_of_the_ledger_s_writing(tmp_path, monkeypatch):
    path = tmp_path / "ledger.jsonl"
    net, fit_trainer, callback, _ = fitted(ledger=path)
    fit_trainer.unlearn([1])
    before, text = weights(net), path.read_text()
    write = ledgers.write

    def interrupted(path, ledger):
        write(path, ledger)
        monkeypatch.undo()
        raise OSError("after the replacement")

    monkeypatch.setattr(ledgers, "write", interrupted)
    with pytest.raises(OSError, match="after the replacement"):
        fit_trainer.unlearn([2])
    assert path.read_text() == text
    assert same(weights(net), before)
    assert fit_trainer.unlearn([2]).certificate.release == 2


def test_going_on_with_the_wrong_samples_is_refused(tmp_path):
    _, fit_trainer, callback, dataset = fitted()
    fit_trainer.unlearn([0, 1], save_to=tmp_path / "clean.ckpt")

    def go_on(indices):
        fresh = trainer(UnlearningCallback(), max_epochs=4)
        fresh.fit(
            HeadNet(), loader(Subset(dataset, indices)),
            ckpt_path=tmp_path / "clean.ckpt",
        )  # fmt: skip

    with pytest.raises(DataError, match="598 samples that were not unlearned"):
        go_on(range(598))
    go_on(callback.retained_indices)


@pytest.mark.parametrize(
    ("name", "value"),
    [("removed", None), ("ledger", None), ("ledger_key", "zz"), ("outside", [1]),
     ("saved", [5]), ("l2", "x"), ("n_train", True), ("extra", 1)],
)  # fmt: skip
def test_altered_callback_states_are_refused(name, value):
    callback = UnlearningCallback()
    with pytest.raises(DataError, match="in the callback's state in a checkpoint"):
        callback.load_state_dict({**callback.state_dict(), name: value})
