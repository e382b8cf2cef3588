import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lightning_unlearn.errors import GuaranteeError, SolverError
from lightning_unlearn.guarantee import claims
from lightning_unlearn.guarantee.claims import Bound
from lightning_unlearn.solvers.cg import CG
from lightning_unlearn.solvers.lissa import LiSSA
from lightning_unlearn.step.head.convex_head import ConvexHead
from lightning_unlearn.step.head.convex_objective import ConvexObjective
from lightning_unlearn.step.head.factor import cheap_factor, factorise
from lightning_unlearn.step.head.links import LINKS
from lightning_unlearn.step.head.minimise import minimise
from lightning_unlearn.step.head.rows.feature_data import FeatureData
from tests.helpers.oracles import (
    retrain_poisson_head,
    retrain_softmax_head,
    ridge,
    softmax_head,
)
from tests.step.head.test_convex_objective import data_for, problem


def test_ridge_regression_is_the_closed_form():
    X, Y = data_for("mse")
    head, *_ = problem("mse")
    objective = ConvexObjective(head, FeatureData(X, Y), 0.05)
    w0 = torch.zeros(objective.size, dtype=torch.float64)
    step = minimise(objective, w0, tolerance=1e-12, solver=CG(rtol=1e-13))
    exact = ridge(X.numpy(), Y.numpy(), 0.05)
    assert step.solution.steps == 1  # one Newton step is the retrained model
    assert np.linalg.norm(step.weights.numpy() - exact) < 1e-10


def test_a_solver_of_the_user_s_own_needs_no_observer_of_its_own_default():
    class Own:
        def solve(self, A, b, observer):
            return CG(rtol=1e-13).solve(A, b, observer)

    X, Y = data_for("mse")
    head, *_ = problem("mse")
    objective = ConvexObjective(head, FeatureData(X, Y), 0.05)
    w0 = torch.zeros(objective.size, dtype=torch.float64)
    step = minimise(objective, w0, tolerance=1e-10, solver=Own())
    assert float(objective.gradient(step.weights)[0].norm()) <= 1e-10


@pytest.mark.parametrize("loss", LINKS)
@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0])
def test_reaches_the_tolerance_from_any_start(loss, scale):
    *_, objective = problem(loss)
    generator = torch.Generator().manual_seed(0)
    w0 = torch.randn(objective.size, generator=generator, dtype=torch.float64)
    if loss == "poisson" and scale > 1:
        scale = 3.0  # exp of larger logits is beyond float64
    step = minimise(objective, scale * w0, tolerance=1e-9)
    gradient, rounding = objective.gradient(step.weights)
    assert float(gradient.norm()) + rounding <= 1e-9
    torch.testing.assert_close(step.solution.x, scale * w0 - step.weights)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("start", [5.0, 20.0, 200.0, 1e200, float("inf"), float("nan")])
@pytest.mark.parametrize("by_factor", [False, True])
def test_a_start_from_which_it_fails_is_left_for_zero(dtype, start, by_factor):
    """Exponentials overflow there; where it starts depends on forgotten samples."""
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(200, 3, generator=generator).to(dtype)
    Y = torch.poisson(torch.ones(200, 3), generator=generator)
    objective = ConvexObjective(ConvexHead(3, 3, "poisson"), FeatureData(X, Y), 1e-2)
    refactor = cheap_factor(objective) if by_factor else None
    w0 = torch.zeros(objective.size, dtype=torch.float64)
    ends = [
        minimise(objective, w, tolerance=1e-6, refactor=refactor).weights
        for w in (w0, w0 + start)
    ]
    rows, counts = X.double().numpy(), Y.double().numpy()
    exact = retrain_poisson_head(rows, counts, 1e-2)
    for end in ends:
        assert np.linalg.norm(end.numpy() - exact) <= 1e-6 / 1e-2


def test_what_no_start_solves_is_refused():
    X, Y = torch.full((4, 1), 1e200, dtype=torch.float64), torch.ones(4, 1)
    objective = ConvexObjective(ConvexHead(1, 1, "poisson"), FeatureData(X, Y), 1e-2)
    for start in (0.0, 1.0):
        with pytest.raises((SolverError, GuaranteeError), match="expected"):
            minimise(objective, torch.full((2,), start).double(), tolerance=1e-6)


def test_distance_never_exceeds_the_sensitivity():
    # 200 strongly convex problems, each against a retrained model of its own code.
    rng = np.random.default_rng(3)
    closest = 0.0
    for _ in range(200):
        n, d, K = rng.integers(4, 30), rng.integers(1, 5), rng.integers(2, 4)
        X, y = rng.normal(size=(n, d)), rng.integers(0, K, n)
        l2 = float(10 ** rng.uniform(-4, 0))
        tolerance = float(10 ** rng.uniform(-8, -2))
        retrained = retrain_softmax_head(X, y, K, l2)
        head = ConvexHead(d, K)
        objective = ConvexObjective(
            head, FeatureData(torch.tensor(X), torch.tensor(y)), l2
        )
        w0 = torch.tensor(rng.normal(size=objective.size)) * 3
        step = minimise(objective, w0, tolerance=tolerance)
        sensitivity = claims.sensitivity_upper(step.claim.bound, step.constants)
        distance = np.linalg.norm(step.weights.numpy() - retrained)
        assert distance <= sensitivity / 2 + 1e-9 / l2  # the oracle's own distance
        closest = max(closest, distance / sensitivity)
    assert closest > 0.1  # the bound is not idle


def test_worked_numbers_of_the_theory():
    # theory.md section 4: n = 20,000, 65 features, 10 classes, l2 = 1e-3, 1,000
    # deleted; |grad|/mu after 0/1/2 Newton steps about .7 / 3e-3 / 7e-8.
    rng = np.random.default_rng(0)
    n, d, K = 20_000, 64, 10
    X = rng.normal(size=(n, d)) / 8
    W = rng.normal(size=(K, d)) * 3
    y = (X @ W.T + rng.gumbel(size=(n, K))).argmax(1)
    keep = np.arange(1000, n)
    full = retrain_softmax_head(X, y, K, 1e-3, gtol=1e-9)
    retrained = retrain_softmax_head(X[keep], y[keep], K, 1e-3)
    value, gradient, hessian = softmax_head(X[keep], y[keep], K, 1e-3)
    data = FeatureData(torch.tensor(X[keep]), torch.tensor(y[keep]))
    objective = ConvexObjective(ConvexHead(d, K), data, 1e-3)
    w = torch.tensor(full)
    norms, distances = [], []
    for steps in range(3):
        norms.append(np.linalg.norm(gradient(w.numpy())) / 1e-3)
        distances.append(np.linalg.norm(w.numpy() - retrained))
        assert distances[-1] <= norms[-1]
        w = w - torch.tensor(np.linalg.solve(hessian(w.numpy()), gradient(w.numpy())))
    assert 0.1 < norms[0] < 5
    assert norms[1] < 0.05
    assert norms[2] < 1e-5
    step = minimise(objective, torch.tensor(full), tolerance=1e-6)
    assert step.solution.steps <= 6
    assert step.solution.matvecs <= 10
    assert np.linalg.norm(step.weights.numpy() - retrained) <= 1e-3


def test_the_measured_gradient_stays_out_of_the_claim():
    *_, objective = problem("cross_entropy")
    starts = (torch.zeros(objective.size), torch.ones(objective.size))
    claims_made = [
        minimise(objective, w0.double(), tolerance=1e-6).constants for w0 in starts
    ]
    assert claims_made[0] == claims_made[1]
    assert {c.name for c in claims_made[0]} == {
        "tolerance", "strong_convexity", "feature_norm",
    }  # fmt: skip


def test_an_own_solver_cannot_weaken_the_end():
    *_, objective = problem("cross_entropy")
    w0 = torch.zeros(objective.size, dtype=torch.float64)
    rough = LiSSA(scale=20.0, steps=30, runs=1, batch_size=0)
    step = minimise(objective, w0, tolerance=1e-8, solver=rough, max_steps=2000)
    assert step.claim.bound is Bound.STRONGLY_CONVEX
    gradient, rounding = objective.gradient(step.weights)
    assert float(gradient.norm()) + rounding <= 1e-8


def test_a_tolerance_that_is_not_reached_fails():
    *_, objective = problem("cross_entropy")
    w0 = torch.ones(objective.size, dtype=torch.float64)
    with pytest.raises(
        SolverError, match="within 1 Newton steps.*nothing was released"
    ):
        minimise(objective, w0, tolerance=1e-12, max_steps=1)
    with pytest.raises(GuaranteeError, match="above the rounding error of float64"):
        minimise(objective, w0, tolerance=1e-18)


def forgetting(n_forget=20):
    """A softmax head at its minimiser on 400 rows, and F of all but some of them."""
    generator = torch.Generator().manual_seed(5)
    X = torch.randn(400, 6, generator=generator)
    y = torch.randint(3, (400,), generator=generator)
    head = ConvexHead(6, 3)
    full = ConvexObjective(head, FeatureData(X, y), 0.01)
    w0 = minimise(full, torch.zeros(full.size).double(), tolerance=1e-9).weights
    full.set_hessian_at(w0)
    rest = ConvexObjective(head, FeatureData(X[n_forget:], y[n_forget:]), 0.01)
    return full, rest, w0


def test_a_stored_factor_needs_gradients_only():
    full, rest, w0 = forgetting()
    step = minimise(
        rest,
        w0,
        tolerance=1e-9,
        start=rest.gradient(w0)[0],
        factor=factorise(full, 400, torch.Generator()),
    )
    plain = minimise(rest, w0, tolerance=1e-9)
    assert step.solution.matvecs <= step.solution.steps + 1 < plain.solution.matvecs
    assert step.solution.method == "Newton by a stored factor"
    assert step.constants == plain.constants
    assert float((step.weights - plain.weights).norm()) < 2 * 1e-9 / 0.01


FALSE_DIRECTIONS = {
    "zero": lambda b: 0 * b,
    "back": lambda b: -b,
    "tiny": lambda b: 1e-30 * b,
    "huge": lambda b: 1e30 * b,
    "random": torch.randn_like,
    "nan": lambda b: b * float("nan"),
}


@pytest.mark.parametrize("false", FALSE_DIRECTIONS)
def test_a_false_factor_costs_passes_and_proves_nothing(false):
    _, rest, w0 = forgetting()

    class Wrong:
        solve = staticmethod(FALSE_DIRECTIONS[false])

    start = rest.gradient(w0)[0]
    step = minimise(rest, w0, tolerance=1e-9, factor=Wrong(), start=start)
    gradient, rounding = rest.gradient(step.weights)
    assert float(gradient.norm()) + rounding <= 1e-9
    assert step.solution.method != "Newton by a stored factor"
    if false in ("zero", "nan"):  # the others are multiples of the identity, or chance
        assert "stored factor" not in step.solution.method


def test_a_factor_from_farther_away_is_a_preconditioner():
    full, rest, w0 = forgetting()
    far = w0 + 2 * torch.randn(len(w0), dtype=torch.float64)
    factor = factorise(full, 400, torch.Generator())
    step = minimise(rest, far, tolerance=1e-9, factor=factor)
    plain = minimise(rest, far, tolerance=1e-9)
    assert "stored factor" in step.solution.method
    assert step.solution.matvecs < plain.solution.matvecs
    assert step.constants == plain.constants


@pytest.mark.parametrize("size", [0.0, 1e-12, 1.0, 1e30])
def test_a_false_start_proves_nothing(size):
    full, rest, w0 = forgetting()
    given = size * torch.randn(len(w0), dtype=torch.float64)
    factor = factorise(full, 400, torch.Generator())
    step = minimise(rest, w0, tolerance=1e-9, start=given, factor=factor)
    gradient, rounding = rest.gradient(step.weights)
    assert float(gradient.norm()) + rounding <= 1e-9


def test_a_small_head_is_solved_by_fresh_factors():
    _, rest, w0 = forgetting()
    far = 5 * torch.randn(len(w0), dtype=torch.float64)
    step = minimise(rest, far, tolerance=1e-9, refactor=cheap_factor(rest))
    gradient, rounding = rest.gradient(step.weights)
    assert float(gradient.norm()) + rounding <= 1e-9
    plain = minimise(rest, far, tolerance=1e-9)
    assert "factor" in step.solution.method
    assert step.solution.matvecs < plain.solution.matvecs
    assert step.constants == plain.constants
    own = minimise(
        rest, far, tolerance=1e-9, refactor=cheap_factor(rest), solver=CG(1e-6)
    )
    assert own.solution.method == "Newton by conjugate gradients"


def test_a_head_single_precision_cannot_hold_is_solved_by_products():
    X = torch.randn(60, 3, generator=torch.Generator().manual_seed(0)).double()
    X[:, 2] = X[:, 1] + 1e-9 * X[:, 0]  # two features that float32 cannot tell apart
    Y = torch.randn(60, 1, generator=torch.Generator().manual_seed(1)).double()
    objective = ConvexObjective(ConvexHead(3, 1, "mse"), FeatureData(X, Y), 1e-10)
    direct = cheap_factor(objective)
    assert direct() is None
    w0 = torch.zeros(4, dtype=torch.float64)
    step = minimise(objective, w0, tolerance=1e-9, refactor=direct)
    assert step.solution.residual <= 1e-9
    assert step.solution.method == "Newton by conjugate gradients"


@pytest.mark.parametrize(
    ("K", "d", "n"),
    [(10, 500, 10), (100, 39, 250), (300, 12, 250), (1000, 2, 400), (100, 15, 1500)],
)
def test_heads_whose_factor_is_dear_have_none(K, d, n):
    X, y = torch.zeros(n, d), torch.zeros(n, dtype=torch.int64)
    large = ConvexObjective(ConvexHead(d, K), FeatureData(X, y), 1.0)
    assert cheap_factor(large) is None
    same = FeatureData(X[:, :1].expand(n, 30), y)
    assert cheap_factor(ConvexObjective(ConvexHead(30, 10), same, 1.0)) is not None


def from_the_optimum(X, y, gone):
    """Passes from the optimum of all rows without some: as told, as multiplied."""
    head = ConvexHead(X.shape[1], int(y.max()) + 1)
    whole = ConvexObjective(head, FeatureData(X, y), 1e-3)
    zero = torch.zeros(whole.size, dtype=torch.float64)
    start = minimise(whole, zero, tolerance=1e-6).weights
    rest = ConvexObjective(head, FeatureData(X[gone:], y[gone:]), 1e-3)
    known = rest.gradient(start)[0]
    with FlopCounterMode(display=False) as counter:
        step = minimise(rest, start, tolerance=1e-6, start=known)
    gradient, rounding = rest.gradient(step.weights)
    assert float(gradient.norm()) + rounding <= 1e-6
    # Matrix products by torch's own counter, which knows nothing of ours.
    multiplied = counter.get_total_flops() / (4 * rest.n * rest.size)
    assert multiplied <= 1.05 * step.solution.matvecs
    return step.solution.matvecs


@pytest.mark.parametrize(("gone", "most"), [(1, 10), (10, 19), (100, 27)])
def test_from_the_last_optimum_a_request_takes_few_passes(gone, most):
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(20, 30, generator=generator)
    y = torch.randint(20, (20_000,), generator=generator)
    X = means[y] + 2 * torch.randn(20_000, 30, generator=generator)
    assert from_the_optimum(X, y, gone) <= most


@pytest.mark.parametrize("gone", [1, 10, 100])
def test_few_passes_on_features_of_a_public_network(gone):
    file = Path(os.environ.get("LIGHTNING_UNLEARN_DATA", "nowhere"), "cifar100")
    if not file.is_dir():
        pytest.skip("LIGHTNING_UNLEARN_DATA names no folder with cifar100")
    data = np.load(file / "resnet20_features.npz")
    X = torch.tensor(data["train_h"].astype(np.float32))
    y = torch.tensor(data["train_y"].astype(np.int64))
    order = torch.randperm(len(X), generator=torch.Generator().manual_seed(gone))
    assert from_the_optimum(X[order], y[order], gone) <= 12
