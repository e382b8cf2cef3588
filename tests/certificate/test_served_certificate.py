"""A certificate that covers the heads served before: its words, and every number."""

import dataclasses
import math

import pytest

from lightning_unlearn.certificate.certificate import Certificate
from lightning_unlearn.certificate.ledger import GENESIS, Entry, Ledger, forget_digest
from lightning_unlearn.certificate.report.explained import explained
from lightning_unlearn.certificate.report.words import attacks, method
from lightning_unlearn.certificate.words import theorems
from lightning_unlearn.errors import BudgetError, CertificateError, LedgerError
from lightning_unlearn.guarantee.claims import Bound, Grade, Terms
from lightning_unlearn.guarantee.constants import Origin
from lightning_unlearn.guarantee.gaussian import gaussian_mu
from lightning_unlearn.guarantee.tolerance import Tolerance
from lightning_unlearn.step.release import release
from tests.helpers.releases import around, step

EPSILON, DELTA, T = 1.0, 1e-5, 4
SHARE = gaussian_mu(EPSILON, DELTA) / math.sqrt(T)
N = 995


def values(forgotten=5, left=15.0, **changes):
    return {
        "residual_norm": 1.44, "row_norm": 8.1, "samples": float(N), "covered": 20.0,
        "forgotten": float(forgotten), "left": left, **changes,
    }  # fmt: skip


def issued(served=None, release_at=2, mus=(SHARE,), **changes):
    claim = theorems.strongly_convex_claim(
        Tolerance(1e-6), 1e-2, values() if served is None else served
    )
    made = step(claim.bound, claim.constants)
    terms = Terms(epsilon=EPSILON, delta=DELTA, releases=T)
    where = around(
        release=release_at, earlier_mus=mus, n_retain=N,
        earlier_grades=(Grade.CERTIFIED,) * len(mus), **changes,
    )  # fmt: skip
    return release(made, terms, where)[1]


def with_constant(c, name, **changes):
    constants = tuple(
        dataclasses.replace(k, **changes) if k.name == name else k for k in c.constants
    )
    return dataclasses.replace(c, constants=constants)


def test_sensitivity_noise_and_words():
    c = issued()
    by_hand = 2 * 15 * 1.44 * 1.001 * 8.1 / (N * 1e-2) + 2 * 1e-6 / 1e-2
    assert c.sensitivity == pytest.approx(by_hand, rel=1e-12)
    assert c.sensitivity / c.noise_std == pytest.approx(SHARE, rel=1e-6)
    assert (c.bound, c.grade) == (Bound.SERVED_HEAD, Grade.CERTIFIED)
    assert Certificate.from_json(c.to_json()) == c
    text = " ".join(str(c).split())
    assert (
        "CERTIFIED: this head and all others served since its training are "
        "indistinguishable from those of a training without these 5 samples, epsilon = "
        "1"
    ) in text
    assert "models released before this request" not in text
    assert "for samples that the first of them forgot" not in text
    assert "2 of 4 announced (1 is the trained head)" in text
    assert "the optimum without noise is in the prepared state" in text
    assert "so was each that was served before it" in method(c)
    (told,) = attacks(c)
    assert "all heads served from the training on" in told
    assert explained(c).summary


def test_those_forgotten_before_count_and_the_last_release_leaves_nobody():
    c = issued(values(9, 11.0), 3, (SHARE, SHARE))
    assert "these 5 samples and the 4 forgotten before" in " ".join(str(c).split())
    last = issued(values(9, 0.0), 4, (SHARE,) * 3)
    assert last.sensitivity == pytest.approx(2e-4)
    assert last.composed_epsilon == pytest.approx(EPSILON, rel=1e-4)


@pytest.mark.parametrize(
    "name", ["residual_norm", "row_norm", "tolerance", "strong_convexity"]
)
def test_no_number_of_the_sensitivity_can_be_changed(name):
    c = issued()
    value = next(k.value for k in c.constants if k.name == name)
    for factor in (0.99, 1.01):
        with pytest.raises(CertificateError, match="its constants give"):
            with_constant(c, name, value=value * factor).verify()


@pytest.mark.parametrize(
    ("served", "where", "match"),
    [
        (values(left=0.0), (2, (SHARE,)), "expected left=15 .* got 0"),
        (values(left=14.0), (2, (SHARE,)), "expected left=15 .* got 14"),
        (values(left=11.0, forgotten=9), (4, (SHARE,) * 3), "expected left=0 .* got"),
        (values(samples=5000.0), (2, (SHARE,)), "expected samples=995 .* got 5000"),
        (values(21, 0.0), (4, (SHARE,) * 3), "expected covered=21 .* got 20"),
        (values(3, 17.0), (2, (SHARE,)), "forgotten to count the 5 samples"),
        (values(), (1, ()), "of which the trained head is the first"),
    ],
)
def test_counts_that_contradict_each_other_are_refused(served, where, match):
    with pytest.raises(CertificateError, match=match):
        issued(served, *where)


def test_a_release_without_the_one_of_the_trained_head_is_refused():
    c = issued()
    cut = dataclasses.replace(c, release_mus=c.release_mus[1:], composed_epsilon=None)
    with pytest.raises(CertificateError):
        cut.verify()
    alone = dataclasses.replace(c, releases=None)
    with pytest.raises(CertificateError):
        alone.verify()


def test_nor_an_origin_a_reason_or_a_text():
    c = issued()
    for name in ("residual_norm", "strong_convexity", "samples", "left"):
        with pytest.raises(CertificateError, match="cannot be assumed"):
            with_constant(c, name, origin=Origin.ASSUMED).verify()
        with pytest.raises(CertificateError, match=f"for the constant {name}"):
            with_constant(c, name, reason="trust me").verify()
    with pytest.raises(CertificateError, match="not_covered"):
        dataclasses.replace(c, not_covered=c.not_covered[1:]).verify()
    with pytest.raises(CertificateError, match="nothing rebuilt"):
        dataclasses.replace(c, rebuilt=("bn.running_mean",)).verify()
    plain = dataclasses.replace(c, bound=Bound.STRONGLY_CONVEX)
    with pytest.raises(CertificateError):
        plain.verify()


def head_line(**changes):
    return Entry(
        **{
            "ledger_id": "a" * 32, "index": 0, "previous": GENESIS,
            "request_id": "b" * 32, "time": "2026-11-30T10:00:00+00:00",
            "n_forget": 0, "n_retain": 1000,
            "forget_digest": forget_digest("0" * 32, []), "forget_indices": None,
            "weights_before": "not recorded", "weights_after": "c" * 64,
            "certificate_digest": "none", "grade": "certified", "mu": SHARE,
            "releases": T, "covered": 20, **changes,
        }
    )  # fmt: skip


def test_the_ledger_counts_the_trained_head():
    ledger = Ledger().append(head_line())
    assert (ledger.mus, len(ledger.noisy)) == ((SHARE,), 1)
    assert Ledger.from_text(ledger.to_text()) == ledger
    request = head_line(n_forget=5, n_retain=995, covered=None)
    longer = ledger.append(request)
    assert '"covered"' not in longer.to_text().splitlines()[1]
    for _ in range(2):
        longer = longer.append(request)
    with pytest.raises(BudgetError, match="0 are left: train a new model"):
        longer.check_budget(T, SHARE)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"covered": None}, "counts >= 1"),
        ({"covered": 0}, "counts >= 1"),
        ({"n_forget": 1}, "counts >= 1"),
        ({"mu": None, "grade": "none"}, "counts >= 1"),
    ],
)
def test_only_the_first_line_may_forget_nobody(changes, match):
    with pytest.raises(LedgerError, match=match):
        Ledger().append(head_line(**changes))
    begun = Ledger().append(head_line())
    with pytest.raises(LedgerError, match="counts >= 1"):
        begun.append(head_line())
