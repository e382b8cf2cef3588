"""The accountant against mpmath, a grid of alphas, and exact laws of small chains."""

import itertools
import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import norm

from lightning_unlearn.errors import ArgumentError
from lightning_unlearn.evaluation.baselines.noisy_accountant import (
    noisy_fine_tuning_epsilon,
    noisy_fine_tuning_noise_std,
    noisy_fine_tuning_sensitivity,
    rdp_epsilon,
)

CHAIN = {"max_norm": 1.0, "gradient_norm": 0.5, "l2": 0.1, "lr": 0.2, "steps": 12}
CHAINS = [
    {**CHAIN, "max_norm": c, "l2": l2, "lr": lr, "steps": steps}
    for c, l2, lr, steps in itertools.product(
        (0.03, 2.0), (0.0, 0.5, 2.0), (0.05, 0.5), (1, 2, 7, 60)
    )
]


def converted(alpha, mu, delta):
    """The conversion, with 60 digits."""
    with mpmath.workdps(60):
        a, m, d = map(mpmath.mpf, (alpha, mu, delta))
        spent = (mpmath.log(d) + mpmath.log(a)) / (a - 1)
        return a * m**2 / 2 + mpmath.log((a - 1) / a) - spent


def gaussian_delta(epsilon, mu):
    return norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * norm.cdf(
        -mu / 2 - epsilon / mu
    )


@pytest.mark.parametrize("mu", [1e-3, 0.03, 0.5, 1.0, 4.0, 50.0])
@pytest.mark.parametrize("delta", [1e-12, 1e-5, 0.01, 0.4])
def test_epsilon_is_the_least_over_a_fine_grid_of_alphas(mu, delta):
    orders = 1 + np.geomspace(1e-6, 1e13, 6000)
    on_grid = min(
        float(a * mu**2 / 2 + np.log1p(-1 / a) - (np.log(delta) + np.log(a)) / (a - 1))
        for a in orders
    )
    found = rdp_epsilon(mu, delta)
    assert found <= max(0.0, on_grid) + 1e-12
    assert found >= max(0.0, on_grid) - 2e-4 * abs(on_grid) - 1e-9


@pytest.mark.parametrize("mu", [0.01, 0.5, 1.0, 4.0, 50.0])
@pytest.mark.parametrize("delta", [1e-12, 1e-5, 0.01])
def test_epsilon_is_the_minimum_of_the_conversion_rounded_up(mu, delta):
    with mpmath.workdps(40):
        # The stationary order, by a root finder on the derivative of the conversion.
        slope = mpmath.findroot(
            lambda x: mpmath.diff(lambda y: converted(1 + mpmath.e**y, mu, delta), x),
            (math.log(math.sqrt(-2 * math.log(delta)) / mu) - 2, 0.1
             + math.log(math.sqrt(-2 * math.log(delta)) / mu)),
            solver="anderson",
            tol=1e-12,
        )  # fmt: skip
        least = converted(1 + mpmath.e**slope, mu, delta)
    found = rdp_epsilon(mu, delta)
    assert found >= max(0, least)
    assert found == pytest.approx(max(0.0, float(least)), rel=1e-12, abs=1e-14)


@pytest.mark.parametrize("mu", [0.05, 0.5, 1.0, 4.0])
@pytest.mark.parametrize("delta", [1e-9, 1e-5, 0.01])
def test_an_exact_gaussian_is_within_what_its_rdp_says(mu, delta):
    epsilon = rdp_epsilon(mu, delta)
    exact = gaussian_delta(epsilon, mu)
    assert exact <= delta
    assert exact > delta / 100  # not far off: the conversion with alpha


def test_the_conversion_has_the_alpha():
    mu, delta = 1.0, 1e-5
    without = mu**2 / 2 + mu * math.sqrt(2 * math.log(1 / delta))
    assert rdp_epsilon(mu, delta) < without - 0.5


@pytest.mark.parametrize(
    ("mu", "delta", "expected"),
    [
        (1e-200, 1e-5, 0.0),
        (1e200, 1e-5, math.inf),
        (1.7e308, 1 - 1e-16, math.inf),
        (1e-300, 1e-320, pytest.approx(0, abs=1e-290)),
    ],
)
def test_extremes_neither_fail_nor_understate(mu, delta, expected):
    assert rdp_epsilon(mu, delta) == expected


def exactly(chain, t):
    """R_t^2 / S_t, from the sums of the statement, in rationals."""
    c0, c1, l2, lr = (
        Fraction(chain[k]) for k in ("max_norm", "gradient_norm", "l2", "lr")
    )
    rho, s = 1 - lr * l2, 2 * lr * c1
    reach = rho**t * 2 * c0 + s * sum(rho**k for k in range(t))
    return reach**2 / sum(rho ** (2 * k) for k in range(t))


@pytest.mark.parametrize("chain", CHAINS)
def test_sensitivity_is_the_least_over_all_numbers_of_steps_rounded_up(chain):
    least = min(exactly(chain, t) for t in range(1, chain["steps"] + 1))
    found = noisy_fine_tuning_sensitivity(**chain)
    assert Fraction(found) ** 2 >= least
    assert found == pytest.approx(math.sqrt(least), rel=1e-12)


@pytest.mark.parametrize("chain", CHAINS)
def test_no_way_to_spread_the_shifts_costs_less(chain):
    """A quadratic programme, solved by chance and by an optimiser."""
    steps = min(chain["steps"], 7)
    rho, s = 1 - chain["lr"] * chain["l2"], 2 * chain["lr"] * chain["gradient_norm"]
    found = noisy_fine_tuning_sensitivity(**{**chain, "steps": steps})

    def left(shares):
        z = 2 * chain["max_norm"]
        for a in shares:
            z = max(0.0, (rho * z + s if z > 0 else 0.0) - a)
        return z

    random = np.random.default_rng(0)
    for _ in range(300):
        shares = random.exponential(size=steps) * 2 * chain["max_norm"] / steps
        z = 2 * chain["max_norm"]
        for t, a in enumerate(shares):  # as little as drawn, all that is left at last
            z = rho * z + s if z > 0 else 0.0
            shares[t] = z if t == steps - 1 else min(a, z)
            z -= shares[t]
        assert left(shares) <= 1e-12
        assert math.hypot(*shares) >= found * (1 - 1e-9)
    costs = []
    for t in range(1, steps + 1):
        weights = np.array([rho ** (t - 1 - k) for k in range(t)])
        reach = rho**t * 2 * chain["max_norm"] + s * weights.sum()
        best = minimize(
            lambda a: a @ a / reach**2,
            np.full(t, reach / weights.sum()),
            constraints={"type": "eq", "fun": lambda a: (a @ weights - reach) / reach},
        )
        costs.append(math.sqrt(best.fun) * reach)
    assert min(costs) == pytest.approx(found, rel=1e-4)


def law(start, chain, noise_std):
    """Density of x_T on a grid, where the gradient pushes away from 0 all it may."""
    rho, push = 1 - chain["lr"] * chain["l2"], chain["lr"] * chain["gradient_norm"]
    steps = chain["steps"]
    reach = chain["max_norm"] + steps * push + 9 * noise_std * math.sqrt(steps)
    n = 1200
    x = (np.arange(n) + 0.5) / n * 2 * reach - reach
    width = x[1] - x[0]
    after = rho * x + push * np.sign(x)
    kernel = norm.pdf(x[:, None], after[None, :], noise_std) * width
    density = norm.pdf(x, rho * start + push * np.sign(start), noise_std)
    for _ in range(steps - 1):
        density = kernel @ density
    assert density.sum() * width == pytest.approx(1, abs=1e-9)
    return density * width


EXACT = [
    ({"max_norm": 1.0, "gradient_norm": 1.0, "l2": 0.0, "lr": 0.5, "steps": 1}, 1.0),
    ({"max_norm": 1.0, "gradient_norm": 1.0, "l2": 1.0, "lr": 0.5, "steps": 2}, 1.0),
    ({"max_norm": 2.0, "gradient_norm": 0.1, "l2": 0.0, "lr": 0.5, "steps": 8}, 0.7),
    ({"max_norm": 0.2, "gradient_norm": 1.0, "l2": 0.0, "lr": 0.5, "steps": 20}, 0.9),
    ({"max_norm": 1.0, "gradient_norm": 1.0, "l2": 0.4, "lr": 0.5, "steps": 25}, 1.5),
    ({"max_norm": 1.0, "gradient_norm": 1.0, "l2": 2.0, "lr": 0.5, "steps": 5}, 0.8),
]


@pytest.mark.parametrize(("chain", "noise_std"), EXACT)
def test_exact_laws_of_the_worst_chains_on_a_line_are_within_the_bound(
    chain, noise_std
):
    p = law(chain["max_norm"], chain, noise_std)
    q = p[::-1]
    assert q == pytest.approx(law(-chain["max_norm"], chain, noise_std), abs=1e-12)
    mu = noisy_fine_tuning_sensitivity(**chain) / noise_std
    for epsilon in (0.1, 0.5, 1.0, 2.0):
        delta = np.maximum(p - math.exp(epsilon) * q, 0).sum()
        if delta > 1e-10:
            claimed = noisy_fine_tuning_epsilon(delta, noise_std=noise_std, **chain)
            assert claimed >= epsilon
        assert delta <= gaussian_delta(epsilon, mu) + 2e-5
        if chain["steps"] == 1:  # nothing is given away: this is the worst case
            assert delta == pytest.approx(gaussian_delta(epsilon, mu), rel=1e-3)


def test_a_decay_that_overshoots_is_refused_for_a_reason():
    """With rho = -1 the formula's R_1 = -2 C0 + s is 0, but the laws are far apart."""
    chain = {"max_norm": 1.0, "gradient_norm": 1.0, "l2": 2.0, "lr": 1.0, "steps": 1}
    rho, s = 1 - chain["lr"] * chain["l2"], 2 * chain["lr"] * chain["gradient_norm"]
    assert rho * 2 * chain["max_norm"] + s == 0
    apart = abs((rho * 1 - 1) - (rho * -1 + 1))  # gradients +1 at 1 and -1 at -1
    assert apart == 4
    with pytest.raises(ArgumentError, match=r"lr \* l2 <= 1.*got 2.0: take a lower"):
        noisy_fine_tuning_sensitivity(**chain)


@pytest.mark.parametrize("epsilon", [0.01, 1.0, 8.0])
@pytest.mark.parametrize("delta", [1e-10, 1e-5])
def test_the_noise_is_the_least_that_is_checked_to_be_enough(epsilon, delta):
    std = noisy_fine_tuning_noise_std(epsilon, delta, **CHAIN)
    assert noisy_fine_tuning_epsilon(delta, noise_std=std, **CHAIN) <= epsilon
    less = std * (1 - 1e-8)
    assert noisy_fine_tuning_epsilon(delta, noise_std=less, **CHAIN) > epsilon


def test_noise_scales_with_the_weights():
    std = noisy_fine_tuning_noise_std(1.0, 1e-5, **CHAIN)
    tenfold = {**CHAIN, "max_norm": 10.0, "gradient_norm": 5.0}
    assert noisy_fine_tuning_noise_std(1.0, 1e-5, **tenfold) == pytest.approx(10 * std)


def test_many_steps_are_counted_at_once():
    many = {**CHAIN, "l2": 0.0, "steps": 10**12}
    expected = 4 * math.sqrt(1.0 * 0.2 * 0.5)
    assert noisy_fine_tuning_sensitivity(**many) == pytest.approx(expected, rel=1e-12)
    # A strong decay comes near its limit, and stays.
    decayed = {**many, "max_norm": 100.0, "l2": 1.0}
    assert noisy_fine_tuning_sensitivity(**decayed) == pytest.approx(
        0.2 * math.sqrt(1.8 / 0.2), rel=1e-9
    )


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"max_norm": 0.0}, "max_norm to be a finite number > 0"),
        ({"gradient_norm": math.inf}, "gradient_norm to be a finite number > 0"),
        ({"l2": -0.1}, "l2 to be a finite number >= 0"),
        ({"lr": math.nan}, "lr to be a finite number > 0"),
        ({"steps": 0}, "steps to be an integer >= 1"),
        ({"l2": 5.1}, r"expected lr \* l2 <= 1"),
        ({"max_norm": 1.7e308}, "sensitivity to be a finite number > 0"),
        ({"epsilon": 0.0}, "epsilon to be a finite number > 0"),
        ({"delta": 1.0}, "delta strictly between 0 and 1"),
        ({"max_norm": 8e307, "epsilon": 1e-3}, "noise_std to be a finite number > 0"),
    ],
)
def test_what_has_no_bound_is_refused(changed, message):
    with pytest.raises(ArgumentError, match=message):
        noisy_fine_tuning_noise_std(
            **{"epsilon": 1.0, "delta": 1e-5, **CHAIN, **changed}
        )


def test_without_noise_there_is_no_epsilon():
    with pytest.raises(ArgumentError, match="noise_std to be a finite number > 0"):
        noisy_fine_tuning_epsilon(1e-5, noise_std=0.0, **CHAIN)
    with pytest.raises(ArgumentError, match="mu to be a finite number > 0"):
        rdp_epsilon(0.0, 1e-5)
    with pytest.raises(ArgumentError, match="delta strictly between 0 and 1"):
        rdp_epsilon(1.0, 0.0)
