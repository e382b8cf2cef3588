"""Batch normalisation: its statistics are taken anew, or the request is refused."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import update_bn
from torch.utils.data import DataLoader, Subset

from lightning_unlearn import NewtonStep, UnlearningCallback
from lightning_unlearn.certificate.verification import verify_text
from lightning_unlearn.errors import DataError, ModelError
from lightning_unlearn.guarantee.claims import Grade
from tests.helpers.nets import MLP, digits, fitted, loader, same, trainer, weights
from tests.plugin.helpers.distributed_job import done, saved

FORGOTTEN = [3, 17, 42]

TWO = {"devices": 2}


def normed(hidden=8):
    return MLP(nn.Tanh, hidden=hidden, norm=nn.BatchNorm1d)


def statistics(net):
    return {k: v for k, v in net.state_dict().items() if "running" in k}


def test_they_are_those_of_the_released_weights_over_the_retained_samples(tmp_path):
    """The oracle is torch's own `update_bn`."""
    n = 259  # 256 retained: batches of one size, as update_bn counts batches
    net, fit_trainer, callback, data = fitted(normed(), digits(n), noise_std=0.01)
    before = statistics(net)
    before = {k: v.clone() for k, v in before.items()}
    result = fit_trainer.unlearn(FORGOTTEN, save_to=tmp_path / "clean.ckpt")
    found = {k: v.clone() for k, v in statistics(net).items()}
    assert all(float((found[k] - before[k]).abs().max()) > 1e-4 for k in found)
    rest = Subset(data, callback.retained_indices)
    update_bn(DataLoader(rest, 64), net)
    for name, value in statistics(net).items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)
    clean = torch.load(tmp_path / "clean.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(clean[name], found[name]) for name in found)
    certificate = result.certificate
    assert not certificate.unscrubbed
    assert "the statistics of net.1 were computed anew" in " ".join(
        certificate.warnings
    )
    assert certificate.grade is Grade.NONE  # noise by hand


def test_the_norm_ball_may_be_claimed_and_verifies(tmp_path):
    _, fit_trainer, _, _ = fitted(normed(), max_norm=20.0, accept_noise=True)
    result = fit_trainer.unlearn(FORGOTTEN, save_to=tmp_path / "clean.ckpt")
    assert result.certificate.grade is Grade.VACUOUS
    text = (tmp_path / "clean.certificate.json").read_text()
    assert all(f.holds is not False for f in verify_text(text))
    again = fit_trainer.unlearn([5])  # and once more
    assert again.certificate.grade is Grade.VACUOUS


def test_a_failed_request_leaves_them_alone(tmp_path, monkeypatch):
    net, fit_trainer, _, _ = fitted(normed(), noise_std=0.0)
    before = weights(net)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fit_trainer, "save_checkpoint", full)
    with pytest.raises(OSError, match="No space left"):
        fit_trainer.unlearn(FORGOTTEN, save_to=tmp_path / "clean.ckpt")
    assert same(weights(net), before)
    assert "forward" not in vars(net.net[1])


def test_guarantees_that_rest_on_the_loss_are_refused():
    newton = NewtonStep(
        hessian_lipschitz=1.0, lambda_min=0.1, retrained_gradient_norm=0.1, residual=0.1
    )
    _, fit_trainer, _, _ = fitted(
        normed(), max_norm=20.0, accept_noise=True, guarantee=newton, damping=1.0
    )
    with pytest.raises(ModelError, match="BatchNorm's are taken anew for a whole"):
        fit_trainer.unlearn(FORGOTTEN)


def test_instance_statistics_are_refused():
    class Wide(MLP):
        def __init__(self):
            super().__init__(nn.Tanh)
            self.net = nn.Sequential(
                nn.Unflatten(1, (4, 16)),
                nn.InstanceNorm1d(4, track_running_stats=True),
                nn.Flatten(), nn.Linear(64, 10),
            )  # fmt: skip

    _, fit_trainer, _, _ = fitted(Wide(), noise_std=0.0)
    with pytest.raises(ModelError, match="got InstanceNorm1d at 'net.1'"):
        fit_trainer.unlearn(FORGOTTEN)


def test_a_model_of_unknown_training_gets_them_too():
    net = normed()
    own = UnlearningCallback(noise_std=0.0)
    result = trainer(own).unlearn(
        FORGOTTEN, model=net, train_dataloaders=loader(digits(60))
    )
    assert int(net.net[1].num_batches_tracked) == 1
    assert "computed anew" in " ".join(result.certificate.warnings)


def test_one_retained_sample_has_no_variance():
    net, fit_trainer, _, _ = fitted(normed(), digits(5), noise_std=0.0)
    before = weights(net)
    with pytest.raises(DataError, match="at least 2 retained samples for batch norm"):
        fit_trainer.unlearn([0, 1, 2, 3])
    assert same(weights(net), before)


class Uncalled(MLP):
    """A layer of batch normalisation that a branch calls in training only."""

    def __init__(self):
        super().__init__(nn.Tanh)
        self.norm = nn.BatchNorm1d(64, affine=False)

    def training_step(self, batch, batch_idx):
        x = self.norm(batch[0]) if self.training else batch[0]
        return F.cross_entropy(self(x), batch[1])


def test_a_layer_that_is_not_called_is_named():
    net, fit_trainer, _, _ = fitted(Uncalled(), noise_std=0.0)
    before = weights(net)
    with pytest.raises(ModelError, match="statistics of 'norm' .* got no call of it"):
        fit_trainer.unlearn(FORGOTTEN)
    assert same(weights(net), before)


def test_images_and_odd_batches():
    """Convolutions; 65 retained in batches of 64 would leave one alone."""

    class Conv(MLP):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(
                nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3),
                nn.GELU(), nn.Flatten(), nn.Linear(108, 10),
            )  # fmt: skip

    net, fit_trainer, callback, data = fitted(Conv(), digits(68), noise_std=0.0)
    fit_trainer.unlearn(FORGOTTEN)
    found = {k: v.clone() for k, v in statistics(net).items()}
    update_bn(DataLoader(Subset(data, callback.retained_indices), 65), net)
    for name, value in statistics(net).items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("strategy", ["ddp_spawn", "fsdp2-file"])
def test_two_processes_take_those_of_one(strategy, tmp_path):
    own = trainer(UnlearningCallback(), max_epochs=1)
    own.fit(normed(12), loader(digits(397)))
    own.save_checkpoint(tmp_path / "run.ckpt")
    job = {
        "model": "normed", "ckpt_path": str(tmp_path / "run.ckpt"),
        "callback": {"noise_std": 0.0, "damping": 0.5},
    }  # fmt: skip
    done(tmp_path / "one", trainer={"devices": 1}, **job)
    done(tmp_path / "two", trainer=TWO | {"strategy": strategy}, **job)
    one, two = (saved(tmp_path / n)["state_dict"] for n in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-4)
    assert not torch.equal(
        one["net.1.running_mean"],
        torch.load(tmp_path / "run.ckpt", weights_only=True)["state_dict"][
            "net.1.running_mean"
        ],
    )
