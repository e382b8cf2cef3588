"""Reports for tests: one of each grade, and what a browser reads in one."""

import re
from html.parser import HTMLParser
from pathlib import Path

import lightning_unlearn
from lightning_unlearn.certificate.ledger import Entry, Ledger
from lightning_unlearn.certificate.report.evidence import Evidence, Quality
from lightning_unlearn.certificate.report.page import render
from lightning_unlearn.guarantee.claims import Grade
from lightning_unlearn.guarantee.constants import Origin
from tests.helpers.certificates import (
    BALL,
    NOTHING,
    Bound,
    convex_constants,
    make,
)

CSS = Path(lightning_unlearn.__file__).parent / "certificate/report/report.css"
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
BLOCKS = frozenset(re.findall(r"\w+", "p li td dd h1 h2 h3 title caption desc th dt"))


class Page(HTMLParser):
    """The tags, the attributes, and the text of every block of a page."""

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
