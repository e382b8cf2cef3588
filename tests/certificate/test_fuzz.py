"""100,000 damaged and forged certificates and ledgers: no surprise, no forgery."""

import json
import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
from scipy.stats import norm

from lightning_unlearn._base.strict_json import canonical_digest
from lightning_unlearn.certificate import ledger as ledgers
from lightning_unlearn.certificate.certificate import Certificate
from lightning_unlearn.certificate.ledger import Ledger
from lightning_unlearn.errors import LedgerError, UnlearningError
from lightning_unlearn.guarantee.claims import Bound
from tests.certificate.test_ledger import chain

GOLDEN = sorted((Path(__file__).parent / "golden").glob("*.json"))
VALUES = [
    None, True, False, 0, 1, -1, 2**63, 10**400, 1e308, -1e308, 5e-324, 0.5, 1e-9,
    "", "certified", "none", "\x00", "\x1b[2J", "\ud800", "<script>alert(1)</script>",
    "../../etc/passwd", "enforced", [], [[]], {}, {"a": 1}, [0.25], ["x"],
]  # fmt: skip
PIECES = [b"NaN", b"Infinity", b"-", b"[", b"]", b"{", b"}", b'"', b",", b":", b"\\",
          b"1e999", b"\xff", b"\x00", b"9" * 30, b"\\ud800", b"[" * 2000]  # fmt: skip


def damaged(text, rng):
    """A few bytes lost, doubled, changed or added."""
    raw = bytearray(text.encode())
    for _ in range(rng.randint(1, 3)):
        at, count = rng.randrange(len(raw)), rng.randint(1, 8)
        how = rng.randrange(4)
        if how == 0:
            del raw[at : at + count]
        elif how == 1:
            raw[at:at] = raw[at : at + count]
        elif how == 2:
            raw[at] = rng.randrange(256)
        else:
            raw[at:at] = rng.choice(PIECES)
        if not raw:
            break
    return raw.decode("utf-8", errors="surrogateescape")


def changed(plain, rng):
    """One value, somewhere, replaced, removed or doubled."""
    node = plain
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            return
        key = rng.choice(keys)
        deeper = isinstance(node[key], (dict, list)) and rng.random() < 0.8
        if deeper and len(node[key]):
            node = node[key]
            continue
        value, how = node[key], rng.randrange(5)
        if how == 0:
            del node[key]
        elif how == 1 and isinstance(value, (int, float)) and abs(value) < 1e300:
            node[key] = value * rng.choice([0.5, 0.999999, 1.000001, 2, -1, 1e6])
        else:
            node[key] = rng.choice(VALUES)
        return


def distance(c):
    """The sensitivity the constants give: docs/theory.md, by a second hand."""
    k = {constant.name: constant.value for constant in c.constants}
    if c.bound is Bound.STRONGLY_CONVEX:
        return 2 * k["tolerance"] / k["strong_convexity"]
    ball = 2 * k["max_norm"]
    if c.bound is not Bound.NEWTON_STEP:
        return ball
    curved = k["lambda_min"] + k["damping"]
    step = (
        ball * (k["hessian_lipschitz"] * ball + 2 * k["damping"])
        + 2 * k["retrained_gradient_norm"] + 2 * k["residual"]
    ) / (2 * curved)  # fmt: skip
    return min(step, ball) if curved > 0 else ball


def believable(c):
    """Whether the noise gives the epsilon and delta that are claimed."""
    if c.epsilon is None:
        return c.grade.value == "none"
    if c.bound is Bound.RETRAINED:
        (besides,) = (k.value for k in c.constants)
        zeros = besides, c.epsilon, c.delta, c.noise_std, c.sensitivity
        return not any(zeros) and c.grade.value in ("exact", "conditional")
    size = distance(c)
    a, b = size / (2 * c.noise_std), c.epsilon * c.noise_std / size
    delta = norm.cdf(a - b) - math.exp(c.epsilon) * norm.cdf(-a - b)
    return delta <= c.delta * (1 + 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["damaged", "changed", "sealed"])
def test_certificates(kind):
    rng, accepted = random.Random(kind), 0
    texts = [path.read_text() for path in GOLDEN]
    originals = [Certificate.from_json(text) for text in texts]
    for number in range(20_000):
        i = rng.randrange(len(texts))
        text = texts[i]
        if kind == "damaged":
            text = damaged(text, rng)
        else:
            plain = json.loads(text)
            plain.pop("digest", None) if kind == "sealed" else None
            for _ in range(rng.randint(1, 3)):
                changed(plain, rng)
            try:
                if kind == "sealed":
                    plain["digest"] = canonical_digest(plain)
                text = json.dumps(plain)
            except ValueError:  # infinity cannot be sealed
                continue
        try:
            found = Certificate.from_json(text)
            found.verify()
        except UnlearningError:
            continue
        accepted += 1
        if kind == "sealed":
            assert believable(found), (number, text)
        else:
            assert found == originals[i], (number, text)
    if kind == "sealed":  # texts may be anybody's: no signature says whose they are
        assert accepted > 0
        weak = replace(originals[0], noise_std=originals[0].noise_std * 0.99)
        assert believable(originals[0])
        assert not believable(weak)  # the oracle can say no


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["damaged", "changed"])
def test_ledgers(kind):
    rng, original = random.Random(kind), chain(5)
    text = original.to_text()
    for number in range(20_000):
        if kind == "damaged":
            other = damaged(text, rng)
        else:
            lines = text.splitlines()
            row = rng.randrange(len(lines))
            plain = json.loads(lines[row])
            changed(plain, rng)
            sealed = rng.random() < 0.5
            if sealed and "hash" in plain:
                plain.pop("hash")
                try:
                    plain["hash"] = canonical_digest(plain)
                except (ValueError, UnicodeEncodeError):
                    continue
            lines[row] = json.dumps(plain)
            other = "\n".join(lines) + "\n"
        try:
            found = Ledger.from_text(other)
        except LedgerError:
            continue
        same = found.entries == original.entries[: len(found.entries)]
        if same and len(found.entries) == len(original.entries):
            continue
        # Cut off at the end, or the last line sealed anew: the checkpoint knows.
        if found.entries:
            with pytest.raises(LedgerError):
                ledgers.agree(original, found)
