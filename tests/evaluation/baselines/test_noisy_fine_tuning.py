"""Noisy fine-tuning: the chain by hand, what it claims, and what it refuses."""

import math

import pytest
import torch
from torch import nn

from lightning_unlearn.errors import ArgumentError, ModelError
from lightning_unlearn.evaluation import noisy_fine_tune
from lightning_unlearn.evaluation.baselines.noisy_accountant import (
    noisy_fine_tuning_noise_std,
)
from lightning_unlearn.step import noise
from lightning_unlearn.step.noise import gaussian_noise

OPTIONS = {
    "epsilon": 2.0,
    "delta": 1e-3,
    "max_norm": 1.0,
    "gradient_norm": 0.5,
    "l2": 0.1,
    "lr": 0.4,
    "steps": 5,
}
CHAIN = {k: v for k, v in OPTIONS.items() if k not in ("epsilon", "delta")}
STD = noisy_fine_tuning_noise_std(2.0, 1e-3, **CHAIN)


class Two(nn.Module):
    """Two weights in two tensors of different dtypes; loss (a - x)^2/2 + (b - x)^2/2"""

    def __init__(self, a, b):
        super().__init__()
        self.a = nn.Parameter(torch.tensor([float(a)], dtype=torch.float64))
        self.b = nn.Parameter(torch.tensor(float(b)))
        self.register_buffer("calls", torch.tensor(0))


def loss(model, x):
    model.calls += 1
    return ((model.a - x) ** 2 / 2 + (model.b - x) ** 2 / 2).mean()


RETAIN = [torch.tensor([1.0, 2.0, 3.0]), torch.tensor([7.0])]


def run(model, **changed):
    options = {**OPTIONS, "loss": loss, "retain": RETAIN, **changed}
    return noisy_fine_tune(model, options.pop("loss"), options.pop("retain"), **options)


@pytest.mark.parametrize("gradient_norm", [0.5, 50.0])
def test_the_chain_is_that_of_the_accountant(gradient_norm):
    model, drawn = Two(3, 4), torch.Generator().manual_seed(0)
    run(model, gradient_norm=gradient_norm, generator=drawn)
    std = noisy_fine_tuning_noise_std(
        2.0, 1e-3, **{**CHAIN, "gradient_norm": gradient_norm}
    )
    again, w = torch.Generator().manual_seed(0), [3 / 5, 4 / 5]  # |(3, 4)| = 5
    mean = (1 + 2 + 3 + 7) / 4  # by sample, not by batch
    for _ in range(5):
        g = [w[0] - mean, w[1] - mean]
        scale = min(1.0, gradient_norm / math.hypot(*g))
        z = gaussian_noise(2, std, again).tolist()
        w = [(1 - 0.4 * 0.1) * w[i] - 0.4 * scale * g[i] + z[i] for i in range(2)]
    assert model.a.item() == pytest.approx(w[0], rel=1e-5)  # b is seen in float32
    assert model.b.item() == pytest.approx(w[1], rel=1e-5)
    assert model.calls == 10


def test_weights_inside_the_ball_are_not_scaled():
    model = Two(0.1, 0.2)
    seen = []

    def watching(model, x):
        seen.append((model.a.item(), model.b.item()))
        return loss(model, x)

    run(model, loss=watching, generator=torch.Generator())
    assert seen[0] == pytest.approx((0.1, 0.2), rel=1e-7)
    assert math.hypot(*seen[-1]) > 1  # only the start is projected


def test_every_step_adds_its_noise():
    model = nn.Linear(200, 200, bias=False)
    nn.init.zeros_(model.weight)
    options = {"l2": 1.0, "lr": 0.5, "steps": 4}
    done = run(
        model,
        loss=lambda m, x: 0 * m.weight.sum(),
        generator=torch.Generator().manual_seed(3),
        **options,
    )
    expected = done.noise_std * math.sqrt(1 + 0.25 + 0.25**2 + 0.25**3)
    assert float(model.weight.detach().std()) == pytest.approx(expected, rel=0.02)


def test_noise_is_of_the_operating_system_and_claimed(monkeypatch):
    first, second = Two(3, 4), Two(3, 4)
    done = run(first)
    run(second)
    assert first.a.item() != second.a.item()
    assert (done.epsilon, done.delta, done.noise_std) == (2.0, 1e-3, STD)
    for words in ("any other starting weights", "No certificate of this package"):
        assert words in done.claim
    asked = []
    urandom = noise.os.urandom
    monkeypatch.setattr(noise.os, "urandom", lambda n: asked.append(n) or urandom(n))
    run(Two(3, 4), steps=3)
    assert len(asked) == 3


def test_with_a_generator_nothing_is_claimed():
    done = run(Two(3, 4), generator=torch.Generator())
    assert (done.epsilon, done.delta, done.noise_std) == (None, None, STD)
    assert done.claim.startswith("no certificate: the noise came from a generator")


def test_modes_are_as_before_and_gradients_are_taken_without_dropout():
    model = nn.Sequential(nn.Linear(1, 1), nn.Dropout()).train()
    modes = []

    def watched(m, x):
        modes.append(m[1].training)
        return m(x[:, None]).mean()

    run(model, loss=watched)
    assert set(modes) == {False}
    assert [m.training for m in model] == [True, True]
    assert all(p.grad is None for p in model.parameters())


def test_a_weight_without_a_gradient_gets_noise_all_the_same():
    model = Two(0.1, 0.2)
    run(model, loss=lambda m, x: (m.a - x).square().mean(), l2=0.0)
    assert model.b.item() != pytest.approx(0.2)


@pytest.mark.parametrize(
    "pack",
    [
        lambda x: (x, x * 2),
        lambda x: {"x": x, "y": [x]},
        lambda x: [x, torch.tensor(1.0), "text"],
    ],
)
def test_samples_of_nested_batches_are_counted(pack):
    def first(model, batch):
        x = batch["x"] if isinstance(batch, dict) else batch[0]
        return loss(model, x)

    plain, packed = Two(3, 4), Two(3, 4)
    run(plain, generator=torch.Generator().manual_seed(0))
    run(
        packed,
        loss=first,
        retain=[pack(x) for x in RETAIN],
        generator=torch.Generator().manual_seed(0),
    )
    assert torch.equal(plain.a, packed.a)


def test_a_count_may_be_given():
    weighted, plain = Two(3, 4), Two(3, 4)
    run(weighted, count=lambda x: 2, generator=torch.Generator().manual_seed(0))
    run(
        plain,
        retain=[torch.tensor([2.0]), torch.tensor([7.0])],
        generator=torch.Generator().manual_seed(0),
    )
    assert weighted.a.item() == pytest.approx(plain.a.item(), rel=1e-6)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"epsilon": 0.0}, ArgumentError, "epsilon to be a finite number > 0"),
        ({"delta": 1.0}, ArgumentError, "delta strictly between 0 and 1"),
        ({"max_norm": 0.0}, ArgumentError, "max_norm to be a finite number > 0"),
        ({"gradient_norm": 0.0}, ArgumentError, "gradient_norm to be a finite numb"),
        ({"l2": 3.0}, ArgumentError, r"lr \* l2 <= 1"),
        ({"steps": 0}, ArgumentError, "steps to be an integer >= 1"),
        ({"retain": []}, ArgumentError, "noisy_fine_tune: expected batches at every"),
        ({"retain": iter(RETAIN)}, ArgumentError, "expected batches at every step"),
        (
            {"retain": [(torch.ones(2), torch.ones(3))]},
            ArgumentError,
            r"as many rows.*got \[2, 3\]: pass count=",
        ),
        ({"retain": ["text"]}, ArgumentError, "as many rows.*got no tensor"),
        ({"count": lambda x: 0}, ArgumentError, "count to be an integer >= 1"),
        ({"loss": lambda m, x: m.a.item()}, ArgumentError, "one number.*got float"),
        (
            {"retain": [torch.tensor([math.nan])]},
            ModelError,
            "noisy_fine_tune: expected a finite loss of every retained batch, got nan",
        ),
        (
            {"loss": lambda m, x: (m.a * 0).sqrt().sum()},
            ModelError,
            "noisy_fine_tune: expected a finite gradient",
        ),
    ],
)
def test_what_cannot_be_run_leaves_the_model_as_it_was(changed, error, message):
    model = Two(3, 4)
    with pytest.raises(error, match=message):
        run(model, **changed)
    assert (model.a.item(), model.b.item()) == (3, 4)
    assert model.calls == 0


def test_a_buffer_that_may_know_is_refused():
    model = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1))
    with pytest.raises(ModelError, match=r"got buffers 1.running_mean, 1.running_var"):
        run(model)


def test_a_frozen_weight_is_refused():
    model = Two(3, 4)
    model.b.requires_grad_(False)
    with pytest.raises(ModelError, match=r"got frozen or complex parameters b \(1 in"):
        run(model)


def test_weights_that_are_not_finite_are_refused():
    with pytest.raises(ModelError, match="noisy_fine_tune: expected finite weights be"):
        run(Two(math.nan, 1))


def test_nothing_to_train_is_refused():
    with pytest.raises(ArgumentError, match="parameters that require a gradient"):
        run(nn.ReLU())


def test_weights_in_channels_last_are_the_same_weights():
    torch.manual_seed(0)
    x = torch.randn(6, 2, 4, 4)
    found = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(1)
        net = nn.Sequential(nn.Conv2d(2, 3, 2), nn.Flatten(), nn.Linear(27, 1))
        net = net.to(memory_format=memory_format)
        run(
            net, loss=lambda m, b: m(b).square().mean(), retain=[x],
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        found.append([p.detach().contiguous() for p in net.parameters()])
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two)
