"""Twenty requests from one file: one release, twenty receipts; again: nothing to do."""

import csv
import json
import warnings
from datetime import date, timedelta
from pathlib import Path

import pytest

from lightning_unlearn.certificate import ledger as ledgers, receipts
from lightning_unlearn.certificate.console import main
from lightning_unlearn.certificate.inbox import inbox
from lightning_unlearn.errors import (
    DataError,
    ForgetSetError,
    LedgerError,
    SetupError,
)
from lightning_unlearn.plugin.files import journal
from lightning_unlearn.plugin.verbs.preflight import preflight
from tests.helpers.nets import (
    HeadNet,
    UnlearningCallback,
    digits,
    fitted,
    loader,
    same,
    trainer,
    weights,
)
from tests.plugin.helpers import forked
from tests.plugin.helpers.kill_job import at_file, in_child, stop
from tests.plugin.retrain.test_retraining import training

TODAY = date.today()
LATER = (TODAY + timedelta(days=9)).isoformat()


def people(n=600, each=6):
    data = digits(n)
    data.user_id = [f"u{i // each}" for i in range(n)]
    return data


def write(path, rows, columns=("request", "person", "positions", "due", "note")):
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, columns, restval="")
        table.writeheader()
        table.writerows(rows)


def twenty():
    return [
        {"request": f"T-{i}", "person": f"u{3 * i}", "due": LATER, "note": "é, x"}
        for i in range(20)
    ]


def read(path):
    with path.open(newline="", encoding="utf-8-sig") as file:
        return list(csv.DictReader(file))


def states(path):
    return [row["state"] for row in read(path)]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "inbox.csv"
    write(path, twenty())
    return path


@pytest.fixture
def project(tmp_path):
    """(net, trainer, callback) after a fit, with a ledger."""
    return fitted(HeadNet(), people(), ledger=tmp_path / "ledger.jsonl", releases=10)[
        :3
    ]


def verified(folder, row, capsys):
    certificate = folder / "clean.certificate.json"
    receipt = folder / row["receipt"]
    assert main(["verify", str(certificate), "--receipt", str(receipt)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("VERIFIED: ")
    found = receipts.read_receipts(receipt.read_text())
    assert {r.request_id for r in found} == {row["certificate"]}
    return {(r.leaf.person, r.leaf.position) for r in found}


def test_twenty_requests_one_release_twenty_receipts_and_again_nothing(
    project, file, tmp_path, capsys
):
    net, own, callback = project
    file.chmod(0o640)
    result = own.unlearn(requests=file, by="user_id", save_to=tmp_path / "clean.ckpt")
    assert result.n_forget == 120
    assert len(ledgers.read(tmp_path / "ledger.jsonl").entries) == 1
    rows = read(file)
    assert {(r["state"], r["release"], r["why"]) for r in rows} == {("done", "1", "")}
    assert {r["certificate"] for r in rows} == {result.certificate.request_id}
    assert {r["done_at"] for r in rows} == {result.certificate.created}
    assert [{k: r[k] for k in twenty()[0]} for r in rows] == twenty()
    assert file.stat().st_mode & 0o777 == 0o640
    assert len({r["receipt"] for r in rows}) == 20
    for i, row in enumerate(rows):
        own_samples = {(f"u{3 * i}", p) for p in range(18 * i, 18 * i + 6)}
        assert verified(tmp_path, row, capsys) == own_samples
        assert (tmp_path / row["receipt"]).stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "clean.receipts").stat().st_mode & 0o777 == 0o700
    assert "20 done, 0 refused" in str(result)
    # What is published or kept names neither people nor requests.
    public = [
        (tmp_path / name).read_text()
        for name in ("clean.certificate.json", "ledger.jsonl")
    ]
    assert not [t for t in public if '"u3"' in t or "T-1" in t or "u57" in t]
    assert not [t for t in public if "inbox" in t]

    before = weights(net)
    files = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    again = own.unlearn(requests=file, by="user_id", save_to=tmp_path / "clean.ckpt")
    assert again is None
    assert same(weights(net), before)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == files
    assert callback.requests == 1


def test_what_cannot_be_done_is_refused_and_the_others_go_on(project, tmp_path, capsys):
    _, own, callback = project
    path = tmp_path / "inbox.csv"
    own.unlearn(["u9"], by="user_id", save_to=tmp_path / "zero.ckpt")
    path.write_text(
        "request,person,positions,received,due,note\n"
        f"=A1,u1,,2025-01-31,{LATER},=1+1\n"
        f"B,nobody,,2025-01-31,{LATER},\n"
        f"C,u9,,2025-01-31,{LATER},\n"
        f"D,u1,,2025-01-31,{LATER},\n"
        f'E,,"7 12-14, 60",2025-01-31,{LATER},\n'
        f"F,,7-,2025-01-31,{LATER},\n"
        f"G,u2,3,2025-01-31,{LATER},\n"
        f"H,,,2025-01-31,{LATER},\n"
        f"I,,590-600,2025-01-31,{LATER},\n"
        f"K,,14-12,2025-01-31,{LATER},\n"
        "J,u"
    )
    with pytest.warns(UserWarning, match=r"8 of 11 .* cannot be done: J: expected 6 c"):
        result = own.unlearn(
            requests=path, by="user_id", save_to=tmp_path / "clean.ckpt"
        )
    assert result.n_forget == 6 + 5 - 1  # 7 is one of u1's
    rows = {r["request"]: r for r in read(path)}
    assert [r["state"] for r in rows.values()] == [
        "done", "refused", "refused", "done", "done", *["refused"] * 6,
    ]  # fmt: skip
    for request, why in (
        ("B", "expected a person that occurs in the training data"),
        ("C", "expected samples that are still in, got none"),
        ("F", "expected positions such as 3 7 12 or 10-15"),
        ("G", "expected a person or positions, got both"),
        ("H", "expected a person or positions, got neither"),
        ("I", "expected positions from 0 to 599"),
        ("K", "the first of a range before its last, got 14"),
        ("J", "expected 6 columns, got 2: half a line may mean somebody else"),
    ):
        assert rows[request]["why"].startswith(why) or why in rows[request]["why"]
        assert rows[request]["receipt"] == rows[request]["release"] == ""
    assert "u1" not in rows["B"]["why"]
    assert rows["=A1"]["receipt"].startswith("clean.receipts/_A1-")
    assert rows["=A1"]["note"] == "=1+1"
    assert {p for _, p in verified(tmp_path, rows["E"], capsys)} == {7, 12, 13, 14, 60}
    assert {p for _, p in verified(tmp_path, rows["D"], capsys)} == {*range(6, 12)}
    assert own.unlearn(requests=path, by="user_id", save_to="x.ckpt") is None
    # Somebody has corrected a row, and asks again.
    text = path.read_text().replace("B,nobody", "B,u30")
    path.write_text(text.replace("refused", "", 1))
    own.unlearn(requests=path, by="user_id", save_to=tmp_path / "next.ckpt")
    row = read(path)[1]
    assert (row["state"], row["release"], row["why"]) == ("done", "3", "")
    assert set(callback.record.removed) >= {*range(180, 186)}


def test_if_none_can_be_done_nothing_is(project, tmp_path):
    net, own, callback = project
    path, before = tmp_path / "inbox.csv", weights(net)
    write(path, [{"request": "A", "person": "who", "due": LATER}])
    with (
        pytest.warns(UserWarning, match="1 of 1 pending requests .* cannot be done: A"),
        pytest.raises(ForgetSetError, match="one request that can be done, got 1 pend"),
    ):
        own.unlearn(requests=path, by="user_id", save_to=tmp_path / "clean.ckpt")
    assert states(path) == ["refused"]
    assert same(weights(net), before)
    assert callback.requests == 0
    assert not (tmp_path / "clean.ckpt").exists()
    assert not (tmp_path / "ledger.jsonl").exists()


def test_overdue_ones_are_named_first(project, tmp_path):
    _, own, _ = project
    path = tmp_path / "inbox.csv"
    write(path, [
        {"request": "B", "person": "u1", "due": LATER},
        {"request": "C", "person": "u2", "due": f"{TODAY - timedelta(1)}"},
        {"request": "A", "person": "u3", "due": f"{TODAY - timedelta(12)}"},
    ])  # fmt: skip
    text = r"overdue: 2 of 3 pending .*: A by 12 days, C by 1 day$"
    with pytest.warns(UserWarning, match=text):
        result = own.unlearn(
            requests=path, by="user_id", save_to=tmp_path / "clean.ckpt"
        )
    assert [row.request for row in result.answers.rows] == ["A", "C", "B"]
    assert [row["request"] for row in read(path)] == ["B", "C", "A"]


def test_preflight_looks_at_all_of_them_and_writes_nothing(project, file):
    _, own, _ = project
    text = file.read_bytes()
    look = preflight(own, requests=file, by="user_id")
    assert look.n_forget == 120
    write(file, [])
    with pytest.raises(ForgetSetError, match="no request in .* is pending"):
        preflight(own, requests=file, by="user_id")
    assert text.count(b"\n") == 21


def test_a_header_alone_is_nothing_to_do(project, tmp_path):
    path = tmp_path / "inbox.csv"
    write(path, [])
    before = path.read_bytes()
    assert project[1].unlearn(requests=path, save_to=tmp_path / "clean.ckpt") is None
    assert path.read_bytes() == before


def test_where_processes_may_be_beside_it_the_first_decides_in_the_run(
    project, file, tmp_path, monkeypatch
):
    """As under torchrun: each process asks, and no process may return alone."""
    _, own, callback = project
    monkeypatch.setenv("LOCAL_RANK", "0")
    asked = {"requests": file, "by": "user_id", "save_to": tmp_path / "clean.ckpt"}
    assert own.unlearn(**asked).n_forget == 120
    assert own.unlearn(**asked) is None
    assert callback.requests == 1
    with file.open("a") as open_file:
        open_file.write(f"T-new,u1,,{LATER},\n")
    with pytest.raises(SetupError, match="save_to= to name a new file, got .*exists"):
        own.unlearn(**asked)
    assert own.unlearn(**asked | {"save_to": tmp_path / "b.ckpt"}).n_forget == 6


def test_a_file_where_receipts_go_is_named_before_the_work(project, file, tmp_path):
    (tmp_path / "clean.receipts").write_text("mine")
    with pytest.raises(SetupError, match="a folder or nothing at .*clean.receipts"):
        project[1].unlearn(requests=file, by="user_id", save_to=tmp_path / "clean.ckpt")
    assert states_of_nobody(file)


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        ({"forget": [1]}, SetupError, "got both: leave one out"),
        ({"requests": None}, ForgetSetError, "got neither"),
        ({"save_to": None}, SetupError, "save_to= and UnlearningCallback.ledger="),
        ({"by": None}, SetupError, "expected by= with the persons in"),
        ({"by": "customer"}, ForgetSetError, "attribute 'customer' of"),
        ({"requests": "no/inbox.csv"}, SetupError, "requests at .* found none there"),
        ({"requests": "s3://a/inbox.csv"}, SetupError, "on a disk of this machine"),
    ],
)
def test_what_does_not_fit_changes_nothing(
    given, kind, message, project, file, tmp_path
):
    net, own, callback = project
    text, before = file.read_bytes(), weights(net)
    usual = {"requests": file, "by": "user_id", "save_to": tmp_path / "clean.ckpt"}
    with pytest.raises(kind, match=message):
        own.unlearn(**usual | given)
    assert file.read_bytes() == text
    assert same(weights(net), before)
    assert callback.requests == 0


def test_other_data_than_in_training_refuse_nobody(file, tmp_path):
    _, own, callback, _ = fitted(HeadNet(), people(), ledger=tmp_path / "l.jsonl")
    text, wrong = file.read_bytes(), people(300)
    with pytest.raises(DataError, match="the training data of 600 samples"):
        own.unlearn(
            requests=file, by="user_id", save_to=tmp_path / "clean.ckpt",
            train_dataloaders=loader(wrong),
        )  # fmt: skip
    assert file.read_bytes() == text


def test_without_a_ledger_it_is_refused(file, tmp_path):
    _, own, _, _ = fitted(HeadNet(), people())
    with pytest.raises(SetupError, match="could tell after a kill which requests"):
        own.unlearn(requests=file, by="user_id", save_to=tmp_path / "clean.ckpt")


def test_a_file_that_another_process_works_on_is_waited_for(project, file, tmp_path):
    with (
        inbox.locked(file),
        pytest.raises(SetupError, match="nobody else to work on the requests"),
    ):
        project[1].unlearn(requests=file, by="user_id", save_to=tmp_path / "clean.ckpt")
    assert states_of_nobody(file)


def states_of_nobody(file):
    return "state" not in file.read_text().splitlines()[0]


def test_rows_that_people_write_meanwhile_stay(project, file, tmp_path, monkeypatch):
    """One is new, one is for somebody else by now, one is gone."""
    _, own, callback = project
    committed = UnlearningCallback.committed

    def edited(*args):
        rows = read(file)
        rows[3]["person"], rows[5]["note"] = "u99", "called her"
        more = {"request": "T-new", "person": "u98", "due": LATER}
        write(file, [*rows[:7], *rows[8:], more])
        return committed(*args)

    monkeypatch.setattr(UnlearningCallback, "committed", edited)
    with pytest.warns(UserWarning, match="rows of T-3, T-7 are left as they are"):
        own.unlearn(requests=file, by="user_id", save_to=tmp_path / "clean.ckpt")
    monkeypatch.undo()
    rows = {row["request"]: row for row in read(file)}
    assert len(rows) == 20
    assert (rows["T-3"]["state"], rows["T-3"]["person"]) == ("", "u99")
    assert (rows["T-new"]["state"], rows["T-new"]["person"]) == ("", "u98")
    assert (rows["T-5"]["state"], rows["T-5"]["note"]) == ("done", "called her")
    assert [row["state"] for row in rows.values()].count("done") == 18
    second = own.unlearn(requests=file, by="user_id", save_to=tmp_path / "two.ckpt")
    assert second.n_forget == 12
    assert {row["state"] for row in read(file)} == {"done"}


def test_a_file_that_cannot_be_written_at_the_end_is_completed_by_the_next_run(
    project, file, tmp_path, monkeypatch
):
    _, own, _ = project

    def full(*args):
        raise OSError("no space left")

    monkeypatch.setattr(inbox, "rewrite_file", full)
    asked = {"requests": file, "by": "user_id", "save_to": tmp_path / "clean.ckpt"}
    with pytest.warns(UserWarning, match="is done, but .* does not say so: the next"):
        result = own.unlearn(**asked)
    assert result.n_forget == 120
    assert states_of_nobody(file)
    hidden = file.rename(tmp_path / "moved.csv")
    with pytest.raises(SetupError, match="has done, found none: put it back"):
        own.unlearn(**asked)
    monkeypatch.undo()
    hidden.rename(file)
    with pytest.warns(UserWarning, match="has been completed"):
        assert own.unlearn(**asked) is None
    assert states(file) == ["done"] * 20
    assert not (tmp_path / ".ledger.jsonl.pending").exists()


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_interrupt_is_told_and_loses_nothing(
    when, project, file, tmp_path, monkeypatch, capsys
):
    _, own, _ = project

    def interrupt(*args):
        raise KeyboardInterrupt

    if when == "before":
        monkeypatch.setattr("lightning_unlearn.plugin.request.commit.journal.announce",
                            interrupt)  # fmt: skip
    else:
        monkeypatch.setattr(inbox, "rewrite_file", interrupt)
    asked = {"requests": file, "by": "user_id", "save_to": tmp_path / "clean.ckpt"}
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        own.unlearn(**asked)
    monkeypatch.undo()
    told = {
        "before": "Interrupted: nothing was changed",
        "after": "Interrupted after the request was done",
    }
    assert told[when] in capsys.readouterr().err
    assert states_of_nobody(file)
    if when == "before":
        assert own.unlearn(**asked).n_forget == 120
    else:
        with pytest.warns(UserWarning, match="has been completed"):
            assert own.unlearn(**asked) is None
    assert states(file) == ["done"] * 20
    assert len(ledgers.read(tmp_path / "ledger.jsonl").entries) == 1


def test_receipts_stay_when_a_clean_checkpoint_is_replaced(project, file, tmp_path):
    _, own, _ = project
    asked = {"requests": file, "by": "user_id", "save_to": tmp_path / "clean.ckpt"}
    own.unlearn(**asked)
    first = read(file)[0]
    with file.open("a") as open_file:
        open_file.write(f"T-0b,u1,,{LATER},\n")  # by who does not know of our columns
    assert own.unlearn(**asked, overwrite=True).n_forget == 6
    assert read(file)[-1]["release"] == "2"
    assert read(file)[0] == first
    kept = receipts.read_receipts((tmp_path / first["receipt"]).read_text())
    assert {r.request_id for r in kept} == {first["certificate"]}
    assert first["certificate"] != read(file)[-1]["certificate"]


def test_a_retraining_answers_what_was_pending_when_it_began(tmp_path, capsys):
    path = tmp_path / "inbox.csv"
    write(path, [
        {"request": "A", "person": "u1", "due": LATER},
        {"request": "B", "person": "nobody", "due": f"{TODAY - timedelta(2)}"},
    ])  # fmt: skip
    data = people(300)

    def make(part):
        if path.stat().st_size:  # others write meanwhile
            with path.open("a") as file:
                file.write(f"C,u2,,{LATER},\n")
        return training(part)

    own, net, first = training(data, retrain=make, ledger=tmp_path / "ledger.jsonl")
    own.fit(net, first)
    asked = {
        "requests": path, "by": "user_id", "save_to": tmp_path / "clean.ckpt",
        "how": "retrain",
    }  # fmt: skip
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        result = own.unlearn(**asked)
    texts = [str(w.message) for w in told]
    assert sum("overdue: 1 of 2" in text for text in texts) == 1
    assert sum("cannot be done" in text for text in texts) == 1
    assert result.n_forget == 6
    assert result.certificate.grade.value == "exact"
    assert states(path) == ["done", "refused", ""]
    opened = verified(tmp_path, read(path)[0], capsys)
    assert opened == {("u1", p) for p in range(6, 12)}


def test_a_request_that_fails_leaves_the_file_alone(
    project, file, tmp_path, monkeypatch
):
    net, own, _ = project
    text, before = file.read_bytes(), weights(net)

    def late(*args):
        raise RuntimeError("too late")

    monkeypatch.setattr(UnlearningCallback, "committed", late)
    with pytest.raises(RuntimeError, match="too late"):
        own.unlearn(requests=file, by="user_id", save_to=tmp_path / "clean.ckpt")
    assert file.read_bytes() == text
    assert same(weights(net), before)
    assert not (tmp_path / "clean.receipts").exists()
    assert not (tmp_path / ".ledger.jsonl.pending").exists()


def test_a_damaged_note_is_refused_and_kept(project, file, tmp_path, monkeypatch):
    _, own, _ = project
    monkeypatch.setattr(journal, "close", lambda path: None)
    own.unlearn(requests=file, by="user_id", save_to=tmp_path / "clean.ckpt")
    monkeypatch.undo()
    pending = tmp_path / ".ledger.jsonl.pending"
    note = json.loads(pending.read_text())
    assert not [name for name in ("u57", "u3") if name in pending.read_text()]
    answers = json.loads(note["answers"])
    for change, message in (
        ({"certificate": "../x"}, "the places of samples in the note"),
        ({"file": ""}, "the places of samples in the note"),
        ({"more": 1}, "expected the fields"),
        ({"certificate": "0" * 32}, "the receipts of request 0000"),
    ):
        damaged = note | {"answers": json.dumps(answers | change)}
        pending.write_text(json.dumps(damaged))
        with (
            pytest.raises((LedgerError, SetupError), match=message),
            journal.locked(tmp_path / "ledger.jsonl"),
        ):
            pass
        assert pending.exists()


class Looked(HeadNet):
    """Knows people by a table of its own."""

    def forget_indices(self, request):
        known = {"Ada": [1, 2], "Bob": [3], "far": [9999]}
        return [i for name in request for i in known[name]]


def test_a_hook_of_the_user_s_own_is_asked_for_each_person(tmp_path, capsys):
    path = tmp_path / "inbox.csv"
    write(path, [
        {"request": "A", "person": "Ada", "due": LATER},
        {"request": "B", "person": "Eve", "due": LATER},
        {"request": "C", "positions": "50", "due": LATER},
        {"request": "D", "person": "far", "due": LATER},
    ])  # fmt: skip
    _, own, _, _ = fitted(Looked(), digits(100), ledger=tmp_path / "l.jsonl")
    with pytest.warns(UserWarning, match="2 of 4 pending requests .* cannot be done"):
        result = own.unlearn(requests=path, save_to=tmp_path / "clean.ckpt")
    assert result.n_forget == 3
    rows = read(path)
    assert [row["state"] for row in rows] == ["done", "refused", "done", "refused"]
    assert "KeyError" in rows[1]["why"]
    assert "Eve" not in rows[1]["why"]  # it may be printed
    assert {p for _, p in verified(tmp_path, rows[0], capsys)} == {1, 2}


N = 120


def ask(folder, **more):
    own = UnlearningCallback(ledger=folder / "ledger.jsonl")
    devices = {k: more.pop(k) for k in ("devices", "strategy") if k in more}
    return trainer(own, **devices).unlearn(
        requests=folder / "inbox.csv", by="user_id", model=HeadNet(),
        train_dataloaders=loader(people(N), 16), ckpt_path=folder / "old.ckpt",
        save_to=folder / "clean.ckpt", **more,
    )  # fmt: skip


@pytest.mark.slow
def test_no_request_is_lost_or_done_twice_wherever_it_is_killed(tmp_path, capsys):
    """By SIGKILL before each operation on a file; the same command is run again."""
    _, own, _, _ = fitted(HeadNet(), people(N))
    own.save_checkpoint(tmp_path / "old.ckpt")
    rows = [{"request": f"T-{i}", "person": f"u{i}", "due": LATER} for i in (1, 4, 7)]
    rows.append({"request": "T-x", "person": "nobody", "due": LATER})

    def work(number):
        at_file(tmp_path, number, stop)
        warnings.simplefilter("ignore")
        ask(tmp_path)
        return 0

    made = []
    for number in range(1, 200):
        write(tmp_path / "inbox.csv", rows)
        ended = in_child(lambda n=number: work(n))
        if ended == 0:
            break
        assert ended == -9, Path("problem.txt").read_text()
        made.append((tmp_path / "clean.ckpt").exists())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            again = ask(tmp_path)
            assert (again is None) == made[-1], number
            assert ask(tmp_path) is None
        found = read(tmp_path / "inbox.csv")
        assert states(tmp_path / "inbox.csv") == ["done"] * 3 + ["refused"], number
        entries = ledgers.read(tmp_path / "ledger.jsonl").entries
        assert [entry.n_forget for entry in entries] == [18], number
        for i, row in zip((1, 4, 7), found, strict=False):
            opened = verified(tmp_path, row, capsys)
            assert opened == {(f"u{i}", p) for p in range(6 * i, 6 * i + 6)}, number
        hidden = [p.name for p in tmp_path.rglob(".*") if "lock" not in p.name]
        assert not hidden, number
        for path in (*tmp_path.glob("clean.receipts/*"), *tmp_path.glob("clean.*")):
            if path.is_file():
                path.unlink()
        (tmp_path / "clean.receipts").rmdir()
        (tmp_path / "ledger.jsonl").unlink()
    assert len(made) >= 20
    assert {*made} == {True, False}


def ask_in_two(folder, strategy):
    found = ask(folder, strategy=strategy, devices=2)
    print("nothing" if found is None else f"forgot {found.n_forget}", flush=True)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp_fork", "ddp"])
def test_several_processes_do_it_once(strategy, tmp_path):
    _, own, _, _ = fitted(HeadNet(), people(N))
    own.save_checkpoint(tmp_path / "old.ckpt")
    rows = [{"request": f"T-{i}", "person": f"u{i}", "due": LATER} for i in (1, 4)]
    write(tmp_path / "inbox.csv", rows)

    def run():
        ended = forked.run(ask_in_two, tmp_path, strategy, strategy=strategy)
        assert ended.returncode == 0, ended.stderr[-3000:]
        return ended.stdout

    assert "forgot 12" in run()
    assert states(tmp_path / "inbox.csv") == ["done", "done"]
    assert len(ledgers.read(tmp_path / "ledger.jsonl").entries) == 1
    assert len(list((tmp_path / "clean.receipts").iterdir())) == 2
    assert run().splitlines()[-1] == "nothing"
