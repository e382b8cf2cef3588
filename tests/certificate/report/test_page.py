"""The report: nothing foreign acts in it, nothing in it says more than is proved."""

import dataclasses
import json
import math
import re
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519

from lightning_unlearn.certificate.fields import PublicPart
from lightning_unlearn.certificate.report import words
from lightning_unlearn.certificate.report.evidence import Evidence, Quality
from lightning_unlearn.certificate.report.page import render, write
from lightning_unlearn.certificate.signature import sign
from lightning_unlearn.errors import (
    ArgumentError,
    CertificateError,
    LedgerError,
    SetupError,
)
from lightning_unlearn.guarantee.claims import Grade
from lightning_unlearn.guarantee.constants import Origin
from tests.certificate.helpers.pages import (
    CSS,
    MEASURED,
    OF_GRADE,
    Page,
    ledger_of,
    page_of,
)
from tests.certificate.test_console import pem
from tests.helpers.certificates import (
    BALL,
    Bound,
    constant,
    convex_constants,
    make,
    part,
)
from tests.helpers.nets import fitted

TAGS = frozenset(
    re.findall(
        r"\w+",
        """html head meta title style body main header footer aside section h1 h2 h3 p
        strong span code pre q ul li dl div dt dd table caption thead tbody tr th td br
        svg desc line text polyline circle""",
    )
)


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


def foreign(schema, grade, text):
    """A certificate with a text in every place that its schema leaves to its maker."""
    changes = {**OF_GRADE[grade], "grade": Grade(grade), "schema": schema}
    given = changes.pop("constants", convex_constants())
    constants = tuple(
        dataclasses.replace(c, reason=text)
        if schema == 1 or c.origin is Origin.ASSUMED
        else c
        for c in given
    )
    if grade == "none":
        changes["unscrubbed"] = (text,)
    plain = make(
        **changes,
        constants=constants,
        public_parts=(
            PublicPart(name=text, digest=text, origin=Origin.ENFORCED, note=text),
            part(text),
        )[:schema],
        weights_digest=text,
        request_id=text,
        created=text,
        versions=((text, text), ("lightning_unlearn", text)),
    )
    if schema == 1:
        texts = {"reference": text, "not_covered": (text,), "warnings": (text,)}
        return dataclasses.replace(plain, **texts, scope=(), rebuilt=())
    more = {"not_covered": (*plain.not_covered, text), "scope": (text + ".weight",)}
    return dataclasses.replace(plain, warnings=(*plain.warnings, text), **more)


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
@pytest.mark.parametrize("grade", list(OF_GRADE))
@pytest.mark.parametrize("schema", [1, 2])
def test_foreign_texts_do_nothing(text, grade, schema):
    certificate = foreign(schema, grade, text)
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
    certificate = make(
        bound=Bound.NORM_BALL,
        constants=BALL,
        grade=Grade.VACUOUS,
        public_parts=(part(name, note=name),),
    )
    assert name not in words.sentence(certificate)
    assert words.sentence(certificate).endswith(
        "taking how samples are read and preprocessed, what box 2 lists as public."
    )
    html = render(certificate.to_json())
    assert html.count(name) == 2
    said = f'<q class="said">{name}</q> <span class="graded">[grade of this certificate'
    assert html.count(said) == 2


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
    measured = constant(Bound.NORM_BALL, "measured_residual", 1e-3)
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
    assert [b for b in page.blocks if b.strip() == "retrained without"]
    other = page_of(
        quality=(Quality(data="test", before=0.31, after=0.42),), metric="loss"
    )
    assert "0.31" in other.text
    assert not [b for b in other.blocks if b.strip() == "retrained without"]


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
    with pytest.raises(SetupError, match=r'pip install -e "\.\[report\]"'):
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
