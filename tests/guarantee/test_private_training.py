"""The accountant of private training, against dp_accounting, formulas and draws."""

import math
import random

import numpy as np
import pytest
from scipy.stats import beta, norm

from lightning_unlearn.errors import ArgumentError, CertificateError
from lightning_unlearn.guarantee.accounting import private_training as accountant
from lightning_unlearn.guarantee.accounting.drawn_step import drawn_together
from lightning_unlearn.guarantee.accounting.private_training import (
    Mechanism,
    epsilon_out,
    least_noise,
    privacy,
)
from lightning_unlearn.guarantee.gaussian import gaussian_epsilon, gaussian_power_upper

pld = pytest.importorskip("dp_accounting.pld.privacy_loss_distribution")
DELTA = 1e-5


def epsilon_of(z, q, steps, k=1, delta=DELTA):
    return privacy(Mechanism(z, q, steps), k, delta).epsilon


@pytest.mark.parametrize(
    ("z", "q", "steps"), [(1.0, 0.01, 1000), (0.6, 0.1, 40), (8.0, 0.08, 240)]
)
def test_one_sample_is_the_subsampled_gaussian(z, q, steps):
    one = pld.from_gaussian_mechanism(z, sampling_prob=q)
    expected = one.self_compose(steps).get_epsilon_for_delta(DELTA)
    assert expected <= epsilon_of(z, q, steps) <= expected * 1.003


@pytest.mark.parametrize(("k", "z", "q"), [(3, 1.0, 0.02), (10, 4.0, 0.05)])
def test_a_group_is_the_mixture_of_gaussians(k, z, q):
    pairs = [(j, math.comb(k, j) * q**j * (1 - q) ** (k - j)) for j in range(k + 1)]
    one = pld.from_mixture_gaussian_mechanism(
        z, *zip(*pairs, strict=True), value_discretization_interval=1e-3
    )
    expected = one.self_compose(100).get_epsilon_for_delta(DELTA)
    assert expected * 0.999 <= epsilon_of(z, q, 100, k) <= expected * 1.003


# Issue N, made with dp_accounting.
TABLE = [
    (60_000, 600, 10, 1.0, (1.83, 6.3, 28, 131)),
    (60_000, 1_000, 15, 2.0, (1.03, 3.5, 15, 68)),
    (50_000, 4_096, 20, 8.0, (0.58, 1.9, 7.8, 32)),
    (1_000_000, 4_096, 3, 1.0, (0.60, 2.0, 7.9, 30)),
]


@pytest.mark.parametrize(("n", "batch", "epochs", "z", "expected"), TABLE)
def test_the_table_of_the_page(n, batch, epochs, z, expected):
    steps = round(epochs * n / batch)
    for k, epsilon in zip((1, 3, 10, 30), expected, strict=True):
        assert epsilon_of(z, batch / n, steps, k) == pytest.approx(epsilon, rel=0.03)


def test_every_sample_in_every_step_is_the_gaussian_mechanism():
    mu = 3 * math.sqrt(10) / 5.0
    found = privacy(Mechanism(5.0, 1.0, 10), 3, DELTA)
    assert found.epsilon == pytest.approx(gaussian_epsilon(mu, DELTA), rel=0.005)
    assert found.epsilon >= gaussian_epsilon(mu, DELTA)
    power = gaussian_power_upper(0.01, mu)
    assert power <= found.most_found <= power * 1.05


def draws(rng, z, q, steps, k, n, present):
    """The most telling numbers of n trainings: the loss of their outputs."""
    total = np.zeros(n)
    for _ in range(steps):
        x = rng.normal(0, z, n)
        if present:
            x = x - rng.binomial(k, q, n)
        ratio = sum(
            math.comb(k, j) * q**j * (1 - q) ** (k - j)
            * norm.pdf(x, -j, z) / norm.pdf(x, 0, z)
            for j in range(k + 1)
        )  # fmt: skip
        total += np.log(ratio)
    return total


@pytest.mark.parametrize(("k", "z", "q", "steps"), [(1, 0.7, 0.2, 5), (4, 2.0, 0.3, 8)])
def test_never_below_what_draws_show(k, z, q, steps):
    """Monte Carlo: a test of the likelihood ratio, Clopper-Pearson ends at 99.9%."""
    rng, n, delta = np.random.default_rng(0), 200_000, 1e-3
    inside, outside = (draws(rng, z, q, steps, k, n, p) for p in (True, False))
    found = privacy(Mechanism(z, q, steps), k, delta)

    def lower(hits):
        return beta.ppf(0.001, hits, n - hits + 1) if hits else 0.0

    def upper(hits):
        return beta.ppf(0.999, hits + 1, n - hits) if hits < n else 1.0

    shown = 0.0
    for cut in np.quantile(inside, [0.5, 0.8, 0.9, 0.95, 0.99]):
        a, b = int((inside > cut).sum()), int((outside > cut).sum())
        shown = max(shown, math.log((lower(a) - delta) / upper(b)))
    for cut in np.quantile(outside, [0.5, 0.2, 0.1, 0.05, 0.01]):
        a, b = int((outside < cut).sum()), int((inside < cut).sum())
        shown = max(shown, math.log((lower(a) - delta) / upper(b)))
    assert 0.6 * found.epsilon < shown <= found.epsilon
    cut = np.quantile(outside, 0.99)
    seen = float((inside > cut).mean())
    assert 0.8 * found.most_found < seen <= found.most_found * 1.01


@pytest.mark.parametrize(("z", "q", "steps"), [(0.3, 0.5, 2), (1.0, 0.25, 8)])
def test_that_one_was_out_is_told_less(z, q, steps):
    found = epsilon_out(Mechanism(z, q, steps), DELTA)
    assert found < epsilon_of(z, q, steps)
    assert found <= -steps * math.log(1 - q) * 1.002
    # Of one step by an integral: outputs without the sample, against those with it.
    x = np.linspace(-12 * z, 12 * z + 1, 200_001)
    out, mixed = norm.pdf(x, 0, z), (1 - q) * norm.pdf(x, 0, z) + q * norm.pdf(x, 1, z)
    one = epsilon_out(Mechanism(z, q, 1), DELTA)
    for epsilon, side in ((one * 1.002, 1), (one * 0.99, -1)):
        left = np.trapezoid(np.clip(out - math.exp(epsilon) * mixed, 0, None), x)
        assert side * (DELTA - left) > 0


def test_more_of_anything_is_told_more():
    base = epsilon_of(1.5, 0.02, 200, 2)
    assert epsilon_of(1.5, 0.02, 200, 3) > base
    assert epsilon_of(1.5, 0.02, 300, 2) > base
    assert epsilon_of(1.5, 0.03, 200, 2) > base
    assert epsilon_of(1.4, 0.02, 200, 2) > base
    assert epsilon_of(1.5, 0.02, 200, 2, delta=1e-6) > base


def test_those_who_are_improbable_count_as_all():
    rest = 1e-9
    pairs = list(drawn_together(10_000, 1e-3, rest))
    assert sum(p for _, p in pairs) == pytest.approx(1, abs=1e-12)
    (most, mass), last = pairs[-1], pairs[-2][0]
    assert most == 10_000
    assert 0 < mass <= rest
    assert last < 60
    assert list(drawn_together(3, 1.0, rest))[-1] == (3, 1.0)


@pytest.mark.parametrize("epsilon", [0.5, 2.0, 20.0])
def test_the_least_noise_is_enough_and_not_much_more(epsilon):
    z = least_noise(epsilon, DELTA, 0.05, 100)
    assert epsilon_of(z, 0.05, 100) <= epsilon
    assert z <= 0.2 or epsilon_of(z * 0.99, 0.05, 100) > epsilon


def test_arguments_outside_their_range():
    with pytest.raises(ArgumentError, match="sampling_rate in"):
        Mechanism(1.0, 1.5, 10)
    with pytest.raises(ArgumentError, match="delta >= 1e-9"):
        privacy(Mechanism(1.0, 0.1, 10), 1, 1e-12)
    with pytest.raises(ArgumentError, match="whole steps, got 10.5"):
        accountant.mechanism_of({"steps": 10.5, "forgotten": 1.0})


def values(**changes):
    found = privacy(Mechanism(2.0, 0.05, 100), 2, DELTA)
    plain = {
        "clip": 1.0,
        "noise_multiplier": 2.0,
        "sampling_rate": 0.05,
        "steps": 100.0,
        "forgotten": 2.0,
        "most_found": found.most_found,
    }
    return {**plain, **changes}, found.epsilon


def test_what_is_stated_is_what_follows():
    stated, epsilon = values()
    accountant.check(stated, epsilon, DELTA)
    rng = random.Random(0)
    for name in ("noise_multiplier", "sampling_rate", "most_found"):
        changed = {**stated, name: stated[name] * rng.choice([0.99, 1.01])}
        with pytest.raises(CertificateError, match="its constants give"):
            accountant.check(changed, epsilon, DELTA)
    for name in ("steps", "forgotten"):
        with pytest.raises(CertificateError, match="its constants give"):
            accountant.check({**stated, name: stated[name] + 1}, epsilon, DELTA)
    for factor in (0.999, 1.001):
        with pytest.raises(CertificateError, match="its constants give"):
            accountant.check(stated, epsilon * factor, DELTA)


def test_without_the_extra_nothing_is_checked(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "dp_accounting.pld", None)
    accountant._numbers.cache_clear()
    with pytest.raises(
        CertificateError, match=r"checked with the package dp-accou.*priv"
    ):
        privacy(Mechanism(2.0, 0.05, 100), 2, DELTA)
