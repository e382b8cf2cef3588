"""What the rounding of rows does to the minimiser; tolerances below it."""

import re

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from lightning_unlearn.errors import GuaranteeError
from lightning_unlearn.step.head.capture import row_difference
from lightning_unlearn.step.head.convex_head import ConvexHead
from lightning_unlearn.step.head.convex_objective import ConvexObjective
from lightning_unlearn.step.head.links import LINKS
from lightning_unlearn.step.head.minimise import check_resolved, minimise
from lightning_unlearn.step.head.rows.feature_data import FeatureData
from tests.helpers.oracles import ridge
from tests.step.head.test_convex_objective import TORCH_LOSSES, data_for

LINEAR = torch.nn.Linear(100, 64)  # its product rounds by the size of the batch


def objective_of(loss, X, y, l2, K=3):
    head = ConvexHead(X.shape[1], K, loss)
    return ConvexObjective(head, FeatureData(X, y), l2)


def minimiser(loss, X, y, l2, K=3):
    """By scipy, with torch's own losses and automatic differentiation."""
    if loss == "mse":
        return ridge(X.numpy(), y.numpy(), l2)
    d = X.shape[1]

    def fun(w):
        w = torch.tensor(w, requires_grad=True)
        outputs = X @ w[: K * d].view(K, d).T + w[K * d :]
        value = TORCH_LOSSES[loss](outputs, y) + l2 / 2 * w @ w
        (gradient,) = torch.autograd.grad(value, w)
        return value.item(), gradient.numpy()

    w0 = np.zeros(K * (d + 1))
    options = {"ftol": 1e-16, "gtol": 1e-12, "maxiter": 5000}
    return minimize(fun, w0, jac=True, method="L-BFGS-B", options=options).x


def worst_rows(loss, X, y, w, eta, K=3):
    """Each row moved by eta to where its gradient moves most along one direction."""
    d = X.shape[1]
    rows = X.clone().requires_grad_(True)
    W = torch.tensor(w[: K * d]).view(K, d)
    b = torch.tensor(w[K * d :])
    D = LINKS[loss].residual(rows @ W.T + b, y)
    along = torch.ones(K, d, dtype=torch.float64) / (K * d) ** 0.5
    (pulled,) = torch.autograd.grad((D.T @ rows * along).sum(), rows)
    return X + eta * pulled / pulled.norm(dim=1, keepdim=True).clamp_min(1e-12)


@pytest.mark.parametrize("loss", LINKS)
@pytest.mark.parametrize("eta", [1e-4, 1e-2, 0.3])
def test_the_minimiser_moves_less_than_the_bound_says(loss, eta):
    l2 = 0.05
    X, y = data_for(loss, n=60)
    generator = torch.Generator().manual_seed(0)
    before = minimiser(loss, X, y, l2)
    noise = torch.randn(X.shape, generator=generator, dtype=torch.float64)
    noise *= eta / noise.norm(dim=1, keepdim=True)
    bound = objective_of(loss, X, y, l2).shift_upper(torch.tensor(before), eta)
    moves = [
        float(np.linalg.norm(minimiser(loss, other, y, l2) - before))
        for other in (X + noise, X + noise.mean(0), worst_rows(loss, X, y, before, eta))
    ]
    assert max(moves) < bound
    assert max(moves) > bound / 300  # it is a bound on this, not on anything


@pytest.mark.parametrize("loss", LINKS)
def test_two_kernels_rows(loss):
    """The same layer, by batches of one and by one batch: rows in float32."""
    torch.manual_seed(0)
    inputs, (_, y) = torch.randn(80, 100), data_for(loss, n=80)
    with torch.no_grad():
        whole = LINEAR(inputs)
        single = torch.cat([LINEAR(x) for x in inputs.split(1)])
    eta = float((whole.double() - single.double()).norm(dim=1).max())
    assert eta > 0  # or this test shows nothing here
    exact = [minimiser(loss, rows.double(), y, 0.1) for rows in (whole, single)]
    bound = objective_of(loss, whole, y, 0.1).shift_upper(torch.tensor(exact[0]), eta)
    solved = 1e-9  # by the search of the oracle
    assert np.linalg.norm(exact[0] - exact[1]) < bound + solved


def test_a_tolerance_below_the_rows_is_refused_with_the_least_that_is_not():
    X, y = data_for("cross_entropy")
    objective = objective_of("cross_entropy", X, y, 0.01)
    w = torch.zeros(objective.size, dtype=torch.float64)
    w = minimise(objective, w, tolerance=1e-10).weights
    check_resolved(objective, w, 0.0, 1e-12)
    with pytest.raises(GuaranteeError, match="that the rows at the head can") as error:
        check_resolved(objective, w, 1e-7, 1e-8)
    told = re.search(r"take tolerance=(\S+) or more", str(error.value))
    assert told is not None
    check_resolved(objective, w, 1e-7, float(told[1]))
    with pytest.raises(GuaranteeError, match="can resolve"):
        check_resolved(objective, w, 1e-7, 0.8 * float(told[1]))
    with pytest.raises(GuaranteeError, match="can resolve"):
        check_resolved(objective, w, float("nan"), 1e-3)


class InOrder:
    """Batches of 4 of some rows."""

    def __init__(self, X, y):
        self.X, self.y, self.parts = X, y, [[0, 1, 2, 3], [4, 5, 6, 7]]

    def take(self, places):
        return len(places), (self.X[places], self.y[places])


@pytest.mark.parametrize("off", [0.0, 2.0**-12])
def test_rows_are_compared_as_they_were_solved_on(off):
    X, y = torch.arange(24.0).view(8, 3) / 8, torch.arange(8) % 3
    head, read = ConvexHead(3, 3), []

    def loss(batch, index):
        read.append(len(batch[0]))
        return head.loss(*batch).mean()

    batches = InOrder(X, y)
    assert row_difference(loss, head, batches) == 0.0
    assert read == [4, 4]
    del read[:]
    asked = []

    def solved_on(places):
        asked.append(places)
        return X[places] + torch.tensor([0.0, off, 0.0])

    assert row_difference(loss, head, batches, solved_on) == off
    assert (read, asked) == ([4], [[0, 1, 2, 3]])  # one batch: theirs are known
    assert row_difference(loss, head, batches, lambda places: None) == 0.0


def test_rows_whose_dust_was_taken_away_are_the_same():
    X, y = torch.ones(8, 3), torch.zeros(8, dtype=torch.int64)
    X[:, 2] = 1e-30
    head = ConvexHead(3, 3)
    kept = X.clone()
    kept[:, 2] = 0  # as capture keeps them
    found = row_difference(
        lambda batch, index: head.loss(*batch).mean(),
        head,
        InOrder(X, y),
        lambda places: kept[places],
    )
    assert found == 0.0
