"""A file of requests: what is read, what is written back, what is due."""

import os
import re
from datetime import date, timedelta
from pathlib import Path

import pytest

from lightning_unlearn._base import files
from lightning_unlearn.certificate import receipts
from lightning_unlearn.certificate.console import main
from lightning_unlearn.certificate.inbox import answers, inbox
from lightning_unlearn.certificate.inbox.answers import Answer, Answers
from lightning_unlearn.certificate.inbox.inbox import Inbox
from lightning_unlearn.errors import ForgetSetError, SetupError

HEAD = "request,person,received,due"
ID = "a" * 32


@pytest.fixture
def file(tmp_path):
    def write(text, name="inbox.csv"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def rows(path):
    return Inbox(path).pending


@pytest.mark.parametrize(
    ("received", "due"),
    [
        ("2026-11-03", "2026-12-03"),
        ("2026-12-31", "2027-01-31"),
        ("2027-01-31", "2027-02-28"),
        ("2028-01-30", "2028-02-29"),
        ("2026-10-31", "2026-11-30"),
    ],
)
def test_due_is_a_month_after_it_was_received(received, due, file):
    (row,) = rows(file(f"{HEAD}\nA,u1,{received},\n"))
    assert (row.due, row.derived) == (date.fromisoformat(due), True)
    (row,) = rows(file(f"{HEAD}\nA,u1,{received},2026-11-05\n"))
    assert (row.due, row.derived) == (date(2026, 11, 5), False)


def test_the_first_that_is_due_comes_first_and_half_a_line_before_it(file):
    path = file(f"{HEAD}\nA,u1,,2026-03-01\nB,u2,,2026-02-01\nC,u3,,2026-02-01\nD,u")
    assert [row.request for row in rows(path)] == ["D", "B", "C", "A"]


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("", ForgetSetError, "got an empty file"),
        ("\n\n", ForgetSetError, "got an empty file"),
        ("request;person;due\nA;u1;\n", ForgetSetError, "got semicolons: save it as"),
        ("person,due\n", ForgetSetError, "expected the columns request, person, pos"),
        ("request,due\n", ForgetSetError, "person or positions is enough"),
        ("request,person\n", ForgetSetError, "and received or due"),
        ("request,person,person,due\n", ForgetSetError, "columns .* once in the first"),
        (f"{HEAD}\nA,u1,,,x\n", ForgetSetError, "got 5 in row 2: quote what holds a"),
        (f"{HEAD}\nA,u1,,\n", ForgetSetError, "a date in received or due of row 2"),
        (f"{HEAD}\nA,u1,,30.11.2026\n", ForgetSetError, "date such as 2026-11-30 in d"),
        (f"{HEAD}\nA,u1,2026-02-30,\n", ForgetSetError, "got '2026-02-30': format"),
        (f"{HEAD}\nA,u1,9999-12-31,\n", ForgetSetError, "got '9999-12-31'"),
        (f"{HEAD}\n,u1,,2026-11-30\n", ForgetSetError, "an id of its own in column"),
        (
            f"{HEAD}\nA,u1,,2026-11-30\nA ,u2,,2026-11-30\n",
            ForgetSetError,
            "every request once in .*, got twice: 'A'",
        ),
        (
            f"{HEAD},state\nA,u1,,2026-11-30,NY\n",
            ForgetSetError,
            "state empty or one of pending, done, refused in row 2 .*, got 'ny'",
        ),
        (f"{HEAD},why\n", ForgetSetError, "or state alone, or none, got why"),
        (f'{HEAD}\nA,"u1,,2026-11-30\n', ForgetSetError, "table of comma-separated"),
        (f"{HEAD}\nA,Jos".encode() + b"\xe9,,\n", ForgetSetError, "values in UTF-8"),
    ],
)
def test_what_cannot_be_read_is_named(text, kind, message, file):
    with pytest.raises(kind, match=message):
        Inbox(file(text))


def test_a_path_that_is_no_file(tmp_path):
    with pytest.raises(SetupError, match="requests at .*inbox.csv, found none there"):
        Inbox(tmp_path / "inbox.csv")
    with (
        pytest.raises(SetupError, match="found none there"),
        inbox.locked(tmp_path / "no" / "inbox.csv"),
    ):
        pass


def test_a_folder_that_cannot_be_written():
    with (
        pytest.raises(SetupError, match="its folder must be writable"),
        inbox.locked(Path("/proc/inbox.csv")),
    ):
        pass


def refuse(path, *requests, salt="s"):
    there = {row.request: row for row in Inbox(path).rows}
    marks = {
        r: (there[r].asked(salt), {"state": "refused", "why": 'say "no", twice'})
        for r in requests
    }
    return inbox.mark(path, marks, salt)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_whatever_is_not_ours_stays_as_it_is(mark, end, file):
    """The byte order mark, line ends, quotes, blank lines, and a last line without."""
    lines = [
        "request,person,due,note,note", 'A,"u,1",2026-11-30,"two\nlines",', "",
        'B,u2,2026-11-30,"quoted", spaced ', ",,,,", "C,u3,2026-11-30,,",
    ]  # fmt: skip
    path = file(mark + end.join(lines))
    assert refuse(path, "A") == []
    state, why = "state,release,certificate,receipt,why,done_at", '"say ""no"", twice"'
    expected = [
        f"{lines[0]},{state}", f'{lines[1]},refused,,,,{why},', "", f"{lines[3]},,,,,,",
        ",,,,,,,,,,", f"{lines[5]},,,,,,",
    ]  # fmt: skip
    assert path.read_bytes().decode() == mark + end.join(expected)
    before = path.read_bytes()
    assert refuse(path, "A") == []  # nothing is written twice
    assert path.read_bytes() == before


def test_permissions_stay_and_links_are_followed_by_who_resolves_them(file):
    path = file(f"{HEAD}\nA,u1,,2026-11-30\n")
    for mode in (0o664, 0o600, 0o666):
        path.write_text(f"{HEAD}\nA,u1,,2026-11-30\n")
        path.chmod(mode)
        refuse(path, "A")
        assert path.stat().st_mode & 0o777 == mode
    assert [p.name for p in path.parent.iterdir()] == ["inbox.csv"]


def test_what_people_write_at_the_same_moment_is_not_lost(file, monkeypatch):
    path, sync, late = file(f"{HEAD}\nA,u1,,2026-11-30\n"), files.sync, []

    def slow(name):
        sync(name)
        if not late:
            late.append(name)
            with path.open("a") as open_file:
                open_file.write("B,u2,,2026-11-30\n")

    monkeypatch.setattr(files, "sync", slow)
    refuse(path, "A")
    assert late
    assert [row.request for row in rows(path)] == ["B"]
    assert Inbox(path).rows[0].state == "refused"


def test_a_file_that_always_changes_is_given_up(file, monkeypatch):
    path = file(f"{HEAD}\nA,u1,,2026-11-30\n")
    monkeypatch.setattr(inbox, "rewrite_file", lambda *args: False)
    with pytest.raises(SetupError, match="a file that changes all the time"):
        refuse(path, "A")


def leaves(n=5):
    return receipts.leaves((i, f"u{i}", None) for i in range(n))


def answered(path, *requests, clean="clean.ckpt"):
    there = {row.request: row for row in Inbox(path).rows}
    found = [Answer(request=r, asked=there[r].asked("s"), places=(0, 3)) for r in there]
    return Answers(
        file=str(path), salt="s", checkpoint=str(path.with_name(clean)),
        certificate=ID, release=4, done_at="2026-11-30T10:00:00+00:00",
        rows=tuple(found),
    )  # fmt: skip


def test_a_receipt_for_each_under_a_name_that_files_may_have(file):
    names = ["T-1", "t-1", "=A", "../../x", "a/b", "a_b", "ü" * 99]
    lines = [f"{name},u1,,2026-11-30" for name in names]
    path, made = file("\n".join([HEAD, *lines])), leaves()
    assert answered(path).complete(made) == []
    shown = [v["receipt"] for v in Inbox(path).table.rows().values()]
    assert len({s.casefold() for s in shown}) == len(names)
    for name in shown:
        assert re.fullmatch(r"clean\.receipts/[A-Za-z0-9_-]+\.a{8}\.jsonl", name)
        found = receipts.read_receipts((path.parent / name).read_text())
        assert [r.leaf for r in found] == [made[0], made[3]]
        for receipt in found:
            receipt.check(ID, receipts.root(made), len(made))


def test_no_spreadsheet_takes_what_is_written_for_a_formula(file):
    path = file(f"{HEAD}\nA,u1,,2026-11-30\n")
    answered(path, clean="=x.ckpt").complete(leaves())
    (values,) = Inbox(path).table.rows().values()
    assert values["receipt"].startswith("./=x.receipts/")
    assert not [v for v in values.values() if v and v[0] in "=+-@\t\r"]


def test_answers_are_read_as_they_were_written(file):
    found = answered(file(f"{HEAD}\nA,u1,,2026-11-30\n"))
    assert answers.parse(found.to_text(), "a note") == found


def test_all_receipts_are_those_that_are_made_one_by_one():
    for n in (1, 2, 3, 7, 8, 13):
        made = leaves(n)
        own = [receipts.receipt(made, place, ID) for place in range(n)]
        assert list(receipts.all_receipts(made, ID)) == own


def day(more):
    return (date.today() + timedelta(more)).isoformat()


def test_what_is_due_is_listed(file, capsys):
    path = file(
        f"{HEAD},state\nA,u1,,{day(3)},\nB,u2,,{day(-12)},pending\nC,u3,,{day(0)},\n"
        f"D,u4,,{day(-1)},done\nE,u5,,{day(-1)},refused\nF,u6,,{day(1)},\nG,u\n"
        f"\x1b[31mH,u1,,{day(-1)},\n"
    )
    assert main(["ledger", "due", str(path)]) == 1
    out = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in out[:-1]] == [
        "request", "G", "B", "\\x1b[31mH", "C", "F", "A",
    ]  # fmt: skip
    assert out[1].endswith("half a line: it will be refused")
    assert out[2].split() == ["B", day(-12), "OVERDUE", "by", "12", "days"]
    assert out[3].endswith("OVERDUE by 1 day")
    assert out[4].endswith("today")
    assert out[5].endswith("1 day left")
    assert out[6].endswith("3 days left")
    assert out[-1] == "6 pending, 2 overdue; 1 refused: the file says why"


def test_nothing_overdue_is_no_failure(file, capsys):
    assert main(["ledger", "due", str(file(f"{HEAD}\nA,u1,{day(0)},\n"))]) == 0
    out = capsys.readouterr().out
    assert "* one month after it was received (GDPR, Article 12(3))" in out
    assert out.endswith("1 pending, 0 overdue\n")
    assert main(["ledger", "due", str(file(f"{HEAD}\n"))]) == 0
    assert capsys.readouterr().out == "0 pending, 0 overdue\n"


def test_a_wrong_path_is_one_line(tmp_path, capsys):
    assert main(["ledger", "due", str(tmp_path / "no.csv")]) == 1
    assert re.fullmatch(
        "error: expected .* found none there\n", capsys.readouterr().err
    )


def test_group_and_umask_do_not_decide(file):
    path, before = file(f"{HEAD}\nA,u1,,2026-11-30\n"), os.umask(0o077)
    try:
        path.chmod(0o664)
        refuse(path, "A")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o664
