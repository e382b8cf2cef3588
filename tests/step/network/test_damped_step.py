import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_unlearn.certificate.words.theorems import check
from lightning_unlearn.errors import GuaranteeError, SolverError
from lightning_unlearn.guarantee import claims
from lightning_unlearn.guarantee.claims import Bound
from lightning_unlearn.guarantee.constants import Origin
from lightning_unlearn.guarantee.kinds import NewtonStep, NormBall
from lightning_unlearn.solvers.cg import CG
from lightning_unlearn.solvers.dense import Dense
from lightning_unlearn.solvers.lissa import LiSSA
from lightning_unlearn.solvers.observer import Observer
from lightning_unlearn.step.network.damped_step import damped_step
from lightning_unlearn.step.network.spectrum import Ends, hessian_change
from lightning_unlearn.step.step import project
from tests.helpers.oracles import dense_gradient_and_hessian
from tests.helpers.problems import classification, mlp, objective_of, value_of_weights

SETTINGS = {"guarantee": None, "max_norm": None}


@pytest.mark.parametrize("solver", [CG(rtol=1e-10), Dense()], ids=["cg", "dense"])
def test_the_step_is_the_dense_one(solver):
    X, y = classification()
    net = mlp()
    objective = objective_of(net, X, y)
    w = objective.scope.flatten()
    g, H = dense_gradient_and_hessian(value_of_weights(net, X, y), w)
    damping = 2 * max(0.0, -float(torch.linalg.eigvalsh(H)[0])) + 0.1
    step = damped_step(objective, damping=damping, solver=solver, **SETTINGS)
    x = torch.linalg.solve(H + damping * torch.eye(len(w)).double(), g)
    assert (w - step.weights - x).norm() < 1e-8 * x.norm()
    (residual,) = (c for c in step.constants if c.name == "measured_residual")
    assert residual.origin is Origin.MEASURED
    assert residual.value == step.solution.residual
    assert torch.equal(objective.scope.flatten(), w)  # nothing moved yet


def test_damping_is_taken_from_the_spectrum():
    X, y = classification()
    net = mlp(hidden=8)
    objective = objective_of(net, X, y, l2=0.0)
    w = objective.scope.flatten()
    _, H = dense_gradient_and_hessian(value_of_weights(net, X, y, 0.0), w)
    lowest = float(torch.linalg.eigvalsh(H)[0])
    assert lowest < 0  # otherwise this tests nothing
    step = damped_step(objective, damping=None, solver=CG(), **SETTINGS)
    constants = {c.name: c for c in step.constants}
    assert constants["ritz_min"].value == pytest.approx(lowest, rel=1e-3)
    assert constants["ritz_min"].origin is Origin.ESTIMATED
    assert constants["damping"].value == pytest.approx(-2 * lowest, rel=1e-3)
    assert constants["damping"].reason == "twice the negative part of ritz_min"
    assert "Lanczos" in constants["ritz_min"].reason
    assert constants["lanczos_samples"].value == len(X)
    check(Bound.NO_BOUND, "", step.constants)


class Ending(Observer):
    """Ends all in the middle of a spectrum."""

    def __init__(self, stage):
        self.at, self.now, self.told = stage, None, []

    def stage(self, name):
        self.now = name

    def product(self, number, most):
        if self.now == self.at:
            self.told.append((number, most))
            if number == 3:
                raise KeyboardInterrupt


@pytest.mark.parametrize("stage", ["gradient", "solving"])
def test_an_observer_may_end_it_in_the_middle_of_the_spectrum(stage, monkeypatch):
    """Of the one that damping is taken from, and of the one that may refute."""
    X, y = classification()
    objective = objective_of(mlp(), X, y)
    w, made, hessian = objective.scope.flatten(), [], objective.hessian
    monkeypatch.setattr(objective, "hessian", lambda v: (made.append(1), hessian(v))[1])
    auto = {"damping": None, "solver": CG(), **SETTINGS}
    vouching = {**GOOD, "guarantee": vouched()}
    observer = Ending(stage)
    with pytest.raises(KeyboardInterrupt):
        damped_step(
            objective,
            **(auto if stage == "gradient" else vouching),
            observer=observer,
        )
    most = min(40, objective.size)
    assert observer.told == [(1, most), (2, most), (3, most)]
    assert len(made) == 3
    assert torch.equal(objective.scope.flatten(), w)


def test_damping_below_minus_lambda_min_is_said_by_the_solver():
    X, y = classification()
    objective = objective_of(mlp(hidden=8), X, y, l2=0.0)
    with pytest.raises(SolverError, match=r"not positive definite: raise damping"):
        damped_step(objective, damping=0.0, solver=CG(rtol=1e-9), **SETTINGS)
    with pytest.raises(SolverError, match="damping=0, .*raise damping"):
        damped_step(objective, damping=0.0, solver=Dense(), **SETTINGS)


def test_an_unsolved_system_is_an_error_not_a_warning():
    X, y = classification()
    objective = objective_of(mlp(), X, y)
    with pytest.raises(SolverError, match="stopped at max_steps above tolerance"):
        damped_step(
            objective, damping=1.0, solver=CG(rtol=1e-12, max_steps=1), **SETTINGS
        )
    diverging = LiSSA(scale=1e-3, steps=500, runs=1, batch_size=0)
    with pytest.raises(SolverError, match="the iterates overflowed: raise scale"):
        damped_step(objective, damping=1.0, solver=diverging, **SETTINGS)


def test_automatic_damping_is_raised_when_lanczos_was_too_kind(monkeypatch):
    X, y = classification()
    objective = objective_of(mlp(hidden=8), X, y, l2=0.0)
    monkeypatch.setattr(
        "lightning_unlearn.step.network.damped_step.spectrum_ends",
        lambda *a, **k: Ends(-1e-6, 1.0, 3, 37),
    )
    step = damped_step(objective, damping=None, solver=CG(rtol=1e-8), **SETTINGS)
    (damping,) = (c for c in step.constants if c.name == "damping")
    assert "on negative curvature" in damping.reason
    assert damping.value > 1e-5


def test_the_norm_ball_claim_is_two_radii_and_enforced():
    X, y = classification()
    objective = objective_of(mlp(), X, y)
    step = damped_step(
        objective, damping=1.0, solver=CG(), guarantee=NormBall(), max_norm=0.5
    )
    assert float(step.weights.norm()) <= 0.5 * (1 + 1e-12)
    assert step.claim.bound is Bound.NORM_BALL
    assert claims.sensitivity_upper(step.claim.bound, step.constants) == 1.0
    with pytest.raises(GuaranteeError, match="expected max_norm for this guarantee"):
        damped_step(
            objective, damping=1.0, solver=CG(), guarantee=NormBall(), max_norm=None
        )


def vouched(**changes):
    values = {"hessian_lipschitz": 5.0, "lambda_min": -1.0,
              "retrained_gradient_norm": 0.1, **changes}  # fmt: skip
    return NewtonStep(**values)


@pytest.fixture
def smooth():
    X, y = classification()
    net = mlp()
    objective = objective_of(net, X, y)
    return objective, objective.scope.flatten()


GOOD = {"damping": 1.5, "solver": CG(rtol=1e-6), "max_norm": 20.0}


def test_the_noise_of_a_conditional_claim_is_fixed_before_the_data(smooth):
    objective, w = smooth
    step = damped_step(objective, guarantee=vouched(), **GOOD)
    used = claims.REQUIRED[step.claim.bound]
    origins = {c.name: c.origin for c in step.constants if c.name in used}
    assert set(origins.values()) == {Origin.ASSUMED, Origin.ENFORCED}
    first = claims.sensitivity_upper(step.claim.bound, step.constants)
    objective.scope.assign(w * 0.9)
    again = damped_step(objective, guarantee=vouched(), **GOOD)
    objective.scope.assign(w)
    assert claims.sensitivity_upper(again.claim.bound, again.constants) == first


@pytest.mark.parametrize(
    ("guarantee", "settings", "message"),
    [
        (vouched(), {"kinks": ("relu",)}, "Lipschitz Hessian .* got relu"),
        (vouched(), {"damping": None}, "damping as a number .* got 'auto'"),
        (vouched(), {"max_norm": 0.5}, "in the ball of max_norm=0.5, got norm"),
        (vouched(lambda_min=1.0), {}, "Lanczos found .* the assumption is refuted"),
        (vouched(hessian_lipschitz=1e-6), {}, "changes by .* assumption is refuted"),
    ],
)
def test_constants_that_are_refuted_or_missing(smooth, guarantee, settings, message):
    objective, w = smooth
    with pytest.raises(GuaranteeError, match=message):
        damped_step(objective, guarantee=guarantee, **{**GOOD, **settings})


def test_a_residual_that_was_promised_is_reached_or_nothing(smooth):
    objective, w = smooth
    with pytest.raises(SolverError, match="a residual of at most 1e-12 .*got"):
        damped_step(objective, guarantee=vouched(residual=1e-12), **GOOD)


def test_the_sampled_change_of_the_hessian_is_a_lower_bound():
    # F(w) = sin(a'w): |H(u) - H(v)| <= |a|^3 |u - v|, nearly attained around 0.
    a = torch.tensor([[0.3, -0.2, 0.6]]).double()
    net = nn.Linear(3, 1, bias=False).double()
    objective = objective_of(net, a, torch.zeros(1), l2=0.0)
    objective.loss = lambda b, i: torch.sin(net(b[0]))[:, 0]
    w = torch.zeros(3).double()
    objective.scope.assign(w)
    found = hessian_change(objective, w, -0.3 * a[0])
    true = float(a.norm()) ** 3
    assert 0.9 * true < found <= true
    assert not objective.scope.flatten().any()
    assert hessian_change(objective, w, w) == 0.0


def test_a_rough_solve_says_so(smooth):
    objective, w = smooth
    rough = CG(rtol=0.5)
    step = damped_step(objective, damping=0.5, solver=rough, **SETTINGS)
    assert "rough approximation" in step.warnings[0]


def test_gauss_newton_is_damped_by_the_true_hessian_s_spectrum():
    # Its own spectrum is positive, and an undamped step ruins the network.
    X, y = classification()
    objective = objective_of(mlp(hidden=8), X, y, l2=0.0, curvature="gauss_newton")
    step = damped_step(objective, damping=None, solver=CG(), **SETTINGS)
    (damping,) = (c for c in step.constants if c.name == "damping")
    assert damping.value > 0.01


def test_one_step_of_ridge_regression_is_the_retrained_model():
    # Theorem A with M = 0 and lambda = 0: the residual is all that is left.
    X, Y = classification()[0], torch.randn(37, 2, dtype=torch.float64)
    net = nn.Linear(5, 2).double()
    objective = objective_of(net, X, Y, l2=0.1)
    objective.loss = lambda b, i: F.mse_loss(net(b[0]), b[1])
    step = damped_step(objective, damping=0.0, solver=CG(rtol=1e-13), **SETTINGS)
    X1 = torch.cat([X, torch.ones(37, 1)], 1)
    A = X1.T @ X1 / 37 + 0.1 * torch.eye(6)
    W = torch.linalg.solve(A, X1.T @ Y / 37)
    exact = torch.cat([W[:5].T.reshape(-1), W[5]])
    assert (step.weights - exact).norm() < 1e-8


def test_projection():
    w = torch.tensor([3.0, 4.0], dtype=torch.float64)
    assert torch.equal(project(w, 5.0), w)
    torch.testing.assert_close(project(w, 1.0), w / 5)
