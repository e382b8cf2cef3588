"""A user's own training, audited: what is repeated, and a fraud in the noise."""

import functools

import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset, TensorDataset

import lightning_unlearn.step.release as releases
from lightning_unlearn import (
    TrainerExperiment,
    UnlearnableMixin,
    UnlearningCallback,
    prepare,
)
from lightning_unlearn.errors import ArgumentError, AuditError, SetupError
from lightning_unlearn.evaluation import audit
from lightning_unlearn.plugin.run import compat
from lightning_unlearn.step.noise import add_noise
from tests.evaluation.helpers import planted
from tests.evaluation.helpers.worlds import DELTA
from tests.helpers.lightning import pl
from tests.helpers.nets import MLP, HeadNet, digits, loader, trainer, weights
from tests.helpers.oracles import retrain_softmax_head

CANARIES = range(0, 90, 3)


def train(dataset, net=HeadNet, **options):
    torch.manual_seed(0)
    options = {"accept_noise": True, **options}
    fit_trainer = trainer(UnlearningCallback(**options), 1)
    fit_trainer.fit(net(), loader(dataset))
    return fit_trainer


class Watched:
    """Keeps the Trainers, and what they were given."""

    def __init__(self, **options):
        self.options, self.datasets, self.trainers, self.before = options, [], [], []

    def __call__(self, dataset):
        self.datasets.append(dataset)
        self.trainers.append(train(dataset, **self.options))
        self.before.append(weights(self.trainers[-1].lightning_module))
        return self.trainers[-1]


def coins(*inside):
    included = torch.zeros(len(CANARIES), dtype=torch.bool)
    included[list(inside)] = True
    return included


def test_one_run_trains_with_the_canaries_that_are_in_and_forgets_them():
    watched, data = Watched(), digits(300)
    experiment = TrainerExperiment(watched, data, CANARIES)
    assert experiment.n_canaries == 30
    found = experiment(coins(2, 5, 9))
    kept = watched.datasets[0].indices
    assert set(kept) == set(range(300)) - set(CANARIES) | {6, 15, 27}
    assert found.certificate.n_forget == 3
    assert found.certificate.n_retain == 270
    removed = watched.trainers[0].callbacks[0].record.removed
    assert [kept[i] for i in removed] == [6, 15, 27]
    model = watched.trainers[0].lightning_module
    X, y = (t[list(CANARIES)] for t in data.tensors)
    losses = F.cross_entropy(model(X), y, reduction="none")
    torch.testing.assert_close(
        found.scores,
        -losses.double().detach(),
        rtol=1e-5,
        atol=1e-6,  # float32
    )
    assert found.unlearned is found.retrained is None

    without = experiment(coins())
    assert without.certificate is None
    assert len(watched.datasets[1]) == 270
    assert watched.trainers[1].callbacks[0].requests == 0
    assert torch.isfinite(without.scores).all()


def test_the_points_before_noise_are_the_request_and_the_minimiser():
    options = {"tolerance": 1e-4, "epsilon": 1.0}
    watched, data = Watched(**options), digits(300)
    found = TrainerExperiment(watched, data, CANARIES, white_box=True)(coins(1, 2))
    model = watched.trainers[0].lightning_module
    retained = sorted(set(range(300)) - set(CANARIES))
    X, y = (t[retained] for t in data.tensors)
    with torch.no_grad():
        rows = model.backbone(X).double().numpy()
    exact = retrain_softmax_head(rows, y.numpy(), 10, 1e-3)
    minimiser = torch.as_tensor(exact).reshape(-1)
    assert (found.retrained - minimiser).norm() <= 1e-3 * 1e-4 / 1e-3
    distance = (found.unlearned - found.retrained).norm()
    assert 0 < distance <= (1 + 1e-3) * 1e-4 / 1e-3
    noise = found.certificate.noise_std
    released = torch.cat([p.detach().flatten() for p in model.head.parameters()])
    assert (released.double() - found.unlearned).norm() / len(released) ** 0.5 == (
        pytest.approx(noise, rel=0.2)
    )


def test_a_network_has_no_points_before_noise():
    watched = Watched(net=MLP, noise_std=0.01)
    experiment = TrainerExperiment(watched, digits(200), CANARIES, white_box=True)
    with pytest.raises(SetupError, match="a ConvexHead for white_box=True.*=False"):
        experiment(coins(3))
    model = watched.trainers[0].lightning_module
    now = weights(model)
    assert all(torch.equal(now[k], v) for k, v in watched.before[0].items())


def test_an_audit_of_a_network_without_a_certificate():
    watched = Watched(net=MLP, noise_std=0.01)
    experiment = TrainerExperiment(watched, digits(200), CANARIES)
    report = audit(experiment, runs=2, delta=1e-5)
    assert report.one_run.epsilon_certified is None
    assert "certified (grade none): nothing" in str(report)


def test_a_score_of_ones_own():
    def score(model, canaries):
        assert len(canaries) == 30
        return torch.arange(30.0)

    experiment = TrainerExperiment(Watched(), digits(200), CANARIES, score=score)
    assert torch.equal(experiment(coins(0)).scores, torch.arange(30.0))


def test_a_training_that_was_interrupted_is_no_run():
    def interrupted(dataset):
        fit_trainer = train(dataset)
        fit_trainer.state.status = "interrupted"
        return fit_trainer

    experiment = TrainerExperiment(interrupted, digits(200), CANARIES)
    with pytest.raises(KeyboardInterrupt):
        experiment(coins(0))


@pytest.mark.parametrize(
    "change", [lambda d: digits(200), lambda d: Subset(d, range(len(d) - 1, -1, -1))]
)
def test_a_training_on_other_samples_or_in_another_order_is_refused(change):
    """Positions would be of other samples: an honest certificate could be refuted."""
    watched = Watched()
    experiment = TrainerExperiment(lambda d: watched(change(d)), digits(200), CANARIES)
    with pytest.raises(ArgumentError, match="the very 171 samples .* of other samples"):
        experiment(coins(0))
    assert watched.trainers[0].callbacks[0].requests == 0


class OwnTransfer(HeadNet):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        return batch[0].float() / 16, batch[1]


def test_scores_come_through_the_modules_own_transfer_and_in_eval_mode():
    X, y = digits(200).tensors
    data = TensorDataset((X * 16).to(torch.uint8), y)
    watched = Watched(net=OwnTransfer)
    found = TrainerExperiment(watched, data, CANARIES)(coins(1))
    model = watched.trainers[0].lightning_module
    places = list(CANARIES)
    logits = model((X[places] * 16).to(torch.uint8).float() / 16)
    expected = -F.cross_entropy(logits, y[places], reduction="none").double()
    torch.testing.assert_close(found.scores, expected.detach(), rtol=1e-5, atol=0)

    def score(model, canaries):
        assert not model.training
        assert not torch.is_grad_enabled()
        return torch.zeros(len(canaries))

    TrainerExperiment(watched, data, CANARIES, score=score)(coins(1))
    assert watched.trainers[-1].lightning_module.training


def test_a_prepared_training_is_audited_too():
    def prepared(dataset):
        made = train(dataset)
        prepare(made)
        return made

    found = TrainerExperiment(prepared, digits(200), CANARIES, white_box=True)(coins(1))
    assert found.certificate.n_forget == 1


def test_what_runs_would_share_is_refused(tmp_path):
    first = []

    def again(dataset):
        first.append(first[0] if first else train(dataset))
        return first[-1]

    experiment = TrainerExperiment(again, digits(200), CANARIES)
    experiment(coins(0))
    with pytest.raises(SetupError, match="anew, .* got one used before"):
        experiment(coins(0))
    with_ledger = Watched(ledger=tmp_path / "ledger.jsonl")
    experiment = TrainerExperiment(with_ledger, digits(200), CANARIES)
    with pytest.raises(SetupError, match="got one with ledger="):
        experiment(coins(0))
    assert not (tmp_path / "ledger.jsonl").exists()


def test_what_is_no_training_is_refused():
    for wrong in (None, train(digits(200))):
        with pytest.raises(ArgumentError, match="expected train, a function"):
            TrainerExperiment(wrong, digits(200), CANARIES)
    with pytest.raises(ArgumentError, match="and a dataset, got .* DataLoader"):
        TrainerExperiment(train, loader(digits(200)), CANARIES)


def test_several_devices_are_spawned_or_refused(monkeypatch):
    watched = Watched()
    experiment = TrainerExperiment(watched, digits(200), CANARIES, white_box=True)
    with monkeypatch.context() as patch:
        patch.setattr(pl.Trainer, "world_size", 2)
        with pytest.raises(SetupError, match="one process, or ddp_spawn, got 2"):
            experiment(coins(0))
    with monkeypatch.context() as patch:
        patch.setattr(compat, "is_spawning", lambda trainer: True)
        with pytest.raises(SetupError, match="one device for white_box=True"):
            experiment(coins(0))
    assert all(t.callbacks[0].requests == 0 for t in watched.trainers)


def spawned(dataset):
    fit_trainer = trainer(
        UnlearningCallback(), 1, strategy="ddp_spawn", devices=2, accelerator="cpu"
    )
    samples = loader(dataset)
    fit_trainer.fit(HeadNet(), samples)
    return fit_trainer, samples


@pytest.mark.slow
def test_a_training_in_two_spawned_processes():
    found = TrainerExperiment(spawned, digits(200), CANARIES)(coins(1, 4))
    assert found.certificate.n_forget == 2
    assert torch.isfinite(found.scores).all()


def closing(value):
    return lambda d: train(d, noise_std=value)


def test_identity_tells_experiments_apart():
    data = digits(200)
    one, found = TrainerExperiment(train, data, CANARIES).identity, []
    assert one == TrainerExperiment(train, data, CANARIES).identity
    assert "test_trainer_experiment.train" in one
    for other in (
        TrainerExperiment(Watched(), data, CANARIES),
        TrainerExperiment(train, data, range(30)),
        TrainerExperiment(train, data, CANARIES, others=range(100, 200)),
        TrainerExperiment(train, digits(201), CANARIES),
        TrainerExperiment(functools.partial(train, tolerance=1e-3), data, CANARIES),
        TrainerExperiment(functools.partial(train, tolerance=1e-4), data, CANARIES),
        TrainerExperiment(lambda d: train(d), data, CANARIES),
        TrainerExperiment(lambda d, l2=1e-3: train(d), data, CANARIES),
        TrainerExperiment(lambda d, l2=1e-2: train(d), data, CANARIES),
        TrainerExperiment(closing(1), data, CANARIES),
        TrainerExperiment(closing(2), data, CANARIES),
        TrainerExperiment(lambda d: train(d, tolerance=1e-3), data, CANARIES),
        TrainerExperiment(train, data, CANARIES, white_box=True),
    ):
        found.append(other.identity)
    assert len({one, *found}) == 14


@pytest.mark.parametrize(
    ("canaries", "others", "message"),
    [
        ([1, 1], None, "canaries as different positions from 0 to 199, got 1 twice"),
        ([5, -1], None, "from 0 to 199, got -1"),
        ([200], None, "from 0 to 199, got 200"),
        ([True, False], None, r"got True and False: of a mask take mask.nonzero"),
        (torch.tensor([True, False]), None, "of a mask take mask.nonzero"),
        (7, None, "canaries as positions, whole numbers .* got int"),
        ([1.5], None, "whole numbers from 0 to 199, got list"),
        ([3], [3, 4], r"got positions in canaries and in others: \[3\]"),
        ([3], [4, 4], "others as different positions"),
    ],
)
def test_positions_are_checked(canaries, others, message):
    with pytest.raises(ArgumentError, match=message):
        TrainerExperiment(train, digits(200), canaries, others=others)


def test_what_is_no_trainer_is_refused():
    experiment = TrainerExperiment(lambda d: None, digits(200), CANARIES)
    with pytest.raises(ArgumentError, match="return the Trainer .* got NoneType"):
        experiment(coins(0))


class Solved(UnlearnableMixin, pl.LightningModule):
    """A head that is solved, not only trained, to what a request may leave."""

    def __init__(self):
        super().__init__()
        self.head = planted.head()

    def unlearning_l2(self):
        return planted.L2

    def unlearning_loss(self, batch, batch_idx):
        return self.head.loss(*batch)

    def training_step(self, batch, batch_idx):
        return self.head.loss(*batch).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 1e-3, weight_decay=planted.L2)


def solve(dataset, samples):
    """A fit of one step, then the minimiser over the same samples."""
    callback = UnlearningCallback(
        accept_noise=True,
        epsilon=planted.EPSILON,
        delta=DELTA,
        tolerance=planted.TOLERANCE,
    )
    net, fit_trainer = Solved(), trainer(callback, 1, limit_train_batches=1)
    fit_trainer.fit(net, DataLoader(dataset, 4096))
    first = len(samples[0]) - planted.R
    inside = torch.zeros(planted.R, dtype=torch.bool)
    inside[[i - first for i in dataset.indices if i >= first]] = True
    w = planted.minimiser(samples, inside)
    with torch.no_grad():
        net.head.weight.copy_(w[: 64 + planted.R][None])
        net.head.bias.copy_(w[-1:])
    return fit_trainer


def of_weights(model, canaries):
    return model.head.weight[0, 64:].detach()


def test_a_thirtieth_of_the_noise_is_caught_through_the_trainer(monkeypatch):
    """The fraud is in the release itself; certificate and ledger know nothing of it."""
    samples = planted.samples()
    dataset = TensorDataset(samples[0].float(), samples[1].float()[:, None])
    canaries = range(len(dataset) - planted.R, len(dataset))
    make = functools.partial(
        TrainerExperiment,
        functools.partial(solve, samples=samples),
        dataset,
        canaries,
        score=of_weights,
    )
    report = audit(make(white_box=True), runs=2, draws=100, confidence=0.999)
    assert report.noise.std == pytest.approx(report.noise.std_certified, rel=0.2)
    assert report.one_run.epsilon_certified == pytest.approx(planted.EPSILON)
    assert 0.3 < report.white_box.ratio < 0.5  # the claim allows for both worlds' tau
    monkeypatch.setattr(
        releases,
        "add_noise",
        lambda w, std, generator: add_noise(w, std * planted.SHARE, generator),
    )
    with pytest.raises(AuditError, match=r"\(grade certified\): epsilon = 8"):
        audit(make(), runs=2)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5])
def test_less_noise_is_caught_at_epsilon_1_in_one_run(monkeypatch, share):
    """Where guesses and draws of other noise see nothing: by the released weights."""
    options = {"epsilon": 1.0, "tolerance": 1e-6}
    experiment = TrainerExperiment(
        Watched(**options), digits(200), CANARIES, white_box=True
    )
    audit(experiment, calibrate=False, confidence=0.999)
    monkeypatch.setattr(
        releases, "add_noise", lambda w, std, generator: add_noise(w, std * share)
    )
    with pytest.raises(AuditError, match="noise was not drawn as stated"):
        audit(experiment, calibrate=False, confidence=0.999)
