"""A certificate of a private training: its words, and that no number can be changed."""

import dataclasses

import pytest

from lightning_unlearn.certificate.certificate import Certificate
from lightning_unlearn.certificate.report.explained import explained
from lightning_unlearn.certificate.report.words import attacks, method
from lightning_unlearn.certificate.words import theorems
from lightning_unlearn.errors import CertificateError
from lightning_unlearn.guarantee.accounting.private_training import Mechanism, privacy
from lightning_unlearn.guarantee.claims import Bound, Grade, NoiseSource, Terms
from lightning_unlearn.guarantee.constants import Origin
from lightning_unlearn.step.release import release
from tests.helpers.releases import around, step

pytest.importorskip("dp_accounting")
DELTA, STEPS = 1e-5, 240


def issued(k=5, epsilon=None, terms=None, **changes):
    found = privacy(Mechanism(8.0, 0.08, STEPS), k, DELTA)
    claim = theorems.private_claim(
        {"clip": 1.0, "noise_multiplier": 8.0, "sampling_rate": 0.08,
         "steps": float(STEPS), "forgotten": float(k), "most_found": found.most_found}
    )  # fmt: skip
    made = step(Bound.PRIVATE_TRAINING, claim.constants)
    terms = terms or Terms(epsilon=epsilon or found.epsilon, delta=DELTA)
    released, certificate = release(made, terms, around(**changes))
    assert (released == made.weights).all()
    return certificate


def with_constant(c, name, **changes):
    constants = tuple(
        dataclasses.replace(k, **changes) if k.name == name else k for k in c.constants
    )
    return dataclasses.replace(c, constants=constants)


def test_it_is_certified_without_any_noise_of_its_own():
    c = issued()
    assert (c.grade, c.sensitivity, c.noise_std) == (Grade.CERTIFIED, None, 0.0)
    assert c.noise_source is NoiseSource.OS_ENTROPY
    assert (c.group, c.release_mus, c.composed_epsilon) == (5, (), None)
    assert Certificate.from_json(c.to_json()) == c
    text = str(c)
    assert (
        "CERTIFIED: this model and all others of its private training are hard to tell "
        "from those of a training without these 5 samples (a test with 1% false alarms "
        "finds at most"
    ) in " ".join(text.split())
    assert "this request adds none" in text
    assert "models released before this request" not in text
    assert "epsilon is that of all 5 forgotten so far, together" in text


def test_those_forgotten_before_count():
    c = issued(k=9)
    assert "these 5 samples and the 4 forgotten before" in " ".join(str(c).split())
    with pytest.raises(CertificateError, match="forgotten to count the 5 samples"):
        issued(k=3)


@pytest.mark.parametrize("name", ["noise_multiplier", "sampling_rate", "most_found"])
def test_no_number_can_be_changed(name):
    c = issued()
    value = next(k.value for k in c.constants if k.name == name)
    for factor in (0.99, 1.01):
        with pytest.raises(CertificateError, match="its constants give"):
            with_constant(c, name, value=value * factor).verify()


def test_nor_a_count_nor_epsilon_nor_delta():
    c = issued()
    for name, value in (("steps", STEPS - 1.0), ("forgotten", 6.0)):
        with pytest.raises(CertificateError, match="its constants give"):
            with_constant(c, name, value=value).verify()
    with pytest.raises(CertificateError, match="whole steps"):
        with_constant(c, "steps", value=STEPS + 0.5).verify()
    with pytest.raises(CertificateError, match="clip"):
        with_constant(c, "clip", value=0.0).verify()
    for changes in ({"epsilon": c.epsilon * 0.99}, {"delta": 2e-5}):
        with pytest.raises(CertificateError, match="its constants give"):
            dataclasses.replace(c, **changes).verify()
    with pytest.raises(CertificateError, match="cannot be assumed"):
        with_constant(c, "steps", origin=Origin.ASSUMED).verify()
    with pytest.raises(CertificateError, match="states noise_std"):
        dataclasses.replace(c, noise_std=1.0).verify()
    with pytest.raises(CertificateError, match="nothing rebuilt"):
        dataclasses.replace(c, rebuilt=("bn.running_mean",)).verify()


def test_too_many_are_worth_nothing():
    c = issued(k=30)
    assert c.grade is Grade.VACUOUS
    assert "too many samples of one private training were forgotten" in c.warnings[0]
    assert issued(n_retain=200_000).grade is Grade.VACUOUS  # delta >= 1/n


@pytest.mark.parametrize("lost", ["unscrubbed", "seeded", "by hand"])
def test_what_was_left_or_can_be_drawn_again_claims_nothing(lost):
    terms, changes = Terms(epsilon=1.0, delta=DELTA), {}
    if lost == "unscrubbed":
        changes = {"unscrubbed": ("running_mean",)}
    elif lost == "seeded":
        terms, changes = dataclasses.replace(terms, seeded=True), {"noise_seed": 0}
    else:
        terms = dataclasses.replace(terms, noise_std=0.0)
    c = issued(terms=terms, **changes)
    assert (c.grade, c.epsilon, c.group) == (Grade.NONE, None, None)


def test_the_report_says_that_nothing_was_changed():
    c = issued()
    assert "This request changed no weight" in method(c)
    assert "served before" in explained(c).tell or "of 100" in explained(c).tell
    assert "who holds all models of this training" in attacks(c)[0]
