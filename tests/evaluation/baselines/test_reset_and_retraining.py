"""Training after the noise: what it is, what it reads, and what it may not use."""

import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Subset

from lightning_unlearn.errors import ArgumentError, ModelError
from lightning_unlearn.evaluation import noisy_fine_tune, retrain
from lightning_unlearn.step.noise import gaussian_noise

OPTIONS = {
    "epsilon": 1.0,
    "delta": 1e-5,
    "max_norm": 1e-3,
    "gradient_norm": 1e-3,
    "l2": 0.1,
    "lr": 0.1,
    "steps": 4,
}


class Spirals(Dataset):
    """Two classes that no straight line tells apart; notes which samples are read."""

    def __init__(self, n, seed):
        draw = torch.Generator().manual_seed(seed)
        self.x = torch.randn(n, 2, generator=draw)
        self.y = (self.x.prod(1) > 0).long()
        self.read = []

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        self.read.append(i)
        return self.x[i], self.y[i]


def network():
    return nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 2))


def loss(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def adam(parameters):
    return torch.optim.Adam(parameters, lr=0.02)


def run(model, retain, **changed):
    return noisy_fine_tune(model, loss, retain, **{**OPTIONS, **changed})


def weights(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def draw():
    return torch.Generator().manual_seed(5)


DATA = Spirals(60, 0)
RETAIN = [(DATA.x[:20], DATA.y[:20]), (DATA.x[20:50], DATA.y[20:50])]


@pytest.fixture
def start():
    torch.manual_seed(0)
    return network()


def test_without_epochs_it_is_the_noisy_chain_to_the_last_bit(start):
    by_hand, again = network(), draw()
    by_hand.load_state_dict(start.state_dict())
    never = {"fine_tune_epochs": 0, "optimizer": lambda p: pytest.fail("was called")}
    done = run(start, RETAIN, generator=draw(), **never)
    parameters = list(by_hand.parameters())
    w = weights(by_hand).double()
    w = w * (1e-3 / float(w.norm()))
    for _ in range(4):
        with torch.no_grad():
            parts = w.split([p.numel() for p in parameters])
            for p, part in zip(parameters, parts, strict=True):
                p.copy_(part.view_as(p))
        total = torch.zeros_like(w)
        for batch in RETAIN:
            parts = torch.autograd.grad(loss(by_hand, batch), parameters)
            total += len(batch[0]) * torch.cat([g.reshape(-1) for g in parts]).double()
        g = total / 50
        g = g * min(1.0, 1e-3 / float(g.norm()))
        noise = gaussian_noise(len(w), done.noise_std, again)
        w = (1 - 0.1 * 0.1) * w - 0.1 * g + noise
    assert torch.equal(weights(start), w.float())


def test_with_epochs_it_is_that_and_then_the_plain_loop(start):
    other = network()
    other.load_state_dict(start.state_dict())
    run(start, RETAIN, generator=draw(), fine_tune_epochs=3, optimizer=sgd)
    run(other, RETAIN, generator=draw())
    velocity = [torch.zeros_like(p) for p in other.parameters()]
    for _ in range(3):
        for batch in RETAIN:
            grads = torch.autograd.grad(loss(other, batch), list(other.parameters()))
            for p, v, g in zip(other.parameters(), velocity, grads, strict=True):
                v.mul_(0.9).add_(g)
                p.data -= 0.1 * v
    torch.testing.assert_close(weights(start), weights(other), rtol=1e-5, atol=1e-6)


def test_epsilon_is_the_same_and_the_claim_says_what_was_done(start):
    plain = run(start, RETAIN)
    done = run(start, RETAIN, fine_tune_epochs=2, optimizer=sgd)
    assert done[3:] == plain[3:] == (1.0, 1e-5, plain.noise_std)
    assert done.claim.startswith(plain.claim)
    assert "then 2 epochs of plain training on the retained samples" in done.claim
    assert "post-processing of the noisy weights, so the same epsilon" in done.claim
    assert "a certified reset, then retraining" in done.claim


def test_with_a_generator_nothing_is_claimed_of_the_training_either(start):
    done = run(
        start, RETAIN, fine_tune_epochs=1, optimizer=sgd, generator=draw()
    )  # fmt: skip
    assert done.epsilon is None
    assert done.claim.startswith("no certificate")


def test_two_starts_end_alike_whatever_they_knew():
    """The claim's two worlds: with the same noise, as near as their starts became."""
    ends = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        net = network()
        run(net, RETAIN, generator=draw(), fine_tune_epochs=2, optimizer=sgd)
        ends.append(weights(net))
    assert float((ends[0] - ends[1]).norm()) < 0.02 * float(ends[0].norm())


def test_afterwards_it_is_as_good_as_retraining():
    train, test = Spirals(300, 1), Spirals(1000, 2)
    train.y[:30] = 1 - train.y[:30]  # the forgotten samples: wrong labels

    def accuracy(net):
        with torch.no_grad():
            return float((net(test.x).argmax(1) == test.y).double().mean())

    batches = [(train.x[i : i + 30], train.y[i : i + 30]) for i in range(30, 300, 30)]
    found = {"noisy": [], "reset": [], "retrained": []}
    for seed in range(3):
        torch.manual_seed(seed)
        fresh, net, reset = network(), network(), network()
        retrain(fresh, loss, batches, epochs=60, optimizer=adam)
        again = partial(torch.Generator().manual_seed, seed)
        run(net, batches, generator=again())
        run(
            reset, batches, generator=again(), fine_tune_epochs=60, optimizer=adam
        )  # fmt: skip
        for name, model in zip(found, (net, reset, fresh), strict=True):
            found[name].append(accuracy(model))
    noisy, reset, retrained = (sum(a) / 3 for a in found.values())
    assert retrained > 0.93
    assert abs(reset - retrained) < 0.02
    assert noisy < 0.75


def test_forgotten_samples_are_never_read(start):
    train = Spirals(60, 3)
    retain = DataLoader(Subset(train, range(10, 60)), 25, shuffle=True)
    run(start, retain, fine_tune_epochs=3, optimizer=sgd)
    passes = OPTIONS["steps"] + 3
    assert sorted(train.read) == sorted(passes * list(range(10, 60)))


def test_the_optimizer_is_made_of_the_noisy_weights_and_modes_come_back():
    net = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)).eval()
    modes, made_of = [], []

    def watched(model, batch):
        modes.append(model[1].training)
        return loss(model, batch)

    def optimizer(parameters):
        parameters = list(parameters)
        made_of.append(float(parameters[0].detach().norm()))
        return sgd(parameters)

    # Noise that shows: far above the ball and what the training could add.
    options = {**OPTIONS, "max_norm": 1.0, "generator": draw()}
    options |= {"fine_tune_epochs": 1, "optimizer": optimizer}
    noisy_fine_tune(net, watched, RETAIN, **options)
    assert modes == [False] * 2 * OPTIONS["steps"] + [True] * 2
    assert len(made_of) == 1
    assert made_of[0] > 2
    assert [m.training for m in net.modules()] == [False] * 3
    assert all(p.grad is None for p in net.parameters())


def test_an_optimizer_that_begins_with_a_state_is_new(start):
    adagrad = partial(torch.optim.Adagrad, lr=0.1)
    run(start, RETAIN, fine_tune_epochs=1, optimizer=adagrad)


@pytest.mark.parametrize("kind", [sgd, adam, torch.optim.Adagrad])
def test_an_optimizer_of_before_is_refused(start, kind):
    used = kind(start.parameters())
    loss(start, RETAIN[0]).backward()
    used.step()
    before = weights(start)
    with pytest.raises(ArgumentError, match=r"to make a new optimizer, got a \w+ that"):
        run(start, RETAIN, fine_tune_epochs=1, optimizer=lambda p: used)
    assert torch.equal(weights(start), before)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"fine_tune_epochs": -1}, ArgumentError, "fine_tune_epochs to be an integer"),
        ({"fine_tune_epochs": 1.5}, ArgumentError, r">= 0, got fine_tune_epochs=1\.5"),
        ({"fine_tune_epochs": math.nan}, ArgumentError, "got fine_tune_epochs=nan"),
        ({"fine_tune_epochs": True}, ArgumentError, "got fine_tune_epochs=True"),
        (
            {"fine_tune_epochs": 2, "optimizer": None},
            ArgumentError,
            "expected optimizer= for fine_tune_epochs=2, got NoneType: pass a function",
        ),
        ({"fine_tune_epochs": 2, "optimizer": 1e-3}, ArgumentError, "got float: pass"),
        (
            {"fine_tune_epochs": 9, "optimizer": partial(torch.optim.SGD, lr=math.inf)},
            ModelError,
            "fine_tune: expected",
        ),
    ],
)
def test_what_cannot_be_run_leaves_the_model_as_it_was(start, changed, error, message):
    before = weights(start)
    with pytest.raises(error, match=message):
        run(start, RETAIN, **{"optimizer": sgd, **changed})
    assert torch.equal(weights(start), before)
