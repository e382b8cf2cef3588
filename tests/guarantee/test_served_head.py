"""How far a head's optimum moves, and the joint claim, by scipy and numpy."""

import math

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import norm

from lightning_unlearn.errors import ArgumentError
from lightning_unlearn.guarantee.accounting.served_head import optimum_shift_upper


def optimum(X, y, l2):
    """argmin of mean log(1 + exp(-y x.w)) + l2/2 |w|^2, y = -1 or 1."""

    def value_and_gradient(w):
        z = -y * (X @ w)
        p = 1 / (1 + np.exp(-z))
        value = np.logaddexp(0, z).mean() + l2 / 2 * w @ w
        return value, -(X.T @ (p * y)) / len(y) + l2 * w

    start = np.zeros(X.shape[1])
    options = {"gtol": 1e-11, "ftol": 1e-16, "maxiter": 10_000}
    found = minimize(
        value_and_gradient, start, jac=True, method="L-BFGS-B", options=options
    )
    assert np.linalg.norm(value_and_gradient(found.x)[1]) < 1e-7
    return found.x


def softmax_optimum(X, y, K, l2):
    n, d = X.shape
    Y = np.eye(K)[y]

    def value_and_gradient(w):
        z = X @ w.reshape(K, d).T
        z = z - z.max(1, keepdims=True)
        total = np.exp(z).sum(1, keepdims=True)
        value = -(Y * (z - np.log(total))).sum() / n + l2 / 2 * w @ w
        D = np.exp(z) / total - Y
        return value, (D.T @ X / n + l2 * w.reshape(K, d)).ravel()

    options = {"gtol": 1e-11, "ftol": 1e-16, "maxiter": 10_000}
    return minimize(
        value_and_gradient, np.zeros(K * d), jac=True, method="L-BFGS-B",
        options=options,
    ).x  # fmt: skip


def rows(rng, n, d, R):
    X = rng.standard_normal((n, d))
    return X / np.linalg.norm(X, axis=1, keepdims=True) * R


def test_the_optimum_never_moves_further_and_may_move_nearly_so_far():
    rng, shares = np.random.default_rng(0), []
    for trial in range(120):
        n = int(rng.integers(6, 60))
        u = int(rng.integers(1, max(2, n // 3)))
        d, R = int(rng.integers(1, 5)), float(rng.uniform(0.5, 4))
        l2 = float(10 ** rng.uniform(-2.5, 2))
        X, y = rows(rng, n, d, R), rng.choice([-1.0, 1.0], n)
        if trial % 3 == 0:  # the forgotten ones all pull one way
            X[:u], y[:u] = X[0], y[0]
            X[u:], y[u:] = X[0], -y[0]
        gone = optimum(X, y, l2) - optimum(X[u:], y[u:], l2)
        most = optimum_shift_upper(
            leaving=u, samples=n, residual_norm=1.0, row_norm=R, strong_convexity=l2
        )
        shares.append(np.linalg.norm(gone) / most)
    assert max(shares) < 1.0
    assert max(shares) > 0.45  # of losses whose derivatives differ by 1, half of 2


def test_the_same_of_several_classes():
    rng = np.random.default_rng(1)
    for _ in range(40):
        n, u, d, K = 40, int(rng.integers(1, 12)), 3, 4
        l2, R = float(10 ** rng.uniform(-2, 0)), 2.0
        X, y = rows(rng, n, d, R), rng.integers(0, K, n)
        y[:u], X[:u] = 0, X[0]
        moved = softmax_optimum(X, y, K, l2) - softmax_optimum(X[u:], y[u:], K, l2)
        assert np.linalg.norm(moved) < optimum_shift_upper(
            leaving=u, samples=n, residual_norm=math.sqrt(2), row_norm=R,
            strong_convexity=l2,
        )  # fmt: skip


def test_it_refuses_what_is_no_number_of_samples():
    good = {"leaving": 1, "samples": 10, "residual_norm": 1.0, "row_norm": 1.0}
    for name, value in (("leaving", -1), ("samples", 0), ("row_norm", math.nan)):
        with pytest.raises(ArgumentError, match=name):
            optimum_shift_upper(**{**good, name: value}, strong_convexity=1.0)


MU, RELEASES = 1.2, 3  # all together


def joint(covers, runs=200_000):
    """delta at some epsilons of an adaptive game of three releases, by its own law.

    World 1 has two samples that pull the optimum along one axis each. After release 1
    the adversary has that one forgotten for which the release speaks more, after
    release 2 the other. World 2 never had them. Returns epsilons, deltas by Monte
    Carlo, and their errors.
    """
    rng = np.random.default_rng(7)
    n, l2, tau = 60, 0.05, 1e-4
    rest = np.repeat([[1.0, 0.0], [0.0, 1.0]], 29, axis=0)
    signs = np.tile([1.0, -1.0], 29)
    own = np.eye(2)

    def solved(*kept):
        X = np.vstack([own[list(kept)], rest])
        return optimum(X, np.concatenate([np.ones(len(kept)), signs]), l2)

    both, one, none = solved(0, 1), (solved(1), solved(0)), solved()

    def released(here, left, samples):
        counted = left if covers or left == 2 else 0
        most = optimum_shift_upper(
            leaving=counted, samples=samples, residual_norm=1.0, row_norm=1.0,
            strong_convexity=l2,
        ) + 2 * tau / l2  # fmt: skip
        sigma = most / (MU / math.sqrt(RELEASES))
        seen = here + sigma * rng.standard_normal((runs, 2))
        ratio = norm.logpdf(seen, here, sigma) - norm.logpdf(seen, none, sigma)
        return seen, ratio.sum(1)

    first, llr = released(both, 2, n)
    asked = (first[:, 0] < first[:, 1]).astype(int)  # forgotten first
    llr += released(np.array(one)[asked], 1, n - 1)[1]
    llr += released(none, 0, n - 2)[1]
    epsilons = np.array([0.1, 0.5, 1.0, 2.0])
    found = [np.maximum(0, 1 - np.exp(e - llr)) for e in epsilons]
    errors = [f.std() / math.sqrt(runs) for f in found]
    return epsilons, np.array([f.mean() for f in found]), np.array(errors)


def stated(epsilon, mu):
    return norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * norm.cdf(
        -mu / 2 - epsilon / mu
    )


def test_all_releases_together_are_within_what_is_stated():
    epsilons, deltas, errors = joint(covers=True)
    most = np.array([stated(e, MU) for e in epsilons])
    assert (deltas <= most + 4 * errors).all()


def test_noise_for_the_trained_head_alone_would_not_do():
    """Who is forgotten at the third release was in the second."""
    epsilons, deltas, errors = joint(covers=False)
    most = np.array([stated(e, MU) for e in epsilons])
    assert (deltas > most + 100 * errors).all()
