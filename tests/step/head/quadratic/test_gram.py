"""A Gram matrix against Python's fractions, and against itself made anew."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings, strategies as st

from lightning_unlearn.errors import DataError, ModelError
from lightning_unlearn.step.head.convex_head import ConvexHead
from lightning_unlearn.step.head.convex_objective import ConvexObjective
from lightning_unlearn.step.head.quadratic import gram as module
from lightning_unlearn.step.head.quadratic.gram import Gram, gram_of
from lightning_unlearn.step.head.quadratic.ridge import Ridge
from lightning_unlearn.step.head.rows.feature_data import FeatureData


def usual(n, d=3, K=2, dtype=torch.float32, weights=True, seed=0):
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(n, d, generator=generator).to(dtype)
    Y = torch.randn(n, K, generator=generator).to(dtype)
    a = torch.rand(n, 1, generator=generator).to(dtype) if weights else None
    return FeatureData(X, Y, a)


def equal(one, other):
    return torch.equal(one.limbs, other.limbs) and torch.equal(one.counts, other.counts)


def exact_sums(rows, bias):
    """sum a x x' and sum a y x' of the stored numbers, as fractions."""
    X = [[Fraction(x) for x in row] + [Fraction(1)] * bias
         for row in rows.features.double().tolist()]  # fmt: skip
    Y = [[Fraction(y) for y in row] for row in rows.targets.double().tolist()]
    a = [Fraction(1)] * rows.n
    if rows.weights is not None:
        a = [Fraction(x) for x in rows.weights.double()[:, 0].tolist()]

    def total(left):
        return [
            [
                sum(s * u[i] * x[j] for s, u, x in zip(a, left, X, strict=True))
                for j in range(len(X[0]))
            ]
            for i in range(len(left[0]))
        ]

    return total(X), total(Y)


def distance_squared(found, exact):
    return sum(
        (Fraction(x) - y) ** 2
        for one, other in zip(found.double().tolist(), exact, strict=True)
        for x, y in zip(one, other, strict=True)
    )


def exact_gradient(rows, bias, w, l2):
    """Of F, (K, D) as fractions, from weights (K, D)."""
    A, B = exact_sums(rows, bias)
    W = [[Fraction(x) for x in row] for row in w.tolist()]
    K, D = len(B), len(A)
    c = Fraction(2, K * rows.n)
    return [
        [
            c * (sum(W[k][i] * A[i][j] for i in range(D)) - B[k][j])
            + Fraction(l2) * W[k][j]
            for j in range(D)
        ]
        for k in range(K)
    ]


NUMBERS = st.one_of(
    st.floats(-1e8, 1e8, width=32),
    st.floats(-1e30, 1e30),
    st.floats(-1, 1),
    st.floats(1000, 1023, width=32),  # nothing of them is cut off
    st.sampled_from([0.0, 1.0, 1024.0, 5e-324, 1e-200, -1e30, 2.0**-40]),
)


@st.composite
def some_rows(draw):
    n, d = draw(st.integers(1, 5)), draw(st.integers(1, 2))
    K = draw(st.integers(1, 2))

    def numbers(width, kind):
        row = st.lists(kind, min_size=width, max_size=width)
        return torch.tensor(
            draw(st.lists(row, min_size=n, max_size=n)), dtype=torch.float64
        )

    weights = numbers(1, st.floats(0, 1e6)) if draw(st.booleans()) else None
    return FeatureData(numbers(d, NUMBERS), numbers(K, NUMBERS), weights)


@settings(max_examples=300)
@given(some_rows(), st.booleans())
def test_sums_are_never_farther_from_the_exact_ones_than_their_bound(rows, bias):
    found = Gram.of(rows, bias).products()
    A, B = exact_sums(rows, bias)
    assert distance_squared(found.A, A) <= Fraction(found.A_error) ** 2
    assert distance_squared(found.B, B) <= Fraction(found.B_error) ** 2


@settings(max_examples=300)
@given(some_rows(), st.booleans(), st.data())
def test_a_gradient_is_never_farther_from_the_exact_one(rows, bias, data):
    K, D = rows.targets.shape[1], rows.features.shape[1] + bias
    size = st.floats(-1e6, 1e6)
    W = torch.tensor(
        data.draw(st.lists(size, min_size=K * D, max_size=K * D)), dtype=torch.float64
    ).view(K, D)
    flat = W.reshape(-1)
    if bias:
        flat = torch.cat([W[:, :-1].reshape(-1), W[:, -1]])
    l2 = data.draw(st.sampled_from([1e-6, 1e-2, 3.0]))
    gradient, rounding = Ridge(Gram.of(rows, bias), l2).gradient(flat)
    found = gradient.view(K, D)
    if bias:
        weight, ones = gradient[: K * (D - 1)].view(K, D - 1), gradient[K * (D - 1) :]
        found = torch.cat([weight, ones[:, None]], 1)
    error = distance_squared(found, exact_gradient(rows, bias, W, l2))
    assert error <= Fraction(rounding) ** 2


@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize("dtype", [32, 64])
def test_hundreds_of_deletions_leave_what_the_rest_gives_alone(weights, dtype):
    rows = usual(400, dtype=getattr(torch, f"float{dtype}"), weights=weights)
    found = Gram.of(rows, True)
    for i in range(350):
        found = found.without(rows[i : i + 1])
    rest = rows[350:]
    assert found.n == 50
    assert equal(found, Gram.of(rest, True))
    sums, (A, B) = found.products(), exact_sums(rest, True)
    assert distance_squared(sums.A, A) <= Fraction(sums.A_error) ** 2
    assert distance_squared(sums.B, B) <= Fraction(sums.B_error) ** 2


def test_a_row_a_million_times_the_others_leaves_no_trace():
    """Where float64 subtracts, a part of it stays: 1e12 has no digits below 1e-4."""
    rows = usual(60, weights=False)
    rows.features[7] = 1000.0  # as large as rows may be that change no scale
    rows.features[8:] *= 1e-3
    kept = torch.tensor([i for i in range(60) if i != 7])
    found = Gram.of(rows, False).without(rows[7:8])
    assert equal(found, Gram.of(rows[kept], False))
    sums = found.products()
    assert distance_squared(sums.A, exact_sums(rows[kept], False)[0]) < 1e-28
    X = rows.features.double()
    subtracted = X.T @ X - X[7:8].T @ X[7:8]
    assert float((subtracted - sums.A).norm()) > 1e-10  # what floats would have left


def test_deletions_and_additions_in_any_order_end_alike():
    rows, more = usual(200), usual(90, seed=1)
    both = FeatureData(
        *(torch.cat(parts) for parts in zip(rows.parts, more.parts, strict=True))
    )
    found = Gram.of(rows, True)
    for start in range(0, 90, 9):
        found = found.plus(more[start : start + 9])
        found = found.without(rows[2 * start : 2 * start + 18])
    assert equal(found, Gram.of(both[180:], True))


@pytest.mark.parametrize("part", ["features", "targets"])
def test_a_scale_that_only_a_forgotten_row_needed_is_left_with_it(part):
    """Else the scale would tell that there was such a row."""
    rows = usual(50, weights=False)
    getattr(rows, part)[3] = 5e4
    found = Gram.of(rows, True)
    ordinary = found.without(rows[10:20])
    kept = torch.tensor([i for i in range(50) if not 10 <= i < 20])
    assert equal(ordinary, Gram.of(rows[kept], True))
    assert found.without(rows[3:4]) is None  # to be made anew
    assert Gram.of(rows[:3], True).plus(rows[3:4]) is None
    getattr(rows, part)[4] = 3e4  # two of them: one may go
    again = Gram.of(rows, True).without(rows[3:4])
    assert equal(again, Gram.of(rows[torch.arange(50) != 3], True))


def test_other_rows_are_not_subtracted():
    found = Gram.of(usual(5), True)
    with pytest.raises(DataError, match="rows that are in the Gram matrix, got others"):
        found.without(usual(6))


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("part", ["features", "targets", "weights"])
def test_numbers_that_are_not_finite_are_refused_by_name(wrong, part):
    rows, known = usual(9), Gram.of(usual(20), True)
    getattr(rows, part)[4] = wrong
    for action in (lambda: Gram.of(rows, True), lambda: known.plus(rows),
                   lambda: known.without(rows)):  # fmt: skip
        with pytest.raises(ModelError, match="expected finite features, targets and w"):
            action()


def test_numbers_beyond_any_scale_have_no_gram_matrix():
    rows = usual(9, dtype=torch.float64)
    known = Gram.of(rows, True)
    rows.features[0] = 1e200
    assert Gram.of(rows, True) is None
    assert known.plus(rows) is None


def test_only_a_squared_error_of_shared_rows_has_one(monkeypatch):
    head = ConvexHead(3, 2, "mse")
    rows = usual(9)
    assert equal(gram_of(head, rows), Gram.of(rows, True))
    assert not gram_of(ConvexHead(3, 2, "mse", bias=False), rows).bias
    assert gram_of(ConvexHead(3, 2, "poisson"), rows) is None
    assert gram_of(ConvexHead(3, 2), rows) is None
    own = FeatureData(rows.features, rows.targets, torch.rand(9, 2))
    assert gram_of(head, own) is None  # each output weighs rows in its own way
    assert gram_of(head, rows[:0]) is None
    for name in ("_ENTRIES", "_MULTIPLICATIONS"):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, 10)
            assert gram_of(head, rows) is None


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("weights", [True, False])
def test_its_gradient_is_that_of_the_rows_and_better_known(bias, weights):
    rows = usual(5000, d=6, K=3, weights=weights)
    objective = ConvexObjective(ConvexHead(6, 3, "mse", bias=bias), rows, 0.01)
    ridge = Ridge(Gram.of(rows, bias), 0.01)
    w = torch.randn(objective.size, dtype=torch.float64)
    gradient, rounding = ridge.gradient(w)
    other, slack = objective.gradient(w)
    assert float((gradient - other).norm()) <= rounding + slack
    torch.testing.assert_close(gradient, other, rtol=1e-12, atol=1e-14)
    assert rounding < slack / 2
    w[0] = float("nan")
    assert not ridge.gradient(w)[1] <= 1
