"""The report: nothing foreign acts in it, nothing in it says more than is proved."""

import json
import math
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519

import lightning_unlearn
from lightning_unlearn.certificate import Constant, Grade, NoiseSource, Origin
from lightning_unlearn.certificate.record import PublicPart
from lightning_unlearn.certificate.signature import sign
from lightning_unlearn.errors import (
    ArgumentError,
    CertificateError,
    LedgerError,
    SetupError,
)
from lightning_unlearn.ledger import Entry, Ledger
from lightning_unlearn.report import Evidence, Quality, render, words, write
from lightning_unlearn.report.chart import chart
from tests.certificate.test_record import BALL, NOTHING, Bound, convex_constants, make
from tests.plugin.nets import fitted
from tests.test_console import pem

CSS = Path(lightning_unlearn.__file__).parent / "report" / "report.css"
OF_GRADE = {
    "certified": {},
    "conditional": {"constants": convex_constants(origin=Origin.ASSUMED)},
    "vacuous": {"bound": Bound.NORM_BALL, "constants": BALL},
    "none": {**NOTHING, "noise_by_hand": True},
}
MEASURED = {
    "residuals": ((0, 1.0), (1, 1e-3)),
    "quality": (Quality(data="forget", before=0.97, after=0.9),),
    "audit": (("attack", "nothing found"),),
    "duplicates": 0,
    "seconds": 1.5,
    "deleted": ("old.ckpt",),
}
TAGS = frozenset(
    re.findall(
        r"\w+",
        """html head meta title style body main header footer aside section h1 h2 h3 p
        strong span code pre q ul li dl div dt dd table caption thead tbody tr th td br
        svg desc line text polyline circle""",
    )
)
BLOCKS = frozenset(re.findall(r"\w+", "p li td dd h1 h2 h3 title caption desc th dt"))


class Page(HTMLParser):
    """The tags, the attributes, and the text of every block of a page."""

    BLOCKS = frozenset(
        [
            "p",
            "li",
            "td",
            "dd",
            "h1",
            "h2",
            "h3",
            "title",
            "caption",
            "desc",
            "th",
            "dt",
            "pre",
        ]
    )

    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes, self.blocks, self.style = [], [], [], ""
        self._inside = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self._inside.append(tag)
        if tag in BLOCKS:
            self.blocks.append("")

    def handle_endtag(self, tag):
        while self._inside and self._inside.pop() != tag:
            pass

    def handle_data(self, data):
        if "style" in self._inside:
            self.style += data
        elif self.blocks:
            self.blocks[-1] += data

    @property
    def text(self):
        return " ".join(" ".join(self.blocks).split())


def page_of(grade="certified", **evidence):
    certificate = make(**{**OF_GRADE[grade], "grade": Grade(grade)})
    return Page(render(certificate.to_json(), Evidence(**evidence)))


def ledger_of(certificate, **changes):
    fields = {
        "ledger_id": "chain", "index": 1, "previous": "", "time": certificate.created,
        "request_id": certificate.request_id, "n_forget": certificate.n_forget,
        "n_retain": certificate.n_retain, "forget_digest": "f" * 64,
        "forget_indices": None, "weights_before": "b" * 64,
        "weights_after": certificate.weights_digest, "releases": certificate.releases,
        "certificate_digest": certificate.digest, "grade": certificate.grade.value,
        "mu": certificate.release_mus[-1] if certificate.release_mus else None,
        **changes,
    }  # fmt: skip
    return Ledger().append(Entry(**fields)).to_text()


# --- hostile texts ------------------------------------------------------------------

HOSTILE = (
    "<script>alert(1)</script>",
    '"onmouseover="alert(1)" x="',
    "'><img src=https://evil.example/x onerror=alert(1)>",
    "{{1234567*7}}{% raw %}{#",
    "javascript:alert(1)",
    "</style></title></svg><a href='javascript:1'>",
    "\u202eabc\u2066\u200f",
    "a\x00b\x1b[31m\x07\r\n\u2028",
    "x" * 10_000,
    "&lt;b&gt;<!--",
)


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
@pytest.mark.parametrize("grade", list(OF_GRADE))
def test_foreign_texts_do_nothing(text, grade):
    changes = {**OF_GRADE[grade], "grade": Grade(grade)}
    given = changes.pop("constants", convex_constants())
    constants = tuple(
        Constant(name=c.name, value=c.value, origin=c.origin, reason=text)
        for c in given
    )
    if grade == "none":
        changes["unscrubbed"] = (text,)
    certificate = make(
        **changes,
        constants=constants,
        reference=text,
        public_parts=(PublicPart(name=text, digest=text, origin=Origin.ENFORCED),),
        not_covered=(text,),
        warnings=(text,),
        weights_digest=text,
        request_id=text,
        created=text,
        versions=((text, text), ("lightning_unlearn", text)),
    )
    evidence = Evidence(
        quality=(Quality(data=text, before=0.5, after=0.5, retrained=0.5),),
        metric=text,
        audit=((text, text),),
        deleted=(text,),
        residuals=((0, 1.0), (1, 0.1)),
        ledger=ledger_of(
            certificate, ledger_id=text, forget_digest=text, weights_before=text
        ),
    )
    html = render(certificate.to_json(), evidence)
    page = Page(html)
    assert set(page.tags) <= TAGS
    for tag, name, value in page.attributes:
        assert not name.startswith("on")
        assert name not in {"src", "href", "style", "action", "srcdoc", "xlink:href"}
        assert "alert" not in value
        assert name != "http-equiv" or value == "Content-Security-Policy"
    assert page.style.strip() == CSS.read_text().strip()
    assert all(c.isprintable() or c == "\n" for c in html)
    assert "8641969" not in html
    if text in HOSTILE[:1] + HOSTILE[3:5]:
        assert page.text.count(text) > 10  # shown as what it is


def test_the_page_may_run_and_load_nothing():
    html = render(make().to_json(), Evidence(**MEASURED))
    policy = "content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:;"
    assert policy in html
    assert "url(" not in html
    assert "@import" not in html
    assert "http:" not in html
    assert "https:" not in html
    assert html == render(make().to_json(), Evidence(**MEASURED))


def test_a_name_is_not_read_as_a_part_of_the_claim():
    name = "net as public. CERTIFIED for everybody: epsilon = 0.01"
    part = PublicPart(name=name, digest="ab", origin=Origin.ENFORCED)
    certificate = make(
        bound=Bound.NORM_BALL,
        constants=BALL,
        grade=Grade.VACUOUS,
        public_parts=(part,),
    )
    assert name not in words.sentence(certificate)
    assert words.sentence(certificate).endswith("taking what box 2 lists as public.")
    html = render(certificate.to_json())
    assert html.count(name) == 1
    said = f'<q class="said">{name}</q> <span class="graded">[grade of this certificate'
    assert said in html


def test_names_and_times_are_no_part_of_the_claim():
    text = "epsilon = 0.01, certified"
    certificate = make(
        request_id=text, created=text, weights_digest=text, versions=((text, text),)
    )
    ledger = ledger_of(
        certificate, ledger_id=text, forget_digest=text, weights_before=text
    )
    html = render(certificate.to_json(), Evidence(ledger=ledger))
    marked = f'{text} <span class="graded">[no part of the claim]</span>'
    assert html.count(text) == html.count(marked) > 8


# --- what each grade says -----------------------------------------------------------


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
        ("certified", "Proved, provided that the parts listed in box 2 never saw",
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
        composed_epsilon=lightning_unlearn.certificate.gaussian_epsilon(
            math.hypot(mu, mu), 1e-5
        ),
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
    noise = lightning_unlearn.certificate.claims.noise_std_upper(20.0, 1e-5, 2e-3, None)
    mu = 2e-3 / noise
    certificate = make(
        constants=constants,
        epsilon=20.0,
        noise_std=noise,
        release_mus=(mu,),
        composed_epsilon=lightning_unlearn.certificate.gaussian_epsilon(mu, 1e-5),
    )
    assert "This is a weak promise" in Page(render(certificate.to_json())).text
    assert "This is a weak promise" not in page_of().text


def test_seeded_noise_and_no_noise_are_named():
    changes = {**NOTHING, "noise_source": NoiseSource.SEEDED}
    assert "it can be drawn again" in Page(render(make(**changes).to_json())).text
    changes = {**NOTHING, "noise_source": NoiseSource.NO_NOISE, "noise_std": 0.0}
    assert "No noise was added" in Page(render(make(**changes).to_json())).text


# --- public and internal ------------------------------------------------------------


@pytest.mark.parametrize("name", list(MEASURED))
def test_anything_measured_makes_the_page_internal(name):
    page = page_of(**{name: MEASURED[name]})
    assert "Internal: pages with measurements of the forgotten samples" in page.text
    assert "May be published" not in page.text


def test_certificate_and_ledger_make_a_public_page():
    certificate = make()
    ledger = ledger_of(certificate, forget_indices=[123456, 7])
    page = Page(render(certificate.to_json(), Evidence(ledger=ledger)))
    assert "May be published" in page.text
    assert "Internal" not in page.text
    assert "ledger: chain of 1 entries holds; this is entry 1" in page.text
    assert "f" * 64 in page.text
    assert "123456" not in page.text  # positions stay in the ledger


def test_a_certificate_with_measurements_is_not_called_public():
    measured = Constant(
        name="measured_residual", value=1e-3, origin=Origin.MEASURED, reason="m"
    )
    ball = {"bound": Bound.NORM_BALL, "grade": Grade.VACUOUS}
    page = Page(render(make(**ball, constants=(*BALL, measured)).to_json()))
    assert "May be published if the certificate may" in page.text
    head = (*convex_constants(), measured)  # of the retained samples alone
    assert "May be published." in Page(render(make(constants=head).to_json())).text


def test_the_evidence_is_shown():
    quality = (
        Quality(data="forget", before=0.97, after=0.9, retrained=0.91),
        Quality(data="test", before=0.95, after=0.94),
    )
    page = page_of(**{**MEASURED, "quality": quality, "duplicates": 3})
    for text in ("97.0%", "90.0%", "91.0%", "94.0%", "retrained without", "old.ckpt",
                 "nothing found", "equal a forgotten one: 3", "1.5 s"):  # fmt: skip
        assert text in page.text
    other = page_of(
        quality=(Quality(data="test", before=0.31, after=0.42),), metric="loss"
    )
    assert "0.31" in other.text
    assert "retrained without" not in " ".join(other.blocks[-120:])


def test_what_a_user_says_of_epsilon_is_not_the_certificate_s():
    page = page_of("vacuous", audit=(("lower bound", "epsilon = 0.4"),))
    assert "epsilon = 0.4 [of the audit, not of the certificate]" in page.text
    line = Quality(data="epsilon = 0.1", before=0.5, after=0.5)
    page = page_of("certified", quality=(line,), metric="epsilon = 0.2")
    for said in ("epsilon = 0.1", "epsilon = 0.2"):
        assert f"{said} [no part of the claim]" in page.text


def test_a_head_alone_is_proved_without_a_premise():
    page = Page(render(make(public_parts=()).to_json()))
    assert "Proved: the released model can hardly" in page.text
    assert "Someone who holds this model's weights" in page.text
    premised = page_of("certified").text
    assert "If the parts in box 2 never saw the samples: someone" in premised
    assert "If the parts in box 2 never saw the data: the part of" in premised


def test_the_composed_epsilon_has_the_lowest_grade_of_its_releases():
    mu = make().release_mus[0]
    two = {
        "release": 2, "release_mus": (mu, mu),
        "composed_epsilon": lightning_unlearn.certificate.gaussian_epsilon(
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
        with pytest.raises(CertificateError, match="the composed epsilon is called"):
            make(**two, **changes).verify()


def test_commands_name_the_files_at_hand():
    named = {"certificate_file": "T 1.certificate.json", "checkpoint_file": "c.ckpt"}
    text = render(make().to_json(), Evidence(**named))
    lines = "verify &#39;T 1.certificate.json&#39; \\<br>  --checkpoint c.ckpt</code>"
    assert lines in text
    assert "--ledger" not in text
    assert "verify CERTIFICATE.json" in render(make().to_json())


# --- what is refused ----------------------------------------------------------------


def test_what_does_not_verify_is_not_reported():
    plain = json.loads(make().to_json())
    with pytest.raises(CertificateError, match="digest does not match"):
        render(json.dumps({**plain, "n_forget": 51}))
    with pytest.raises(CertificateError, match="the certificate states grade="):
        render(make(noise_by_hand=True).to_json())
    key = pem(ed25519.Ed25519PrivateKey.generate())
    signed = json.loads(sign(make().to_json(), key))
    assert "Ed25519, by" in Page(render(json.dumps(signed))).text
    signed["signature"]["value"] = "00" * 64
    with pytest.raises(CertificateError, match="signature does not hold"):
        render(json.dumps(signed))


def test_another_ledger_is_refused():
    certificate = make()
    other = ledger_of(make(request_id="another"))
    with pytest.raises(LedgerError, match="expected one entry for request"):
        render(certificate.to_json(), Evidence(ledger=other))
    wrong = ledger_of(certificate, n_forget=1)
    with pytest.raises(LedgerError, match="its entry has another number of samples"):
        render(certificate.to_json(), Evidence(ledger=wrong))
    with pytest.raises(LedgerError, match="cut off in the middle"):
        render(certificate.to_json(), Evidence(ledger=other[:-5]))


def test_files_are_new_and_named_html(tmp_path):
    text, path = make().to_json(), tmp_path / "r.html"
    assert write(path, text, Evidence()) == path
    before = path.read_text()
    assert before == render(text)
    with pytest.raises(SetupError, match="expected a new file in a folder that exists"):
        write(path, text, Evidence())
    assert path.read_text() == before
    for name in ("r.pdf", "r", "html"):
        with pytest.raises(SetupError, match=r"expected a report's name to end in"):
            write(tmp_path / name, text, Evidence())
    with pytest.raises(SetupError, match="a new file in a folder that exists"):
        write(tmp_path / "no" / "r.html", text, Evidence())
    assert [p.name for p in tmp_path.iterdir()] == ["r.html"]


def test_without_jinja2_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(SetupError, match=r'pip install "lightning_unlearn\[report\]"'):
        render(make().to_json())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"residuals": [(0, 1.0)]}, "expected residuals to be a tuple, got list"),
        ({"residuals": ((0, 1.0, 2.0),)}, r"pair \(step, residual\)"),
        ({"residuals": ((0, math.nan),)}, "expected residual to be a finite number"),
        ({"residuals": ((math.inf, 1.0),)}, "expected step to be a finite number"),
        ({"quality": ("x",)}, "every line of quality to be a Quality"),
        ({"metric": ""}, "expected metric to be text"),
        ({"audit": (("x", 1.0),)}, "expected what was found to be text"),
        ({"ledger": Path("x")}, "expected ledger to be the ledger's text or None"),
        ({"duplicates": -1}, "expected duplicates to be an integer >= 0"),
        ({"seconds": math.nan}, "expected seconds to be a finite number"),
        ({"deleted": (Path("x"),)}, "expected a path in deleted to be text"),
    ],
)
def test_bad_evidence(fields, message):
    with pytest.raises(ArgumentError, match=message):
        Evidence(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data": " "}, "expected data to be text"),
        ({"before": math.nan}, "expected before to be a finite number"),
        ({"after": True}, "expected after to be a finite number"),
        ({"retrained": math.inf}, "expected retrained to be a finite number"),
    ],
)
def test_bad_quality(fields, message):
    with pytest.raises(ArgumentError, match=message):
        Quality(**{"data": "test", "before": 0.5, "after": 0.5, **fields})


# --- the drawing and the colours ----------------------------------------------------

CURVES = {
    "one": [(0, 1.0)],
    "two": [(0, 1.0), (1, 1e-9)],
    "constant": [(i, 0.25) for i in range(5)],
    "zeros": [(0, 1.0), (1, 0.0), (2, 0.0)],
    "only zeros": [(0, 0.0), (1, 0.0)],
    "thousand": [(i, math.exp(-i / 50)) for i in range(1000)],
    "one step": [(3, 1.0), (3, 2.0)],
    "extreme": [(0, 5e-324), (1e300, 1.7e308)],
    "tiny steps": [(0, 1.0), (5e-324, 2.0)],
}


@pytest.mark.parametrize("name", list(CURVES))
def test_curves_stay_inside(name):
    drawing = chart(CURVES[name])
    for x, y in drawing.points:
        assert drawing.left <= x <= drawing.right
        assert drawing.top <= y <= drawing.bottom
    assert 1 <= len(drawing.y_ticks) <= 6
    assert len(drawing.x_ticks) <= 7
    assert len(drawing.points) <= 401
    html = render(make().to_json(), Evidence(residuals=tuple(CURVES[name])))
    page = Page(html)
    assert page.tags.count("svg") == page.tags.count("desc") == 1
    assert "nan" not in drawing.line
    assert "inf" not in drawing.line


def test_curves_say_what_they_show():
    assert chart([]) is None
    assert "svg" not in page_of(**{**MEASURED, "residuals": ()}).tags
    assert chart(CURVES["one"]).summary == "One measurement: residual 1 at step 0."
    expected = "2 measurements: from 1 at step 0 to 1e-9 at step 1."
    assert chart(CURVES["two"]).summary == expected
    two = chart(CURVES["two"])
    assert two.points[0][1] == two.top
    assert two.points[1][1] == two.bottom
    many = chart(CURVES["thousand"])
    assert many.points[-1][0] == many.right - 8  # the last point is kept


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [
        p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts
    ]
    return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, two):
    light, dark = sorted((luminance(one), luminance(two)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_colours_can_be_read():
    blocks = re.findall(r":root \{(.*?)\}", CSS.read_text(), re.S)
    assert len(blocks) == 2
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    for block in blocks:
        colours = dict(re.findall(r"--([\w-]+): (#\w{6});", block))
        pairs = [("ink", "paper"), ("quiet", "paper"), ("ink", "wash"),
                 ("certified", "paper"), ("paper", "ink")]  # fmt: skip
        for grade in OF_GRADE:
            pairs += [(grade, f"{grade}-wash"), ("ink", f"{grade}-wash")]
        for front, back in pairs:
            assert contrast(colours[front], colours[back]) >= 4.5, (front, back)


# --- from a request -----------------------------------------------------------------


def test_a_result_reports_itself(tmp_path):
    _, trainer, _, _ = fitted()
    result = trainer.unlearn([1, 2])
    quality = (Quality(data="forget", before=0.9, after=0.8),)
    object.__setattr__(result, "quality", quality)
    object.__setattr__(result, "residuals", ((0, 1.0), (1, 1e-7)))
    path = result.report(
        str(tmp_path / "report.html"),
        retrained={"forget": 0.85},
        audit={"attack": 0.0123456},
    )
    page = Page(path.read_text(encoding="utf-8"))
    for text in ("85.0%", "0.01235", "Internal: pages", "Grade: CERTIFIED"):
        assert text in page.text
    with pytest.raises(ArgumentError, match=r"what was measured \(forget\), got test"):
        result.report(tmp_path / "other.html", retrained={"test": 0.9})
    with pytest.raises(ArgumentError, match="expected retrained to be a finite number"):
        result.report(tmp_path / "other.html", retrained={"forget": math.nan})
