"""``preflight`` says what the request then does, and changes nothing."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from lightning_unlearn import NewtonStep, UnlearningCallback, preflight
from lightning_unlearn.errors import ForgetSetError
from lightning_unlearn.guarantee.claims import Grade
from lightning_unlearn.plugin.verbs.advice import slower
from tests.helpers.lightning import L
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

VALIDATION = DataLoader(digits(), 200)


def accuracy(net, data):
    X, y = data.tensors
    with torch.no_grad():
        return float((net(X).argmax(1) == y).float().mean())


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (HeadNet, {}),
        (HeadNet, {"releases": 4, "epsilon": 3.0}),
        (HeadNet, {"noise_std": 0.01}),
        (lambda: MLP(nn.ReLU), {"max_norm": 5.0, "accept_noise": True}),
        (MLP, {"noise_std": 0.0}),
        (
            MLP,
            {"guarantee": NewtonStep(2.0, 4.5, 0.1, residual=0.05), "max_norm": 0.5,
             "accept_noise": True, "damping": 0.0, "l2": 5.0},
        ),
    ],
    ids=["head", "announced", "by hand", "vacuous", "bare", "conditional"],
)  # fmt: skip
def test_it_says_what_the_request_then_does(make, options):
    net, fit_trainer, callback, dataset = fitted(make(), max_epochs=4, **options)
    before, record = weights(net), copy.deepcopy(callback.record)
    state = torch.get_rng_state()
    look = preflight(fit_trainer, range(20), val_dataloaders=VALIDATION)
    assert same(weights(net), before)
    assert callback.record == record
    assert torch.equal(state, torch.get_rng_state())
    assert look.metric == "accuracy"
    assert look.metric_before == pytest.approx(accuracy(net, digits()), abs=1e-6)

    result = fit_trainer.unlearn(range(20))
    certificate = result.certificate
    assert look.grade is certificate.grade
    assert look.epsilon == certificate.epsilon
    assert look.noise_std == certificate.noise_std
    if certificate.epsilon is not None:
        assert look.sensitivity == pytest.approx(certificate.sensitivity)
    assert (look.n_forget, look.n_retain) == (result.n_forget, result.n_retain)
    assert look.metric_after == pytest.approx(accuracy(net, digits()), abs=0.12)
    assert look.seconds > 0
    assert look.memory_bytes > 0
    text = str(look)
    assert text.startswith("PREFLIGHT: nothing was changed")
    for line in text.splitlines():
        assert "epsilon =" not in line or look.grade.value in line


def test_the_curve_shows_what_other_epsilons_cost():
    _, fit_trainer, _, _ = fitted(max_epochs=6, tolerance=1e-4)
    look = preflight(fit_trainer, range(20), val_dataloaders=VALIDATION)
    stds = [std for _, std, _ in look.curve]
    assert stds == sorted(stds, reverse=True)
    metrics = [m for _, _, m in look.curve]
    assert metrics[-1] > metrics[0] + 0.1  # less privacy, more accuracy
    assert look.logit_noise > 0.1
    assert any("tolerance = " in text for text in look.advice)


def test_advice():
    _, fit_trainer, _, _ = fitted(MLP(), max_norm=20.0, accept_noise=True)
    text, theorem = preflight(fit_trainer, [1]).advice
    assert (
        "train a ConvexHead on a public backbone that never saw this data: certified at"
        in text
    )
    assert "with any damping it says no more than the norm ball" in theorem
    _, fit_trainer, _, _ = fitted(MLP(nn.ReLU), max_norm=20.0, accept_noise=True)
    assert "no Lipschitz Hessian" in preflight(fit_trainer, [1]).advice[1]
    _, fit_trainer, _, _ = fitted(MLP(), max_norm=0.5, accept_noise=True, l2=5.0)
    assert "damping=0.0 may be conditional" in preflight(fit_trainer, [1]).advice[1]
    look = preflight(
        trainer(UnlearningCallback(l2=1e-3)), [1], model=HeadNet(),
        train_dataloaders=loader(digits(300)),
    )  # fmt: skip
    assert look.grade is Grade.CONDITIONAL
    assert "no training run was seen" in look.advice[0]
    assert look.metric_data == "retained"


def test_a_request_that_will_be_refused_is_refused_now():
    _, fit_trainer, _, _ = fitted(MLP())
    look = preflight(fit_trainer, [1])
    assert look.refused is not None
    assert "Four ways out: retrain" in look.refused
    assert look.noise_std is None
    assert "no step on this model can be taken" in str(look)
    assert (look.metric_data, look.metric) == ("retained", "accuracy")
    held_out = loader(digits(100))
    look = preflight(fit_trainer, [1], val_dataloaders=held_out)
    assert (look.metric_data, look.metric_after) == ("validation", None)
    fit_trainer.lightning_module.val_dataloader = lambda: held_out
    assert preflight(fit_trainer, [1]).metric_data == "validation"
    _, fit_trainer, _, _ = fitted()
    with pytest.raises(ForgetSetError, match="got 600"):
        preflight(fit_trainer, [600])


def test_a_checkpoint_loaded_for_it_is_unloaded(tmp_path):
    net, fit_trainer, _, dataset = fitted()
    fit_trainer.save_checkpoint(tmp_path / "run.ckpt")
    other = HeadNet()
    before = weights(other)
    callback = UnlearningCallback()
    record = copy.deepcopy(callback.record)
    fresh = trainer(callback)
    look = preflight(
        fresh, [1], model=other, train_dataloaders=loader(dataset),
        ckpt_path=tmp_path / "run.ckpt",
    )  # fmt: skip
    assert look.grade is Grade.CERTIFIED
    assert same(weights(other), before)
    assert callback.record == record
    assert fresh.lightning_module is None


def test_validation_data_of_a_datamodule_and_losses_without_classes():
    class Data(L.LightningDataModule):
        def setup(self, stage):
            self.train = digits(300)

        def train_dataloader(self):
            return loader(self.train)

        def val_dataloader(self):
            return DataLoader(digits(100), 50)

    class NoClasses(HeadNet):
        def training_step(self, batch, batch_idx):
            x, y = batch
            soft = 0.9 * nn.functional.one_hot(y, 10) + 0.01
            return self.head.loss(self.backbone(x), soft).mean()

    callback = UnlearningCallback()
    fit_trainer = trainer(callback)
    with pytest.warns(UserWarning, match="no `validation_step`"):
        fit_trainer.fit(NoClasses(), datamodule=Data())
    look = preflight(fit_trainer, [1])
    assert look.metric_data == "validation"
    assert look.metric == "loss"
    assert look.metric_after == pytest.approx(look.metric_before, rel=0.2)


class TwoParts(HeadNet):
    """Of two public parts the name of one is the beginning of the other's."""

    def __init__(self):
        super().__init__()
        self.back = nn.Linear(64, 64).requires_grad_(False)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return self.head.loss(self.backbone(self.back(x)), y).mean()


def test_each_public_part_has_the_weights_that_are_its_own():
    net, fit_trainer, _, _ = fitted(TwoParts())
    size = sum(p.numel() for p in net.backbone.parameters())
    said = preflight(fit_trainer, [1]).on_your_word
    assert f"back ({64 * 64 + 64:,} weights)" in said
    assert f"backbone ({size:,} weights)" in said


def test_the_release_and_all_so_far_are_told_as_the_certificate_will():
    _, fit_trainer, _, _ = fitted(releases=3)
    fit_trainer.unlearn([1])
    look = preflight(fit_trainer, [2])
    certificate = fit_trainer.unlearn([2]).certificate
    assert look.release == certificate.release == 2
    assert look.composed_epsilon == pytest.approx(certificate.composed_epsilon)
    assert look.composed_grade is certificate.composed_grade
    assert "2 of 3 announced; so far together epsilon = 0.8" in str(look)
    assert "for samples that the first of them forgot" in str(look)
    bare = preflight(fitted(noise_std=0.0)[1], [1])
    assert (bare.release, bare.composed_epsilon) == (1, None)


class Counted(HeadNet):
    """A frozen part that counts the samples it reads."""

    read = 0

    def training_step(self, batch, batch_idx):
        x, y = batch
        self.read += len(x)
        return self.head.loss(self.backbone(x), y).mean()


def test_samples_are_read_once_for_all_draws_of_the_noise():
    net, fit_trainer, callback, dataset = fitted(Counted())
    n = len(dataset)
    net.read = 0
    preflight(fit_trainer, range(20), val_dataloaders=VALIDATION)
    # The validation data, and what tells the seconds: the retained samples at most
    # once, a few to warm up and to check them.
    assert net.read < len(VALIDATION.dataset) + n + 1000


def test_draws_of_the_noise_are_worth_what_the_module_with_them_is():
    net, fit_trainer, _, _ = fitted(noise_std=0.0)
    look = preflight(fit_trainer, range(20), val_dataloaders=VALIDATION)
    assert look.metric_after == look.metric_before
    assert look.metric_before == pytest.approx(accuracy(net, digits()), abs=1e-6)


def test_the_seconds_of_a_training_stand_beside_those_of_a_request():
    _, fit_trainer, callback, dataset = fitted()
    look = preflight(fit_trainer, [1])
    assert look.training_seconds == callback.attached.fit_seconds > 0
    assert "; the last training took" in str(look)
    callback.record.fit_seconds = callback.attached.fit_seconds = (
        None  # as in a process that has trained nothing
    )
    assert "training took" not in str(preflight(fit_trainer, [1]))


def test_a_request_that_is_slower_than_training_says_so():
    assert slower(9.0, 1.0) == ()
    assert slower(235.0, None) == slower(20.0, 21.0) == ()
    (text,) = slower(235.0, 21.0)
    assert "quicker than this request" in text
    assert "took 21 s, it would take 235 s or more" in text


def test_a_training_that_was_cut_short_says_nothing_of_how_long_it_takes():
    class Ends(HeadNet):
        def on_train_batch_end(self, *args):
            raise RuntimeError("the power is off")

    callback = UnlearningCallback()
    with pytest.raises(RuntimeError, match="power"):
        trainer(callback).fit(Ends(), loader(digits(300)))
    assert callback.record.fit_seconds is None
