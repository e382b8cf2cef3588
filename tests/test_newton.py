import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_unlearn.certificate import Bound, Origin, claims
from lightning_unlearn.certificate.guarantees import NewtonStep, NormBall
from lightning_unlearn.errors import GuaranteeError, SolverError
from lightning_unlearn.newton import damped_step, project
from lightning_unlearn.solvers import CG, Dense, LiSSA
from tests.oracles import dense_gradient_and_hessian
from tests.problems import classification, mlp, objective_of, value_of_weights

SETTINGS = {"guarantee": None, "max_norm": None}


@pytest.mark.parametrize("solver", [CG(rtol=1e-10), Dense()], ids=["cg", "dense"])
def test_the_step_is_the_dense_one(solver):
    X, y = classification()
    net = mlp()
    objective = objective_of(net, X, y)
    w = objective.scope.flatten()
    g, H = dense_gradient_and_hessian(value_of_weights(net, X, y), w)
    damping = 2 * max(0.0, -float(torch.linalg.eigvalsh(H)[0])) + 0.1
    step = damped_step(objective, w, damping=damping, solver=solver, **SETTINGS)
    x = torch.linalg.solve(H + damping * torch.eye(len(w)).double(), g)
    assert (w - step.weights - x).norm() < 1e-8 * x.norm()
    (residual,) = (c for c in step.constants if c.name == "residual")
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
    step = damped_step(objective, w, damping=None, solver=CG(), **SETTINGS)
    constants = {c.name: c for c in step.constants}
    assert constants["lambda_min"].value == pytest.approx(lowest, rel=1e-3)
    assert constants["lambda_min"].origin is Origin.ESTIMATED
    assert constants["damping"].value == pytest.approx(-2 * lowest, rel=1e-3)
    assert "Lanczos" in constants["damping"].reason


def test_damping_below_minus_lambda_min_is_said_by_the_solver():
    X, y = classification()
    objective = objective_of(mlp(hidden=8), X, y, l2=0.0)
    w = objective.scope.flatten()
    with pytest.raises(SolverError, match=r"not positive definite: raise damping"):
        damped_step(objective, w, damping=0.0, solver=CG(rtol=1e-9), **SETTINGS)
    with pytest.raises(SolverError, match="damping=0, .*raise damping"):
        damped_step(objective, w, damping=0.0, solver=Dense(), **SETTINGS)


def test_an_unsolved_system_is_an_error_not_a_warning():
    X, y = classification()
    objective = objective_of(mlp(), X, y)
    w = objective.scope.flatten()
    with pytest.raises(SolverError, match="stopped at max_steps above tolerance"):
        damped_step(
            objective, w, damping=1.0, solver=CG(rtol=1e-12, max_steps=1), **SETTINGS
        )
    diverging = LiSSA(scale=1e-3, steps=500, runs=1, batch_size=0)
    with pytest.raises(SolverError, match="the iterates overflowed: raise scale"):
        damped_step(objective, w, damping=1.0, solver=diverging, **SETTINGS)


def test_automatic_damping_is_raised_when_lanczos_was_too_kind(monkeypatch):
    X, y = classification()
    objective = objective_of(mlp(hidden=8), X, y, l2=0.0)
    w = objective.scope.flatten()
    monkeypatch.setattr(
        "lightning_unlearn.newton.lanczos_ends", lambda *a, **k: (-1e-6, 1.0)
    )
    step = damped_step(objective, w, damping=None, solver=CG(rtol=1e-8), **SETTINGS)
    (damping,) = (c for c in step.constants if c.name == "damping")
    assert "on negative curvature" in damping.reason
    assert damping.value > 1e-5


def test_the_norm_ball_claim_is_two_radii_and_enforced():
    X, y = classification()
    objective = objective_of(mlp(), X, y)
    w = objective.scope.flatten()
    step = damped_step(
        objective, w, damping=1.0, solver=CG(), guarantee=NormBall(), max_norm=0.5
    )
    assert float(step.weights.norm()) <= 0.5 * (1 + 1e-12)
    assert step.bound is Bound.NORM_BALL
    assert claims.sensitivity_upper(step.bound, step.constants) == 1.0
    with pytest.raises(GuaranteeError, match="expected max_norm for this guarantee"):
        damped_step(
            objective, w, damping=1.0, solver=CG(), guarantee=NormBall(), max_norm=None
        )


def test_user_given_constants_are_assumed_and_kinks_refused():
    X, y = classification()
    objective = objective_of(mlp(), X, y)
    w = objective.scope.flatten()
    guarantee = NewtonStep(hessian_lipschitz=1e-3, lambda_min=-0.01)
    settings = {"damping": 1.0, "solver": CG(), "max_norm": 20.0}
    step = damped_step(objective, w, guarantee=guarantee, **settings)
    origins = {c.name: c.origin for c in step.constants}
    assert origins["hessian_lipschitz"] is origins["lambda_min"] is Origin.ASSUMED
    assert claims.sensitivity_upper(step.bound, step.constants) <= 40.0
    assert "size of the noise itself is not covered" in " ".join(step.warnings)
    with pytest.raises(GuaranteeError, match="Lipschitz Hessian .* got relu"):
        damped_step(objective, w, guarantee=guarantee, kinks=("relu",), **settings)


def test_one_step_of_ridge_regression_is_the_retrained_model():
    # Theorem A with M = 0 and lambda = 0: the residual is all that is left.
    X, Y = classification()[0], torch.randn(37, 2, dtype=torch.float64)
    net = nn.Linear(5, 2).double()
    objective = objective_of(net, X, Y, l2=0.1)
    objective.loss = lambda b, i: F.mse_loss(net(b[0]), b[1])
    w = objective.scope.flatten()
    step = damped_step(objective, w, damping=0.0, solver=CG(rtol=1e-13), **SETTINGS)
    X1 = torch.cat([X, torch.ones(37, 1)], 1)
    A = X1.T @ X1 / 37 + 0.1 * torch.eye(6)
    W = torch.linalg.solve(A, X1.T @ Y / 37)
    exact = torch.cat([W[:5].T.reshape(-1), W[5]])
    assert (step.weights - exact).norm() < 1e-8


def test_projection():
    w = torch.tensor([3.0, 4.0], dtype=torch.float64)
    assert torch.equal(project(w, 5.0), w)
    torch.testing.assert_close(project(w, 1.0), w / 5)
