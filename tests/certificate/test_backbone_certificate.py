"""A certificate of a head and its privately trained backbone: its words, its report."""

import dataclasses

import pytest

from lightning_unlearn.certificate.certificate import Certificate
from lightning_unlearn.certificate.fields import PublicPart, entries_digest
from lightning_unlearn.certificate.report.explained import explained
from lightning_unlearn.certificate.report.page import render
from lightning_unlearn.certificate.report.words import attacks, method, sentence
from lightning_unlearn.certificate.words import theorems
from lightning_unlearn.certificate.words.backbone_words import COVERED, NOTE
from lightning_unlearn.errors import CertificateError
from lightning_unlearn.guarantee.accounting.private_training import Mechanism, privacy
from lightning_unlearn.guarantee.claims import Bound, Grade, Terms
from lightning_unlearn.guarantee.constants import Origin
from lightning_unlearn.guarantee.gaussian import gaussian_mu
from lightning_unlearn.guarantee.tolerance import Tolerance
from lightning_unlearn.step.release import release
from tests.helpers.releases import around, step

pytest.importorskip("dp_accounting")
DELTA, OWN = 1e-5, 0.1
TRAINING = Mechanism(2.0, 1000 / 60000, 900)


def part(name, note):
    entries = ((f"{name}.weight", "a" * 64),)
    return PublicPart(
        name=name, digest=entries_digest(entries), origin=Origin.ENFORCED,
        note=note, entries=entries,
    )  # fmt: skip


BACKBONE = part("backbone", f"{NOTE}CNN read at its end")


def issued(forgotten=5, parts=(BACKBONE,), **changes):
    mu = gaussian_mu(OWN, DELTA)
    found = privacy(TRAINING, forgotten, DELTA, mu)
    values = {
        "clip": 1.0, "noise_multiplier": 2.0, "sampling_rate": 1000 / 60000,
        "steps": 900.0, "forgotten": float(forgotten), "head_epsilon": OWN,
        "most_found": found.most_found,
    }  # fmt: skip
    claim = theorems.strongly_convex_claim(
        Tolerance(1e-6), 1e-2, values, Bound.PRIVATE_BACKBONE
    )
    where = around(public_parts=parts, n_forget=forgotten, n_retain=995, **changes)
    terms = Terms(epsilon=found.epsilon, delta=DELTA)
    return release(step(claim.bound, claim.constants), terms, where)[1]


def test_both_are_named_and_neither_is_a_premise():
    c = issued()
    assert c.sensitivity == pytest.approx(2 * 1e-6 / 1e-2)
    assert c.sensitivity / c.noise_std == pytest.approx(gaussian_mu(OWN, DELTA), 1e-6)
    assert c.epsilon > privacy(TRAINING, 5, DELTA).epsilon
    assert Certificate.from_json(c.to_json()) == c
    text = " ".join(str(c).split())
    assert (
        "CERTIFIED: this head and its privately trained backbone are hard to tell from "
        "those of a training without these 5 samples"
    ) in text
    assert "what the backbone's training and its features use besides the samples" in (
        text
    )
    assert "epsilon is that of the backbone and this head together" in text
    assert f"backbone sha256 {BACKBONE.digest[:8]} {COVERED}" in text
    assert "not derived from private data), but for backbone" in text
    assert "made of several samples of the backbone's training" in text


def test_other_parts_stay_a_premise():
    text = " ".join(str(issued(parts=(BACKBONE, part("scaler", "")))).split())
    assert "besides the samples, scaler as public" in text


def test_the_report_says_the_same():
    c = issued(1)
    page = render(c.to_json())
    for text in (COVERED, "privately trained backbone", "Parts left as they were"):
        assert text in page
    assert "Taken as public: parts" not in page
    assert "if neither had been trained on the samples" in explained(c).means
    assert "network that was trained privately" in method(c)
    (told,) = attacks(c)
    assert "holds the backbone and this head" in told
    assert "box 2 lists" not in sentence(c)
    assert "box 2 lists" in sentence(issued(1, (BACKBONE, part("scaler", ""))))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"public_parts": ()}, "one part .* trained privately, got none"),
        (
            {"public_parts": (BACKBONE, part("other", NOTE))},
            "one part .* trained privately, got backbone, other",
        ),
        ({"epsilon": 0.5}, "states epsilon=0.5, its constants give"),
        ({"delta": 1e-4}, "noise_std|epsilon"),
        ({"n_forget": 6}, "forgotten to count the 6 samples"),
        ({"bound": Bound.STRONGLY_CONVEX}, "states noise_std"),
        ({"grade": Grade.NONE}, "grade"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_anything_changed_is_refused(change, match):
    with pytest.raises(CertificateError, match=match):
        dataclasses.replace(issued(), **change).verify()


def test_what_was_changed_besides_leaves_no_grade():
    c = issued(1, unscrubbed=("scaler",))
    assert (c.grade, c.epsilon) == (Grade.NONE, None)
    c.verify()


def test_two_that_were_trained_privately_are_not_taken_for_one():
    with pytest.raises(CertificateError, match="got backbone, other"):
        issued(parts=(BACKBONE, part("other", NOTE)))


def test_people_are_not_samples():
    c = issued()
    reason = theorems.REASONS[Bound.PRIVATE_TRAINING]["clip"][-1][1]
    constants = tuple(
        dataclasses.replace(k, reason=reason) if k.name == "clip" else k
        for k in c.constants
    )
    with pytest.raises(CertificateError, match="clip"):
        dataclasses.replace(c, constants=constants).verify()
