"""The tolerance that is set before the data: how large the noise it leaves is."""

import math

import pytest
from scipy.stats import norm

from lightning_unlearn.errors import ArgumentError
from lightning_unlearn.guarantee.claims import Terms
from lightning_unlearn.guarantee.tolerance import How, usual_tolerance

ROW = math.sqrt(65)  # of a PublicBackbone, and the 1 of the bias


def mu_of(epsilon, delta):
    """By bisection of the Gaussian mechanism's delta (Balle and Wang 2018)."""

    def spent(mu):
        a, b = -epsilon / mu + mu / 2, -epsilon / mu - mu / 2
        return norm.cdf(a) - math.exp(epsilon) * norm.cdf(b)

    low, high = 1e-6, 100.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if spent(middle) < delta else (low, middle)
    return low


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("releases", [None, 1, 9])
def test_the_noise_moves_a_logit_by_three_hundredths(epsilon, releases):
    terms = Terms(epsilon=epsilon, delta=1e-5, releases=releases)
    found = usual_tolerance(terms, 3e-4, ROW)
    mu = mu_of(epsilon, 1e-5)
    noise_std = 2 * found.value * math.sqrt(releases or 1) / (3e-4 * mu)
    assert found.how is How.BY_NOISE
    assert found.row_norm == ROW
    assert noise_std * ROW == pytest.approx(0.03, rel=1e-6)


def test_it_is_never_louder_than_the_constant():
    found = usual_tolerance(Terms(epsilon=1.0, delta=1e-5), 0.1, ROW)
    assert (found.value, found.how) == (1e-6, How.USUAL)


def test_without_a_fixed_row_norm_it_is_a_constant():
    for l2 in (1e-5, 1e-1):
        found = usual_tolerance(Terms(epsilon=1.0, delta=1e-5), l2, None)
        assert (found.value, found.how, found.row_norm) == (1e-6, How.USUAL, None)


def test_it_is_no_finer_than_rows_in_float32():
    found = usual_tolerance(Terms(epsilon=1.0, delta=1e-5), 1e-6, ROW)
    assert found.how is How.BY_ROUNDING
    assert found.value == pytest.approx(ROW * 2.0**-24 / 32)


@pytest.mark.parametrize("bad", [math.nan, 0.0, -1.0, math.inf])
def test_numbers_outside_their_range_are_refused(bad):
    terms = Terms(epsilon=1.0, delta=1e-5)
    with pytest.raises(ArgumentError, match="l2"):
        usual_tolerance(terms, bad, ROW)
    with pytest.raises(ArgumentError, match="row_norm"):
        usual_tolerance(terms, 1e-3, bad)
