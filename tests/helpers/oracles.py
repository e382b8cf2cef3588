"""Independent answers: none of this shares code with the package."""

import mpmath
import numpy as np
import torch
from scipy.optimize import minimize


def delta_by_quadrature(epsilon, mu):
    """The definition: the integral of max(p - e^eps q, 0), to 40 digits."""
    with mpmath.workdps(40):
        eps, m = mpmath.mpf(epsilon), mpmath.mpf(mu)
        cut = eps / m + m / 2

        def gap(x):
            return mpmath.npdf(x, m, 1) - mpmath.exp(eps) * mpmath.npdf(x, 0, 1)

        steps = [cut + s for s in (0, 0.1, 0.5, 1, 2, 4, 8, 16)]
        return mpmath.quad(gap, [*steps, mpmath.inf])


def dense_gradient_and_hessian(loss_of_weights, w):
    """Gradient and Hessian of a scalar function of a flat float64 vector."""
    gradient = torch.func.grad(loss_of_weights)(w)
    hessian = torch.func.hessian(loss_of_weights)(w)
    return gradient, hessian


def softmax_head(X, y, K, l2):
    """(value, gradient, hessian) functions of cross-entropy + (l2/2)|w|^2, in numpy.

    w is weight (K, d) row by row, then bias (K,).
    """
    n, d = X.shape
    Y = np.eye(K)[y]

    def split(w):
        return w[: K * d].reshape(K, d), w[K * d :]

    def probabilities(w):
        W, b = split(w)
        Z = X @ W.T + b
        Z = Z - Z.max(1, keepdims=True)
        return Z, np.exp(Z) / np.exp(Z).sum(1, keepdims=True)

    def value(w):
        Z, _ = probabilities(w)
        logs = Z[np.arange(n), y] - np.log(np.exp(Z).sum(1))
        return -logs.mean() + l2 / 2 * w @ w

    def gradient(w):
        _, P = probabilities(w)
        D = (P - Y) / n
        return np.concatenate([(D.T @ X).ravel(), D.sum(0)]) + l2 * w

    def hessian(w):
        _, P = probabilities(w)
        X1 = np.hstack([X, np.ones((n, 1))])
        H = np.zeros((K, d + 1, K, d + 1))
        for a in range(K):
            for b in range(K):
                weight = P[:, a] * ((a == b) - P[:, b]) / n
                H[a, :, b, :] = (X1 * weight[:, None]).T @ X1
        order = [k * (d + 1) + j for k in range(K) for j in range(d)]
        order += [k * (d + 1) + d for k in range(K)]
        H = H.reshape(K * (d + 1), K * (d + 1))[np.ix_(order, order)]
        return H + l2 * np.eye(len(w))

    return value, gradient, hessian


def retrain_softmax_head(X, y, K, l2, gtol=1e-10):
    """The minimiser to |gradient| <= gtol: L-BFGS, then dense Newton from numpy."""
    value, gradient, hessian = softmax_head(X, y, K, l2)
    w = minimize(
        value, np.zeros(K * (X.shape[1] + 1)), jac=gradient, method="L-BFGS-B",
        options={"maxiter": 2000, "gtol": 1e-7},
    ).x  # fmt: skip
    for _ in range(20):
        g = gradient(w)
        if np.linalg.norm(g) <= gtol:
            return w
        w = w - np.linalg.solve(hessian(w), g)
    raise AssertionError(f"the oracle stopped at |gradient| {np.linalg.norm(g)}")


def ridge(X, Y, l2):
    """Minimiser of mean over samples of mean over outputs of squared error, + l2.

    Returns weight (K, d) row by row, then bias (K,).
    """
    n, K = Y.shape
    X1 = np.hstack([X, np.ones((n, 1))])
    A = 2 / (n * K) * X1.T @ X1 + l2 * np.eye(X1.shape[1])
    B = 2 / (n * K) * X1.T @ Y
    W = np.linalg.solve(A, B)  # (d + 1, K)
    return np.concatenate([W[:-1].T.ravel(), W[-1]])


def retrain_poisson_head(X, Y, l2):
    """Minimiser of the mean of exp(z) - y z over samples and outputs, + (l2/2)|w|^2.

    One output after the other, by scipy and numpy.

    Returns weight (K, d) row by row, then bias (K,).
    """
    n, K = Y.shape
    X1 = np.hstack([X, np.ones((n, 1))])

    def solved(y):
        def value(w):
            return (np.exp(X1 @ w) - y * (X1 @ w)).mean() / K + l2 / 2 * w @ w

        def gradient(w):
            return X1.T @ (np.exp(X1 @ w) - y) / (n * K) + l2 * w

        def hessian(w):
            return (X1.T * np.exp(X1 @ w)) @ X1 / (n * K) + l2 * np.eye(len(w))

        start = np.zeros(X1.shape[1])
        w = minimize(value, start, jac=gradient, hess=hessian, method="trust-exact").x
        for _ in range(5):
            w = w - np.linalg.solve(hessian(w), gradient(w))
        assert np.linalg.norm(gradient(w)) < 1e-10
        return w

    W = np.stack([solved(Y[:, k]) for k in range(K)], axis=1)
    return np.concatenate([W[:-1].T.ravel(), W[-1]])
