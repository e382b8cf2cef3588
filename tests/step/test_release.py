import json
import math

import pytest
import torch

from lightning_unlearn.certificate.certificate import Certificate
from lightning_unlearn.errors import (
    ArgumentError,
    CertificateError,
    GuaranteeError,
)
from lightning_unlearn.guarantee.claims import Bound, Grade, Terms
from lightning_unlearn.guarantee.constants import Origin
from lightning_unlearn.guarantee.gaussian import gaussian_delta
from lightning_unlearn.step.release import release
from tests.helpers.certificates import BALL, constant, convex_constants, part
from tests.helpers.releases import P, around, step

TERMS = Terms(epsilon=1.0, delta=1e-5)


def test_certified_noise_has_the_size_the_theorem_asks_for():
    released, certificate = release(step(), TERMS, around())
    assert certificate.grade is Grade.CERTIFIED
    assert certificate.sensitivity == pytest.approx(2e-3)
    assert gaussian_delta(1.0, 2e-3 / certificate.noise_std) <= 1e-5
    assert float(released.std()) == pytest.approx(certificate.noise_std, rel=0.1)
    assert Certificate.from_json(certificate.to_json()) == certificate


def test_announced_releases_scale_the_noise_and_compose_back():
    one = release(step(), TERMS, around())[1]
    terms = Terms(epsilon=1.0, delta=1e-5, releases=9)
    ten = release(step(), terms, around())[1]
    assert ten.noise_std == pytest.approx(3 * one.noise_std)
    last = release(step(), terms, around(release=9, earlier_mus=ten.release_mus * 8))[1]
    assert last.composed_epsilon == pytest.approx(1.0, rel=1e-6)
    third = release(step(), TERMS, around(release=3, earlier_mus=one.release_mus * 2))
    assert third[1].composed_epsilon > 1.5


def test_an_unguaranteed_release_before_leaves_no_composed_epsilon():
    certificate = release(step(), TERMS, around(release=2))[1]
    assert certificate.epsilon == 1.0
    assert certificate.composed_epsilon is None
    assert "had no guarantee, so all together have none" in str(certificate)


@pytest.mark.parametrize(
    ("terms", "changes"),
    [
        (Terms(epsilon=1.0, delta=1e-5, noise_std=0.0), {}),
        (Terms(epsilon=1.0, delta=1e-5, noise_std=1.0), {}),
        (Terms(epsilon=1.0, delta=1e-5, seeded=True), {"noise_seed": 3}),
        (TERMS, {"unscrubbed": ("bn.running_mean",)}),
    ],
)
def test_grade_none_has_no_epsilon_anywhere(terms, changes):
    certificate = release(step(), terms, around(**changes))[1]
    assert certificate.grade is Grade.NONE
    assert certificate.epsilon is certificate.delta is None
    assert certificate.composed_epsilon is None
    assert certificate.release_mus == ()
    assert "epsilon" not in str(certificate)


@pytest.mark.parametrize(("seeded", "seed"), [(True, None), (False, 3)])
def test_terms_that_do_not_say_how_the_noise_is_drawn_are_refused(seeded, seed):
    terms = Terms(epsilon=1.0, delta=1e-5, seeded=seeded)
    with pytest.raises(ArgumentError, match="whether the noise is seeded"):
        release(step(), terms, around(noise_seed=seed))


def test_a_certificate_that_nobody_could_read_again_is_not_written():
    with pytest.raises(CertificateError, match="warnings"):
        release(step(), TERMS, around(warnings=("caf\udce9",)))


def test_zero_noise_is_the_step_itself():
    w = torch.arange(4, dtype=torch.float64)
    terms = Terms(epsilon=1.0, delta=1e-5, noise_std=0.0)
    assert torch.equal(release(step(weights=w), terms, around())[0], w)


def test_no_sensitivity_is_refused_with_three_ways_out():
    with pytest.raises(GuaranteeError, match="ConvexHead.*max_norm=.*noise_std="):
        release(step(bound=Bound.NO_BOUND), TERMS, around())


def test_vacuous_says_so_with_numbers_and_stays_in_the_ball():
    released, certificate = release(
        step(bound=Bound.NORM_BALL, constants=BALL), TERMS, around(max_norm=20.0)
    )
    assert certificate.grade is Grade.VACUOUS
    assert certificate.noise_std == pytest.approx(149.2, abs=0.1)  # theory.md 3
    assert float(released.norm()) <= 20 * (1 + 1e-12)
    ratio = 149.2 * math.sqrt(P) / 20
    assert f"noise is {ratio:,.0f} times" in certificate.warnings[0]
    assert certificate.warnings[0].startswith("Delta/(2C) = 1")
    for line in str(certificate).splitlines():
        assert "epsilon" not in line or "vacuous" in line.lower()


def test_a_part_only_assumed_public_is_conditional():
    parts = (part("body", Origin.ASSUMED),)
    assert release(step(), TERMS, around(public_parts=parts))[1].grade is (
        Grade.CONDITIONAL
    )


def test_warnings_about_delta_and_logit_noise():
    certificate = release(step(), TERMS, around(n_retain=1000))[1]
    assert not any("delta" in w for w in certificate.warnings)
    certificate = release(step(), Terms(epsilon=1.0, delta=0.01), around())[1]
    assert any("not below 1/n_retain" in w for w in certificate.warnings)
    rows = constant(Bound.STRONGLY_CONVEX, "feature_norm", 100.0)
    loud = release(step(constants=(*convex_constants(), rows)), TERMS, around())[1]
    assert any("moves a logit by about" in w for w in loud.warnings)


def test_the_certificate_holds_nothing_measured_on_the_way():
    # The residual depends on the forgotten samples and is not covered by epsilon.
    text = release(step(), TERMS, around())[1].to_json()
    assert "0.123456" not in text
    assert "residual" not in json.loads(text)
