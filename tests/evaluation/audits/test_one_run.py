"""The audit of a set in one run: exact tails, known mechanisms, a planted fraud."""

import math
from fractions import Fraction
from statistics import NormalDist

import numpy as np
import pytest
import torch
from mpmath import mp
from scipy.stats import binom

from lightning_unlearn.errors import ArgumentError, AuditError, CertificateError
from lightning_unlearn.evaluation import one_run_audit
from lightning_unlearn.guarantee.claims import Grade, Terms
from lightning_unlearn.guarantee.gaussian import gaussian_epsilon, gaussian_mu
from lightning_unlearn.step.head.minimise import minimise
from lightning_unlearn.step.release import release
from tests.evaluation.helpers import planted
from tests.evaluation.helpers.planted import EPSILON, SHARE, TOLERANCE, R
from tests.evaluation.helpers.worlds import DELTA, certificate, none_certificate
from tests.helpers.releases import around


def coins_of(rng, *shape):
    return torch.tensor(rng.random(shape) < 0.5)


def of_right(right, r):
    """Coins and scores of which just so many are guessed right."""
    included = torch.arange(r) >= r - r // 2
    scores = torch.arange(r).double()
    wrong = (r - right) // 2  # a wrong score in each half
    low, high = torch.arange(wrong), r - 1 - torch.arange(wrong)
    scores[low], scores[high] = scores[high].clone(), scores[low].clone()
    return included, scores


def huge(r):
    return certificate(4000.0, n_forget=r)


@pytest.mark.parametrize(
    ("right", "r"), [(140, 200), (200, 200), (30, 40), (3000, 4000)]
)
def test_bounds_are_those_of_the_exact_tail(right, r):
    tail = Fraction(sum(math.comb(r, v) for v in range(right, r + 1)), 2**r)
    audit = one_run_audit(huge(r), *of_right(right, r))
    with mp.workdps(50):
        exact = mp.mpf(tail.numerator) / tail.denominator
        epsilon = mp.log((mp.mpf("0.05") - mp.mpf(DELTA)) / exact)

        def upper_tail(z):
            return mp.erfc(z / mp.sqrt(2)) / 2

        guess = mp.sqrt(max(-2 * mp.log(exact), 1)) * 0.97
        z = mp.findroot(lambda z: mp.log(upper_tail(z)) - mp.log(exact), guess)
        lowered = mp.findroot(lambda z: upper_tail(z) - mp.mpf("0.05"), 1.6)
    assert audit.epsilon_lower == pytest.approx(float(epsilon), rel=1e-9)
    assert audit.mu_lower == pytest.approx(float(z - lowered), rel=1e-9)
    assert f"{right:,} of {r:,} guesses right" in str(audit)


def test_the_number_of_the_theory_and_the_ceiling():
    audit = one_run_audit(huge(200), *of_right(140, 200))
    assert audit.epsilon_lower == pytest.approx(15.7, abs=0.05)
    best = one_run_audit(huge(200), *of_right(200, 200))
    assert best.epsilon_lower == best.ceiling == audit.ceiling
    assert best.mu_lower == best.mu_ceiling == audit.mu_ceiling
    assert audit.ceiling == pytest.approx(math.log(0.05 - DELTA) + 200 * math.log(2))
    nothing = one_run_audit(huge(200), *of_right(100, 200))
    assert nothing.epsilon_lower == nothing.mu_lower == 0


def gaussian_runs(mu, r, runs, rng):
    """Released weights whose joint shift, over r canaries, is exactly mu at worst."""
    coins = coins_of(rng, runs, r)
    noise = torch.tensor(rng.normal(size=(runs, r)))
    return coins, coins * (mu / r**0.5) + noise


@pytest.mark.parametrize("mu", [0.5, 2.0, 6.0])
@pytest.mark.parametrize("runs", [1, 5])
def test_lower_bounds_are_rarely_above_the_truth(mu, runs):
    rng, tried, raised = np.random.default_rng(1), 200, 0
    c = certificate(gaussian_epsilon(mu, DELTA), n_forget=200)
    for _ in range(tried):
        coins, scores = gaussian_runs(mu, 200, runs, rng)
        try:
            one_run_audit([c] * runs, coins, scores, confidence=0.8)
        except AuditError:
            raised += 1
    assert raised <= binom.ppf(0.999, tried, 0.2)


def test_the_bound_is_tight():
    """A mu-GDP mechanism may be right about every coin with this probability."""
    r, mu, normal = 7, 1.0, NormalDist()
    c = certificate(gaussian_epsilon(mu, DELTA), n_forget=r)
    all_right = normal.cdf(normal.inv_cdf(0.5**r) + mu)
    included = torch.arange(r) >= 3
    scores = torch.arange(r).double()
    just_below = one_run_audit(c, included, scores, 1 - all_right * 0.9999)
    assert mu * 0.999 < just_below.mu_lower <= mu
    with pytest.raises(AuditError, match="above what is certified"):
        one_run_audit(c, included, scores, 1 - all_right * 1.0001)


def test_under_chance_a_guess_is_right_half_of_the_time():
    rng, r, tried = np.random.default_rng(2), 20, 4000
    scores = torch.tensor(rng.normal(size=r))  # one release, many coins
    c = none_certificate()
    tails = []
    for _ in range(tried):
        audit = one_run_audit(c, coins_of(rng, r), scores, 0.9, guesses=11, delta=1e-9)
        tails.append(audit.epsilon_lower > 0)
    expected = binom.sf(8, 11, 0.5)  # 9 of 11: 0.033; 8 of 11 is above 0.1
    assert abs(np.mean(tails) - expected) < 4 * (expected / tried) ** 0.5


def test_many_runs_come_near_the_truth():
    rng, mu, r = np.random.default_rng(3), 3.0, 200
    c = certificate(gaussian_epsilon(mu, DELTA), n_forget=r)
    coins, scores = gaussian_runs(mu, r, 400, rng)
    many = one_run_audit([c] * 400, coins, scores)
    # Counting guesses keeps sqrt(2/pi) of a shift that is spread evenly, and half of
    # the canaries are in: mu sqrt(2/pi) / 2, less what 1.96 / sqrt(400) takes.
    assert many.mu_lower == pytest.approx(mu * (2 / math.pi) ** 0.5 / 2 - 0.1, abs=0.12)
    assert many.n == 400 * 200
    assert "200 canaries in 400 runs" in str(many)
    one = one_run_audit(c, coins[0], scores[0])
    same = one_run_audit([c], coins[:1], scores[:1])
    assert one == same
    assert many.mu_lower > one.mu_lower


def test_the_surest_guesses_find_more_where_few_canaries_show():
    rng, r = np.random.default_rng(4), 1000
    coins = coins_of(rng, r)
    shown = torch.arange(r) < 100
    scores = torch.tensor(rng.normal(size=r)) + 4 * shown * (2.0 * coins - 1)
    some = one_run_audit(huge(r), coins, scores, guesses=90)
    every = one_run_audit(huge(r), coins, scores)
    assert some.mu_lower > every.mu_lower + 1
    assert "of 90 guesses right, 1,000 canaries" in str(some)


@pytest.fixture(scope="module")
def canaries():
    return planted.samples()


def request(canaries, coins, generator, share_of_noise):
    """Train with the canaries that are in, forget them; the noise may be a fraud."""
    trained = planted.minimiser(canaries, coins)
    left = planted.objective(canaries, torch.zeros(R, dtype=torch.bool))
    step = minimise(left, trained, tolerance=TOLERANCE)
    _, c = release(
        step,
        Terms(epsilon=EPSILON, delta=DELTA),
        around(n_forget=int(coins.sum()), n_retain=left.n, n_parameters=len(trained)),
    )
    noise = torch.randn(len(trained), generator=generator, dtype=torch.float64)
    return step.weights + share_of_noise * c.noise_std * noise, c


def caught(canaries, seed, share_of_noise):
    generator = torch.Generator().manual_seed(seed)
    coins = torch.rand(R, generator=generator) < 0.5
    released, c = request(canaries, coins, generator, share_of_noise)
    assert c.grade is Grade.CERTIFIED
    assert c.epsilon == EPSILON
    try:
        one_run_audit(c, coins, released[64 : 64 + R])
    except AuditError as error:
        return "(grade certified): epsilon = 8" in str(error)
    return False


def test_a_thirtieth_of_the_noise_is_caught_and_the_whole_never_is(canaries):
    assert sum(caught(canaries, seed, SHARE) for seed in range(10)) >= 9
    assert not any(caught(canaries, 100 + seed, 1.0) for seed in range(20))


IN = torch.tensor([True, False] * 10)
S = torch.arange(20.0)


@pytest.mark.parametrize(
    ("included", "scores", "options", "message"),
    [
        (IN.int(), S, {}, "included as booleans.*got torch.int32"),
        (None, S, {}, "included as booleans"),
        (IN, S[:5], {}, r"score for each canary.*\(5,\) and included of \(20,\)"),
        (IN[:0], S[:0], {}, r"got scores of shape \(0,\)"),
        (IN, S * torch.nan, {}, "scores to be finite, got 20 of 20"),
        (IN, S.int(), {}, "scores to be a floating tensor"),
        (IN, S, {"guesses": 21}, "guesses of at most 20 canaries, got 21"),
        (IN, S, {"guesses": 0}, "guesses"),
        (IN, S, {"confidence": math.nan}, "confidence strictly between"),
        (IN, S, {"delta": 0.0}, "delta strictly between"),
    ],
)
def test_what_is_no_run_is_refused(included, scores, options, message):
    with pytest.raises(ArgumentError, match=message):
        one_run_audit(certificate(1.0), included, scores, **options)


def test_certificates_of_other_requests_are_refused():
    c = certificate(1.0, n_forget=9)
    with pytest.raises(ArgumentError, match="forgot all 10 canaries.*of 9 forgotten"):
        one_run_audit(c, IN, S)
    with pytest.raises(ArgumentError, match="a certificate for each of 1 runs, got 2"):
        one_run_audit([c, c], IN, S)
    with pytest.raises(ArgumentError, match="expected delta= for a certificate of"):
        one_run_audit(none_certificate(), IN, S)
    wrong = certificate(1.0, noise_std=1.0)
    with pytest.raises(CertificateError, match="states noise_std"):
        one_run_audit(wrong, IN, S)


def test_runs_are_held_to_the_largest_claim_among_them():
    certificates = [certificate(e, n_forget=20) for e in (1.0, 8.0, 2.0)]
    coins, scores = IN.expand(3, 20), torch.zeros(3, 20)
    audit = one_run_audit(certificates, coins, scores)
    assert audit.mu_certified == pytest.approx(gaussian_mu(8.0, DELTA))
    nothing = one_run_audit([*certificates[:2], none_certificate()], coins, scores,
                            delta=1e-6)  # fmt: skip
    assert nothing.epsilon_certified is None
