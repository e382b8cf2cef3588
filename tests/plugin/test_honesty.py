"""Ways in which a certificate could claim more than is proved, each closed."""

import itertools
import re

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

from lightning_unlearn import NewtonStep, UnlearningCallback
from lightning_unlearn.certificate import Grade
from lightning_unlearn.errors import (
    DataError,
    GuaranteeError,
    ModelError,
)
from lightning_unlearn.plugin import data as plugin_data
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
        (RunningMean, "mu[0]"),
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
    assert str(tmp_path / "clean.ckpt") in " ".join(
        fit_trainer.unlearn([6]).certificate.not_covered
    )


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
    assert "the state kept by the callback Remembers" in (
        other.unlearn([1]).certificate.not_covered
    )


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
    with pytest.raises(DataError):
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
