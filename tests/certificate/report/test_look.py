"""The drawing of a report, and whether its colours can be read."""

import math
import re

import pytest

from lightning_unlearn.certificate.report.chart import chart
from lightning_unlearn.certificate.report.evidence import Evidence
from lightning_unlearn.certificate.report.page import render
from tests.certificate.helpers.pages import CSS, MEASURED, OF_GRADE, Page, page_of
from tests.helpers.certificates import make

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
