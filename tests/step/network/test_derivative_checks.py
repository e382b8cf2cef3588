import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_unlearn.errors import DataError, ModelError, SolverError
from lightning_unlearn.step import batch_checks
from lightning_unlearn.step.network import derivative_checks
from lightning_unlearn.step.network.spectrum import lanczos_ends
from tests.helpers.problems import ListBatches, classification, mlp, objective_of


@pytest.mark.parametrize(
    ("module", "names"),
    [
        (nn.ReLU(), ("relu",)),
        (nn.LeakyReLU(), ("leaky_relu",)),
        (nn.ELU(), ("elu",)),
        (nn.Hardtanh(), ("hardtanh",)),
        (nn.Sequential(nn.Unflatten(1, (2, 2)), nn.MaxPool1d(2), nn.Flatten()),
         ("max_pool1d",)),
        (nn.Sequential(nn.Unflatten(1, (1, 2, 2)), nn.MaxPool2d(2), nn.Flatten()),
         ("max_pool2d",)),
        (nn.Sequential(nn.Unflatten(1, (1, 2, 2)), nn.AdaptiveMaxPool2d(1),
                       nn.Flatten()), ("adaptive_max_pool2d",)),
        (nn.GELU(), ()),
        (nn.Tanh(), ()),
        (nn.SiLU(), ()),
        (nn.Softplus(), ()),
        (nn.LayerNorm(4), ()),
    ],
    ids=str,
)  # fmt: skip
def test_kinks_are_named(module, names):
    X = torch.randn(3, 4)
    assert derivative_checks.kinks(lambda: module(X).sum()) == names


@pytest.mark.parametrize(
    "function",
    [torch.relu, torch.abs, lambda x: x.clamp(min=0), lambda x: x.relu(),
     lambda x: torch.where(x > 0, x, 0), lambda x: x.max(1).values, abs],
)  # fmt: skip
def test_kinks_without_a_module(function):
    assert derivative_checks.kinks(lambda: function(torch.randn(3, 4)).sum())


def test_central_differences_are_refused_on_relu_only():
    X, y = classification()
    for activation, fails in ((nn.ReLU, True), (nn.Tanh, False)):
        objective = objective_of(mlp(activation=activation), X, y)
        loss = derivative_checks.first_batch_loss(objective)
        if fails:
            with pytest.raises(ModelError, match="expected a smooth network .* relu"):
                derivative_checks.check_smooth(loss)
        else:
            derivative_checks.check_smooth(loss)


class WrongSecondDerivative(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, y):
        ctx.save_for_backward(x, y)
        return x * y

    @staticmethod
    def backward(ctx, grad):
        x, y = ctx.saved_tensors
        return grad * y.detach(), grad * x  # d2/dxdy is there, d2/dydx is not


def test_a_wrong_double_backward_is_found():
    X, y = classification()
    net = mlp()
    objective = objective_of(net, X, y)
    derivative_checks.check_symmetric(
        derivative_checks.first_batch_loss(objective), objective.scope, "hessian"
    )
    objective.loss = lambda b, i: F.cross_entropy(
        net[2](WrongSecondDerivative.apply(net[0](b[0]), net[0](b[0] + 1))), b[1]
    )
    with pytest.raises(ModelError, match="expected a symmetric Hessian"):
        derivative_checks.check_symmetric(
            derivative_checks.first_batch_loss(objective), objective.scope, "hessian"
        )


def test_weight_norm_is_found_or_right():
    # theory.md 9: 22% wrong in the torch it was measured on. Where torch is right,
    # the check must let it pass; where it is wrong, it must not.
    X, y = classification()
    net = mlp()
    nn.utils.parametrizations.weight_norm(net[0])
    objective = objective_of(net, X, y)
    w = objective.scope.flatten()
    columns, truth = [], []
    for e in torch.eye(len(w), dtype=torch.float64):
        columns.append(objective.hvp(e))
        ends = []
        for step in (1e-5, -1e-5):  # the network is smooth: differences are an oracle
            objective.scope.assign(w + step * e)
            ends.append(objective.value_and_gradient()[1])
        objective.scope.assign(w)
        truth.append((ends[0] - ends[1]) / 2e-5)
    H = torch.stack(truth)
    error = (torch.stack(columns) - H).norm() / H.norm()
    loss = derivative_checks.first_batch_loss(objective)
    if error < 1e-8:
        derivative_checks.check_symmetric(loss, objective.scope, "hessian")
    else:
        with pytest.raises(ModelError, match="expected a symmetric Hessian"):
            derivative_checks.check_symmetric(loss, objective.scope, "hessian")


def test_random_data_and_random_losses_are_told_apart():
    X, y = classification()
    net = mlp()
    objective = objective_of(net, X, y)
    batch_checks.check_repeatable(objective.batches)
    derivative_checks.check_loss(objective)
    plain = objective.loss
    objective.loss = lambda b, i: plain((F.dropout(b[0]), b[1]), i)
    with pytest.raises(ModelError, match="the same loss at every pass"):
        derivative_checks.check_loss(objective)

    class Augmented(ListBatches):
        def take(self, places):
            weight, (x, t) = super().take(places)
            return weight, (x + torch.randn_like(x), t)

    with pytest.raises(DataError, match="the same samples at every read"):
        batch_checks.check_repeatable(Augmented(X, y))


@pytest.mark.parametrize(
    "loss",
    [
        lambda net, b: F.cross_entropy(net(b[0] - b[0].mean(0)), b[1]),
        lambda net, b: F.cross_entropy(net(b[0]), b[1], reduction="sum"),
        lambda net, b: (net(b[0]) @ net(b[0]).T).logsumexp(1).mean(),
    ],
    ids=["batch statistics", "a sum", "contrastive"],
)
def test_losses_that_are_no_mean_over_samples(loss):
    X, y = classification()
    net = mlp()
    objective = objective_of(net, X, y)
    objective.loss = lambda b, i: loss(net, b)
    with pytest.raises(ModelError, match="mean over samples on their own"):
        derivative_checks.check_loss(objective)


def test_lanczos_finds_both_ends_from_inside():
    generator = torch.Generator().manual_seed(0)
    values = torch.cat([torch.linspace(-3, 5, 60), torch.tensor([9.0])]).double()
    Q, _ = torch.linalg.qr(torch.randn(61, 61, generator=generator).double())
    A = Q @ torch.diag(values) @ Q.T
    start = torch.randn(61, generator=generator).double()
    for steps in (5, 40, 61, 200):
        low, high, *_ = lanczos_ends(lambda v: A @ v, start, steps)
        assert low >= -3 - 1e-9
        assert high <= 9 + 1e-9
    assert low == pytest.approx(-3, abs=1e-9)
    assert high == pytest.approx(9, abs=1e-9)
    identity = lanczos_ends(lambda v: 2 * v, start, 40)  # stops after one step
    assert identity[:3] == (pytest.approx(2), pytest.approx(2), 1)
    with pytest.raises(SolverError, match="expected finite curvature products"):
        lanczos_ends(lambda v: v * float("nan"), start, 3)


def test_lanczos_stops_when_the_smallest_value_has_settled():
    generator = torch.Generator().manual_seed(0)
    values = torch.cat([torch.tensor([-1.0]), torch.linspace(0, 5, 200)]).double()
    start = torch.randn(201, generator=generator).double()
    early = lanczos_ends(lambda v: values * v, start, 60, until_settled=True)
    late = lanczos_ends(lambda v: values * v, start, 60)
    assert early.products < late.products == 60
    assert -1 - 1e-9 <= late.lowest <= early.lowest <= -0.85
    # Nothing negative: there is nothing to settle, and no step is saved.
    positive = values + 2
    assert lanczos_ends(lambda v: positive * v, start, 60, True).products == 60
