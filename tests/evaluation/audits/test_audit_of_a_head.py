"""Audits that know the points before noise: a real convex head."""

import dataclasses
import math

import pytest
import torch
from sklearn.datasets import load_digits

from lightning_unlearn.errors import ArgumentError, AuditError
from lightning_unlearn.evaluation import two_sample_audit, white_box_mu
from lightning_unlearn.guarantee.claims import Grade, NoiseSource, Terms
from lightning_unlearn.guarantee.gaussian import gaussian_epsilon
from lightning_unlearn.step.head.convex_head import ConvexHead
from lightning_unlearn.step.head.convex_objective import ConvexObjective
from lightning_unlearn.step.head.minimise import minimise
from lightning_unlearn.step.head.rows.feature_data import FeatureData
from lightning_unlearn.step.noise import gaussian_noise
from lightning_unlearn.step.release import release
from tests.evaluation.helpers.worlds import DELTA, certificate, none_certificate
from tests.helpers.certificates import noise_std as noise_of, rewarned
from tests.helpers.oracles import retrain_softmax_head
from tests.helpers.releases import around


def test_white_box_is_the_distance_over_the_noise():
    c = dataclasses.replace(certificate(1.0), n_parameters=2)
    origin = torch.zeros(2, dtype=torch.float64)
    at = torch.tensor([3e-4, 4e-4], dtype=torch.float64)
    found = white_box_mu(c, origin, at)
    assert found.mu_true == pytest.approx(5e-4 / c.noise_std)
    assert found.mu_certified == c.release_mus[0]
    assert found.ratio == pytest.approx(0.25)  # Delta = 2e-3
    assert white_box_mu(c, origin, 4 * at).ratio == pytest.approx(1)
    assert white_box_mu(c, at, at).mu_true == 0
    with pytest.raises(AuditError, match=r"\(grade certified\), got 0\.2.*code is wr"):
        white_box_mu(c, origin, at * 4.001)
    far = torch.full((2,), 1e9, dtype=torch.float64)
    there = torch.nextafter(far + 2e-3 / 2**0.5, 2 * far)  # what float64 does to 1e9
    assert 1 + 1e-6 < white_box_mu(c, far, there).ratio < 1 + 1e-3


def test_white_box_of_grade_none_compares_with_nothing():
    c = dataclasses.replace(none_certificate(), n_parameters=1)
    one = torch.ones(1, dtype=torch.float64)
    found = white_box_mu(c, one, 0 * one)
    assert found == (pytest.approx(10), None, None)
    bare = dataclasses.replace(c, noise_std=0.0, noise_source=NoiseSource.NO_NOISE)
    assert white_box_mu(bare, one, 0 * one).mu_true == math.inf
    assert white_box_mu(bare, one, one).mu_true == 0


@pytest.mark.parametrize(
    ("w", "message"),
    [
        (None, "expected w_retrained, of a model retrained without"),
        (torch.zeros(2), "in float64.*got torch.float32"),
        (torch.zeros(3, dtype=torch.float64), r"the 2 weights.*of shape \(3,\)"),
        (torch.full((2,), torch.nan, dtype=torch.float64), "w_retrained to be finite"),
    ],
)
def test_what_are_no_points_before_noise_is_refused(w, message):
    c = dataclasses.replace(certificate(1.0), n_parameters=2)
    with pytest.raises(ArgumentError, match=message):
        white_box_mu(c, torch.zeros(2, dtype=torch.float64), w)


L2, TAU, EPSILON = 1e-2, 1e-3, 8.0


@pytest.fixture(scope="module")
def head():
    """A request whose two worlds end as far apart as is proved they may.

    Adding one vector to every class's weights changes no probability, so along it F is
    the regulariser alone: starts near the minimiser, on either side, are proved to be
    near enough without a step.
    """
    found = load_digits()
    X, y = found.data[200:] / 16, found.target[200:]  # 200 are forgotten
    exact = torch.tensor(retrain_softmax_head(X, y, 10, L2, gtol=1e-12))
    data = FeatureData(torch.tensor(X), torch.tensor(y))
    objective = ConvexObjective(ConvexHead(64, 10), data, L2)
    flat = torch.zeros(650, dtype=torch.float64)
    flat[640:] = 1 / 10**0.5
    offset = 0.99 * TAU / L2 * flat
    steps = [minimise(objective, exact + s * offset, tolerance=TAU) for s in (1, -1)]
    terms = Terms(epsilon=EPSILON, delta=DELTA)
    released, c = release(
        steps[0], terms, around(n_forget=200, n_retain=len(X), n_parameters=650)
    )
    assert c.grade is Grade.CERTIFIED
    return objective, exact, steps[0].weights, steps[1].weights, released, c


def draws(w, std, n, seed):
    generator = torch.Generator().manual_seed(seed)
    return w + gaussian_noise(n * len(w), std, generator).view(n, len(w))


def test_white_box_of_a_head_is_below_and_attains_what_is_certified(head):
    objective, exact, u, r, released, c = head
    worst = white_box_mu(c, u, r)
    assert 0.98 < worst.ratio <= 1
    assert white_box_mu(c, u, exact).ratio == pytest.approx(worst.ratio / 2, rel=1e-3)
    cold = minimise(objective, torch.zeros_like(u), tolerance=TAU).weights
    assert 0 < white_box_mu(c, u, cold).ratio < 1
    trained = minimise(objective, 3 * torch.sin(torch.arange(650.0)).double(),
                       tolerance=TAU).weights  # fmt: skip
    assert white_box_mu(c, trained, cold).ratio < 1
    with pytest.raises(AuditError, match="the two ends of the same request"):
        white_box_mu(c, torch.zeros_like(u), exact)  # no solve at all


def test_two_sample_of_a_head_passes_and_a_tampered_certificate_is_caught(head):
    *_, u, r, released, c = head
    many = draws(u, c.noise_std, 1500, 0), draws(r, c.noise_std, 1500, 1)
    many[0][0] = released  # what was released is one of them
    audit = two_sample_audit(c, *many)
    assert 0.5 * c.release_mus[0] < audit.mu_lower <= c.release_mus[0]
    assert audit.epsilon_certified == pytest.approx(EPSILON)
    known = two_sample_audit(c, *(x @ (u - r) for x in many))
    assert audit.mu_lower < known.mu_lower <= c.release_mus[0]

    sensitivity = c.sensitivity
    noise_std = noise_of(EPSILON / 10, DELTA, sensitivity)
    mu = sensitivity / noise_std
    tampered = dataclasses.replace(
        c,
        epsilon=EPSILON / 10,
        noise_std=noise_std,
        release_mus=(mu,),
        composed_epsilon=gaussian_epsilon(mu, DELTA),
    )
    tampered = rewarned(tampered)
    tampered.verify()
    with pytest.raises(AuditError, match=r"\(grade certified\): epsilon = 0\.8"):
        two_sample_audit(tampered, *many, confidence=0.9999)


def test_a_tenth_of_the_noise_is_caught_and_the_whole_never_is(head):
    *_, u, r, released, c = head
    n, caught = 100, 0
    for seed in range(20):
        honest = [
            draws(w, c.noise_std, n, 100 * seed + i) for i, w in enumerate((u, r))
        ]
        two_sample_audit(c, *honest)
    for seed in range(10):
        fraud = [
            draws(w, c.noise_std / 10, n, seed + 50 * i) for i, w in enumerate((u, r))
        ]
        try:
            two_sample_audit(c, *fraud)
        except AuditError:
            caught += 1
    assert caught >= 9


def test_constants_that_are_false_are_caught_by_the_white_box(head):
    """A tolerance that was not reached, in a certificate that verifies."""
    *_, u, r, released, c = head
    constants = tuple(
        dataclasses.replace(k, value=TAU / 2) if k.name == "tolerance" else k
        for k in c.constants
    )
    false = dataclasses.replace(
        c, constants=constants, sensitivity=c.sensitivity / 2, noise_std=c.noise_std / 2
    )
    false = rewarned(false)
    false.verify()
    with pytest.raises(AuditError, match="expected mu of at most"):
        white_box_mu(false, u, r)
