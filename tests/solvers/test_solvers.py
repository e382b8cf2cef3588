import pytest
import torch

from lightning_unlearn.errors import ArgumentError, SolverError
from lightning_unlearn.solvers.base import Damped, Status
from lightning_unlearn.solvers.cg import CG
from lightning_unlearn.solvers.dense import Dense
from lightning_unlearn.solvers.flexible import FlexibleCG, ProxySolve
from lightning_unlearn.solvers.lissa import LiSSA
from lightning_unlearn.solvers.nystrom import NystromCG
from lightning_unlearn.solvers.observer import Observer
from tests.helpers.problems import classification, mlp, objective_of


class Matrix:
    """A dense operator that counts its products."""

    def __init__(self, A, noise=0.0):
        self.A, self.products, self.noise = A, 0, noise
        self.n = 100

    @property
    def size(self):
        return len(self.A)

    def matvec(self, v):
        self.products += 1
        return self.A @ v

    def sampled_matvec(self, v, batch_size, generator):
        E = torch.randn(self.A.shape, generator=generator, dtype=torch.float64)
        return (self.A + self.noise * (E + E.T)) @ v


def spectrum(values):
    generator = torch.Generator().manual_seed(5)
    p = len(values)
    Q, _ = torch.linalg.qr(torch.randn(p, p, generator=generator).double())
    b = torch.randn(p, generator=generator).double()
    return Q @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ Q.T, b


OPERATORS = {
    "identity": [1.0] * 6,
    "easy": [1.0, 2.0, 3.0, 4.0, 5.0],
    "ill": [1e-4, 1e-2, 1.0, 100.0],
    "one": [3.0],
}


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("solver", [CG(rtol=1e-10), Dense()], ids=["cg", "dense"])
def test_every_solver_solves(solver, name):
    A, b = spectrum(OPERATORS[name])
    operator = Matrix(A)
    solution = solver.solve(operator, b)
    exact = torch.linalg.solve(A, b)
    assert solution.status is Status.CONVERGED
    assert (solution.x - exact).norm() <= 1e-6 * exact.norm()
    assert solution.residual == pytest.approx(float((A @ solution.x - b).norm()))
    assert solution.matvecs == operator.products


@pytest.mark.parametrize("solver", [CG(), Dense()], ids=["cg", "dense"])
def test_indefinite_matrices_are_named(solver):
    A, b = spectrum([-1.0, 2.0, 5.0])
    solution = solver.solve(Matrix(A), b)
    assert solution.status is Status.INDEFINITE
    assert "raise damping" in solution.status.value


def test_cg_says_when_it_was_stopped_and_nan_is_not_convergence():
    A, b = spectrum([1.0, 2.0, 3.0, 4.0, 5.0])
    stopped = CG(rtol=1e-12, max_steps=2).solve(Matrix(A), b)
    assert stopped.status is Status.MAX_STEPS
    assert stopped.steps == 2
    assert stopped.residual > 1e-12 * b.norm()
    nan = CG().solve(Matrix(A * float("nan")), b)
    assert nan.status is not Status.CONVERGED
    zero = CG().solve(Matrix(A), 0 * b)
    assert zero.status is Status.CONVERGED
    assert not zero.x.any()


def test_the_residual_is_recomputed_not_updated():
    A, b = spectrum([1e-8, 1.0, 1e8])  # the updated residual drifts here
    solution = CG(rtol=1e-15, max_steps=50).solve(Matrix(A), b)
    assert solution.residual == float((A @ solution.x - b).norm())


def test_dense_refuses_large_problems():
    A, b = spectrum([1.0, 2.0])
    with pytest.raises(SolverError, match="at most max_size=1 weights .* got 2"):
        Dense(max_size=1).solve(Matrix(A), b)


@pytest.mark.parametrize(("scale", "steps"), [(10.0, 5), (1000.0, 1000), (6.0, 400)])
def test_lissa_applies_its_filter(scale, steps):
    values = torch.tensor([0.01, 0.5, 2.0, 5.0], dtype=torch.float64)
    A, b = spectrum(values.tolist())
    solver = LiSSA(scale=scale, steps=steps, runs=1, batch_size=0, rtol=10.0)
    solution = solver.solve(Matrix(A), b)
    h, Q = torch.linalg.eigh(A)
    left = (1 - h / scale) ** (steps + 1)
    filtered = Q @ ((1 - left) / h * (Q.T @ b))
    torch.testing.assert_close(solution.x, filtered, rtol=1e-8, atol=1e-10)
    predicted = float((left * (Q.T @ b)).norm())
    assert solution.residual == pytest.approx(predicted, rel=1e-6, abs=1e-12)


def test_the_published_setting_applies_one_percent_of_the_inverse():
    # theory.md section 2: scale 1000, 1000 steps, eigenvalue 0.01.
    A, b = spectrum([0.01])
    x = LiSSA(scale=1000.0, steps=1000, runs=1, batch_size=0).solve(Matrix(A), b).x
    assert float(x / (b / 0.01)) == pytest.approx(0.01, rel=0.01)


def test_lissa_mini_batches_are_unbiased_and_averaged():
    A, b = spectrum([1.0, 2.0, 3.0])
    few = LiSSA(scale=10.0, steps=60, runs=2, batch_size=10)
    many = LiSSA(scale=10.0, steps=60, runs=200, batch_size=10)
    exact = LiSSA(scale=10.0, steps=60, runs=1, batch_size=0).solve(Matrix(A), b).x
    errors = [
        float((s.solve(Matrix(A, noise=0.3), b).x - exact).norm()) for s in (few, many)
    ]
    assert errors[1] < 0.3 * errors[0]
    solution = few.solve(Matrix(A, noise=0.3), b)
    assert solution.steps == 120
    assert solution.matvecs == pytest.approx(2 * 60 * 10 / 100 + 1)


def test_lissa_says_when_it_diverged():
    A, b = spectrum([1.0, 50.0])
    solution = LiSSA(scale=1.0, steps=400, runs=1, batch_size=0).solve(Matrix(A), b)
    assert solution.status is Status.DIVERGED
    assert "raise scale" in solution.status.value
    above = LiSSA(scale=20.0, steps=3, runs=1, batch_size=0).solve(Matrix(A), b)
    assert above.status is Status.MAX_STEPS


class WithProxy(Matrix):
    """Offers a matrix near itself, as the curvature of a few samples is."""

    def __init__(self, A, near):
        super().__init__(A)
        self.near, self.n = near, 100_000

    def proxy(self, samples, generator):
        return lambda v: self.near @ v


@pytest.mark.parametrize("quality", [0.0, 0.1, 0.5])
def test_a_proxy_saves_full_products_and_changes_no_answer(quality):
    values = torch.logspace(-3, 1, 60).tolist()
    A, b = spectrum(values)
    h, Q = torch.linalg.eigh(A)
    generator = torch.Generator().manual_seed(0)
    wobble = 1 + quality * torch.randn(60, generator=generator).double()
    near = Q @ torch.diag(h * wobble.clamp(0.2, 5)) @ Q.T
    plain, operator = Matrix(A), WithProxy(A, near)
    slow = CG(rtol=1e-8).solve(plain, b)
    fast = FlexibleCG(rtol=1e-8, inner_steps=100).solve(operator, b)
    assert fast.status is Status.CONVERGED
    assert fast.residual <= 1e-7 * b.norm()
    assert (fast.x - slow.x).norm() < 1e-4 * slow.x.norm()
    assert operator.products < 0.6 * plain.products
    assert fast.matvecs > operator.products  # the proxy's products count too


class Rough:
    """A proxy that knows a rough inverse of itself."""

    built, cost = 0.0, 0.1

    def __init__(self, A):
        self.A = A

    def __call__(self, v):
        return self.A @ v

    def inverse(self, v):
        return v


class WithInverse(WithProxy):
    def proxy(self, samples, generator):
        return Rough(self.near)


def test_no_more_directions_are_kept_than_a_vector_has_entries():
    """Where rounding spoils every one of them, they would be made for ever."""
    A, b = spectrum([1e-12, 1e-6, 1.0, 1e12])
    inner = ProxySolve(FlexibleCG(inner_rtol=1e-15), WithInverse(A, A), Observer())
    for _ in range(3):
        inner(b)
    assert inner._kept.count == len(b)
    assert inner.spent > len(b) * inner.cost  # more were made


def test_flexible_cg_without_a_proxy_is_cg_and_says_what_it_met():
    A, b = spectrum([1.0, 2.0, 3.0])
    assert torch.equal(FlexibleCG().solve(Matrix(A), b).x, CG().solve(Matrix(A), b).x)
    indefinite, b = spectrum([-1.0, 2.0, 5.0])
    solution = FlexibleCG().solve(WithProxy(indefinite, torch.eye(3).double()), b)
    assert solution.status is Status.INDEFINITE
    A, b = spectrum(torch.logspace(-3, 1, 30).tolist())
    stopped = FlexibleCG(rtol=1e-9, max_steps=2).solve(WithProxy(A, A * 0 + torch.eye(
        30).double()), b)  # fmt: skip
    assert stopped.status is Status.MAX_STEPS
    nan = FlexibleCG().solve(WithProxy(A * float("nan"), A), b)
    assert nan.status is not Status.CONVERGED


def test_nystrom_divides_out_the_largest_directions():
    # 20 large eigenvalues over a flat rest: plain CG has to find each of them.
    A, b = spectrum([*torch.logspace(2, 5, 20).tolist(), *[1.0] * 80])
    plain, operator = Matrix(A), WithProxy(A, A)
    CG(rtol=1e-8).solve(plain, b)
    fast = NystromCG(rtol=1e-8, rank=30).solve(operator, b)
    exact = torch.linalg.solve(A, b)
    assert fast.status is Status.CONVERGED
    assert (fast.x - exact).norm() <= 1e-6 * exact.norm()
    assert fast.steps < 0.4 * plain.products
    assert fast.matvecs == pytest.approx(operator.products + 30 * 2000 / 100_000)
    assert "30 directions" in fast.method


def test_nystrom_stands_what_is_not_as_it_should_be():
    A, b = spectrum([1.0, 2.0, 3.0])
    for near in (-A, A * float("nan")):  # no factor: plain conjugate gradients
        solution = NystromCG(rank=2).solve(WithProxy(A, near), b)
        assert torch.equal(solution.x, CG().solve(Matrix(A), b).x)
    assert torch.equal(NystromCG().solve(Matrix(A), b).x, CG().solve(Matrix(A), b).x)
    whole = NystromCG(rtol=1e-10, rank=50).solve(WithProxy(A, A), b)  # rank > p
    assert whole.steps <= 2
    indefinite, b = spectrum([-1.0, 2.0, 5.0])
    solution = NystromCG().solve(WithProxy(indefinite, torch.eye(3).double()), b)
    assert solution.status is Status.INDEFINITE


class StopItError(Exception):
    """Whatever an observer raises."""


class EndsAtThird(Observer):
    def product(self, number, most):
        assert 1 <= number <= most
        if number == 3:
            raise StopItError


@pytest.mark.parametrize(
    "solver",
    [
        Dense(),
        LiSSA(scale=100.0, batch_size=0),
        LiSSA(scale=100.0, batch_size=10),
        NystromCG(rank=5),
        FlexibleCG(rtol=1e-9),
    ],
    ids=["dense", "lissa", "lissa of batches", "nystrom", "flexible"],
)
def test_an_observer_is_heard_between_two_products(solver):
    class Counted(WithProxy):
        def sampled_matvec(self, v, batch_size, generator):
            return self.matvec(v)

        def proxy(self, samples, generator):
            return self.matvec

    A, b = spectrum(torch.logspace(-3, 1, 30).tolist())
    operator = Counted(A, A)
    with pytest.raises(StopItError):
        solver.solve(operator, b, EndsAtThird())
    assert operator.products == 3


def test_damped_adds_the_damping_to_both_products():
    objective = objective_of(mlp(), *classification())
    v = torch.randn(objective.size, dtype=torch.float64)
    A = Damped(objective, 0.7)
    torch.testing.assert_close(A.matvec(v), objective.hvp(v) + 0.7 * v)
    one, two = (torch.Generator().manual_seed(2) for _ in range(2))
    torch.testing.assert_close(
        A.sampled_matvec(v, 5, one), objective.sampled_hvp(v, 5, two) + 0.7 * v
    )
    assert (A.n, A.size) == (37, objective.size)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CG(rtol=0.0), "expected rtol"),
        (lambda: CG(max_steps=0), "expected max_steps to be an integer >= 1"),
        (lambda: LiSSA(scale=float("nan")), "expected scale"),
        (lambda: LiSSA(runs=0), "expected runs"),
        (lambda: LiSSA(batch_size=-1), "expected batch_size"),
        (lambda: Dense(max_size=0), "expected max_size"),
        (lambda: FlexibleCG(samples=0), "expected samples"),
        (lambda: NystromCG(rank=0), "expected rank"),
        (lambda: FlexibleCG(inner_steps=0), "expected inner_steps"),
    ],
)
def test_bad_settings(make, message):
    with pytest.raises(ArgumentError, match=message):
        make()
