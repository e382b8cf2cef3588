"""Ways in which a certificate could claim more than is proved, each closed."""

import dataclasses
import itertools
import json
import re

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset, TensorDataset, WeightedRandomSampler

from lightning_unlearn import ConvexHead, NewtonStep, UnlearningCallback
from lightning_unlearn.errors import BudgetError, DataError, GuaranteeError
from lightning_unlearn.guarantee.claims import Grade
from lightning_unlearn.plugin.data import training_data
from lightning_unlearn.weights.digests import state_digest
from tests.helpers.lightning import (
    Callback,
)
from tests.helpers.nets import (
    MLP,
    HeadNet,
    digits,
    fitted,
    loader,
    trainer,
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
    assert headline.endswith(
        "how samples are read and preprocessed, backbone as public"
    )
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
    record = json.loads((tmp_path / "clean.private.json").read_text())
    X, y = data.tensors
    matches = []
    for label in range(10):  # an attacker who knows all but the label of sample 0
        guess = y.clone()
        guess[0] = label
        dataset = TensorDataset(X, guess)
        matches.append(
            training_data.fingerprint(dataset, record["salt"], record["removed"])
            == record["fingerprint"]
        )
        assert (
            training_data.fingerprint(dataset, record["salt"]) != record["fingerprint"]
        )
    assert all(matches)


def test_a_vacuous_claim_names_what_it_takes_as_public():
    net = MLP()
    net.net[0].requires_grad_(False)
    certificate = (
        trainer(UnlearningCallback(max_norm=5.0, accept_noise=True))
        .unlearn([1], model=net, train_dataloaders=loader(digits(60)))
        .certificate
    )
    assert certificate.grade is Grade.VACUOUS
    text = str(certificate).replace("\n", " ")
    assert "is true" not in text
    assert ", net as public" in " ".join(text.split())


@pytest.mark.parametrize("max_norm", [2.0])
def test_weights_outside_the_ball_have_no_newton_bound(max_norm):
    callback = UnlearningCallback(
        max_norm=max_norm,
        accept_noise=True,
        guarantee=NewtonStep(1.0, -5.0, 0.1),
        damping=9.0,
        l2=0.0,
    )
    with pytest.raises(GuaranteeError, match="in the ball of max_norm=2.0, got norm"):
        trainer(callback).unlearn(
            [1], model=MLP(hidden=32), train_dataloaders=loader(digits(60))
        )


def test_conditional_needs_the_user_s_word_and_the_data_s_silence():
    options = {"max_norm": 50.0, "accept_noise": True, "damping": 9.0, "l2": 0.0}
    refuted = NewtonStep(1e-4, 1.0, 0.0)
    _, fit_trainer, _, _ = fitted(MLP(), guarantee=refuted, **options)
    with pytest.raises(GuaranteeError, match="the assumption is refuted"):
        fit_trainer.unlearn([1])
    # Strongly regularised: Theorem A says something, if the user's word is true.
    good = NewtonStep(1e-3, 4.9, 0.1, residual=0.05)
    _, fit_trainer, _, _ = fitted(
        MLP(),
        guarantee=good,
        max_norm=2.0,
        accept_noise=True,
        damping=0.0,
        l2=5.0,
        epsilon=1.0,
    )
    with pytest.raises(GuaranteeError, match="the assumption is refuted"):
        fit_trainer.unlearn([1])  # the Hessian changes faster than 1e-3
    better = NewtonStep(2.0, 4.5, 0.1, residual=0.05)
    _, fit_trainer, _, _ = fitted(
        MLP(), guarantee=better, max_norm=0.5, accept_noise=True, damping=0.0, l2=5.0
    )
    certificate = fit_trainer.unlearn([1]).certificate
    assert certificate.grade is Grade.CONDITIONAL
    assert certificate.sensitivity < 1.0
    assert "ONLY IF" in str(certificate)


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
        (MLP(), {}, "no finite sensitivity|Four ways out"),
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


def test_nothing_in_the_clean_checkpoint_is_a_function_of_the_old_weights(tmp_path):
    net, fit_trainer, _, _ = fitted(log_gradient=True)
    old = state_digest(net.state_dict())
    fit_trainer.unlearn([0], save_to=tmp_path / "clean.ckpt")
    content = torch.load(tmp_path / "clean.ckpt", weights_only=True)
    private = (tmp_path / "clean.private.json").read_text()
    assert old not in repr(content) + private
    record = json.loads(private)
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


class Counts(HeadNet):
    """Log rates of counts."""

    def __init__(self):
        super().__init__()
        self.head = ConvexHead(32, 10, "poisson")

    def training_step(self, batch, batch_idx):
        rates = torch.nn.functional.one_hot(batch[1], 10).float()
        return self.head.loss(self.backbone(batch[0]), rates).mean()


@pytest.mark.parametrize("value", [20.0, 1e4, float("inf"), float("nan")])
def test_a_request_is_answered_wherever_the_training_has_ended(value):
    """Refused or not: it must not depend on what the forgotten samples did."""
    torch.manual_seed(0)
    net, data = Counts(), digits(300)
    callback = UnlearningCallback(l2=1e-3)
    fit_trainer = trainer(callback, max_epochs=1)
    fit_trainer.fit(net, loader(data))
    fit_trainer.unlearn([1])
    wanted = net.head.weight.detach().clone()
    with torch.no_grad():
        net.head.weight.fill_(value)
    result = fit_trainer.unlearn([2])
    assert result.certificate.grade is Grade.CERTIFIED
    moved = float((net.head.weight.detach() - wanted).norm())
    assert moved < 0.1 * float(wanted.norm())
