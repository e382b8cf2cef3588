"""Exclusion lists against HMAC by hand, and every way a list or key can be wrong."""

import hashlib
import json
import re
from concurrent.futures import ThreadPoolExecutor

import pytest

from lightning_unlearn.certificate import exclusions, receipts
from lightning_unlearn.certificate.console import main
from lightning_unlearn.certificate.exclusions import Exclusions, Key
from lightning_unlearn.errors import DataError, SetupError

SECRET = bytes(range(32))
REQUEST = "a" * 32


def by_hand(text):
    """RFC 2104, HMAC-SHA256 with a key of 32 bytes."""
    block = SECRET + bytes(32)
    inner = hashlib.sha256(bytes(b ^ 0x36 for b in block) + text).digest()
    return hashlib.sha256(bytes(b ^ 0x5C for b in block) + inner).hexdigest()


def leaves(*people):
    return receipts.leaves((i, name, f"{i:064x}") for i, name in enumerate(people))


@pytest.fixture
def org(tmp_path):
    """A list of one release of u1 (two samples) and 7, and its key."""
    (tmp_path / "org.key").write_text(SECRET.hex() + "\n")
    (tmp_path / "list.jsonl").write_text("")
    line = Key(SECRET).line(leaves("u1", "u1", "7"), REQUEST)
    assert exclusions.append(tmp_path / "list.jsonl", line)
    return tmp_path


def listed(org):
    return Exclusions.read(org / "list.jsonl", org / "org.key")


def check(org, text, *more, column="user_id"):
    (org / "data.csv").write_text(text)
    return main([
        "exclusions", "check", str(org / "data.csv"), "--column", column,
        "--list", str(org / "list.jsonl"), "--key-file", str(org / "org.key"), *more,
    ])  # fmt: skip


def test_digests_are_those_by_hand_and_their_order_tells_nothing(org):
    (plain,) = map(json.loads, (org / "list.jsonl").read_text().splitlines())
    people = [by_hand(b"person\0" + name) for name in (b"u1", b"7")]
    samples = [by_hand(b"sample\0" + f"{i:064x}".encode()) for i in range(3)]
    assert plain["people"] == sorted(people)
    assert plain["samples"] == sorted(samples)
    assert plain["request_id"] == REQUEST
    mac = plain.pop("mac")
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    assert mac == by_hand(b"line\0" + text.encode())
    assert listed(org).has_person("u1")
    assert listed(org).has_person(str(7))
    assert not listed(org).has_person("u2")
    assert listed(org).has_sample(f"{2:064x}")
    assert not listed(org).has_sample(f"{3:064x}")
    # An id that looks like a content is not one.
    assert not listed(org).has_person(f"{2:064x}")


def test_without_the_key_no_guess_fits(org):
    """Neither a plain hash, nor one keyed by anything that the list itself says."""
    text = (org / "list.jsonl").read_text()
    plain = json.loads(text)
    told = [b"", REQUEST.encode(), plain["mac"].encode(), bytes.fromhex(plain["mac"])]
    for guess in (b"u1", b"7", f"{0:064x}".encode()):
        for kind in (b"", b"person\0", b"sample\0"):
            assert hashlib.sha256(kind + guess).hexdigest() not in text
            for key in told:
                assert Key(key)._digest(kind.rstrip(b"\0"), guess) not in text
    assert "u1" not in text
    (org / "org.key").write_text("0" * 64)
    with pytest.raises(DataError, match=r"got line 1 .* written with another key"):
        listed(org)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t[:-1], "a last one without an end: it was cut off"),
        (lambda t: t[:-30] + "\n", "line 1 of the exclusion list .* as JSON"),
        (lambda t: "\n" + t, "as JSON"),
        (lambda t: t.replace('"schema": 1', '"schema": 2'), "schema 1 .* got 2"),
        (lambda t: t.replace('"people"', '"who"'), "expected the fields"),
        (lambda t: t.replace('"people": ["', '"people": ["x'), "64 hexadecimal"),
        (lambda t: t.replace('"people": [', f'"people": ["{"0" * 64}", '), "altered"),
        (lambda t: t.replace(REQUEST, "b" * 32), "altered"),
        (lambda t: t.replace('"mac": "', '"mac": "", "x": "'), "expected the fields"),
        (lambda t: "\udcff" + t, "an exclusion list at .* UnicodeDecodeError"),
        (lambda t: '{"schema": 1, "schema": 1}\n', "written twice"),
    ],
)
def test_damaged_lists_are_refused(change, message, org, capsys):
    path = org / "list.jsonl"
    path.write_text(change(path.read_text()), errors="surrogateescape")
    with pytest.raises(DataError, match=message):
        listed(org)
    assert check(org, "user_id\nu2\n") == 1
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "found no file there: put the list's own key there; .* exclusions new"),
        ("", "got 0 characters that are not 64 hexadecimal"),
        ("0" * 63, "got 63 characters"),
        ("\u00e9" * 64, "UnicodeDecodeError"),
    ],
)
def test_wrong_keys_are_refused(text, message, org):
    (org / "org.key").unlink()
    if text is not None:
        (org / "org.key").write_text(text)
    with pytest.raises(SetupError, match=message):
        listed(org)


def test_a_list_that_is_missing_is_not_an_empty_one(org):
    (org / "list.jsonl").unlink()
    with pytest.raises(SetupError, match="nobody would be found; if nobody has been"):
        listed(org)
    with pytest.raises(SetupError, match="an exclusion list at .* found none there"):
        exclusions.append(org / "list.jsonl", Key(SECRET).line([], REQUEST))


def test_a_release_stands_in_a_list_once_and_can_be_withdrawn(org):
    path, key = org / "list.jsonl", Key(SECRET)
    before = path.read_text()
    path.chmod(0o640)
    assert not exclusions.append(path, key.line(leaves("u1"), REQUEST))
    assert path.read_text() == before
    assert exclusions.append(path, key.line(leaves("u5"), "b" * 32))
    assert path.stat().st_mode & 0o777 == 0o640
    assert listed(org).has_person("u5")
    exclusions.withdraw(path, "b" * 32)
    exclusions.withdraw(path, "c" * 32)
    assert path.read_text() == before


def test_requests_of_many_models_add_at_once(org):
    path, key = org / "list.jsonl", Key(SECRET)

    def add(i):
        return exclusions.append(path, key.line(leaves(f"w{i}"), f"{i:032x}"))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(add, range(24)))
    found = listed(org)
    assert len(found.lines) == 25
    assert all(found.has_person(f"w{i}") for i in range(24))


def test_a_table_is_held_to_the_list(org, capsys):
    assert check(org, "x,user_id\n1,u2\n2,u10\n") == 0
    assert "none of 2 rows names one of the 2 ids" in capsys.readouterr().out
    assert check(org, "\ufeffx, user_id\n1,u2\n2,u1\n\n3,7\n4,07\n") == 1
    out = capsys.readouterr().out
    assert out == (
        "2 of 4 rows name somebody who was forgotten: rows 3, 4 (row 1 has the names)\n"
    )
    assert check(org, "user_id\n") == 0
    (org / "list.jsonl").write_text("")
    assert check(org, "user_id\nu1\n") == 0
    assert "none of 1 rows names one of the 0 ids" in capsys.readouterr().out


def test_releases_that_named_nobody_are_told(org, capsys):
    line = Key(SECRET).line(receipts.leaves([(3, None, "0" * 64)]), "b" * 32)
    exclusions.append(org / "list.jsonl", line)
    assert check(org, "user_id\nu2\n") == 0
    assert "note: 1 of 2 releases named nobody by id" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id\nu1\n", "a column named 'user_id' in .* got columns"),
        ("", "a column named 'user_id'"),
        ("x,user_id\n1\n", "the same columns in every row of .* got 1 in row 2"),
        ("x,user_id\n1,u2\n2,\n", "an empty one in row 3: nobody is named there"),
        ("user_id,user_id\nu1,u1\n", "one column named 'user_id'"),
        ('user_id\n"u1\n', "comma-separated values in UTF-8 .* unexpected end"),
    ],
)
def test_tables_are_read_strictly(text, message, org, capsys):
    assert check(org, text) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.search(message, captured.err)


def test_lists_and_keys_are_made_from_the_shell(tmp_path, capsys):
    path, key = tmp_path / "list.jsonl", tmp_path / "org.key"
    new = ["exclusions", "new", str(path), "--key-file", str(key)]
    assert main(new) == 0
    assert "and its key to" in capsys.readouterr().out
    assert [p.stat().st_mode & 0o077 for p in (path, key)] == [0, 0]
    assert Exclusions.read(path, key).lines == ()
    secret = key.read_text()
    assert main(new) == 1
    assert "expected a name that is not taken" in capsys.readouterr().err
    path.unlink()
    assert main(new) == 0  # a list for a key that is there
    assert "its key" not in capsys.readouterr().out
    assert key.read_text() == secret
    path.unlink()
    key.write_text("something else")
    assert main(new) == 1
    assert "64 hexadecimal digits" in capsys.readouterr().err
    assert not path.exists()
    assert main(["exclusions"]) == 2


def test_a_release_is_added_from_its_receipts(org, capsys):
    text = receipts.to_text(leaves("u8", "u9"), "b" * 32)
    (org / "clean.receipts.jsonl").write_text(text)
    add = [
        "exclusions", "add", str(org / "clean.receipts.jsonl"),
        "--list", str(org / "list.jsonl"), "--key-file", str(org / "org.key"),
    ]  # fmt: skip
    assert main(add) == 0
    assert (
        "added to the list: ids: 2, contents: 2, of 2 samples"
        in capsys.readouterr().out
    )
    assert listed(org).has_person("u9")
    assert main(add) == 0
    assert "the list has this release already" in capsys.readouterr().out
    assert len(listed(org).lines) == 2
    (org / "clean.receipts.jsonl").unlink()
    assert main(add) == 1
    assert "expected receipts at" in capsys.readouterr().err
