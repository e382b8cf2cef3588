import pytest
import torch

from lightning_unlearn.errors import SolverError
from lightning_unlearn.step.head.convex_head import ConvexHead
from lightning_unlearn.step.head.convex_objective import ConvexObjective
from lightning_unlearn.step.head.factor import Factor, factorise
from lightning_unlearn.step.head.links import LINKS
from lightning_unlearn.step.head.rows.feature_data import FeatureData
from tests.step.head.test_convex_objective import flat_value, problem


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("loss", LINKS)
def test_solves_with_the_hessian(loss, bias):
    head, X, y, objective = problem(loss, bias=bias)
    w = torch.randn(objective.size, dtype=torch.float64) * 0.3
    objective.set_hessian_at(w)
    H = torch.func.hessian(flat_value(head, X, y, loss, 0.01))(w)
    factor = factorise(objective, 40, torch.Generator())
    inverse = factor.inverse.double()
    eye = torch.eye(objective.size, dtype=torch.float64)
    torch.testing.assert_close(inverse @ H, eye, rtol=0, atol=1e-4)
    b = torch.randn_like(w)
    solved = factor.solve(b)
    assert solved.dtype == torch.float64
    torch.testing.assert_close(solved, torch.linalg.solve(H, b), rtol=1e-3, atol=1e-4)


def test_a_sample_of_the_rows_is_near():
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(4000, 5, generator=generator)
    y = torch.randint(3, (4000,), generator=generator)
    objective = ConvexObjective(ConvexHead(5, 3), FeatureData(X, y), 0.1)
    objective.set_hessian_at(torch.randn(18, generator=generator, dtype=torch.float64))
    whole = torch.linalg.inv(factorise(objective, 4000, generator).inverse)
    errors = []
    for rows in (200, 3200):
        some = factorise(objective, rows, generator).inverse
        ratio = torch.linalg.eigvals(some @ whole).real
        errors.append(float((ratio - 1).abs().max()))
    assert errors[1] < 0.5 * errors[0] < 0.5  # falls like 1/sqrt(rows)


def test_a_hessian_that_single_precision_cannot_hold_is_refused():
    X = torch.full((4, 3), 1e6, dtype=torch.float64)
    y = torch.zeros(4, 1, dtype=torch.float64)
    objective = ConvexObjective(ConvexHead(3, 1, "mse"), FeatureData(X, y), 1e-9)
    with pytest.raises(SolverError, match="positive definite.*l2=1e-09: raise l2"):
        factorise(objective, 4, torch.Generator())


def test_a_factor_solves_in_the_dtype_of_its_argument():
    factor = Factor(torch.eye(2) * 2)
    solved = factor.solve(torch.ones(2, dtype=torch.float64))
    assert solved.dtype == torch.float64
    assert solved.tolist() == [2, 2]
