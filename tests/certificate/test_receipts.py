"""Receipts against a plain Merkle tree, and every way one could be forged."""

import hashlib
import json
import re
from dataclasses import replace

import pytest
from hypothesis import given, strategies as st

from lightning_unlearn.certificate import merkle, receipts
from lightning_unlearn.certificate.console import main
from lightning_unlearn.errors import CertificateError
from tests.helpers.certificates import make

REQUEST = "a" * 32


def people(n):
    return receipts.leaves((i, f"u{i % 3}", f"{i:064x}") for i in range(n))


def by_levels(hashes):
    """RFC 6962 from the bottom up: an odd one out goes up as it is."""
    while len(hashes) > 1:
        pairs = [hashes[i : i + 2] for i in range(0, len(hashes), 2)]
        hashes = [
            hashlib.sha256(b"\1" + p[0] + p[1]).digest() if len(p) == 2 else p[0]
            for p in pairs
        ]
    return hashes[0]


@given(st.integers(1, 70))
def test_the_root_is_that_of_the_tree_built_by_levels(n):
    hashes = [merkle.leaf(bytes([i])) for i in range(n)]
    root = merkle.root(hashes)
    assert root == by_levels(hashes)
    for place in range(n):
        path = merkle.path(hashes, place)
        assert merkle.climb(hashes[place], place, n, path) == root
        for other in range(-1, n + 1):
            if other != place:
                assert merkle.climb(hashes[place], other, n, path) != root
        assert merkle.climb(hashes[place], place, n, [*path, root]) != root


@given(st.integers(1, 40))
def test_no_more_receipts_open_a_certificate_than_it_has_samples(n):
    """Or one that forgot 30 could hand out receipts to 31."""
    hashes = [merkle.leaf(bytes([i])) for i in range(n + 1)]
    root = merkle.root(hashes)
    opened = [
        (place, at)
        for place in range(n + 1)
        for at in range(n)
        if merkle.climb(hashes[place], at, n, merkle.path(hashes, place)) == root
    ]
    assert len({place for place, _ in opened}) == len(opened) <= n


@pytest.mark.parametrize("n", [1, 2, 3, 30])
def test_every_receipt_fits_and_no_altered_one_does(n):
    leaves = people(n)
    root = receipts.root(leaves)
    for place in range(n):
        one = receipts.receipt(leaves, place, REQUEST)
        (read,) = receipts.read_receipts(one.to_json())
        read.check(REQUEST, root, n)
        for altered in (
            replace(one, leaf=replace(one.leaf, position=99)),
            replace(one, leaf=replace(one.leaf, person=None)),
            replace(one, leaf=replace(one.leaf, sample="f" * 64)),
            replace(one, leaf=replace(one.leaf, salt="0" * 64)),
            replace(one, place=n),
            replace(one, path=(*one.path, "0" * 64)),
        ):
            with pytest.raises(CertificateError, match="opens the certificate's"):
                altered.check(REQUEST, root, n)
        with pytest.raises(CertificateError, match="belongs to another certificate"):
            one.check("b" * 32, root, n)
        with pytest.raises(CertificateError, match="before there were receipts"):
            one.check(REQUEST, None, n)


def test_places_and_salts_are_random():
    orders = {tuple(leaf.position for leaf in people(12)) for _ in range(5)}
    assert len(orders) == 5
    assert len({leaf.salt for leaf in people(12)}) == 12


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: "", "a file of receipts"),
        (lambda t: t.split("\n", 1)[0] + "\n", "it was cut off"),
        (lambda t: t.replace('"position"', '"place"', 1), "the fields"),
        (lambda t: t.replace('"salt": "', '"salt": "x', 1), "64 hexadecimal digits"),
    ],
)
def test_damaged_files_of_receipts_are_refused(change, message):
    text = receipts.to_text(people(3), REQUEST)
    with pytest.raises(CertificateError, match=message):
        receipts.from_text(change(text))


@pytest.mark.parametrize("text", ["", "[]", '{"place": 0}', "{" * 10_000])
def test_what_is_no_receipt_is_refused(text):
    with pytest.raises(CertificateError, match="receipt"):
        receipts.read_receipts(text)


@pytest.fixture
def published(tmp_path):
    """A certificate and the private file of its receipts."""
    leaves = people(5)
    made = make(n_forget=5, commitment=receipts.root(leaves))
    (tmp_path / "c.json").write_text(made.to_json())
    text = receipts.to_text(leaves, made.request_id)
    (tmp_path / "clean.receipts.jsonl").write_text(text)
    return tmp_path


def test_a_person_s_receipts_from_the_shell(published, capsys):
    own = published / "u1.receipt.jsonl"
    everyone = str(published / "clean.receipts.jsonl")
    assert main(["receipt", everyone, "--person", "u1", "--output", str(own)]) == 0
    lines = own.read_text().splitlines()
    assert sorted(json.loads(line)["leaf"]["position"] for line in lines) == [1, 4]
    assert own.stat().st_mode & 0o077 == 0
    verify = ["verify", str(published / "c.json"), "--receipt", str(own)]
    assert main(verify) == 0
    out = capsys.readouterr().out
    assert re.search("speaks of the samples (1 of u1, 4 of u1|4 of u1, 1 of u1)", out)
    text = own.read_text()
    own.write_text(text + text)
    assert main(verify) == 1
    assert "expected each sample once" in capsys.readouterr().out
    own.write_text(text)
    own.write_text(own.read_text().replace('"u1"', '"u2"'))
    assert main(verify) == 1
    assert "FAILED receipt: expected a receipt that opens" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("whose", "message"),
    [
        (["--person", "u9"], "people or positions of this request, got 'u9'"),
        (["--position", "77"], "people or positions of this request, got '77'"),
        ([], "--person or --position, got neither"),
    ],
)
def test_receipts_of_nobody_are_refused(whose, message, published, capsys):
    out = str(published / "r.jsonl")
    everyone = str(published / "clean.receipts.jsonl")
    assert main(["receipt", everyone, *whose, "--output", out]) == 1
    assert message in capsys.readouterr().err
    assert not (published / "r.jsonl").exists()
