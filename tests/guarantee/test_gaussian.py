import math

import mpmath
import pytest
from hypothesis import given, settings, strategies as st

from lightning_unlearn.errors import ArgumentError
from lightning_unlearn.evaluation.baselines.paper_bounds import gaussian_sigma_classic
from lightning_unlearn.guarantee.gaussian import (
    compose_mu,
    gaussian_delta,
    gaussian_epsilon,
    gaussian_log_delta,
    gaussian_mu,
    gaussian_power_upper,
    gaussian_sigma,
)
from tests.helpers.oracles import delta_by_quadrature

epsilons = st.floats(-6, 4).map(lambda e: 10.0**e)
deltas = st.floats(-20, -2).map(lambda e: 10.0**e)


@pytest.mark.parametrize(
    ("epsilon", "delta", "exact", "classic"),
    [  # the table of theory.md section 5
        (0.1, 1e-5, 30.75, 48.4),
        (0.1, 1e-6, 36.30, 53.0),
        (1, 1e-5, 3.731, 4.84),
        (1, 1e-6, 4.225, 5.30),
        (8, 1e-5, 0.600, None),
        (8, 1e-6, 0.653, None),
        (10, 1e-5, 0.500, None),
        (10, 1e-6, 0.541, None),
    ],
)
def test_table(epsilon, delta, exact, classic):
    digits = max(0, 4 - math.ceil(math.log10(exact) + 1e-9)) if exact > 1 else 3
    assert round(gaussian_sigma(epsilon, delta, 1.0), digits) == exact
    if classic is None:
        with pytest.raises(ArgumentError, match=r"expected epsilon <= 1.*use gaussian"):
            gaussian_sigma_classic(epsilon, delta, 1.0)
    else:
        assert gaussian_sigma_classic(epsilon, delta, 1.0) == pytest.approx(
            classic, rel=2e-3
        )


def test_the_classic_constant_would_be_too_small_at_epsilon_10():
    classic = math.sqrt(2 * math.log(1.25 / 1e-5)) / 10
    assert gaussian_delta(10, 1 / classic) > 1e-5


@settings(max_examples=40)
@given(epsilon=st.floats(1e-2, 30), delta=deltas)
def test_delta_against_the_defining_integral(epsilon, delta):
    mu = gaussian_mu(epsilon, delta)
    exact = delta_by_quadrature(epsilon, mu)
    assert abs(mpmath.log(exact) - gaussian_log_delta(epsilon, mu)) < 1e-9


@settings(max_examples=200)
@given(epsilon=epsilons, delta=deltas)
def test_log_delta_against_mpmath(epsilon, delta):
    mu = gaussian_mu(epsilon, delta)
    with mpmath.workdps(60):
        e, m = mpmath.mpf(epsilon), mpmath.mpf(mu)
        exact = mpmath.ncdf(m / 2 - e / m) - mpmath.exp(e) * mpmath.ncdf(-m / 2 - e / m)
        slack = 1e-10 + 1e-14 * (1 + epsilon / mu) / mu
        assert abs(mpmath.log(exact) - gaussian_log_delta(epsilon, mu)) < slack
        assert exact <= delta  # the safe side, by exact arithmetic


@settings(max_examples=100)
@given(epsilon=epsilons, delta=deltas, sensitivity=st.floats(1e-8, 1e8))
def test_sigma_is_sufficient_and_nearly_least(epsilon, delta, sensitivity):
    sigma = gaussian_sigma(epsilon, delta, sensitivity)
    assert gaussian_delta(epsilon, sensitivity / sigma) <= delta
    if epsilon > 1e-3:  # below, float64 itself is not that sharp
        assert gaussian_delta(epsilon, sensitivity / (sigma * (1 - 1e-7))) > delta


@settings(max_examples=100)
@given(epsilon=st.floats(1e-3, 1), delta=deltas)
def test_exact_never_above_classic(epsilon, delta):
    exact = gaussian_sigma(epsilon, delta, 1.0)
    assert exact <= gaussian_sigma_classic(epsilon, delta, 1.0)


@settings(max_examples=100)
@given(epsilon=st.floats(1e-2, 1e2), delta=deltas)
def test_epsilon_and_mu_are_inverse(epsilon, delta):
    mu = gaussian_mu(epsilon, delta)
    back = gaussian_epsilon(mu, delta)
    assert gaussian_delta(back, mu) <= delta
    assert back == pytest.approx(epsilon, rel=1e-6)


def test_composition_is_that_of_a_product_of_gaussians():
    # Two independent releases with ratios a, b are one with ratio hypot(a, b).
    assert compose_mu(0.3, 0.4) == pytest.approx(0.5)
    T, epsilon, delta = 10, 1.0, 1e-5
    each = gaussian_mu(epsilon, delta) / math.sqrt(T)
    assert gaussian_epsilon(compose_mu(*[each] * T), delta) == pytest.approx(1.0)


@pytest.mark.parametrize("bad", [0, -1, math.nan, math.inf, True, "1", None])
def test_bad_epsilon(bad):
    with pytest.raises(ArgumentError, match="expected epsilon to be a finite number"):
        gaussian_sigma(bad, 1e-5, 1.0)


@pytest.mark.parametrize("bad", [0, 1, -1, math.nan, 2])
def test_bad_delta(bad):
    with pytest.raises(ArgumentError, match="expected delta strictly between 0 and 1"):
        gaussian_sigma(1.0, bad, 1.0)


@pytest.mark.parametrize("bad", [0, -1, math.nan, math.inf])
def test_bad_sensitivity(bad):
    with pytest.raises(ArgumentError, match="expected sensitivity to be a finite"):
        gaussian_sigma(1.0, 1e-5, bad)


def test_no_release_composes_to_nothing():
    with pytest.raises(ArgumentError, match="expected number_of_releases"):
        compose_mu()


@pytest.mark.parametrize("alpha", [1e-6, 0.01, 0.5, 0.99])
@pytest.mark.parametrize("mu", [1e-3, 0.27, 1.0, 5.0])
def test_power_is_that_of_the_likelihood_ratio_test(alpha, mu):
    with mpmath.workdps(40):
        cut = mpmath.sqrt(2) * mpmath.erfinv(1 - 2 * mpmath.mpf(alpha))
        exact = 1 - mpmath.ncdf(cut, mu, 1)  # rejects N(0, 1) beyond the cut
    found = gaussian_power_upper(alpha, mu)
    assert exact <= found <= exact * (1 + 1e-8)


@given(epsilons, deltas)
@settings()
def test_power_keeps_what_epsilon_and_delta_promise(epsilon, delta):
    mu = gaussian_mu(epsilon, delta)
    promised = min(1.0, math.exp(epsilon) * 0.01 + delta) if epsilon < 700 else 1.0
    assert gaussian_power_upper(0.01, mu) <= promised * (1 + 1e-8)


def test_bad_power():
    for alpha, mu in ((0.0, 1.0), (1.0, 1.0), (math.nan, 1.0)):
        with pytest.raises(ArgumentError, match="strictly between 0 and 1"):
            gaussian_power_upper(alpha, mu)
    with pytest.raises(ArgumentError, match="expected mu to be a finite number > 0"):
        gaussian_power_upper(0.01, math.nan)
