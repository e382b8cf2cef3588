import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_unlearn.errors import ModelError
from lightning_unlearn.step.network.products import PRODUCTS
from tests.helpers.oracles import dense_gradient_and_hessian
from tests.helpers.problems import classification, mlp, objective_of, value_of_weights


@pytest.mark.parametrize(
    ("curvature", "tolerance"),
    [("hessian", 1e-11), ("hessian_forward", 1e-11), ("central_difference", 1e-7)],
)
def test_products_equal_the_dense_hessian(curvature, tolerance):
    X, y = classification()
    net = mlp()
    objective = objective_of(net, X, y, curvature=curvature)
    w = objective.scope.flatten()
    _, H = dense_gradient_and_hessian(value_of_weights(net, X, y), w)
    for _ in range(3):
        v = torch.randn(objective.size, dtype=torch.float64)
        error = (objective.hvp(v) - H @ v).norm() / (H @ v).norm()
        assert error < tolerance
    assert torch.equal(objective.scope.flatten(), w)


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_gauss_newton_equals_its_dense_definition(loss):
    X, y = classification()
    net = mlp()
    objective = objective_of(net, X, y, curvature="gauss_newton", l2=0.01)
    target = F.one_hot(y, 3).double()
    if loss == "mse":
        objective.loss = lambda b, i: F.mse_loss(net(b[0]), target[: len(b[0])])
        objective.batches.parts = [torch.arange(37)]
    w = objective.scope.flatten()
    names = [n for n, _ in net.named_parameters()]

    def outputs(flat):
        weights = dict(zip(names, objective.scope.split(flat), strict=True))
        return torch.func.functional_call(net, weights, (X,))

    J = torch.func.jacrev(outputs)(w).reshape(-1, len(w))  # (n K, p)
    p = outputs(w).softmax(-1)
    blocks = [
        torch.diag(row) - torch.outer(row, row) if loss == "cross_entropy"
        else 2 / 3 * torch.eye(3, dtype=row.dtype)
        for row in p
    ]  # fmt: skip
    G = J.T @ torch.block_diag(*blocks) @ J / 37 + 0.01 * torch.eye(
        len(w), dtype=w.dtype
    )
    assert torch.linalg.eigvalsh(G)[0] > 0
    v = torch.randn(len(w), dtype=torch.float64)
    torch.testing.assert_close(objective.hvp(v), G @ v, rtol=1e-9, atol=1e-12)


def test_gauss_newton_needs_one_known_loss():
    X, y = classification()
    net = mlp()
    objective = objective_of(net, X, y, curvature="gauss_newton")
    v = torch.ones(objective.size, dtype=torch.float64)
    two = objective.loss
    objective.loss = lambda b, i: two(b, i) + two(b, i)
    with pytest.raises(ModelError, match="expected exactly one call .* got 2"):
        objective.hvp(v)
    objective.loss = lambda b, i: net(b[0]).square().sum(1)
    with pytest.raises(ModelError, match="expected exactly one call .* got 0"):
        objective.hvp(v)


@pytest.mark.parametrize("curvature", list(PRODUCTS))
def test_products_of_a_loss_linear_in_the_weights_are_the_regulariser(curvature):
    net = nn.Linear(3, 1, bias=False).double()
    X, y = classification(n=5, d=3)
    objective = objective_of(net, X, y, l2=0.5, curvature=curvature)
    if curvature == "gauss_newton":
        objective.loss = lambda b, i: F.mse_loss(net(b[0]), b[0][:, :1]) * 0
    else:
        objective.loss = lambda b, i: net(b[0])[:, 0]
    v = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    torch.testing.assert_close(objective.hvp(v), 0.5 * v, atol=1e-9, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(5))
def test_the_error_of_differences_is_stated_and_not_too_small(dtype, seed):
    torch.manual_seed(seed)
    X, y = classification()
    net = mlp().to(dtype)
    exact = objective_of(copy.deepcopy(net).double(), X.double(), y)
    differences = objective_of(net, X.to(dtype), y, curvature="central_difference")
    assert exact.difference_error(torch.ones(exact.size).double()) is None
    v = torch.randn(exact.size).double()
    true = exact.hvp(v)
    error = float((differences.hvp(v) - true).norm() / true.norm())
    stated = differences.difference_error(v)
    assert error < 3 * stated
    assert stated < 1e-2 if dtype is torch.float32 else stated < 1e-6


def test_central_differences_are_wrong_on_relu():
    # Why check_smooth exists (theory.md section 3).
    X, y = classification(n=200)
    net = mlp(activation=nn.ReLU, hidden=32)
    exact = objective_of(net, X, y, curvature="hessian")
    differences = objective_of(
        net.float(), X.float(), y, curvature="central_difference"
    )
    v = torch.randn(exact.size, dtype=torch.float64)
    wrong = differences.hvp(v)
    net.double()
    right = exact.hvp(v)
    assert (wrong - right).norm() > 1e-3 * right.norm()
