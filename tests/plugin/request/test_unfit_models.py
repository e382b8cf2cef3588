"""Models and options that allow no request, or no claim: refused by name."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_unlearn import (
    CG,
    NewtonStep,
    StronglyConvex,
    UnlearnableMixin,
    UnlearningCallback,
)
from lightning_unlearn.errors import GuaranteeError, ModelError, SolverError
from lightning_unlearn.guarantee.claims import Grade
from tests.helpers.lightning import L
from tests.helpers.nets import (
    MLP,
    HeadNet,
    digits,
    fitted,
    loader,
    trainer,
)
from tests.plugin.request.test_refusals import refused


class Manual(MLP):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(F.cross_entropy(self(batch[0]), batch[1]))
        optimizer.step()


class ManualWithLoss(UnlearnableMixin, Manual):
    def unlearning_loss(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1], reduction="none")


def test_manual_optimization_needs_an_override():
    net, fit_trainer, callback, _ = fitted(Manual(), noise_std=0.0)
    refused(
        ModelError, "expected automatic optimization.*override unlearning_loss", net,
        fit_trainer, callback, [1],
    )  # fmt: skip
    _, fit_trainer, _, _ = fitted(ManualWithLoss(), noise_std=0.0)
    assert fit_trainer.unlearn([1]).n_forget == 1


class Skips(MLP):
    def training_step(self, batch, batch_idx):
        if batch_idx == 2:
            return None
        return super().training_step(batch, batch_idx)


class NoStep(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(2))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1)


def test_missing_losses():
    callback = UnlearningCallback(noise_std=0.0, batch_size=64)
    with pytest.raises(ModelError, match="a loss tensor .* got NoneType on batch 2"):
        trainer(callback).unlearn(
            [1], model=Skips(), train_dataloaders=loader(digits(300))
        )
    with pytest.raises(ModelError, match="a training_step or an unlearning_loss"):
        trainer(callback).unlearn(
            [1], model=NoStep(), train_dataloaders=loader(digits(60))
        )


def test_batch_statistics_without_memory_are_named():
    class NoMemory(nn.BatchNorm1d):
        def __init__(self, n):
            super().__init__(n, track_running_stats=False)

    with pytest.raises(ModelError, match="treat each sample on its own, got NoMemory"):
        trainer(UnlearningCallback(noise_std=0.0)).unlearn(
            [1], model=MLP(norm=NoMemory), train_dataloaders=loader(digits(60))
        )


class FrozenBatchNorm(HeadNet):
    def __init__(self, eval_in_training):
        super().__init__()
        self.backbone.append(nn.BatchNorm1d(32)).requires_grad_(False)
        self.eval_in_training = eval_in_training

    def on_train_epoch_start(self):
        if self.eval_in_training:
            self.backbone.eval()


def test_frozen_batchnorm_is_public_only_if_it_never_moved():
    _, fit_trainer, _, _ = fitted(FrozenBatchNorm(True))
    assert fit_trainer.unlearn([1]).certificate.grade is Grade.CERTIFIED
    net, fit_trainer, callback, _ = fitted(FrozenBatchNorm(False))
    refused(
        ModelError, "BatchNorm1d at 'backbone.2'.*keep it frozen", net, fit_trainer,
        callback, [1],
    )  # fmt: skip


class TrainedBackbone(HeadNet):
    """Trains everything, then asks for the head alone."""

    def __init__(self):
        super().__init__()
        self.backbone.requires_grad_(True)

    def unlearning_parameters(self):
        return self.head.parameters()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2, weight_decay=1e-3)


def test_a_backbone_trained_on_the_data_gets_no_guarantee():
    _, fit_trainer, _, _ = fitted(TrainedBackbone())
    certificate = fit_trainer.unlearn([1]).certificate
    assert certificate.grade is Grade.NONE
    assert certificate.epsilon is None
    assert "backbone.0.weight" in certificate.unscrubbed
    told = " ".join(str(certificate).split())
    assert "this request does not cover, and the change is still there: back" in told

    # Trained with the whole network in scope, frozen afterwards: the same.
    class Freezes(TrainedBackbone):
        def unlearning_parameters(self):
            return [p for p in self.parameters() if p.requires_grad]

    net, fit_trainer, _, _ = fitted(Freezes())
    net.backbone.requires_grad_(False)
    assert fit_trainer.unlearn([1]).certificate.grade is Grade.NONE


def test_no_finite_sensitivity_is_refused_with_three_ways_out():
    net, fit_trainer, callback, _ = fitted(MLP())
    refused(
        GuaranteeError, "Four ways out: .*put a ConvexHead .* max_norm= .* noise_std=",
        net, fit_trainer, callback, [1],
    )  # fmt: skip


def test_guarantees_that_do_not_fit():
    net, fit_trainer, callback, _ = fitted(MLP(), guarantee=StronglyConvex())
    refused(
        GuaranteeError,
        "exactly those of one ConvexHead",
        net,
        fit_trainer,
        callback,
        [1],
    )
    net, fit_trainer, callback, _ = fitted(HeadNet(weight_decay=0.0))
    refused(
        GuaranteeError, "expected l2 > 0 for a strongly convex objective, got l2=0.0",
        net, fit_trainer, callback, [1],
    )  # fmt: skip
    kinked = NewtonStep(1.0, -1.0, 0.1)
    net, fit_trainer, callback, _ = fitted(
        MLP(nn.ReLU), guarantee=kinked, max_norm=9.0, accept_noise=True
    )
    refused(
        GuaranteeError, "Lipschitz Hessian .* got relu", net, fit_trainer, callback, [1]
    )


class OwnLoss(HeadNet):
    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])


def test_a_head_whose_loss_is_not_its_own():
    net, fit_trainer, callback, _ = fitted(OwnLoss())
    refused(
        GuaranteeError, "exactly once, got 0 calls: return self.head.loss", net,
        fit_trainer, callback, [1],
    )  # fmt: skip


class Decay(MLP):
    def __init__(self, optimizer):
        super().__init__()
        self.optimizer = optimizer

    def configure_optimizers(self):
        return self.optimizer(self)


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (
            lambda m: torch.optim.AdamW(m.parameters()),
            "got AdamW, whose decay is decoupled",
        ),
        (
            lambda m: torch.optim.SGD(
                [{"params": m.net[0].parameters(), "weight_decay": 0.1},
                 {"params": m.net[2].parameters()}], lr=0.1),
            r"one weight decay for all weights in scope, got \[0.0, 0.1\]: pass l2=",
        ),
        (
            lambda m: torch.optim.SGD(m.net[0].parameters(), lr=0.1),
            "every weight in scope in an optimizer",
        ),
    ],
    ids=["decoupled", "groups", "missing"],
)  # fmt: skip
def test_weight_decay_that_is_no_l2(optimizer, message):
    net, fit_trainer, callback, _ = fitted(Decay(optimizer), noise_std=0.0)
    refused(ModelError, message, net, fit_trainer, callback, [1])
    with pytest.raises(ModelError, match=message):  # without a training run too
        trainer(UnlearningCallback(noise_std=0.0)).unlearn(
            [1], model=Decay(optimizer), train_dataloaders=loader(digits(60))
        )
    _, fit_trainer, _, _ = fitted(Decay(optimizer), noise_std=0.0, l2=0.1)
    assert fit_trainer.unlearn([1]).n_forget == 1


def test_damping_below_minus_lambda_min():
    torch.manual_seed(0)
    net, fit_trainer, callback, _ = fitted(
        MLP(hidden=16), noise_std=0.0, damping=1e-6, solver=CG(rtol=1e-6)
    )
    refused(
        SolverError, "damping=1e-06.*not positive definite: raise damping", net,
        fit_trainer, callback, [1],
    )  # fmt: skip


def test_central_differences_on_a_kinked_network():
    net, fit_trainer, callback, _ = fitted(
        MLP(nn.ReLU), noise_std=0.0, curvature="central_difference"
    )
    refused(
        ModelError,
        "expected a smooth network.*got relu",
        net,
        fit_trainer,
        callback,
        [1],
    )
