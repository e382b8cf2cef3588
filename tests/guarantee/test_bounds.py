import math

import mpmath
import numpy as np
import pytest

from lightning_unlearn.errors import ArgumentError, GuaranteeError
from lightning_unlearn.evaluation.baselines import paper_bounds
from lightning_unlearn.guarantee import bounds, rounding
from lightning_unlearn.step.network import spectrum

STEP = {
    "distance": 2.0,
    "hessian_lipschitz": 0.5,
    "damping": 1.0,
    "lambda_min": 0.25,
    "retrained_gradient_norm": 0.1,
    "residual": 0.01,
}


def random_problem(rng):
    """F(w) = b'w + w'Qw/2 + sum c_i sin(a_i'w): M = sum |c_i| |a_i|^3, indefinite."""
    p, k = rng.integers(1, 7), rng.integers(1, 6)
    Q = rng.normal(size=(p, p))
    Q = (Q + Q.T) / 2
    b, c = rng.normal(size=p), rng.normal(size=k)
    A = rng.normal(size=(k, p)) * 0.5

    def gradient(w):
        return b + Q @ w + A.T @ (c * np.cos(A @ w))

    def hessian(w):
        return Q - A.T @ np.diag(c * np.sin(A @ w)) @ A

    M = float(np.sum(np.abs(c) * np.linalg.norm(A, axis=1) ** 3))
    return p, gradient, hessian, M


def test_theorem_a_is_never_violated():
    rng = np.random.default_rng(0)
    tightest = 0.0
    for _ in range(2000):
        p, gradient, hessian, M = random_problem(rng)
        w0 = rng.normal(size=p) * rng.choice([1e-2, 1, 10])
        v = w0 + rng.normal(size=p) * rng.choice([1e-3, 1e-1, 1, 10])
        H, g = hessian(w0), gradient(w0)
        lowest = np.linalg.eigvalsh(H)[0]
        damping = max(0.0, -lowest) + rng.exponential()
        x = np.linalg.solve(H + damping * np.eye(p), g)
        x += rng.normal(size=p) * rng.choice([0, 1e-3, 1])
        residual = np.linalg.norm((H + damping * np.eye(p)) @ x - g)
        bound = bounds.newton_step_upper(
            distance=float(np.linalg.norm(w0 - v)),
            hessian_lipschitz=M,
            damping=damping,
            lambda_min=float(lowest),
            retrained_gradient_norm=float(np.linalg.norm(gradient(v))),
            residual=float(residual),
        )
        actual = np.linalg.norm(w0 - x - v)
        assert actual <= bound * (1 + 1e-9)
        tightest = max(tightest, actual / bound)
    assert tightest > 0.5  # the bound is not idle on these problems


@pytest.mark.parametrize("term", ["damping", "retrained_gradient", "residual"])
def test_theorem_a_is_attained_in_each_linear_term(term):
    # One weight, F(w) = (h/2)(w - a)^2 with h = lambda_min: every step is explicit.
    h, a, lam = 0.25, 1.0, 1.0
    w0 = v = a
    r = 0.0
    if term == "damping":
        w0 = a + 3.0
    elif term == "retrained_gradient":
        w0 = v = a + 0.4  # retraining stopped early, nothing else is lost
    else:
        r = 0.01
    x = (h * (w0 - a) - r) / (h + lam)
    bound = bounds.newton_step_upper(
        distance=abs(w0 - v),
        hessian_lipschitz=0.0,
        damping=lam,
        lambda_min=h,
        retrained_gradient_norm=abs(h * (v - a)),
        residual=r,
    )
    actual = abs(w0 - x - v)
    assert actual == pytest.approx(bound, rel=1e-2)
    alone = {"damping": lam * abs(w0 - v), "retrained_gradient": abs(h * (v - a))}
    assert bound == pytest.approx({**alone, "residual": r}[term] / (h + lam))


def test_theorem_a_is_attained_in_the_hessian_term():
    # F(w) = (h/2) w^2 + (M/6) w^3 around v = 0: E = -(M/2) d^2 exactly.
    h, M, d = 10.0, 0.3, 0.01
    H, g = h + M * d, h * d + M / 2 * d**2
    bound = bounds.newton_step_upper(
        distance=d,
        hessian_lipschitz=M,
        damping=0.0,
        lambda_min=H,
        retrained_gradient_norm=0.0,
        residual=0.0,
    )
    assert abs(d - g / H) == pytest.approx(bound, rel=1e-2)


def test_paper_bounds_are_special_cases():
    C, M, lam, low, G = 10.0, 0.2, 3.0, -1.0, 0.7
    ours = bounds.newton_step_upper(
        distance=2 * C,
        hessian_lipschitz=M,
        damping=lam,
        lambda_min=low,
        retrained_gradient_norm=0.0,
        residual=0.0,
    )
    published = paper_bounds.newton_step_upper_paper(
        max_norm=C, hessian_lipschitz=M, damping=lam, lambda_min=low
    )
    assert ours == pytest.approx(published)
    with_G = paper_bounds.newton_step_upper_nonstationary_paper(
        max_norm=C, hessian_lipschitz=M, damping=lam, lambda_min=low, gradient_norm=G
    )
    assert with_G == pytest.approx((2 * C * (M * C + lam) + G) / (lam + low))


@pytest.mark.parametrize("lam", [1e-3, 1.0, 1e3, 1e9])
def test_theorem_34_says_nothing_unless_lambda_min_exceeds_mc(lam):
    C, M = 20.0, 0.1
    useless = paper_bounds.newton_step_upper_paper(
        max_norm=C, hessian_lipschitz=M, damping=lam, lambda_min=0.99 * M * C
    )
    useful = paper_bounds.newton_step_upper_paper(
        max_norm=C, hessian_lipschitz=M, damping=lam, lambda_min=1.01 * M * C
    )
    assert useless > 2 * C > useful


def test_damping_below_minus_lambda_min_is_refused():
    with pytest.raises(GuaranteeError, match=r"damping \+ lambda_min > 0.*raise"):
        bounds.newton_step_upper(**{**STEP, "lambda_min": -1.0})
    with pytest.raises(ArgumentError, match="expected lambda_min to be a finite"):
        bounds.newton_step_upper(**{**STEP, "lambda_min": math.nan})


@pytest.mark.parametrize(
    "name", ["distance", "hessian_lipschitz", "retrained_gradient_norm", "residual"]
)
def test_newton_bound_grows_and_refuses_nan(name):
    low = bounds.newton_step_upper(**STEP)
    assert bounds.newton_step_upper(**{**STEP, name: 2 * STEP[name]}) > low
    for bad in (math.nan, -1.0, math.inf):
        with pytest.raises(ArgumentError, match=f"expected {name}"):
            bounds.newton_step_upper(**{**STEP, name: bad})


def test_strongly_convex_bound_holds_and_is_attained():
    rng = np.random.default_rng(1)
    for _ in range(200):
        p = rng.integers(1, 8)
        B = rng.normal(size=(p, p))
        mu = float(rng.exponential()) + 1e-3
        H = B @ B.T + mu * np.eye(p)
        w = rng.normal(size=p)  # the minimiser is 0
        bound = bounds.strongly_convex_upper(
            gradient_norm=float(np.linalg.norm(H @ w)), strong_convexity=mu
        )
        assert np.linalg.norm(w) <= bound * (1 + 1e-12)
    along_the_flattest = bounds.strongly_convex_upper(
        gradient_norm=0.5 * 3.0, strong_convexity=0.5
    )
    assert along_the_flattest == 3.0


def test_rounding_bound_covers_the_error_of_float64():
    rng = np.random.default_rng(2)
    tightest = 0.0
    for scale in (1e-3, 1.0, 30.0):
        for n, d, K in ((7, 3, 2), (200, 20, 5)):
            X = rng.normal(size=(n, d)) * scale
            W = rng.normal(size=(K, d)) * 3
            y = rng.integers(0, K, n)
            Z = X @ W.T
            E = np.exp(Z - Z.max(1, keepdims=True))
            D = E / E.sum(1, keepdims=True) - np.eye(K)[y]
            computed = D.T @ X / n + 1e-3 * W
            error = _exact_error(X, W, y, 1e-3, computed)
            bound = rounding.gradient_rounding_upper(
                n_retain=n,
                n_features=d,
                n_outputs=K,
                row_norm=float(np.linalg.norm(X, axis=1).max()),
                weight_norm=float(np.linalg.norm(W)),
                link_residual_norm=float(np.linalg.norm(D, axis=1).max()),
                link_lipschitz=0.5,
                link_norm=1.0,
                l2=1e-3,
            )
            assert error <= bound
            tightest = max(tightest, error / bound)
    assert tightest > 1e-4  # a bound a million times too large would prove little


def _exact_error(X, W, y, l2, computed):
    with mpmath.workdps(50):
        Xm, Wm = mpmath.matrix(X.tolist()), mpmath.matrix(W.tolist())
        n, K = len(y), W.shape[0]
        G = mpmath.zeros(K, X.shape[1])
        for i in range(n):
            z = Wm * Xm[i, :].T
            e = [mpmath.exp(z[k]) for k in range(K)]
            for k in range(K):
                D = e[k] / sum(e) - (1 if k == y[i] else 0)
                G[k, :] += D * Xm[i, :] / n
        G += mpmath.mpf(l2) * Wm
        return float(mpmath.norm(G - mpmath.matrix(computed.tolist())))


def test_rounding_bound_refuses_sums_too_long_for_float64():
    arguments = {
        "n_features": 3, "n_outputs": 2, "row_norm": 1.0, "weight_norm": 1.0,
        "link_residual_norm": 1.0, "link_lipschitz": 0.5, "link_norm": 1.0, "l2": 1.0,
    }  # fmt: skip
    with pytest.raises(GuaranteeError, match="sums short enough for float64"):
        rounding.gradient_rounding_upper(n_retain=10**15, **arguments)


def test_forget_gradient_mode_is_off_by_exactly_the_surcharge():
    rng = np.random.default_rng(4)
    n, n_u, p = 50, 7, 3
    X, y = rng.normal(size=(n, p)), rng.normal(size=n)
    w0 = rng.normal(size=p)
    H = X[n_u:].T @ X[n_u:] / (n - n_u)
    grads = X * (X @ w0 - y)[:, None]
    full, forget, retain = grads.mean(0), grads[:n_u].mean(0), grads[n_u:].mean(0)
    damping, lowest = 0.5, float(np.linalg.eigvalsh(H)[0])
    A = H + damping * np.eye(p)
    steps = [np.linalg.solve(A, g) for g in (retain, -n_u / (n - n_u) * forget)]
    surcharge = paper_bounds.forget_gradient_surcharge(
        full_gradient_norm=float(np.linalg.norm(full)), n_train=n, n_retain=n - n_u,
        damping=damping, lambda_min=lowest,
    )  # fmt: skip
    assert np.linalg.norm(steps[0] - steps[1]) <= surcharge
    # Attained when the full gradient lies along the flattest direction: p = 1.
    one = paper_bounds.forget_gradient_surcharge(
        full_gradient_norm=2.0, n_train=10, n_retain=8, damping=0.5, lambda_min=0.75
    )
    assert one == pytest.approx(2.0 * 10 / 8 / 1.25)


def test_lanczos_lower_bound_holds_where_the_ritz_value_does_not():
    import torch

    from lightning_unlearn.step.network.spectrum import lanczos_ends

    generator = torch.Generator().manual_seed(0)
    p, steps, wrong_side = 400, 25, 0
    for outlier in (-1.0, -0.05, 0.0):
        values = torch.linspace(0, 1, p, dtype=torch.float64)
        values[0] = outlier
        above = 0
        for _ in range(40):
            start = torch.randn(p, generator=generator, dtype=torch.float64)
            low, high, *_ = lanczos_ends(lambda v, d=values: d * v, start, steps)
            above += low > outlier + 1e-4
            bound = spectrum.lanczos_lambda_min_lower(
                ritz_min=low, ritz_max=high, steps=steps, size=p, failure=1e-3
            )
            assert bound <= outlier
        wrong_side += above
    assert wrong_side > 20  # where the Ritz value alone would have been unsafe
    assert spectrum.lanczos_lambda_min_lower(
        ritz_min=-0.5, ritz_max=1.0, steps=p, size=p, failure=1e-3
    ) == -0.5  # fmt: skip
    with pytest.raises(GuaranteeError, match="expected enough Lanczos steps"):
        spectrum.lanczos_lambda_min_lower(
            ritz_min=0.0, ritz_max=1.0, steps=3, size=10**6, failure=1e-6
        )


PAPER = {
    "max_norm": 10.0, "hessian_lipschitz": 0.2, "damping": 3.0, "lambda_min": -1.0,
    "gradient_norm": 0.7,
}  # fmt: skip


def test_theorem_36_and_proposition_42_as_published():
    extra = paper_bounds.lissa_error_upper_paper(
        hessian_norm=5.0, n_parameters=1000, failure=0.1, damping=3.0,
        lambda_min=-1.0, gradient_lipschitz=2.0, max_norm=10.0, gradient_norm=0.7,
    )  # fmt: skip
    by_hand = (16 * 5 * math.sqrt(math.log(1e4)) / 2 + 1 / 16) * (40 + 0.7)
    assert extra == pytest.approx(by_hand)
    step = paper_bounds.newton_step_upper_nonstationary_paper(**PAPER)
    whole = paper_bounds.newton_step_upper_lissa_paper(
        **PAPER, hessian_norm=5.0, n_parameters=1000, failure=0.1,
        gradient_lipschitz=2.0,
    )  # fmt: skip
    assert whole == pytest.approx(step + extra)
    assert whole > 100 * 2 * 10.0  # never below the trivial 2C


def test_lissa_filter_against_the_series():
    h, scale, steps = 0.3, 2.0, 7
    series = sum((1 - h / scale) ** t for t in range(steps + 1)) / scale
    assert paper_bounds.lissa_filter(
        eigenvalue=h, scale=scale, steps=steps
    ) == pytest.approx(series * h)
    with pytest.raises(ArgumentError, match="expected eigenvalue"):
        paper_bounds.lissa_filter(eigenvalue=-1.0, scale=2.0, steps=3)
