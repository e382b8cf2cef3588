import numpy as np
import pytest
import torch

from lightning_unlearn.errors import DataError
from lightning_unlearn.guarantee.kinds import NewtonStep
from lightning_unlearn.solvers.cg import CG
from lightning_unlearn.step.head import prepared_head as prepared
from lightning_unlearn.step.head.convex_head import ConvexHead
from lightning_unlearn.step.head.convex_objective import ConvexObjective
from lightning_unlearn.step.head.minimise import minimise
from lightning_unlearn.step.head.prepared_head import PreparedHead
from lightning_unlearn.step.head.rows.feature_data import FeatureData
from lightning_unlearn.step.network.damped_step import damped_step
from lightning_unlearn.step.network.prepared_network import prepare_network
from lightning_unlearn.step.step import retained_gradient
from tests.helpers.oracles import dense_gradient_and_hessian, retrain_softmax_head
from tests.helpers.prepared import prepare_head, step_of, touched, without
from tests.helpers.problems import classification, mlp, objective_of, value_of_weights

L2 = 0.01
GONE = [3, 17, 60, 61, 199]
HEAD = ConvexHead(6, 3)
SETTINGS = {"tolerance": 1e-9, "max_steps": 50}
# With gaps: an earlier request has removed some.
POSITIONS = [*range(100), *range(150, 450)]


def rows():
    generator = torch.Generator().manual_seed(5)
    X = torch.randn(400, 6, generator=generator)
    return FeatureData(X, torch.randint(3, (400,), generator=generator))


def prepared_head(w0=None):
    w0 = torch.randn(21, dtype=torch.float64) if w0 is None else w0
    return prepare_head(HEAD, rows(), POSITIONS, w0, block=8, l2=L2, **SETTINGS)


def retained(gone=GONE):
    return [i for i, position in enumerate(POSITIONS) if position not in gone]


def request(state, w0, gone=GONE, **options):
    rest = without(state, gone, HEAD)
    return step_of(state, rest, HEAD, w0, l2=L2, **{**SETTINGS, **options})


def test_the_gradient_of_the_rest_is_exact_anywhere():
    net = mlp()
    X, y = classification()
    w = torch.cat([p.detach().reshape(-1) for p in net.parameters()])

    def gradient(part):
        value = value_of_weights(net, X[part], y[part])
        return dense_gradient_and_hessian(value, w)[0]

    gone, kept = torch.arange(4), torch.arange(4, 37)
    found = retained_gradient(gradient(torch.arange(37)), 37, gradient(gone), 4)
    torch.testing.assert_close(found, gradient(kept), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("gone", [[3], GONE, list(range(50, 100))])
def test_a_prepared_head_ends_at_the_retrained_one(gone):
    w0 = torch.randn(21, dtype=torch.float64)
    step = request(prepared_head(), w0, gone)
    keep = retained(gone)
    X, y = rows().features.double().numpy(), rows().targets.numpy()
    oracle = retrain_softmax_head(X[keep], y[keep], 3, L2)
    assert np.linalg.norm(step.weights.numpy() - oracle) <= 1e-9 / L2 + 1e-10 / L2
    torch.testing.assert_close(w0 - step.solution.x, step.weights)


def test_it_saves_passes_and_changes_no_claim():
    w0 = torch.randn(21, dtype=torch.float64)
    some = torch.tensor(retained())
    data = FeatureData(rows().features[some], rows().targets[some])
    cold = minimise(ConvexObjective(ConvexHead(6, 3), data, L2), w0, tolerance=1e-9)
    fast = request(prepared_head(), w0)
    assert fast.constants == cold.constants
    assert fast.claim == cold.claim
    assert fast.solution.method == "Newton by a stored factor"
    assert fast.solution.matvecs < cold.solution.matvecs / 2


def test_an_own_solver_is_used_in_place_of_the_factor():
    step = request(prepared_head(), torch.zeros(21).double(), solver=CG(1e-3))
    assert step.solution.method == "Newton by conjugate gradients"


def test_where_a_factor_does_not_pay_a_head_is_solved_from_its_optimum(monkeypatch):
    monkeypatch.setattr(prepared, "_NOTHING", 0)
    monkeypatch.setattr(prepared, "_SAVED", 1e-3)
    state = prepared_head()
    assert state.factor is None
    step = request(state, torch.zeros(21).double())
    assert step.solution.residual <= 1e-9
    assert "stored" not in step.solution.method


def test_what_stays_after_a_request_are_the_other_rows():
    state = prepared_head()
    rest = without(state, GONE, HEAD)
    assert (rest.start, rest.gradient, rest.factor) == (None, None, None)
    assert rest.positions.tolist() == [p for p in POSITIONS if p not in GONE]
    assert torch.equal(rest.rows.features, rows().features[retained()])
    again = without(rest, [150], HEAD)
    assert again.rows.n == 400 - 5 - 1
    step = request(rest, torch.zeros(21).double(), [150])
    assert step.solution.residual <= 1e-9


def test_samples_read_with_forgotten_ones_are_taken_afresh():
    state = prepared_head()
    left, again = [p for p in POSITIONS if p not in GONE], touched(state, GONE)
    # Blocks of 8: 0 to 7, 16 to 23, 56 to 63, 192 to 199.
    assert again == [
        0, 1, 2, 4, 5, 6, 7, 16, *range(18, 24), *range(56, 60), 62, 63,
        *range(192, 199),
    ]  # fmt: skip
    new = FeatureData(torch.full((len(again), 6), 7.0), torch.zeros(len(again)).long())
    rest = state.on(left, new, len(left))
    replaced = torch.isin(rest.positions, torch.tensor(again))
    assert torch.equal((rest.rows.features == 7).all(1), replaced)
    assert not rest.rows.targets[replaced].any()
    old = state.rows.features[retained()]
    assert torch.equal(rest.rows.features[~replaced], old[~replaced])
    with pytest.raises(DataError, match="samples that were prepared, got some that"):
        state.of([0, 120])


def test_the_optimum_lives_on_and_its_gradient_is_known_without_a_pass():
    state, head, w0 = prepared_head(), HEAD, torch.zeros(21).double()
    for gone in ([3], [150, 151], [449]):
        rest = without(state, gone, HEAD)
        objective = rest.objective(head, L2)
        gradient, moved = state._gradient_on(rest, objective, head, state.start)
        torch.testing.assert_close(
            gradient, objective.gradient(state.start)[0], rtol=1e-5, atol=1e-9
        )
        assert moved == len(gone)
        state = rest.at_optimum(rest.step(objective, head, w0, state, **SETTINGS))
    keep = [i for i, p in enumerate(POSITIONS) if p not in (3, 150, 151, 449)]
    X, y = rows().features.double().numpy(), rows().targets.numpy()
    oracle = retrain_softmax_head(X[keep], y[keep], 3, L2)
    assert np.linalg.norm(state.start.numpy() - oracle) <= 1e-9 / L2 + 1e-10 / L2


def test_new_samples_are_added_and_only_their_blocks_are_read():
    head, w0, every = ConvexHead(6, 3), torch.zeros(21).double(), [*range(400)]
    old = PreparedHead.nothing(8).on(every[:300], rows()[:300], 300)
    old = old.at_optimum(
        old.step(old.objective(head, L2), head, w0, PreparedHead.nothing(8), **SETTINGS)
    )
    again = old.stale(every)
    assert again == [*range(296, 400)]  # the block that was cut short, and new ones
    grown = old.on(every, rows()[296:], 400)
    assert torch.equal(grown.rows.features, rows().features)
    objective = grown.objective(head, L2)
    gradient, moved = old._gradient_on(grown, objective, head, old.start)
    assert moved == 100
    torch.testing.assert_close(
        gradient, objective.gradient(old.start)[0], rtol=1e-5, atol=1e-8
    )


def network():
    net = mlp()
    X, y = classification()
    objective = objective_of(net, X, y)
    state = prepare_network(objective, list(range(37)))
    gone, kept = [0, 1, 5], [i for i in range(37) if i not in (0, 1, 5)]
    part = objective_of(net, X[gone], y[gone])
    rest = objective_of(net, X[kept], y[kept])
    known = state.known(part.value_and_gradient()[1], 3)
    return state, rest, known, kept


def test_a_prepared_network_takes_the_same_step():
    state, rest, known, _ = network()
    settings = {"damping": None, "solver": CG(1e-10), "max_norm": None}
    fast = damped_step(rest, guarantee=None, known=known, **settings)
    cold = damped_step(rest, guarantee=None, **settings)
    torch.testing.assert_close(
        known.gradient, rest.value_and_gradient()[1], rtol=1e-12, atol=1e-14
    )
    damping = [
        next(c.value for c in step.constants if c.name == "damping")
        for step in (fast, cold)
    ]
    # Lanczos has seen three samples more.
    assert damping[0] == pytest.approx(damping[1], rel=0.5)
    assert cold.solution.matvecs - fast.solution.matvecs > 30  # Lanczos, a gradient
    fixed = {**settings, "damping": 1.0}
    fast = damped_step(rest, guarantee=None, known=known, **fixed)
    cold = damped_step(rest, guarantee=None, **fixed)
    torch.testing.assert_close(fast.weights, cold.weights, rtol=1e-9, atol=1e-12)


def test_importance_follows_its_samples():
    state, rest, _, kept = network()
    rest.value_and_gradient()
    torch.testing.assert_close(state.importance_of(kept), rest.importance)


def test_a_newton_step_takes_the_gradient_afresh():
    _, rest, known, _ = network()
    false = type(known)(gradient=known.gradient + 1, ends=known.ends, passes=0.0)
    guarantee = NewtonStep(
        hessian_lipschitz=1e3,
        lambda_min=-10.0,
        retrained_gradient_norm=1.0,
        residual=1e-6,
    )
    steps = [
        damped_step(
            rest, damping=20.0, solver=CG(1e-9),
            guarantee=guarantee, max_norm=50.0, known=k,
        )
        for k in (false, None)
    ]  # fmt: skip
    assert torch.equal(steps[0].weights, steps[1].weights)
