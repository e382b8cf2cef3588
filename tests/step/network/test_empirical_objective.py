import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_unlearn.errors import ArgumentError, ModelError
from lightning_unlearn.step.network.empirical_objective import EmpiricalObjective
from lightning_unlearn.weights.digests import state_digest
from lightning_unlearn.weights.passes import passes
from lightning_unlearn.weights.scope import Scope
from tests.helpers.oracles import dense_gradient_and_hessian
from tests.helpers.problems import (
    ListBatches,
    classification,
    mlp,
    objective_of,
    value_of_weights,
)


@pytest.mark.parametrize("mean", [True, False], ids=["mean", "per-sample"])
@pytest.mark.parametrize("batch_size", [1, 7, 36, 37, 1000])
def test_every_sample_counts_once_whatever_the_batches(batch_size, mean):
    X, y = classification()  # 37 samples: batches of 7 leave a last one of 2
    net = mlp()
    objective = objective_of(net, X, y, batch_size=batch_size, mean=mean)
    value, gradient = objective.value_and_gradient()
    exact = value_of_weights(net, X, y)
    w = objective.scope.flatten()
    g, H = dense_gradient_and_hessian(exact, w)
    assert value == pytest.approx(float(exact(w)), rel=1e-12)
    torch.testing.assert_close(gradient, g, rtol=1e-10, atol=1e-13)
    v = torch.randn(len(w), dtype=torch.float64)
    torch.testing.assert_close(objective.hvp(v), H @ v, rtol=1e-9, atol=1e-12)


def test_mean_of_batch_means_would_be_caught():
    X, y = classification()
    net = mlp()
    g, _ = dense_gradient_and_hessian(
        value_of_weights(net, X, y), Scope(net, net.parameters()).flatten()
    )
    objective = objective_of(net, X, y, batch_size=36, mean=True)
    objective.batches.parts = [p[:1] if len(p) == 1 else p for p in
                               objective.batches.parts]  # fmt: skip
    wrong = EmpiricalObjective(
        lambda b, i: objective.loss(b, i) * 18.5 / len(b[1]),
        objective.scope, objective.batches, 0.01,
    )  # fmt: skip
    assert (wrong.value_and_gradient()[1] - g).norm() > 1e-2 * g.norm()


def test_filler_batches_count_nothing():
    X, y = classification()
    net = mlp()
    objective = objective_of(net, X, y)
    plain = objective.value_and_gradient()

    class WithFiller(ListBatches):
        def __iter__(self):
            yield from super().__iter__()
            yield 0, (self.X[:3], self.y[:3])

    objective.batches = WithFiller(X, y)
    value, gradient = objective.value_and_gradient()
    assert value == plain[0]
    assert torch.equal(gradient, plain[1])


def test_sums_are_float64_around_float32_passes():
    X, y = classification(n=2000)
    net = mlp().float()
    objective = objective_of(net, X.float(), y, batch_size=2)
    _, gradient = objective.value_and_gradient()
    exact, _ = dense_gradient_and_hessian(
        value_of_weights(mlp(), X, y), objective.scope.flatten()
    )
    assert gradient.dtype == torch.float64
    assert (gradient - exact).norm() < 2e-7 * exact.norm()


def test_sampled_products_have_the_full_product_as_mean():
    X, y = classification()
    objective = objective_of(mlp(), X, y)
    v = torch.randn(objective.size, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    mean = sum(objective.sampled_hvp(v, 64, generator) for _ in range(300)) / 300
    assert (mean - objective.hvp(v)).norm() < 0.03 * objective.hvp(v).norm()


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (
            lambda net: lambda b, i: net(b[0]),
            r"expected the loss of 7 samples as their",
        ),
        (
            lambda net: lambda b, i: F.cross_entropy(net(b[0]), b[1]) * float("nan"),
            "expected a finite loss, got nan on batch 0",
        ),
        (
            lambda net: lambda b, i: F.cross_entropy(net(b[0]).detach(), b[1]),
            "expected a loss that depends on the weights in scope",
        ),
        (
            lambda net: lambda b, i: F.cross_entropy(b[0] @ net[0].weight.T, b[1] % 3),
            "expected every weight in scope to receive a gradient, got none for 0.bias",
        ),
    ],
)
def test_losses_that_are_none(loss, message):
    X, y = classification()
    net = mlp()
    objective = objective_of(net, X, y)
    objective.loss = loss(net)
    with pytest.raises(ModelError, match=message):
        objective.value_and_gradient()


@pytest.mark.parametrize("l2", [-1.0, float("nan"), float("inf")])
def test_bad_l2(l2):
    with pytest.raises(ArgumentError, match="expected l2 to be a finite number >= 0"):
        objective_of(mlp(), *classification(), l2=l2)


def test_scope_round_trip_ties_and_strangers():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].weight = net[0].weight
    scope = Scope(net, [*net.parameters(), net[1].weight])
    assert scope.size == 9 + 3 + 3
    w = torch.arange(15, dtype=torch.float64)
    scope.assign(w)
    assert torch.equal(scope.flatten(), w)
    assert scope.state_digest(w) == state_digest(net.state_dict())
    assert scope.state_digest(w) != scope.state_digest(w + 1)
    with pytest.raises(ModelError, match="parameters of the module itself"):
        Scope(net, [nn.Parameter(torch.zeros(2))])
    with pytest.raises(ModelError, match="at least one weight in scope, got none"):
        Scope(net, [])
    with torch.no_grad():
        net[0].bias[1] = float("nan")
    with pytest.raises(ModelError, match=r"1 NaN or infinite values in 0\.bias"):
        scope.check_finite()


def test_passes_leave_the_module_as_it_was_even_after_an_error():
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout(0.5))
    net.train()
    net[1].eval()
    net[0].bias.requires_grad_(False)
    scope = Scope(net, [net[0].weight])
    tensors = [*net.parameters(), *net.buffers()]
    before = [(t.data_ptr(), t.dtype, t.clone()) for t in tensors]
    flags = [p.requires_grad for p in net.parameters()]

    def run():
        with passes(net, scope, torch.float64):
            assert not any(m.training for m in net.modules())
            assert net[0].weight.dtype == net[1].running_mean.dtype == torch.float64
            assert [p.requires_grad for p in net.parameters()].count(True) == 1
            with torch.no_grad():
                net[0].weight.add_(1)
                net[1].running_mean.add_(1)
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        run()
    for t, (pointer, dtype, value) in zip(tensors, before, strict=True):
        assert t.data_ptr() == pointer
        assert t.dtype == dtype
        assert torch.equal(t, value)
    assert [p.requires_grad for p in net.parameters()] == flags
    assert [m.training for m in net] == [True, False, True]


def test_attention_has_a_second_derivative_inside_the_passes():
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    scope = Scope(attention, attention.parameters())
    X = torch.randn(6, 3, 8)

    def loss(batch, index):
        out, _ = attention(batch, batch, batch, need_weights=False)
        return out.square().mean((1, 2))

    batches = ListBatches(X, torch.zeros(6))
    objective = EmpiricalObjective(lambda b, i: loss(b[0], i), scope, batches, 0.1)
    v = torch.randn(scope.size, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="derivative"):
        objective.hvp(v)
    with passes(attention, scope, torch.float32):
        objective.hvp(v)
