"""What a report says of each grade, and never of an epsilon alone."""

import math
import re

import pytest

from lightning_unlearn.certificate.fields import PublicPart
from lightning_unlearn.certificate.report import words
from lightning_unlearn.certificate.report.evidence import Quality
from lightning_unlearn.certificate.report.page import render
from lightning_unlearn.errors import CertificateError
from lightning_unlearn.guarantee.claims import Grade, NoiseSource
from lightning_unlearn.guarantee.constants import Origin
from lightning_unlearn.guarantee.gaussian import gaussian_epsilon
from tests.certificate.helpers.pages import MEASURED, OF_GRADE, Page, page_of
from tests.helpers.certificates import (
    NOTHING,
    convex_constants,
    make,
    noise_std as noise_of,
)


@pytest.mark.parametrize("grade", list(OF_GRADE))
@pytest.mark.parametrize("evidence", [{}, MEASURED], ids=["public", "internal"])
def test_epsilon_never_stands_without_its_grade(grade, evidence):
    page = page_of(grade, **evidence)
    found = [b for b in page.blocks if re.search(r"epsilon\s*=\s*[\d.]", b)]
    assert all(grade in block.casefold() for block in found)
    assert bool(found) == (grade != "none")
    if grade == "none":
        assert "epsilon" not in page.text.casefold()
    assert f"Grade: {words.GRADES[Grade(grade)].name}" in page.text


@pytest.mark.parametrize(
    ("grade", "says", "says_not"),
    [
        ("certified", "Proved, provided that the parts listed in box 2, and how",
         "Proved: the released model can hardly"),
        ("conditional", "strong_convexity = 0.001 (assumed): mu", "Someone who holds"),
        ("vacuous", "This guarantee is true but worthless", "1 false alarm"),
        ("none", "Nothing is proved", "1 false alarm"),
    ],
)  # fmt: skip
def test_each_grade_is_explained(grade, says, says_not):
    page = page_of(grade)
    assert says in page.text
    assert says_not not in page.text
    for part in ("What it means", "What it does not mean", "What to tell the person"):
        assert part in page.text
    assert ("body", "class", grade) in page.attributes


def test_a_part_that_nobody_watched_is_a_condition():
    part = PublicPart(name="net", digest="ab", origin=Origin.ASSUMED)
    certificate = make(public_parts=(part,), grade=Grade.CONDITIONAL)
    expected = "net was not derived from the private data: no training run was seen"
    assert words.conditions(certificate) == (expected,)


def test_the_best_attacker_is_told_for_this_release_and_all_later_ones():
    mu = make(releases=4).release_mus[0]
    certificate = make(
        releases=4,
        release=2,
        release_mus=(mu, mu),
        composed_epsilon=gaussian_epsilon(math.hypot(mu, mu), 1e-5),
    )
    certificate.verify()
    found = words.attacks(certificate)
    whole = make().release_mus[0]  # of all four together
    shares = [float(re.search(r"at most ([\d.]+) of 100", s)[1]) for s in found]
    # By table: Phi(-2.3263 + 0.1341) = 0.0142; with two later ones, 0.134 sqrt(3),
    # Phi(-2.3263 + 0.2322) = 0.0181. The release before this one had the samples in.
    assert abs(whole - 0.268) < 1e-3
    assert shares == [1.5, 1.9]
    assert "all 2 later" in found[1]
    first = words.attacks(make(releases=4))
    # Of all four: Phi(-2.3263 + 0.268) = 0.0198
    assert "at most 2 of 100" in first[1]
    assert "all 3 later" in first[1]
    last = make(releases=4, release=4, release_mus=(mu,) * 4)
    assert len(words.attacks(last)) == 1
    assert not words.is_weak(certificate)


def test_a_large_epsilon_is_called_weak():
    constants = convex_constants()
    noise = noise_of(20.0, 1e-5, 2e-3)
    mu = 2e-3 / noise
    certificate = make(
        constants=constants,
        epsilon=20.0,
        noise_std=noise,
        release_mus=(mu,),
        composed_epsilon=gaussian_epsilon(mu, 1e-5),
    )
    assert "This is a weak promise" in Page(render(certificate.to_json())).text
    assert "This is a weak promise" not in page_of().text


def test_seeded_noise_and_no_noise_are_named():
    changes = {**NOTHING, "noise_source": NoiseSource.SEEDED}
    assert "it can be drawn again" in Page(render(make(**changes).to_json())).text
    changes = {**NOTHING, "noise_source": NoiseSource.NO_NOISE, "noise_std": 0.0}
    assert "No noise was added" in Page(render(make(**changes).to_json())).text


def test_what_a_user_says_of_epsilon_is_not_the_certificate_s():
    page = page_of("vacuous", audit=(("lower bound", "epsilon = 0.4"),))
    assert "epsilon = 0.4 [of the audit, not of the certificate]" in page.text
    line = Quality(data="epsilon = 0.1", before=0.5, after=0.5)
    page = page_of("certified", quality=(line,), metric="epsilon = 0.2")
    for said in ("epsilon = 0.1", "epsilon = 0.2"):
        assert f"{said} [no part of the claim]" in page.text


def test_a_head_alone_is_proved_given_how_samples_are_read():
    page = Page(render(make(public_parts=()).to_json()))
    assert "Proved, provided that how samples are read and preprocessed" in page.text
    assert "parts listed in box 2" not in page.text
    assert "If what is taken as public never saw the samples: someone" in page.text
    premised = page_of("certified").text
    assert "If what is taken as public never saw the samples: someone" in premised
    assert (
        "If the parts in box 2, and the way data are prepared, never saw the data: the"
        in premised
    )


def test_the_composed_epsilon_has_the_lowest_grade_of_its_releases():
    mu = make().release_mus[0]
    two = {
        "release": 2, "release_mus": (mu, mu),
        "composed_epsilon": gaussian_epsilon(
            math.hypot(mu, mu), 1e-5),
    }  # fmt: skip
    known = make(**two, composed_grade=Grade.CONDITIONAL)
    known.verify()
    assert "at the same delta (conditional)" in Page(render(known.to_json())).text
    assert "(conditional)" in str(known)
    older = make(**two)  # from before it was stated
    older.verify()
    assert "composed_grade" not in older.to_json()
    assert "(certified, if the earlier releases were)" in str(older).replace("\n", " ")
    part = PublicPart(name="net", digest="ab", origin=Origin.ASSUMED)
    for changes in (
        {"composed_grade": Grade.NONE},
        {
            "composed_grade": Grade.CERTIFIED,
            "public_parts": (part,),
            "grade": Grade.CONDITIONAL,
        },
    ):
        with pytest.raises(
            CertificateError, match="states composed_.*its constants give"
        ):
            make(**two, **changes).verify()
