"""Ways in which a certificate could claim more than is proved, each closed."""

import dataclasses
import itertools
import re
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch
import torchmetrics
from lightning.pytorch.callbacks import (
    Callback,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset, TensorDataset, WeightedRandomSampler

from lightning_unlearn import NewtonStep, UnlearningCallback, preflight
from lightning_unlearn import ledger as ledgers
from lightning_unlearn.certificate import Grade
from lightning_unlearn.errors import (
    BudgetError,
    DataError,
    GuaranteeError,
    ModelError,
    SetupError,
)
from lightning_unlearn.plugin import data as plugin_data
from lightning_unlearn.scope import state_digest
from tests.plugin.nets import (
    MLP,
    HeadNet,
    digits,
    fitted,
    loader,
    same,
    trainer,
    weights,
)


class SelfDistilled(HeadNet):
    def training_step(self, batch, batch_idx):
        features = self.backbone(batch[0])
        own = self.head(features).softmax(-1).detach()
        targets = 0.1 * F.one_hot(batch[1], 10) + 0.9 * own
        return self.head.loss(features, targets).mean()


def test_targets_made_from_the_private_head_are_refused():
    _, fit_trainer, _, _ = fitted(SelfDistilled())
    with pytest.raises(GuaranteeError, match="do not depend on the head's weights"):
        fit_trainer.unlearn([1])


class HiddenBackbone(HeadNet):
    """Trains a backbone that no parameter list shows."""

    def __init__(self):
        super().__init__(backbone=False)
        self.hidden = [nn.Linear(64, 64)]

    def training_step(self, batch, batch_idx):
        x = self.hidden[0](batch[0])
        x = x if self.trainer.training else x.detach()
        return self.head.loss(x, batch[1]).mean()

    def configure_optimizers(self):
        every = [*self.head.parameters(), *self.hidden[0].parameters()]
        return torch.optim.Adam(every, lr=1e-2, weight_decay=1e-3)


class RunningMean(HeadNet):
    def __init__(self):
        super().__init__()
        self.mu = torch.zeros(32)

    def training_step(self, batch, batch_idx):
        features = self.backbone(batch[0])
        if self.trainer.training:
            self.mu = 0.9 * self.mu + 0.1 * features.mean(0).detach()
        return self.head.loss(features - self.mu, batch[1]).mean()


class RunningArray(HeadNet):
    start = np.zeros(32, np.float32)

    def __init__(self):
        super().__init__()
        self.mu = self.start

    def training_step(self, batch, batch_idx):
        features = self.backbone(batch[0])
        if self.trainer.training:
            self.mu = 0.9 * self.mu + 0.1 * features.mean(0).detach().numpy()
        return self.head.loss(features - torch.as_tensor(self.mu), batch[1]).mean()


class RunningNumber(HeadNet):
    def __init__(self):
        super().__init__()
        self.settings = SimpleNamespace(mu=0.0)

    def training_step(self, batch, batch_idx):
        features = self.backbone(batch[0])
        if self.trainer.training:
            self.settings.mu += float(features.mean())
        return self.head.loss(features - self.settings.mu, batch[1]).mean()


class MetricMean(HeadNet):
    def __init__(self):
        super().__init__()
        self.mean = torchmetrics.MeanMetric()

    def training_step(self, batch, batch_idx):
        features = self.backbone(batch[0])
        if self.trainer.training:
            self.mean.update(features.detach())
        shift = self.mean.compute() if self.mean.update_called else 0.0
        return self.head.loss(features - shift, batch[1]).mean()


def test_settings_may_differ_between_processes_and_statistics_may_not(tmp_path):
    for net, grade in ((HeadNet, Grade.CERTIFIED), (RunningNumber, Grade.NONE)):
        _, fit_trainer, _, dataset = fitted(net())
        fit_trainer.save_checkpoint(tmp_path / f"{grade.value}.ckpt")
        fresh = net()
        fresh.lr = 0.5
        certificate = trainer(UnlearningCallback()).unlearn(
            [1], model=fresh, train_dataloaders=loader(dataset),
            ckpt_path=tmp_path / f"{grade.value}.ckpt",
        ).certificate  # fmt: skip
        assert certificate.grade is grade


def test_metrics_are_empty_while_features_are_captured():
    heads = []
    for _ in range(2):
        torch.manual_seed(0)
        net, fit_trainer, _, dataset = fitted(MetricMean(), noise_std=0.0)
        if heads:  # the same request without anything accumulated
            net.mean.reset()
        fit_trainer.unlearn([1])
        heads.append(weights(net))
    assert same(*heads)


class ExtraState(HeadNet):
    def __init__(self):
        super().__init__()
        self.seen = 0.0

    def get_extra_state(self):
        return {"seen": self.seen}

    def set_extra_state(self, state):
        self.seen = state["seen"]

    def training_step(self, batch, batch_idx):
        if self.trainer.training:
            self.seen += float(batch[0].sum())
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize(
    ("net", "name"),
    [
        (HiddenBackbone, "hidden[0].weight"),
        (RunningMean, "mu"),
        (RunningArray, "mu"),
        (RunningNumber, "settings.mu (number)"),
        (ExtraState, "_extra_state"),
    ],
)
def test_private_state_outside_parameters_is_found(net, name):
    _, fit_trainer, _, _ = fitted(net())
    certificate = fit_trainer.unlearn([1]).certificate
    assert certificate.grade is Grade.NONE
    assert name in certificate.unscrubbed


def test_a_backbone_trained_before_it_was_frozen_is_not_public():
    net = HeadNet()
    net.backbone.requires_grad_(True)
    net.configure_optimizers = lambda: torch.optim.Adam(net.parameters(), lr=1e-2)
    trainer(UnlearningCallback()).fit(net, loader(digits(600)))
    del net.configure_optimizers
    net.backbone.requires_grad_(False)
    _, fit_trainer, _, _ = fitted(net)  # a new callback, which sees it frozen
    certificate = fit_trainer.unlearn([1]).certificate
    assert certificate.grade is Grade.NONE
    assert "backbone.0.weight" in certificate.unscrubbed


def test_a_run_resumed_from_before_the_callback_is_only_conditional(tmp_path):
    net = HeadNet()
    before = trainer(max_epochs=1)
    before.fit(net, loader(digits(600)))
    before.save_checkpoint(tmp_path / "run.ckpt")
    callback = UnlearningCallback()
    fit_trainer = trainer(callback, max_epochs=2)
    fit_trainer.fit(HeadNet(), loader(digits(600)), ckpt_path=tmp_path / "run.ckpt")
    certificate = fit_trainer.unlearn([1]).certificate
    assert certificate.grade is Grade.CONDITIONAL
    assert "no training run was seen" in str(certificate)


def test_what_is_taken_as_public_stands_in_the_first_sentence():
    _, fit_trainer, _, _ = fitted()
    text = str(fit_trainer.unlearn([1]).certificate)
    headline = text.split("\n\n")[0].replace("\n", " ")
    assert headline.endswith("taking backbone as public")
    assert re.search(r"backbone +sha256 .* unchanged in the training run", text)


def test_the_order_of_the_scope_does_not_matter():
    class Backwards(HeadNet):
        def unlearning_parameters(self):
            return [self.head.bias, self.head.weight]

    net, fit_trainer, _, dataset = fitted(Backwards(), max_epochs=5, noise_std=0.0)
    X, y = dataset.tensors
    fit_trainer.unlearn([1])
    with torch.no_grad():
        assert (net(X).argmax(1) == y).float().mean() > 0.85


def test_copies_in_a_subset_are_forgotten_together():
    data = digits(300)
    train = Subset(data, [0, 0, 0, *range(1, 300)])
    for request in (Subset(data, [0]), [1]):
        _, fit_trainer, callback, _ = fitted(dataset=train)
        assert fit_trainer.unlearn(request).n_forget == 3
        assert callback.record.removed == [0, 1, 2]


def test_the_clean_checkpoint_cannot_tell_what_a_forgotten_sample_was(tmp_path):
    data = digits(30)  # every sample is probed by the fingerprint
    net, fit_trainer, _, _ = fitted(dataset=data)
    fit_trainer.unlearn([0], save_to=tmp_path / "clean.ckpt")
    content = torch.load(tmp_path / "clean.ckpt", weights_only=True)
    record = content["callbacks"]["UnlearningCallback"]
    X, y = data.tensors
    matches = []
    for label in range(10):  # an attacker who knows all but the label of sample 0
        guess = y.clone()
        guess[0] = label
        dataset = TensorDataset(X, guess)
        matches.append(
            plugin_data.fingerprint(dataset, record["salt"], record["removed"])
            == record["fingerprint"]
        )
        assert plugin_data.fingerprint(dataset, record["salt"]) != record["fingerprint"]
    assert all(matches)


def test_a_vacuous_claim_names_what_it_takes_as_public():
    net = MLP()
    net.net[0].requires_grad_(False)
    certificate = (
        trainer(UnlearningCallback(max_norm=5.0))
        .unlearn([1], model=net, train_dataloaders=loader(digits(60)))
        .certificate
    )
    assert certificate.grade is Grade.VACUOUS
    text = str(certificate).replace("\n", " ")
    assert "is true" not in text
    assert "taking net as public" in text


@pytest.mark.parametrize("max_norm", [2.0])
def test_weights_outside_the_ball_have_no_newton_bound(max_norm):
    callback = UnlearningCallback(
        max_norm=max_norm, guarantee=NewtonStep(1.0, -5.0, 0.1), damping=9.0, l2=0.0
    )
    with pytest.raises(GuaranteeError, match="in the ball of max_norm=2.0, got norm"):
        trainer(callback).unlearn(
            [1], model=MLP(hidden=32), train_dataloaders=loader(digits(60))
        )


def test_conditional_needs_the_user_s_word_and_the_data_s_silence():
    options = {"max_norm": 50.0, "damping": 9.0, "l2": 0.0}
    refuted = NewtonStep(1e-4, 1.0, 0.0)
    _, fit_trainer, _, _ = fitted(MLP(), guarantee=refuted, **options)
    with pytest.raises(GuaranteeError, match="the assumption is refuted"):
        fit_trainer.unlearn([1])
    # Strongly regularised: Theorem A says something, if the user's word is true.
    good = NewtonStep(1e-3, 4.9, 0.1, residual=0.05)
    _, fit_trainer, _, _ = fitted(
        MLP(), guarantee=good, max_norm=2.0, damping=0.0, l2=5.0, epsilon=1.0
    )
    with pytest.raises(GuaranteeError, match="the assumption is refuted"):
        fit_trainer.unlearn([1])  # the Hessian changes faster than 1e-3
    better = NewtonStep(2.0, 4.5, 0.1, residual=0.05)
    _, fit_trainer, _, _ = fitted(
        MLP(), guarantee=better, max_norm=0.5, damping=0.0, l2=5.0
    )
    certificate = fit_trainer.unlearn([1]).certificate
    assert certificate.grade is Grade.CONDITIONAL
    assert certificate.sensitivity < 1.0
    assert "ONLY IF" in str(certificate)


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
    text = " ".join(result.certificate.not_covered)
    assert len(kept) == 2
    assert all(path in text for path in kept)
    with pytest.warns(UserWarning, match="best model of the previous `fit`"):
        fit_trainer.validate(dataloaders=DataLoader(digits(100), 50), verbose=False)
    assert same(weights(net), after)
    assert fit_trainer.unlearn([5]).n_retain == 597
    later = " ".join(fit_trainer.unlearn([6]).certificate.not_covered)
    assert all(path in later for path in (*kept, str(tmp_path / "clean.ckpt")))


def test_weights_from_before_a_request_are_noticed(tmp_path):
    net, fit_trainer, callback, dataset = fitted(MLP(), noise_std=0.0)
    fit_trainer.save_checkpoint(tmp_path / "old.ckpt")
    old = weights(net)
    fit_trainer.unlearn([1, 2])
    assert not fit_trainer.unlearn([3]).certificate.warnings
    net.load_state_dict(old)  # behind the callback's back
    (warning,) = fit_trainer.unlearn([4]).certificate.warnings
    assert "not those the last training or request ended with" in warning
    with pytest.warns(UserWarning, match="before 4 samples were unlearned: they are"):
        fit_trainer.unlearn([5], model=net, ckpt_path=tmp_path / "old.ckpt")
    assert callback.record.removed == [5]  # which is true of the weights loaded


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


def test_a_teardown_that_fails_after_the_request_does_not_undo_it():
    class Net(HeadNet):
        def teardown(self, stage):
            if stage == "unlearn":
                raise RuntimeError("in teardown")

    net, fit_trainer, callback, _ = fitted(Net())
    before = weights(net)
    with pytest.raises(RuntimeError, match="in teardown"):
        fit_trainer.unlearn([1])
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


def test_doubtful_requests_say_so():
    dataset = digits(200)
    certificate = (
        trainer(UnlearningCallback(l2=1e-3))
        .unlearn([1], model=HeadNet(), train_dataloaders=loader(dataset))
        .certificate
    )
    assert "no record of a training run" in certificate.warnings[0]
    _, fit_trainer, _, _ = fitted(l2=0.5, max_norm=1.0)
    warnings = " ".join(fit_trainer.unlearn([1]).certificate.warnings)
    assert "l2 = 0.5, the model was trained with 0.001" in warnings
    assert "max_norm plays no role" in warnings
    weighted = DataLoader(
        dataset, 20, sampler=WeightedRandomSampler(torch.ones(200).tolist(), 200)
    )
    certificate = (
        trainer(UnlearningCallback(l2=1e-3))
        .unlearn([1], model=HeadNet(), train_dataloaders=weighted)
        .certificate
    )
    assert any("draws samples with weights" in w for w in certificate.warnings)


def test_a_loader_without_batching_is_refused():
    with pytest.raises(DataError, match="that batches samples, got batch_size=None"):
        trainer(UnlearningCallback(l2=1e-3)).unlearn(
            [1], model=HeadNet(),
            train_dataloaders=DataLoader(digits(60), batch_size=None),
        )  # fmt: skip


def test_what_a_request_would_refuse_is_said_before_the_training():
    for net, options, message in (
        (MLP(), {}, "no finite sensitivity|Three ways out"),
        (HeadNet(weight_decay=0.0), {}, "expected l2 > 0"),
    ):
        with pytest.warns(UserWarning, match=f"would be refused.*({message})"):
            fitted(net, **options)


def test_the_release_is_within_the_noise_in_two_worlds():
    """Two trainings that differ in the forgotten labels end in one distribution."""
    distances = []
    for flip in (False, True):
        X, y = digits(400).tensors
        y = y.clone()
        if flip:
            y[:100] = (y[:100] + 5) % 10
        torch.manual_seed(0)
        net = HeadNet()
        fitted(net, TensorDataset(X, y), max_epochs=3)
        callback = UnlearningCallback(noise_std=0.0, l2=1e-3)
        trainer(callback).unlearn(
            range(100), model=net, train_dataloaders=loader(TensorDataset(X, y))
        )
        distances.append(
            torch.cat([p.detach().double().reshape(-1) for p in net.head.parameters()])
        )
    sensitivity = 2 * 1e-6 / 1e-3
    rounding = 2 * np.finfo(np.float32).eps * float(distances[0].norm())
    for one, two in itertools.combinations(distances, 2):
        assert float((one - two).norm()) <= sensitivity + rounding


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


def test_a_backbone_unfrozen_in_the_middle_is_not_public_later():
    class Unfreezes(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 1:
                pl_module.backbone.requires_grad_(True)
                trainer.optimizers[0].add_param_group(
                    {"params": list(pl_module.backbone.parameters())}
                )

    net = HeadNet()
    first = trainer(UnlearningCallback(), callbacks=[Unfreezes()])
    first.fit(net, loader(digits(300)))
    net.backbone.requires_grad_(False)
    _, fit_trainer, _, _ = fitted(net, digits(300))
    assert fit_trainer.unlearn([1]).certificate.grade is Grade.NONE


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


def test_nothing_in_the_clean_checkpoint_is_a_function_of_the_old_weights(tmp_path):
    net, fit_trainer, _, _ = fitted(log_gradient=True)
    old = state_digest(net.state_dict())
    fit_trainer.unlearn([0], save_to=tmp_path / "clean.ckpt")
    content = torch.load(tmp_path / "clean.ckpt", weights_only=True)
    assert old not in repr(content)
    record = content["callbacks"]["UnlearningCallback"]
    assert record["gradient_norm"] is None
    assert record["weights_digest"] == state_digest(net.state_dict())


def test_the_announced_epsilon_may_not_shrink_on_the_way(tmp_path):
    _, fit_trainer, _, dataset = fitted(releases=2, epsilon=8.0)
    fit_trainer.unlearn([1], save_to=tmp_path / "one.ckpt")
    stricter = trainer(UnlearningCallback(releases=2, epsilon=0.5))
    with pytest.raises(BudgetError, match="within epsilon = 0.5, but with the earlier"):
        stricter.unlearn(
            [2], model=HeadNet(), train_dataloaders=loader(dataset),
            ckpt_path=tmp_path / "one.ckpt",
        )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value"),
    [("removed", None), ("ledger", None), ("ledger_key", "zz"), ("outside", [1]),
     ("saved", [5]), ("l2", "x"), ("n_train", True), ("extra", 1)],
)  # fmt: skip
def test_altered_callback_states_are_refused(name, value):
    callback = UnlearningCallback()
    with pytest.raises(
        DataError, match="of the callback's state|callback's state with"
    ):
        callback.load_state_dict({**callback.state_dict(), name: value})


def test_samples_that_cannot_be_fingerprinted_are_said():
    @dataclasses.dataclass
    class Sample:
        x: object
        y: object

    class Samples(torch.utils.data.Dataset):
        def __len__(self):
            return 100

        def __getitem__(self, i):
            return Sample(*digits(100)[i])

    def collate(samples):
        return (
            torch.stack([s.x for s in samples]), torch.stack([s.y for s in samples])
        )  # fmt: skip

    callback = UnlearningCallback()
    fit_trainer = trainer(callback)
    net = HeadNet()
    fit_trainer.fit(net, DataLoader(Samples(), 20, collate_fn=collate))
    assert callback.record.fingerprint is None
    warnings = " ".join(fit_trainer.unlearn([1]).certificate.warnings)
    assert "have no fingerprint" in warnings
