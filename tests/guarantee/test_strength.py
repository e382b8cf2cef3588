"""How much a claim protects, against its definition in mpmath."""

import math

import mpmath as mp
import pytest

from lightning_unlearn.errors import ArgumentError
from lightning_unlearn.guarantee.gaussian import gaussian_mu
from lightning_unlearn.guarantee.strength import power_upper, promised_mu, protects


def best_power(mu):
    """Of the likelihood ratio test of N(0, 1) against N(mu, 1) at 1% false alarms."""
    threshold = mp.findroot(lambda t: mp.ncdf(-t) - mp.mpf("0.01"), 2.3)
    return mp.ncdf(mu - threshold)


@pytest.mark.parametrize("mu", [0.01, 0.268, 1.0, 1.666, 2.3263, 4.88, 40.0])
def test_power_is_that_of_the_best_test(mu):
    true = best_power(mp.mpf(mu))
    assert true * (1 - 1e-12) <= power_upper(mu) <= true * (1 + 1e-8)


def test_half_of_the_cases_is_the_end_of_protection():
    end = float(mp.findroot(lambda m: best_power(m) - mp.mpf("0.5"), 2.3))
    assert end == pytest.approx(2.3263, abs=1e-4)
    assert protects(end * (1 - 1e-6), 1e-5, 1000)
    assert not protects(end * (1 + 1e-6), 1e-5, 1000)
    assert protects(gaussian_mu(12.0, 1e-5), 1e-5, 1000)
    assert not protects(gaussian_mu(12.5, 1e-5), 1e-5, 1000)


def test_a_delta_of_one_sample_is_none():
    assert protects(0.1, 1e-3, 999)
    assert not protects(0.1, 1e-3, 1000)
    assert not protects(0.1, math.nan, 1000)
    with pytest.raises(ArgumentError, match="expected mu"):
        protects(math.nan, 1e-5, 1000)


def test_the_promise_is_of_all_announced_releases():
    assert promised_mu(0.5, None) == 0.5
    assert promised_mu(0.5, 16) == 2.0
    assert not protects(promised_mu(0.6, 16), 1e-5, 1000)
    assert protects(promised_mu(0.6, None), 1e-5, 1000)
