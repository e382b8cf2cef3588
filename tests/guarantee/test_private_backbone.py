"""A private training and releases beside it, against formulas and integrals."""

import math

import numpy as np
import pytest
from scipy import integrate, optimize
from scipy.stats import norm

from lightning_unlearn.errors import ArgumentError, CertificateError
from lightning_unlearn.guarantee.accounting.private_training import (
    Mechanism,
    check,
    privacy,
)
from lightning_unlearn.guarantee.gaussian import gaussian_epsilon, gaussian_power_upper

pytest.importorskip("dp_accounting")
DELTA = 1e-5


# docs/theory.md section 11: mu of the backbone for one sample, k; the head has .19.
@pytest.mark.parametrize(
    ("of_one", "k", "expected"), [(0.1, 1, 0.78), (0.2, 1, 1.03), (0.1, 5, 2.15)]
)
def test_gaussian_mechanisms_add_by_their_squares(of_one, k, expected):
    steps = 16
    found = privacy(Mechanism(math.sqrt(steps) / of_one, 1.0, steps), k, DELTA, 0.19)
    mu = math.hypot(k * of_one, 0.19)
    exact = gaussian_epsilon(mu, DELTA)
    assert exact == pytest.approx(expected, abs=0.01)
    assert exact <= found.epsilon <= exact * 1.02
    power = gaussian_power_upper(0.01, mu)
    assert power <= found.most_found <= power * 1.05


def integrated(z, q, k, mu, delta, back):
    """Epsilon of one step and a release, by integrals over both outputs."""
    p = [math.comb(k, j) * q**j * (1 - q) ** (k - j) for j in range(k + 1)]

    def mixture(x):
        return sum(w * norm.pdf(x, j, z) for j, w in enumerate(p))

    x = np.linspace(-12 * z, 12 * z + k, 40_001)
    one, other = mixture(x), norm.pdf(x, 0, z)
    if back:
        one, other = other, one

    def delta_of(epsilon):
        # Of the release: delta at what is left of epsilon, where the step was at x.
        left = epsilon - np.log(one / other)
        rest = norm.cdf(mu / 2 - left / mu) - np.exp(left) * norm.cdf(
            -mu / 2 - left / mu
        )
        return integrate.simpson(one * rest, x=x)

    return optimize.brentq(lambda e: delta_of(e) - delta, 1e-6, 30)


@pytest.mark.parametrize(
    ("z", "q", "k", "mu"), [(1.0, 0.2, 1, 0.3), (2.0, 0.5, 3, 0.05), (1.0, 0.1, 2, 1.5)]
)
def test_a_drawn_step_and_a_release(z, q, k, mu):
    exact = max(integrated(z, q, k, mu, 1e-4, back) for back in (False, True))
    found = privacy(Mechanism(z, q, 1), k, 1e-4, mu).epsilon
    assert exact * (1 - 1e-6) <= found <= exact * 1.02


def test_nothing_beside_is_the_training_alone():
    training = Mechanism(1.0, 0.02, 100)
    alone = privacy(training, 3, DELTA)
    assert privacy(training, 3, DELTA, 0.0) == alone
    little = privacy(training, 3, DELTA, 1e-3)
    assert alone.epsilon <= little.epsilon <= alone.epsilon * 1.01
    grown = [privacy(training, 3, DELTA, mu).epsilon for mu in (0.1, 0.5, 2.0)]
    assert grown == sorted(grown)
    assert grown[-1] > gaussian_epsilon(2.0, DELTA)


@pytest.mark.parametrize("mu", [-0.1, math.nan, math.inf])
def test_a_release_that_is_none(mu):
    with pytest.raises(ArgumentError, match="beside"):
        privacy(Mechanism(1.0, 0.02, 100), 1, DELTA, mu)


def test_what_is_stated_is_what_follows():
    found = privacy(Mechanism(4.0, 0.05, 40), 2, DELTA, 0.1)
    values = {
        "clip": 1.0, "noise_multiplier": 4.0, "sampling_rate": 0.05, "steps": 40.0,
        "forgotten": 2.0, "most_found": found.most_found,
    }  # fmt: skip
    check(values, found.epsilon, DELTA, 0.1)
    with pytest.raises(CertificateError, match="states epsilon"):
        check(values, found.epsilon, DELTA, 0.2)
    with pytest.raises(CertificateError, match="states epsilon"):
        check(values, found.epsilon, DELTA)
