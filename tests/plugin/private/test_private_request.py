"""A private training and requests to it: no weight moves, and every fault is caught."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import (
    DataLoader,
    IterableDataset,
    WeightedRandomSampler,
    default_collate,
)

from lightning_unlearn import PrivateTraining, UnlearningCallback, preflight
from lightning_unlearn.certificate import ledger as ledgers
from lightning_unlearn.certificate.report.ledger_table import ledger_table
from lightning_unlearn.certificate.verification import verify_text
from lightning_unlearn.errors import (
    ArgumentError,
    BudgetError,
    DataError,
    GuaranteeError,
    ModelError,
    SetupError,
    UnlearningError,
)
from lightning_unlearn.guarantee.accounting.capacity import capacity
from lightning_unlearn.guarantee.claims import Bound, Grade
from lightning_unlearn.plugin.private.private_steps import mechanism_of
from tests.helpers.lightning import Callback, EarlyStopping, L, ModelCheckpoint
from tests.helpers.nets import MLP, digits, same, trainer, weights

pytest.importorskip("dp_accounting")
N = 600
SETTINGS = PrivateTraining(noise_multiplier=4.0, max_grad_norm=1.0)


def training(net=None, epochs=2, settings=SETTINGS, callbacks=(), loader=None, **own):
    options = own.pop("trainer_options", {})
    callback = UnlearningCallback(
        **{"epsilon": 2.0, "delta": 1e-4, "private": settings, **own}
    )
    made = trainer(callback, epochs, callbacks=list(callbacks), **options)
    net = MLP() if net is None else net
    loader = DataLoader(digits(N), 30, shuffle=True) if loader is None else loader
    return net, made, callback, loader


def fitted(**options):
    net, made, callback, loader = training(**options)
    made.fit(net, loader)
    return net, made, callback, loader


def refused(error, match, **options):
    net, made, _, loader = training(**options)
    before = weights(net)
    with pytest.raises(error, match=match):
        made.fit(net, loader)
    return before, weights(net)


def test_nothing_moves_and_it_is_certified(tmp_path):
    net, made, callback, loader = fitted(ledger=tmp_path / "ledger.jsonl")
    steps = callback.record.private
    assert (steps.done, steps.steps, steps.sampling_rate) == (40, 40, 0.05)
    assert steps.capacity >= 3
    sampler = loader.batch_sampler
    assert type(sampler).__name__ == "BatchSampler"  # given back
    before = weights(net)
    clean = tmp_path / "clean.ckpt"
    result = made.unlearn([3], save_to=clean)
    c = result.certificate
    assert (c.grade, c.bound) == (Grade.CERTIFIED, Bound.PRIVATE_TRAINING)
    assert same(before, weights(net))
    assert c.epsilon <= 2.0
    assert "no weight was changed" in str(result)
    again = made.unlearn([5, 9])
    assert {k.name: k.value for k in again.certificate.constants}["forgotten"] == 3
    assert again.certificate.epsilon > c.epsilon
    first = verify_text(
        c.to_json(), ledger_text=(tmp_path / "ledger.jsonl").read_text()
    )
    assert all(finding.holds is not False for finding in first), first
    for finding in result.receipts(3).splitlines():
        assert c.commitment
    table = ledger_table(ledgers.read(tmp_path / "ledger.jsonl"))
    assert "0 made, no number announced, 2 that changed no weight" in table
    with pytest.raises(BudgetError, match=r"it allows \d+ \(3 are used up\).*retrain"):
        made.unlearn(list(range(20, 60)))
    assert same(before, weights(net))


def test_a_fresh_process_and_a_checkpoint(tmp_path):
    saves = ModelCheckpoint(tmp_path, save_last=True)
    options = {"enable_checkpointing": True}
    _, made, callback, loader = fitted(callbacks=[saves], trainer_options=options)
    _, other, _, loader = training()
    found = other.unlearn([1], MLP(), loader, ckpt_path=saves.last_model_path)
    assert found.certificate.grade is Grade.CERTIFIED


def test_preflight_shows_what_is_left():
    net, made, *_ = fitted()
    look = preflight(made, [1, 2])
    (route,) = [r for r in look.routes if r.name == "private training"]
    assert route.grade is Grade.CERTIFIED
    assert route.recommended
    assert "more could follow" in route.needs[0]
    many = preflight(made, list(range(100)))
    (route,) = [r for r in many.routes if r.name == "private training"]
    assert route.grade is None
    assert "which allows" in route.needs[0]


@pytest.mark.parametrize("epsilon", [1.0, 60.0])
def test_what_is_allowed_is_of_the_epsilon_that_is_asked_for(epsilon):
    """Of the callback's of the request, and said as what it is."""
    settings = PrivateTraining(noise_multiplier=1.0)
    net, _, callback, loader = fitted(settings=settings)
    own = UnlearningCallback(epsilon=epsilon, delta=1e-4)
    own.record = callback.record
    own.adopt(net, loader, None)
    made = trainer(own)
    most = capacity(mechanism_of(callback.record.private), epsilon, 1e-4)
    said = f"at least {most}" if epsilon > 50 else f"{most}"
    (route,) = [
        r for r in preflight(made, list(range(40)), net, loader).routes
        if r.name == "private training"
    ]  # fmt: skip
    assert f"above {epsilon:g}, which allows {said}" in route.needs[0]
    with pytest.raises(BudgetError, match=rf"it allows {said} \(0 are used up\)"):
        made.unlearn(list(range(40)), net, loader)


def test_the_noise_follows_from_an_epsilon():
    _, _, callback, _ = fitted(settings=PrivateTraining(epsilon=1.0, delta=1e-4))
    assert callback.record.private.capacity >= 1
    assert 1.0 < callback.record.private.noise_multiplier < 20


def test_no_seed_reproduces_it():
    found = []
    for _ in range(2):
        L.seed_everything(0, verbose=False)
        net = MLP()
        found.append(weights(fitted(net=net)[0]))
    assert not same(*found)


class Watch(Callback):
    def __init__(self):
        self.sizes, self.grads = [], []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.sizes.append(len(batch[0]))
        grads = [p.grad.flatten() for p in module.parameters()]
        self.grads.append(torch.cat(grads))


def test_batches_have_random_sizes_and_gradients_the_noise():
    watch = Watch()
    net, *_ = fitted(callbacks=[watch], epochs=5)
    sizes = torch.tensor(watch.sizes, dtype=torch.float)
    assert 3 < sizes.std() < 8  # of a Poisson number of 30: 5.3
    noise = torch.stack(watch.grads).std()
    assert float(noise) == pytest.approx(4.0 / 30, rel=0.1)


def test_gradients_are_those_of_single_samples():
    from lightning_unlearn.plugin.private.per_sample import clipped_sum

    net, batch = MLP(), digits(40)[:40]
    names = [name for name, _ in net.named_parameters()]
    net.trainer = trainer()
    clip = 0.5
    found = clipped_sum(net, list(batch), names, clip)
    expected = [torch.zeros_like(p) for p in net.parameters()]
    for x, y in zip(*batch, strict=True):
        loss = F.cross_entropy(net(x[None]), y[None])
        grads = torch.autograd.grad(loss, list(net.parameters()))
        norm = torch.cat([g.flatten() for g in grads]).norm()
        factor = min(1.0, clip * (1 - 1e-3) / float(norm))
        expected = [e + factor * g for e, g in zip(expected, grads, strict=True)]
    for name, value in zip(names, expected, strict=True):
        assert torch.allclose(found[name].float(), value, atol=1e-5)


# -- what would not be private --------------------------------------------------


def test_batch_normalisation_is_refused_by_name():
    before, after = refused(
        ModelError, "BatchNorm1d.*use GroupNorm", net=MLP(norm=nn.BatchNorm1d)
    )
    assert before["net.0.weight"].equal(after["net.0.weight"])


@pytest.mark.parametrize(
    ("option", "match"),
    [
        ({"gradient_clip_val": 1.0}, "no gradient_clip_val"),
        ({"precision": "bf16-mixed"}, "precision 32-true"),
        ({"limit_train_batches": 3}, "whole epochs"),
        ({"reload_dataloaders_every_n_epochs": 1}, "reload_dataloaders"),
        ({"max_epochs": -1}, "a number of steps"),
    ],
)
def test_a_trainer_that_does_otherwise(option, match):
    epochs = option.pop("max_epochs", 2)
    refused(UnlearningError, match, trainer_options=option, epochs=epochs)


class Manual(MLP):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False


class Two(Manual):
    def configure_optimizers(self):
        return [torch.optim.SGD(layer.parameters(), 0.1) for layer in self.net[::2]]


def test_optimization_by_hand_and_two_optimizers():
    refused(SetupError, r"training_step returns the loss\), not auto", net=Manual())
    match = r"not automatic_optimization=False; one optimizer \(with groups.*, not 2"
    refused(SetupError, match, net=Two())


class Endless(IterableDataset):
    def __iter__(self):
        return iter(digits(60))


def test_data_without_positions():
    loader = DataLoader(Endless(), 30)
    refused(DataError, "no positions to forget; index them first", loader=loader)


@pytest.mark.parametrize("watched", [True, False])
def test_a_checkpoint_of_an_ordinary_training(watched, tmp_path):
    before = UnlearningCallback(epsilon=2.0, delta=1e-4) if watched else None
    ordinary = trainer(before, 1)
    ordinary.fit(MLP(), DataLoader(digits(N), 30))
    ordinary.save_checkpoint(tmp_path / "ordinary.ckpt")
    net, made, _, loader = training()
    with pytest.raises(ModelError, match=r"no private data have trained.*no ckpt_path"):
        made.fit(net, loader, ckpt_path=tmp_path / "ordinary.ckpt")


def test_a_sampler_with_weights():
    data = digits(N)
    sampler = WeightedRandomSampler(torch.ones(N), N)
    refused(DataError, "shuffle=True", loader=DataLoader(data, 30, sampler=sampler))


class Raw(Callback):
    """Moves the weights by what is not private."""

    def on_after_backward(self, trainer, module):
        for p in module.parameters():
            p.data -= 0.1 * p.grad


class Between(Callback):
    def on_train_start(self, trainer, module):
        trainer.optimizers[0].register_step_pre_hook(lambda *args: None)


class OtherSampler(Callback):
    def on_train_epoch_start(self, trainer, module):
        loader = trainer.train_dataloader
        shuffled = DataLoader(loader.dataset, 30, shuffle=True).batch_sampler
        object.__setattr__(loader, "batch_sampler", shuffled)


class OtherRows(Callback):
    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        batch[0].copy_(batch[0].flip(0))


class Unfreezes(Callback):
    def on_train_epoch_start(self, trainer, module):
        next(module.parameters()).requires_grad_(trainer.current_epoch == 0)


@pytest.mark.parametrize(
    ("fault", "match"),
    [
        (Raw, "weights that nothing moves but the private steps"),
        (Between, "no hook before the optimizer's step"),
        (OtherSampler, "drawn by the coins"),
        (OtherRows, "has changed in place"),
        (Unfreezes, "the same trainable weights"),
    ],
)
def test_a_callback_that_breaks_it_is_caught(fault, match):
    refused(UnlearningError, match, callbacks=[fault()])


class After(Callback):
    """Moves the weights when no private step will look at them any more."""

    def on_train_epoch_end(self, trainer, module):
        with torch.no_grad():
            next(module.parameters()).add_(0.1)


def test_weights_moved_after_the_last_step_cost_the_claim(tmp_path):
    saves = ModelCheckpoint(tmp_path, save_last=True)
    options = {"enable_checkpointing": True}
    _, made, *_ = fitted(epochs=1, callbacks=[After(), saves], trainer_options=options)
    with pytest.raises(GuaranteeError, match="something but its steps"):
        made.unlearn([1])
    _, other, _, loader = training()
    with pytest.raises(GuaranteeError, match="something but its steps"):
        other.unlearn([1], MLP(), loader, ckpt_path=saves.last_model_path)


def test_a_training_that_was_stopped_for_it_claims_nothing():
    net, made, _, loader = training(callbacks=[After()])
    with pytest.raises(ModelError, match="nothing moves but"):
        made.fit(net, loader)
    with pytest.raises(GuaranteeError, match="something but its steps"):
        made.unlearn([1], net, loader)


class NoNoiseStep(MLP):
    """Skips the optimizer's step of some batches, and repeats that of others."""

    def __init__(self, times):
        super().__init__()
        self.times = times

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None):
        if self.times == 0:
            optimizer_closure()
        for _ in range(self.times):
            optimizer.step(closure=optimizer_closure)


@pytest.mark.parametrize("times", [0, 2])
def test_one_step_for_each_batch(times):
    refused(ModelError, "one step of the optimizer", net=NoNoiseStep(times))


def mixed(samples):
    x, y = default_collate(samples)
    return x + 0.1 * x.mean(0), y


def repeated(samples):
    return default_collate([*samples, *samples])


@pytest.mark.parametrize(
    ("collate", "match"), [(mixed, "depends on one sample"), (repeated, "a row for")]
)
def test_batches_that_mix_samples(collate, match):
    loader = DataLoader(digits(N), 30, shuffle=True, collate_fn=collate)
    refused(DataError, match, loader=loader)


def test_decisions_by_the_training_loss():
    stops = EarlyStopping("train_loss", check_on_train_epoch_end=True)
    refused(SetupError, "EarlyStopping by 'train_loss'", callbacks=[stops])


class Counts(MLP):
    """Keeps a statistic of its samples."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(64))

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.seen += batch[0].sum(0)


def test_statistics_of_the_samples_are_refused():
    refused(ModelError, "nothing but the weights.*seen", net=Counts())


class Item(MLP):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.last = loss.item()
        return loss


def test_a_loss_that_cannot_be_taken_alone_says_what_to_do():
    refused(ModelError, "define unlearning_loss", net=Item())


def test_an_ordinary_training_before_it_is_refused():
    net, made, _, loader = training(settings=None)
    made.fit(net, loader)
    refused(ModelError, "no private data have trained", net=net)


def test_an_ordinary_training_after_it_costs_the_claim():
    net, made, callback, loader = fitted()
    callback.options = UnlearningCallback(epsilon=2.0, delta=1e-4).options
    made.fit_loop.max_epochs = 3
    made.fit(net, loader)
    with pytest.raises(GuaranteeError, match="continued without PrivateTraining"):
        made.unlearn([1])


def test_weights_that_moved_since_are_others():
    net, made, *_ = fitted()
    with torch.no_grad():
        next(net.parameters()).add_(1.0)
    with pytest.raises(GuaranteeError, match="has changed them since"):
        made.unlearn([1])


def test_a_training_that_goes_on_counts_all_steps():
    net, made, callback, loader = fitted()
    made.fit_loop.max_epochs = 3
    made.fit(net, loader)
    assert callback.record.private.steps == 60
    assert made.unlearn([1]).certificate.grade is Grade.CERTIFIED


def test_after_a_request_it_cannot_go_on():
    net, made, callback, loader = fitted()
    made.unlearn([1])
    made.fit_loop.max_epochs = 3
    with pytest.raises(ModelError, match="before anything is forgotten"):
        made.fit(net, loader)


@pytest.mark.parametrize(
    "options",
    [{"max_norm": 1.0}, {"noise_seed": 0}, {"noise_std": 0.0}, {"releases": 3}],
)
def test_options_of_another_noise(options):
    with pytest.raises(ArgumentError, match="has its own noise"):
        training(**options)


def test_noise_or_epsilon_is_stated():
    with pytest.raises(ArgumentError, match="state one of them"):
        PrivateTraining()
    with pytest.raises(ArgumentError, match="state one of them"):
        PrivateTraining(noise_multiplier=1.0, epsilon=1.0)
