"""Kept graphs give the same products for fewer evaluations; proxies are unbiased."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_unlearn.errors import ModelError
from lightning_unlearn.step.network.empirical_objective import EmpiricalObjective
from lightning_unlearn.step.network.graph_memory import sizes
from lightning_unlearn.step.network.graphs import (
    GaussNewtonGraph,
    HessianGraph,
    saved_bytes,
)
from lightning_unlearn.step.network.outputs import Outputs
from lightning_unlearn.step.network.products import PRODUCTS
from lightning_unlearn.weights.large_arrays import free_bytes
from lightning_unlearn.weights.scope import Scope
from tests.helpers.oracles import dense_gradient_and_hessian
from tests.helpers.problems import (
    ListBatches,
    classification,
    mlp,
    objective_of,
    value_of_weights,
)


def counted(objective):
    """The objective, and a list that grows by one at every evaluated batch."""
    calls, loss = [], objective.loss
    objective.loss = lambda batch, index: calls.append(1) or loss(batch, index)
    return calls


def keeping(curvature="hessian", kept=100, chunk=8):
    net, (X, y) = mlp(), classification()
    plain = objective_of(net, X, y, curvature=curvature)
    return net, EmpiricalObjective(
        plain.loss, plain.scope, ListBatches(X, y), plain.l2, PRODUCTS[curvature],
        kept=kept, chunk=chunk,
    )  # fmt: skip


@pytest.mark.parametrize("curvature", ["hessian", "gauss_newton"])
@pytest.mark.parametrize("kept", [0, 14, 100])
def test_kept_graphs_change_nothing_but_the_cost(curvature, kept):
    net, objective = keeping(curvature, kept)
    calls = counted(objective)
    plain = objective_of(net, *classification(), curvature=curvature)
    _, gradient = objective.value_and_gradient()
    torch.testing.assert_close(gradient, plain.value_and_gradient()[1])
    v = torch.randn(objective.size, dtype=torch.float64)
    for _ in range(3):
        torch.testing.assert_close(objective.hvp(v), plain.hvp(v))
    batches, free = 6, 6 if kept == 100 else kept // 7
    spent = batches + 3 * (batches - free)
    if curvature == "gauss_newton":  # its graphs are built by the first product
        spent += free
    assert len(calls) == spent


def test_elsewhere_the_graphs_of_here_are_not_used():
    net, objective = keeping()
    X, y = classification()
    w0 = objective.scope.flatten()
    objective.value_and_gradient()
    v, w = torch.randn(2, objective.size, dtype=torch.float64)
    here = objective.hvp(v)
    with objective.moved_to(w):
        there = objective.hvp(v)
        _, H = dense_gradient_and_hessian(value_of_weights(net, X, y), w)
    torch.testing.assert_close(there, H @ v)
    torch.testing.assert_close(objective.scope.flatten(), w0)
    torch.testing.assert_close(objective.hvp(v), here, rtol=0, atol=0)


def test_a_draw_is_read_once_and_is_the_hessian_of_its_samples():
    _, objective = keeping()
    taken, take = [], objective.batches.take
    objective.batches.take = lambda places: taken.append(list(places)) or take(places)
    products = objective.sampled_hessian(20, torch.Generator().manual_seed(0))
    places = [i for part in taken for i in part]
    assert len(places) == 20
    X, y = classification()
    own = objective_of(objective.scope.module, X[places], y[places])
    for v in torch.randn(3, objective.size, dtype=torch.float64):
        torch.testing.assert_close(products(v), own.hvp(v))
    assert [len(part) for part in taken] == [8, 8, 4]


@pytest.mark.parametrize("kept", [0, 100])
def test_the_proxy_is_the_gauss_newton_matrix_on_average(kept):
    net, objective = keeping(kept=kept)
    assert objective.proxy(10, torch.Generator()) is None  # no gradient sweep yet
    objective.value_and_gradient()
    X, y = classification()
    p = net(X).softmax(1)
    torch.testing.assert_close(objective.importance, (1 - p.square().sum(1)).detach())
    v = torch.randn(objective.size, dtype=torch.float64)
    exact = objective_of(net, X, y, curvature="gauss_newton").hvp(v)
    generator = torch.Generator().manual_seed(0)
    draws = [objective.proxy(20, generator)(v) for _ in range(400)]
    mean = sum(draws) / len(draws)
    assert float((mean - exact).norm()) < 0.05 * float(exact.norm())
    spread = float((draws[0] - exact).norm())
    assert spread > float((mean - exact).norm())
    assert all(float(v @ d) > 0 for d in draws)


def test_no_proxy_where_the_curvature_of_a_sample_is_not_known():
    net, (X, y) = mlp(), classification()

    def custom(batch, index):
        z = net(batch[0])
        return z.logsumexp(1) - z.gather(1, batch[1][:, None])[:, 0]

    scope = Scope(net, net.parameters())
    objective = EmpiricalObjective(custom, scope, ListBatches(X, y), 0.01)
    objective.value_and_gradient()
    assert objective.importance is None
    assert objective.proxy(10, torch.Generator()) is None
    forward = objective_of(net, X, y, curvature="hessian_forward")
    forward.value_and_gradient()
    assert forward.proxy(10, torch.Generator()) is None


@pytest.mark.parametrize(
    ("loss", "z", "target", "trace"),
    [
        (F.mse_loss, torch.randn(4, 3), torch.randn(4, 3), lambda z: 2 * z[:, 0] ** 0),
        (
            F.binary_cross_entropy_with_logits,
            torch.randn(4, 3),
            torch.rand(4, 3),
            lambda z: (z.sigmoid() * (1 - z.sigmoid())).mean(1),
        ),
        (
            F.poisson_nll_loss,
            torch.randn(4, 3),
            torch.ones(4, 3),
            lambda z: z.exp().mean(1),
        ),
        (
            F.cross_entropy,  # (samples, classes, positions)
            torch.randn(4, 3, 5),
            torch.randint(3, (4, 5)),
            lambda z: (1 - z.softmax(1).square().sum(1)).sum(1),
        ),
        (
            F.cross_entropy,  # positions flattened into the samples
            torch.randn(8, 3),
            torch.randint(3, (8,)),
            lambda z: (1 - z.softmax(1).square().sum(1)).view(4, 2).sum(1),
        ),
    ],
)
def test_traces_are_those_of_the_hessian_in_the_outputs(loss, z, target, trace):
    z = z.clone().requires_grad_()
    with Outputs() as outputs:
        loss(z, target)
    found = outputs.only.traces(4)
    expected = trace(z.detach()).double()
    torch.testing.assert_close(found / found.sum(), expected / expected.sum())


def test_rows_that_are_not_whole_samples_are_no_samples():
    z = torch.randn(7, 3, requires_grad=True)
    with Outputs() as outputs:
        F.cross_entropy(z, torch.zeros(7, dtype=torch.long))
    assert outputs.only.traces(4) is None
    net, (X, y) = mlp(), classification(8)

    def loss():
        return F.cross_entropy(net(X), y)

    with pytest.raises(ModelError, match="expected outputs grouped by sample, got 8"):
        GaussNewtonGraph(loss, Scope(net, net.parameters()), torch.ones(3))


def test_saved_bytes_counts_what_a_graph_keeps():
    net = nn.Sequential(nn.Linear(100, 50), nn.Tanh(), nn.Linear(50, 1))
    scope = Scope(net, net.parameters())

    def bytes_of(n):
        X = torch.randn(n, 100)
        return saved_bytes(lambda: HessianGraph(lambda: net(X).sum(), scope), scope)

    few, many = bytes_of(64), bytes_of(128)
    per_sample = (many - few) / 64
    assert per_sample >= 4 * (100 + 50)  # the input and the activation at least
    assert per_sample <= 4 * (100 + 8 * 50)


def test_sizes_keep_to_the_budget():
    _, objective = keeping()
    none = sizes(objective, None, 0, False)
    assert (none.kept, none.batch_size) == (0, 37)
    assert sizes(objective, None, 10**9, False).kept == 37
    chosen = sizes(objective, 5, 10**9, False)
    assert (chosen.batch_size, chosen.kept) == (5, 40)
    one = chosen.graph_bytes // 8
    assert sizes(objective, 5, 3 * one + 1, False).kept == 15
    assert free_bytes(torch.device("cpu")) > 0
