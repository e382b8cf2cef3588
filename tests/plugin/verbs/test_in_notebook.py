"""What is printed, and what a notebook shows, of results, forecasts and comparisons."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from torch.utils.data import TensorDataset

from lightning_unlearn import compare_heads
from lightning_unlearn.errors import SetupError
from lightning_unlearn.evaluation.baselines.comparison_table import Comparison, Row
from tests.helpers.nets import HeadNet, fitted
from tests.plugin.helpers.publics import backbone, held_out, private, solved

HOSTILE = '<script>alert(1)</script> "&\u202e\x1b[31m'


class Page(HTMLParser):
    """Tags that are open, all tags that were met, and the text between them."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.text = [], set(), []
        self.styles = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        self.tags.add(tag)
        self.styles += [value for _, value in attrs]
        assert {name for name, _ in attrs} <= {"style"}

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def page(thing):
    made = Page(thing._repr_html_())
    assert made.tags <= {
        "div", "p", "strong", "table", "thead", "tbody", "tr", "th", "td", "ul", "li",
        "details", "summary",
    }  # fmt: skip
    # No colour is set that a dark or a light page would hide.
    for style in made.styles:
        assert set(re.findall(r"#\w+|rgba?\([^)]*\)", style)) <= {
            "rgba(128, 128, 128, 0.4)"
        }
        for colour in re.findall(r"(?<!-)\b(?:color|background): ?([^;]+)", style):
            assert colour in ("inherit", "transparent")
    return " ".join(" ".join(made.text).split())


@pytest.fixture(scope="module")
def run():
    return solved()


def test_a_result_is_five_lines_and_says_nothing_secret(run, tmp_path):
    _, own, _, _ = run
    result = own.unlearn([7], save_to=tmp_path / "clean.ckpt")
    claim, samples, took, wrote, then = str(result).splitlines()
    assert claim.startswith("CERTIFIED: indistinguishable from retraining without this")
    assert samples.split() == ["samples", "1", "forgotten,", "599", "retained"]
    assert re.fullmatch(r"  took +[\d.e-]+ s, [\d.]+ passes over the retained .*", took)
    assert str(tmp_path / "clean.ckpt") in wrote
    assert "clean.certificate.json; for you alone: clean.private.json" in wrote
    assert "print(result.certificate)" in then
    assert "result.receipts" in then
    assert repr(result) == str(result)
    for leaf in result.leaves:
        assert leaf.salt not in repr(result) + result._repr_html_()
    shown = page(result)
    assert claim in shown
    assert "2 tolerance / strong_convexity" in shown  # its certificate, folded
    assert "<details>" in result._repr_html_()


def test_without_a_checkpoint_it_says_that_nothing_was_written():
    _, own, _, _ = fitted(HeadNet())
    lines = str(own.unlearn([3])).splitlines()
    assert len(lines) == 5
    assert "wrote     nothing (save_to= names a checkpoint)" in lines[3]


def test_a_certificate_is_shown_whole_and_escaped(run):
    certificate = run[1].unlearn([8]).certificate
    shown = page(certificate)
    for constant in certificate.constants:
        assert constant.name in shown
        assert " ".join(constant.reason.split()) in shown
    for text in (*certificate.not_covered, *certificate.warnings):
        assert " ".join(text.split()) in shown
    part = replace(certificate.public_parts[0], name=HOSTILE, note=HOSTILE)
    hostile = replace(certificate, public_parts=(part,), warnings=(HOSTILE,))
    html = hostile._repr_html_()
    assert "<script" not in html
    assert "\x1b" not in html
    assert "\u202e" not in html
    assert html.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 3
    page(hostile)


def test_a_forecast_is_what_is_printed(run):
    look = run[1].preflight([9])
    shown = page(look)
    text = str(look).splitlines()
    assert text[0] == "PREFLIGHT: nothing was changed"
    for line in text[2 : text.index("", 2)]:
        name, _, value = line.strip().removeprefix("- ").partition("  ")
        assert " ".join(f"{name} {value}".split()) in shown
    for route in look.routes:
        assert " ".join(route.cells) in shown
        assert all(need in shown for need in route.needs)
    assert shown.count("recommended") == 1
    assert "<script" not in replace(look, advice=(HOSTILE,))._repr_html_()


def test_heads_that_are_compared():
    found = compare_heads(
        {HOSTILE: backbone(), "plain": backbone()}, private(), held(), l2=[1e-7, 1e-2]
    )
    shown, text = page(found), " ".join(str(found).split())
    assert "<script" not in found._repr_html_()
    for choice in found.choices:
        assert f"{choice.score:.4f} {choice.score_with_noise:.4f}" in shown
        assert f"{choice.score:.4f} {choice.score_with_noise:.4f}" in text
    assert shown.count("* ") >= 1
    assert "outside the certificate" in shown


def held():
    return TensorDataset(*held_out())


def test_baselines_that_are_compared():
    same = dict.fromkeys(("forget", "retain", "test"), 0.5)
    gap = type("Gap", (), {"value": 0.125})()
    rows = [
        Row(name, 1.0, same, same, 0.5, gap, 0.25, 0.125, "no certificate")
        for name in ("retrained", HOSTILE)
    ]
    found = Comparison(tuple(rows))
    shown = page(found)
    assert "0.500 (+0.125)" in shown
    assert "less the retrained model's" in shown
    assert "<script" not in found._repr_html_()


def test_a_report_is_replaced_when_that_is_asked_for(run, tmp_path):
    result = run[1].unlearn([10])
    path = result.report(tmp_path / "report.html")
    first = path.read_text()
    with pytest.raises(SetupError, match="unless overwrite=True asks for an earlier"):
        result.report(path)
    again = run[1].unlearn([11]).report(path, overwrite=True)
    assert again == path
    assert path.read_text() != first
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    assert result.report(tmp_path / "new.html", overwrite=True).exists()


@pytest.mark.parametrize("kind", ["other page", "folder", "link"])
def test_nothing_else_is_replaced_by_a_report(run, tmp_path, kind):
    result = run[1].unlearn([{"link": 12, "folder": 13}.get(kind, 14)])
    path = tmp_path / "report.html"
    if kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to(result.report(tmp_path / "real.html"))
    else:
        path.write_text("<!DOCTYPE html><title>mine</title>")
    with pytest.raises(SetupError, match="to replace a report, got another file"):
        result.report(path, overwrite=True)
    assert kind != "other page" or "mine" in path.read_text()
