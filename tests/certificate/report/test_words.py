"""What a report says of each grade, and never of an epsilon alone."""

import math
import re

import pytest

from lightning_unlearn.certificate.fields import PublicPart
from lightning_unlearn.certificate.report import words
from lightning_unlearn.certificate.report.evidence import Quality
from lightning_unlearn.certificate.report.explained import GRADES, explained
from lightning_unlearn.certificate.report.page import render
from lightning_unlearn.errors import CertificateError
from lightning_unlearn.guarantee.claims import Grade, NoiseSource
from lightning_unlearn.guarantee.constants import Origin
from lightning_unlearn.guarantee.gaussian import gaussian_epsilon
from tests.certificate.helpers.pages import MEASURED, OF_GRADE, Page, page_of
from tests.helpers.certificates import (
    NOTHING,
    make,
    noise_std as noise_of,
    part,
)

OLD = PublicPart(name="net", digest="ab", origin=Origin.ENFORCED)  # of schema 1


@pytest.mark.parametrize("grade", list(OF_GRADE))
@pytest.mark.parametrize("evidence", [{}, MEASURED], ids=["public", "internal"])
def test_epsilon_never_stands_without_its_grade(grade, evidence):
    page = page_of(grade, **evidence)
    found = [b for b in page.blocks if re.search(r"epsilon\s*=\s*[\d.]", b)]
    assert all(grade in block.casefold() for block in found)
    assert bool(found) == (grade != "none")
    if grade == "none":
        assert "epsilon" not in page.text.casefold()
    assert f"Grade: {GRADES[Grade(grade)].name}" in page.text


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
    for title in ("What it means", "What it does not mean", "What to tell the person"):
        assert title in page.text
    assert ("body", "class", grade) in page.attributes


def test_a_part_that_nobody_watched_is_a_condition():
    unwatched = part(origin=Origin.ASSUMED)
    certificate = make(public_parts=(unwatched,), grade=Grade.CONDITIONAL)
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


def promising(epsilon, **changes):
    """A certificate of this epsilon, with the noise that it takes."""
    noise = noise_of(epsilon, 1e-5, 2e-3)
    mu = 2e-3 / noise
    composed = gaussian_epsilon(mu, 1e-5)
    return make(
        **{
            "epsilon": epsilon,
            "noise_std": noise,
            "release_mus": (mu,),
            "composed_epsilon": composed,
            **changes,
        }
    )


STRONG = ("indistinguishable", "hardly be told", "as if your data had not been used")


# By table, mu of (epsilon, 1e-5): 0.268, 0.925, 1.666, 4.88; Phi(mu - 2.3263).
@pytest.mark.parametrize(
    ("epsilon", "grade", "look", "found", "says"),
    [
        (1.0, "certified", "certified", "at most 2 of 100", "as if your data"),
        (4.0, "certified", "certified", "at most 8.1 of", "where guessing finds 1"),
        (8.0, "certified", "certified weak", "at most 25.5 of", "Do not say that the"),
        (32.0, "vacuous", "vacuous", "up to 99.5 of", "Do not say that the model was"),
    ],
)
def test_words_and_colours_follow_what_a_test_finds(epsilon, grade, look, found, says):
    certificate = promising(epsilon, grade=Grade(grade))
    certificate.verify()
    page = Page(render(certificate.to_json()))
    text = " ".join(str(certificate).split())
    assert ("body", "class", look) in page.attributes
    assert ("\N{CHECK MARK}" in page.text) == (look == "certified")
    assert found in page.text
    assert found.removesuffix(" of") in text
    assert says in explained(certificate).tell
    assert ("CERTIFIED: indistinguishable" in text) == (epsilon == 1)
    if epsilon >= 8:
        tell = explained(certificate).tell
        assert not any(s in text or s in explained(certificate).summary
                       for s in STRONG)  # fmt: skip
        assert "as if your data" not in tell.removeprefix(
            "Do not say that the model is as if your data had not been used. "
        )


@pytest.mark.parametrize("epsilon", [8.0, 32.0])
def test_an_old_certificate_gets_no_stronger_words_than_it_deserves(epsilon):
    old = promising(epsilon, schema=1, scope=(), public_parts=(OLD,))
    old.verify()  # under the rules of schema 1
    assert old.grade is Grade.CERTIFIED
    page = Page(render(old.to_json()))
    shown = " ".join(str(old).split()) + page.text
    assert not any(words in shown for words in STRONG[:2])
    assert "CERTIFIED: indistinguishable" not in shown
    assert "\N{CHECK MARK}" not in page.text
    assert "A certificate of schema 1" in shown
    if epsilon == 32.0:
        assert "though graded certified" in shown
        assert ("body", "class", "vacuous") in page.attributes


def test_a_delta_that_allows_to_publish_a_sample_is_worth_nothing():
    noise = noise_of(1.0, 1e-3, 2e-3)
    fields = {
        "delta": 1e-3, "noise_std": noise, "release_mus": (2e-3 / noise,),
        "composed_epsilon": gaussian_epsilon(2e-3 / noise, 1e-3),
    }  # fmt: skip
    good = make(**fields, n_retain=999)
    good.verify()
    with pytest.raises(CertificateError, match="constants give vacuous"):
        make(**fields, n_retain=1000).verify()
    bad = make(**fields, n_retain=1000, grade=Grade.VACUOUS)
    bad.verify()
    assert "delta is not below 1/n_retain" in str(bad).replace("\n", " ")
    assert "delta is not below 1/n_retain" in Page(render(bad.to_json())).text


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
    older = make(**two, composed_grade=None, schema=1, scope=(), public_parts=(OLD,))
    older.verify()
    assert "composed_grade" not in older.to_json()
    assert "(certified, if the earlier releases were)" in str(older).replace("\n", " ")
    for changes in (
        {"composed_grade": Grade.NONE},
        {
            "composed_grade": Grade.CERTIFIED,
            "public_parts": (part(origin=Origin.ASSUMED),),
            "grade": Grade.CONDITIONAL,
        },
    ):
        with pytest.raises(
            CertificateError, match="states composed_.*its constants give"
        ):
            make(**two, **changes).verify()
