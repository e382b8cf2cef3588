"""Audits: bounds by brute force, mechanisms of known mu, and a real convex head."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from scipy.stats import binom, norm

from lightning_unlearn.errors import ArgumentError, AuditError, CertificateError
from lightning_unlearn.evaluation import (
    epsilon_lower_bound,
    mu_lower_bound,
    two_sample_audit,
    white_box_mu,
)
from lightning_unlearn.guarantee import claims
from lightning_unlearn.guarantee.claims import Grade, Terms
from lightning_unlearn.guarantee.constants import Origin
from lightning_unlearn.guarantee.gaussian import gaussian_epsilon, gaussian_mu
from lightning_unlearn.step.release import release
from tests.evaluation.helpers.worlds import DELTA, certificate, none_certificate, worlds
from tests.helpers.certificates import (
    BALL,
    convex_constants,
    make,
    noise_std as noise_of,
)
from tests.helpers.oracles import delta_by_quadrature
from tests.helpers.releases import around, step


def ends_by_search(fp, n_negatives, tp, n_positives, confidence):
    """The ends from the binomial itself: each fails with half of what may fail."""
    tail = (1 - confidence) / 2
    low, high = 0.0, 1.0
    if tp:
        low = brentq(
            lambda p: binom.sf(tp - 1, n_positives, p) - tail, 0, 1, xtol=1e-13
        )
    if fp < n_negatives:
        high = brentq(lambda p: binom.cdf(fp, n_negatives, p) - tail, 0, 1, xtol=1e-13)
    return low, high


COUNTS = [
    (3, 100, 60, 90, 0.95),
    (0, 30, 30, 30, 0.99),
    (50, 60, 80, 80, 0.9),  # the other direction is stronger
    (40, 80, 41, 80, 0.95),
    (0, 1, 1, 1, 0.95),
    (70, 70, 0, 60, 0.95),
]


@pytest.mark.parametrize("delta", [1e-3, 0.0])
@pytest.mark.parametrize("counts", COUNTS)
def test_bounds_are_the_last_ones_refuted(counts, delta):
    low, high = ends_by_search(*counts)

    def epsilon_allows(epsilon):
        """Some pair of rates that the ends allow meets both demands."""
        return all(
            positive <= math.exp(epsilon) * negative + delta
            for positive, negative in ((low, high), (1 - high, 1 - low))
        )

    def mu_allows(mu):
        return low <= norm.cdf(norm.ppf(high) + mu)

    epsilon = epsilon_lower_bound(*counts[:4], delta, counts[4])
    mu = mu_lower_bound(*counts)
    for found, allows in ((epsilon, epsilon_allows), (mu, mu_allows)):
        assert allows(found + 1e-6)
        assert found == 0.0 or not allows(found - 1e-6)
    assert (mu == 0) == (low <= high)


@pytest.mark.parametrize("n", [1, 2, 5, 6, 20, 300])
def test_the_ceiling_is_the_most_any_result_gives(n):
    c = certificate(50.0)
    u, r = torch.ones(2 * n), torch.zeros(2 * n)  # half of them is tested
    audit = two_sample_audit(c, u.double(), r.double())
    every = [(fp, n, tp, n) for fp in range(n + 1) for tp in range(n + 1)]
    if n > 20:
        every = [(fp, n, tp, n) for fp in (0, 1, 2) for tp in (n - 2, n - 1, n)]
    assert audit.ceiling == max(epsilon_lower_bound(*e, DELTA) for e in every)
    assert audit.mu_ceiling == max(mu_lower_bound(*e) for e in every)
    assert (audit.epsilon_lower, audit.mu_lower) == (audit.ceiling, audit.mu_ceiling)


@pytest.mark.parametrize(("n", "stated"), [(32, 2.1), (128, 3.5), (1000, 5.6)])
def test_ceilings_of_the_theory(n, stated):
    assert epsilon_lower_bound(0, n, n, n, DELTA) == pytest.approx(stated, abs=0.05)


@pytest.mark.parametrize("mu", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("n", [40, 400])
def test_lower_bounds_are_rarely_above_the_truth(mu, n):
    """A certificate that is exactly true raises no more often than it may."""
    c = certificate(gaussian_epsilon(mu, DELTA))
    runs, raised = 150, 0
    for seed in range(runs):
        try:
            audit = two_sample_audit(c, *worlds(mu, n, seed), confidence=0.8)
        except AuditError:
            raised += 1
        else:
            assert audit.epsilon_lower <= audit.epsilon_lower_gaussian + 1e-5
    assert raised <= binom.ppf(0.999, runs, 0.2)


def test_a_fixed_test_errs_nearly_as_often_as_it_may():
    """The bound is not idle: one-sided ends of 0.8 err in about a tenth each."""
    rng, mu, n, runs = np.random.default_rng(0), 1.0, 1000, 2000
    tp = rng.binomial(n, norm.cdf(mu / 2), runs)
    fp = rng.binomial(n, norm.cdf(-mu / 2), runs)
    above = np.mean(
        [mu_lower_bound(f, n, t, n, 0.8) > mu for f, t in zip(fp, tp, strict=True)]
    )
    assert 0.02 < above < 0.2  # both ends at once: Phi(-1.28 sqrt 2) = 0.035


@pytest.mark.parametrize(("mu", "factor"), [(0.5, 0.7), (1.0, 0.85), (3.0, 0.85)])
def test_many_draws_come_near_the_truth(mu, factor):
    c = certificate(gaussian_epsilon(mu, DELTA))
    audit = two_sample_audit(c, *worlds(mu, 10_000, 1))
    assert factor * mu < audit.mu_lower <= mu
    exact = delta_by_quadrature(audit.epsilon_lower_gaussian, audit.mu_lower)
    assert float(exact) == pytest.approx(DELTA, rel=1e-4)
    assert float(exact) >= DELTA  # rounded down
    assert 0 < audit.epsilon_lower < audit.epsilon_lower_gaussian


@pytest.mark.parametrize("orient", [1, -1])
def test_half_the_noise_is_caught(orient):
    c = certificate(8.0)
    mu = c.release_mus[0]
    for seed in range(10):
        honest, broken = worlds(mu, 1000, seed), worlds(mu, 1000, seed, std=0.5)
        two_sample_audit(c, *(orient * x for x in honest), confidence=0.999)
        with pytest.raises(AuditError, match=r"(?s)certified 1\.6.*code is wrong.*\n"):
            two_sample_audit(c, *(orient * x for x in broken), confidence=0.999)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_direction_is_found_in_many_dimensions(dtype):
    mu, p, n = 3.0, 50, 1000
    c = certificate(gaussian_epsilon(mu, DELTA))
    generator = torch.Generator().manual_seed(3)
    u, r = 1e-3 * torch.randn(2, n, p, generator=generator, dtype=dtype)
    shift = torch.randn(p, generator=generator, dtype=dtype)
    u = u + shift * (1e-3 * mu / shift.norm())
    audit = two_sample_audit(c, u + 0.1, r + 0.1)
    assert 0.75 * mu < audit.mu_lower <= mu
    assert audit.attack == "projection on the difference of the means"
    moved = torch.cat((u[: n // 2], u[n // 2 :].flip(0)))  # order within a half
    assert two_sample_audit(c, moved + 0.1, r + 0.1).mu_lower == audit.mu_lower


def test_overfitting_to_the_first_half_finds_nothing():
    """More weights than draws: all of the first half is told apart, none is proved."""
    generator = torch.Generator().manual_seed(0)
    u, r = torch.randn(2, 100, 5000, generator=generator, dtype=torch.float64)
    direction = u[:50].mean(0) - r[:50].mean(0)
    assert (u[:50] @ direction).min() > (r[:50] @ direction).max()
    assert two_sample_audit(certificate(0.1), u, r).epsilon_lower < 0.1


def test_few_draws_find_nothing_and_say_so():
    c = certificate(1.0)
    audit = two_sample_audit(c, torch.ones(2), torch.zeros(2))
    assert audit.epsilon_lower == audit.mu_lower == audit.ceiling == 0
    assert audit.epsilon_lower_gaussian == 0
    assert "so few could not have refuted" in str(audit)
    more = two_sample_audit(certificate(50.0), torch.ones(80), torch.zeros(80))
    assert "so few could not" in str(more)
    assert more.ceiling == pytest.approx(2.337, abs=0.01)
    many = two_sample_audit(c, *worlds(0.0, 400, 0))
    assert "so few could" not in str(many)


@pytest.mark.parametrize("equal", [0.0, 7.0])
def test_models_that_are_all_the_same_are_not_told_apart(equal):
    x = torch.full((50,), equal)
    assert two_sample_audit(certificate(1.0), x, x).epsilon_lower == 0
    rows = x[:, None].expand(50, 3)
    assert two_sample_audit(certificate(1.0), rows, rows).mu_lower == 0


def test_grade_none_is_reported_without_comparing():
    c = none_certificate()
    u, r = torch.ones(500), torch.zeros(500)
    with pytest.raises(ArgumentError, match="expected delta= for a certificate of"):
        two_sample_audit(c, u, r)
    audit = two_sample_audit(c, u, r, delta=1e-6)
    assert audit.epsilon_lower > 4
    assert audit.epsilon_certified is audit.mu_certified is None
    assert "certified (grade none): nothing" in str(audit)


def test_grade_vacuous_is_compared():
    sensitivity = 40.0
    noise_std = noise_of(1.0, DELTA, sensitivity)
    c = make(
        constants=BALL,
        bound=claims.Bound.NORM_BALL,
        grade=Grade.VACUOUS,
        sensitivity=sensitivity,
        noise_std=noise_std,
        release_mus=(sensitivity / noise_std,),
    )
    assert two_sample_audit(c, *worlds(0.1, 500, 0)).grade is Grade.VACUOUS
    with pytest.raises(AuditError, match=r"\(grade vacuous\): epsilon = 1\n"):
        two_sample_audit(c, *worlds(3.0, 500, 0))


def test_one_of_many_releases_is_held_to_its_own_share():
    terms = Terms(epsilon=8.0, delta=DELTA, releases=16)
    weights = torch.zeros(5, dtype=torch.float64)
    _, c = release(step(weights=weights), terms, around(n_parameters=5))
    audit = two_sample_audit(c, *worlds(0.0, 100, 0))
    assert audit.mu_certified == pytest.approx(gaussian_mu(8.0, DELTA) / 4)
    assert audit.epsilon_certified < 2
    with pytest.raises(AuditError):  # would be within the whole budget
        two_sample_audit(c, *worlds(gaussian_mu(8.0, DELTA), 1000, 0))


@pytest.mark.parametrize("epsilon", [1.0, 8.0])
def test_words_never_show_an_epsilon_alone(epsilon):
    audit = two_sample_audit(certificate(epsilon), *worlds(0.1, 300, 0))
    text = str(audit)
    assert "a failed audit proves nothing" in text
    told = [line for line in text.splitlines() if "epsilon" in line]
    assert len(told) == 2
    for line in told:
        assert "lower bound" in line
        assert "(grade certified)" in line


X1 = torch.zeros(4)


@pytest.mark.parametrize(
    ("unlearned", "retrained", "message"),
    [
        (X1, None, "expected retrained, of a model retrained without"),
        (X1, X1.clone().fill_(torch.nan), "retrained to be finite, got 4 of 4"),
        (X1.clone().fill_(torch.inf), X1, "unlearned to be finite"),
        (X1, X1[:1], r"at least 2 retrained models.*got shape \(1,\)"),
        (X1[:0], X1, "at least 2 unlearned models"),
        (X1.view(2, 2), X1, r"retrained with 2 dimension\(s\), got shape \(4,\)"),
        (X1, X1.view(2, 2), r"retrained with 1 dimension\(s\)"),
        (X1.view(2, 2), X1.view(4, 1), r"as many columns.*\(2, 2\).*\(4, 1\)"),
        (torch.zeros(2, 0), torch.zeros(2, 0), r"got shape \(2, 0\)"),
        (X1.int(), X1, "floating tensor, got torch.int32"),
        (X1.view(1, 2, 2), X1, r"unlearned with 1 dimension"),
        (
            torch.full((4, 2), 1e308, dtype=torch.float64),
            torch.full((4, 2), -1e308, dtype=torch.float64),
            "projections of unlearned to be finite",
        ),
    ],
)
def test_what_are_no_two_worlds_is_refused(unlearned, retrained, message):
    with pytest.raises(ArgumentError, match=message):
        two_sample_audit(certificate(1.0), unlearned, retrained)


def test_other_arguments_are_checked():
    c = certificate(1.0)
    for confidence in (0.0, 1.0, math.nan):
        with pytest.raises(ArgumentError, match="confidence strictly between"):
            two_sample_audit(c, X1, X1, confidence)
        with pytest.raises(ArgumentError, match="confidence strictly between"):
            mu_lower_bound(0, 1, 1, 1, confidence)
    for delta in (0.0, math.nan):
        with pytest.raises(ArgumentError, match="delta strictly between"):
            two_sample_audit(c, X1, X1, delta=delta)
    for delta in (1.0, -1e-9, math.nan):
        with pytest.raises(ArgumentError, match="delta to be 0 or strictly between"):
            epsilon_lower_bound(0, 1, 1, 1, delta)
    with pytest.raises(ArgumentError, match="successes <= trials, got 3 of 2"):
        epsilon_lower_bound(0, 2, 3, 2, DELTA)
    with pytest.raises(CertificateError, match="states noise_std"):
        two_sample_audit(dataclasses.replace(c, noise_std=1.0), X1, X1)
    with pytest.raises(CertificateError, match="states noise_std"):
        white_box_mu(dataclasses.replace(c, noise_std=1.0), X1, X1)


def test_conditional_is_compared_too():
    c = certificate(
        1.0, grade=Grade.CONDITIONAL, constants=convex_constants(origin=Origin.ASSUMED)
    )
    with pytest.raises(AuditError, match=r"\(grade conditional\)"):
        two_sample_audit(c, *worlds(3.0, 500, 0))
