"""A head solved from its Gram matrix, against ridge regression by others."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge as SklearnRidge

from lightning_unlearn.solvers.cg import CG
from lightning_unlearn.step.head import prepared_head as prepared
from lightning_unlearn.step.head.convex_head import ConvexHead
from lightning_unlearn.step.head.convex_objective import ConvexObjective
from lightning_unlearn.step.head.minimise import minimise
from lightning_unlearn.step.head.quadratic.gram import Gram
from lightning_unlearn.step.head.quadratic.ridge import Ridge, ridge_step
from lightning_unlearn.step.head.rows.feature_data import FeatureData
from tests.helpers.oracles import ridge
from tests.helpers.prepared import prepare_head, step_of, touched, without
from tests.step.head.quadratic.test_gram import equal, usual

L2 = 0.01
SETTINGS = {"l2": L2, "tolerance": 1e-9, "max_steps": 50}
HEAD = ConvexHead(3, 2, "mse")


def head_of(n=400, block=1, **options):
    rows = usual(n, weights=False, **options)
    w0 = torch.ones(8, dtype=torch.float64)
    return prepare_head(HEAD, rows, list(range(n)), w0, block=block, **SETTINGS)


def request(state, gone, w0=None, fresh=None, **options):
    rest = without(state, gone, HEAD, fresh)
    w0 = torch.zeros(8, dtype=torch.float64) if w0 is None else w0
    step = step_of(state, rest, HEAD, w0, **{**SETTINGS, **options})
    return step, rest.at_optimum(step)


def oracle(rows):
    return ridge(rows.features.double().numpy(), rows.targets.double().numpy(), L2)


def proved(rows, w, tolerance):
    """Whether the rows themselves prove it, without any Gram matrix."""
    gradient, rounding = ConvexObjective(HEAD, rows, L2).gradient(w)
    return float(gradient.norm()) + rounding <= tolerance


@pytest.mark.parametrize("bias", [True, False])
def test_it_is_the_ridge_regression_of_sklearn_with_weights(bias):
    rows = usual(300, d=5, K=3)
    w, norm, _ = Ridge(Gram.of(rows, bias), L2).minimised(1e-11)
    X, Y, a = (part.double().numpy() for part in rows.parts)
    if bias:
        X = np.hstack([X, np.ones((300, 1))])
    oracle = SklearnRidge(alpha=L2 * 300 * 3 / 2, fit_intercept=False)
    W = oracle.fit(X, Y, sample_weight=a[:, 0]).coef_  # (3, D)
    exact = np.concatenate([W[:, :5].ravel(), W[:, 5:].ravel()])
    assert norm <= 1e-11
    assert np.linalg.norm(w.numpy() - exact) < 1e-11


def test_a_request_is_the_retrained_model_to_the_last_bit():
    """What the same code makes of the retained rows alone, wherever it starts."""
    state, gone = head_of(), [3, 17, 60, 399]
    step, rest = request(state, gone, torch.randn(8).double())
    kept = torch.tensor([i for i in range(400) if i not in gone])
    alone = prepare_head(
        HEAD, state.rows[kept], kept.tolist(), torch.full((8,), 9.0).double(),
        block=1, **SETTINGS,
    )  # fmt: skip
    assert torch.equal(step.weights, alone.start)
    assert equal(rest.gram, alone.gram)
    assert np.linalg.norm(step.weights.numpy() - oracle(rest.rows)) < 1e-12
    assert proved(rest.rows, step.weights, 1e-9)
    assert step.solution.method == "the Gram matrix, by Cholesky"


def test_it_claims_what_the_ordinary_way_claims():
    state, gone = head_of(), [3, 17]
    w0 = torch.randn(8).double()
    step, rest = request(state, gone, w0)
    cold = minimise(ConvexObjective(HEAD, rest.rows, L2), w0, tolerance=1e-9)
    assert step.claim == cold.claim
    assert step.constants == cold.constants
    assert step.warnings == cold.warnings
    torch.testing.assert_close(w0 - step.solution.x, step.weights)
    assert float((step.weights - cold.weights).norm()) <= 2 * 1e-9 / L2


def test_fifty_requests_are_served_without_making_it_anew(monkeypatch):
    state = head_of(block=8)

    def never(*_):
        raise AssertionError("made anew")

    monkeypatch.setattr(Gram, "of", never)
    monkeypatch.setattr(prepared, "minimise", never)
    rng = np.random.default_rng(0)
    for _ in range(50):
        some = rng.choice(state.positions.tolist(), size=3, replace=False)
        gone = sorted(map(int, some))
        again = touched(state, gone)
        fresh = state.of(again) if again else None
        if fresh is not None:  # read again without their company: a little different
            fresh.features.mul_(1 + 1e-6)
        step, state = request(state, gone, fresh=fresh)
        assert np.linalg.norm(step.weights.numpy() - oracle(state.rows)) < 1e-12
        assert proved(state.rows, step.weights, 1e-9)
    monkeypatch.undo()
    assert state.rows.n == 250
    assert equal(state.gram, Gram.of(state.rows, True))


def test_it_is_made_anew_where_a_row_of_another_scale_goes(monkeypatch):
    rows = usual(400, weights=False)
    rows.features[5] = 1100.0
    state = prepare_head(
        HEAD, rows, list(range(400)), torch.zeros(8).double(), block=1, **SETTINGS
    )
    made, of = [], Gram.of
    monkeypatch.setattr(Gram, "of", lambda *args: made.append(1) or of(*args))
    _, rest = request(state, [7])
    assert not made
    step, rest = request(rest, [5])
    assert made == [1]
    assert equal(rest.gram, of(rest.rows, True))
    assert np.linalg.norm(step.weights.numpy() - oracle(rest.rows)) < 1e-12


def test_rows_that_are_read_again_and_are_the_same_are_left_in(monkeypatch):
    state, gone, counted = head_of(block=8), [3, 17, 201], []
    without = Gram.without
    monkeypatch.setattr(
        Gram,
        "without",
        lambda gram, rows: counted.append(rows.n) or without(gram, rows),
    )
    fresh = state.of(touched(state, gone))
    _, rest = request(state, gone, fresh=fresh)
    assert counted == [3]
    assert equal(rest.gram, Gram.of(rest.rows, True))
    fresh.features[5, 1] += 1e-6
    fresh.targets[9, 0] += 1e-6
    _, rest = request(state, gone, fresh=fresh)
    assert counted == [3, 5]
    assert equal(rest.gram, Gram.of(rest.rows, True))


def test_it_is_made_anew_where_that_is_quicker(monkeypatch):
    state, gone = head_of(), list(range(150))
    monkeypatch.setattr(Gram, "without", None)
    step, rest = request(state, gone)
    assert equal(rest.gram, Gram.of(rest.rows, True))
    assert np.linalg.norm(step.weights.numpy() - oracle(rest.rows)) < 1e-12


def test_a_tolerance_it_does_not_resolve_is_left_to_the_rows():
    state = head_of()
    ridge_rounding = Ridge(state.gram, L2).gradient(state.start)[1]
    assert Ridge(state.gram, L2).minimised(ridge_rounding / 2) is None
    huge = state.gram.limbs << 30  # sums that no rows have: too much rounding
    false = Gram(limbs=huge, counts=state.gram.counts, bias=True)
    assert Ridge(false, L2).minimised(1e-9) is None
    negative = Gram(limbs=-state.gram.limbs, counts=state.gram.counts, bias=True)
    assert Ridge(negative, L2).minimised(1.0) is None  # not positive definite
    beyond = usual(9, dtype=torch.float64)
    beyond.features[3] = 1e85  # squares of its squares are beyond float64
    assert Ridge(Gram.of(beyond, True), L2).minimised(1e9) is None
    _, rest = request(state, [3])
    objective = ConvexObjective(HEAD, rest.rows, L2)
    nothing = ridge_step(negative, objective, state.start, tolerance=1.0, passes=0.0)
    assert nothing is None
    other = prepared.replace(rest, gram=negative)
    step = step_of(state, other, HEAD, state.start, **SETTINGS)
    assert step.solution.method != "the Gram matrix, by Cholesky"
    assert proved(rest.rows, step.weights, 1e-9)


def test_an_own_solver_is_used_in_its_place():
    step, _ = request(head_of(), [3], solver=CG(1e-12))
    assert step.solution.method == "Newton by conjugate gradients"


def test_weights_of_outputs_go_the_ordinary_way():
    rows = usual(100, weights=False)
    own = FeatureData(rows.features, rows.targets, torch.rand(100, 2))
    state = prepare_head(
        HEAD, own, list(range(100)), torch.zeros(8).double(), block=1, **SETTINGS
    )
    assert state.gram is None
    assert state.factor is not None
    step, rest = request(state, [4])
    assert rest.gram is None
    assert proved(rest.rows, step.weights, 1e-9)


def test_a_head_it_does_not_resolve_is_prepared_by_its_rows(monkeypatch):
    monkeypatch.setattr(prepared, "ridge_step", lambda *args, **options: None)
    state = head_of()
    assert state.passes > 1
    assert proved(state.rows, state.start, 1e-9)
