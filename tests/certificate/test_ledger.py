import json
import os
from dataclasses import asdict, replace

import pytest
from hypothesis import given, settings, strategies as st

from lightning_unlearn._base.strict_json import canonical_digest
from lightning_unlearn.certificate import ledger as ledgers
from lightning_unlearn.certificate.ledger import Entry, Ledger
from lightning_unlearn.errors import BudgetError, LedgerError


def entry(number=0, **changes):
    fields = {
        "ledger_id": "ab" * 16, "index": 0, "previous": ledgers.GENESIS,
        "request_id": f"r{number}", "time": "2026-11-23T00:00:00+00:00",
        "n_forget": 3, "n_retain": 100 - number, "forget_digest": "cd" * 32,
        "forget_indices": None, "weights_before": "00", "weights_after": "11",
        "certificate_digest": "ef" * 32, "grade": "certified", "mu": 0.25,
        "releases": 10, **changes,
    }  # fmt: skip
    return Entry(**fields)


def chain(length=4, **changes):
    ledger = Ledger()
    for number in range(length):
        ledger = ledger.append(entry(number, **changes))
    return ledger


def test_round_trip_and_chain():
    ledger = chain()
    assert Ledger.from_text(ledger.to_text()) == ledger
    assert [e.index for e in ledger.entries] == [1, 2, 3, 4]
    assert ledger.entries[2].previous == ledger.entries[1].hash
    assert ledger.head == ledger.entries[-1].hash
    assert ledger.mus == (0.25,) * 4
    assert Ledger().head == ledgers.GENESIS
    assert Ledger.from_text("") == Ledger()


@settings(max_examples=60)
@given(st.data())
def test_any_changed_field_breaks_the_chain(data):
    lines = chain().to_text().splitlines()
    row = data.draw(st.integers(0, len(lines) - 1))
    plain = json.loads(lines[row])
    name = data.draw(st.sampled_from(sorted(plain)))
    plain[name] = {int: 7_000_001, float: 0.5, type(None): [1], str: "0" * 63 + "1"}[
        type(plain[name])
    ]
    lines[row] = json.dumps(plain)
    with pytest.raises(LedgerError):
        Ledger.from_text("\n".join(lines) + "\n")


def test_a_forger_who_reseals_an_entry_breaks_the_next_one():
    lines = chain().to_text().splitlines()
    plain = json.loads(lines[1])
    plain["n_forget"] = 1
    plain.pop("hash")
    plain["hash"] = canonical_digest(plain)
    lines[1] = json.dumps(plain)
    with pytest.raises(LedgerError, match="entry 3 to follow the one before it"):
        Ledger.from_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[1:], "entry 1 to follow the one before it, got index 2"),
        (lambda rows: [rows[0], *rows[2:]], "entry 2 to follow .* got index 3"),
        (lambda rows: [rows[1], rows[0], *rows[2:]], "entry 1 to follow"),
        (lambda rows: [rows[0], rows[0]], "entry 2 to follow"),
    ],
    ids=["first removed", "middle removed", "reordered", "repeated"],
)
def test_removed_and_reordered_entries(change, message):
    rows = chain().to_text().splitlines()
    with pytest.raises(LedgerError, match=message):
        Ledger.from_text("\n".join(change(rows)) + "\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}\n", "expected the fields"),
        ("[]\n", "a ledger entry as a JSON object, got list"),
        ("x\n", "expected a ledger entry as JSON"),
        (chain().to_text()[:-20], "cut off in the middle"),
        (chain(1).to_text().replace('"n_forget": 3', '"n_forget": NaN'), "got NaN"),
        (
            chain(1).to_text().replace('"n_forget": 3', '"n_forget": true'),
            "n_forget in a ledger entry to be int, got",
        ),
        (
            chain(1).to_text().replace('"n_forget": 3', '"n_forget": "3"'),
            "n_forget in a ledger entry to be int, got",
        ),
    ],
)
def test_malformed_lines(text, message):
    with pytest.raises(LedgerError, match=message):
        Ledger.from_text(text)


def test_files_of_other_models_cut_files_and_old_checkpoints():
    full = chain(4)
    ledgers.agree(full, full)
    ledgers.agree(full, Ledger())  # a file that does not exist yet
    with pytest.raises(LedgerError, match="got the ledger of another one"):
        ledgers.agree(chain(2, ledger_id="ff" * 16), full)
    with pytest.raises(LedgerError, match="got the ledger of another one"):
        ledgers.agree(Ledger(), full)
    with pytest.raises(
        LedgerError, match="expected 4 entries .* got 2: the file was cut"
    ):
        ledgers.agree(full, Ledger(full.entries[:2]))
    with pytest.raises(LedgerError, match="newest checkpoint, got one with 2 of"):
        ledgers.agree(Ledger(full.entries[:2]), full)
    fork = Ledger(full.entries[:2]).append(entry(9))
    with pytest.raises(LedgerError, match="differs from entry 3 on"):
        ledgers.agree(fork, full)


def test_budget():
    chain(9).check_budget(10)
    with pytest.raises(
        BudgetError,
        match="at most 10 announced .* 0 are left: how='ret",
    ):
        chain(10).check_budget(10)
    with pytest.raises(BudgetError, match="announced releases=10 .* got releases=20"):
        chain(3).check_budget(20)
    with pytest.raises(BudgetError, match="announced releases=10 .* got releases=None"):
        chain(3).check_budget(None)
    chain(30, releases=None).check_budget(None)


def test_no_release_may_use_more_of_the_total_than_was_announced():
    made = chain(3)
    mu = made.mus[0]
    made.check_budget(10, mu)
    made.check_budget(10, mu / 2)
    with pytest.raises(BudgetError, match="with which the earlier of 10 announced"):
        made.check_budget(10, 1.01 * mu)
    chain(3, releases=None).check_budget(None, 100 * mu)


def test_files_appear_whole(tmp_path, monkeypatch):
    path = tmp_path / "ledger.jsonl"
    assert ledgers.read(path) == Ledger()
    ledgers.write(path, chain(2))
    before = path.read_text()
    monkeypatch.setattr(
        "os.fsync", lambda fd: (_ for _ in ()).throw(OSError(28, "full"))
    )
    with pytest.raises(OSError, match="full"):
        ledgers.write(path, chain(3))
    assert path.read_text() == before
    assert [p.name for p in tmp_path.iterdir()] == ["ledger.jsonl"]
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(LedgerError, match="expected a ledger at"):
        ledgers.read(path)


def test_nobody_may_read_more_than_before(tmp_path):
    """Whoever has closed a file, or asked for positions in it, has closed it."""
    path, named = tmp_path / "ledger.jsonl", tmp_path / "named.jsonl"
    ledgers.write(path, chain(1))
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask
    path.chmod(0o600)
    ledgers.write(path, chain(2))
    assert path.stat().st_mode & 0o777 == 0o600
    ledgers.write(named, chain(1, forget_indices=[3, 4, 5]))
    assert named.stat().st_mode & 0o777 == 0o600


def test_forget_digest_needs_the_key_and_not_the_order():
    key, other = "00" * 16, "01" * 16
    assert ledgers.forget_digest(key, [3, 1]) == ledgers.forget_digest(key, [1, 3])
    assert ledgers.forget_digest(key, [1, 3]) != ledgers.forget_digest(other, [1, 3])
    assert ledgers.forget_digest(key, [1, 3]) != ledgers.forget_digest(key, [13])


def test_entries_are_plain():
    sealed = chain(1).entries[0]
    assert replace(sealed, hash="").sealed() == sealed
    assert json.loads(json.dumps(asdict(sealed))) == asdict(sealed)
