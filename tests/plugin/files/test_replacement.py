"""``overwrite=True``: the clean checkpoint before, or the new one; no other file."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from lightning_unlearn import Certificate
from lightning_unlearn.errors import ForgetSetError, SetupError
from lightning_unlearn.plugin.files import checkpoint, replacement
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

ROOT = Path(__file__).parents[3]
NAMES = [
    "clean.certificate.json", "clean.ckpt", "clean.private.json",
    "clean.receipts.jsonl",
]  # fmt: skip


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if "lock" not in p.name}


def hidden(folder):
    return [n for n in contents(folder) if n.startswith(".")]


def certificates(clean):
    """Request ids of the checkpoint and of what lies beside it."""
    text = checkpoint.record_in(clean)["certificate"]
    shown = checkpoint.certificate_path(clean).read_text()
    lines = (clean.parent / "clean.receipts.jsonl").read_text().splitlines()
    opened = json.loads(lines[0])
    return {
        Certificate.from_json(text).request_id,
        Certificate.from_json(shown).request_id,
        opened["request_id"],
    }


@pytest.mark.parametrize("ledger", [True, False])
def test_the_next_request_takes_the_place_of_the_one_before(tmp_path, ledger):
    clean = tmp_path / "clean.ckpt"
    options = {"ledger": tmp_path / "ledger.jsonl"} if ledger else {}
    net, own, callback, _ = fitted(HeadNet(), **options)
    own.unlearn([1, 2], save_to=clean)
    with pytest.raises(SetupError, match="overwrite=True asks for the clean checkp"):
        own.unlearn([3], save_to=clean)
    result = own.unlearn([3], save_to=clean, overwrite=True)
    assert sorted(n for n in contents(tmp_path) if n in NAMES) == NAMES
    assert hidden(tmp_path) == []
    assert certificates(clean) == {result.certificate.request_id}
    assert str(clean) not in result.stale.checkpoints
    # It is whole: a request in another process goes on from it.
    other = UnlearningCallback(**options)
    trainer(other).unlearn(
        [4], model=HeadNet(), train_dataloaders=loader(digits(600)), ckpt_path=clean,
        save_to=clean, overwrite=True,
    )  # fmt: skip
    assert other.record.removed == [1, 2, 3, 4]
    assert hidden(tmp_path) == []


def test_the_same_cell_twice_is_already_forgotten(tmp_path):
    net, own, _, _ = fitted(HeadNet())
    own.unlearn([1, 2], save_to=tmp_path / "clean.ckpt", overwrite=True)
    before, state = contents(tmp_path), weights(net)
    with pytest.raises(ForgetSetError, match=r"got 1, 2: already forgotten, all of"):
        own.unlearn([1, 2], save_to=tmp_path / "clean.ckpt", overwrite=True)
    assert contents(tmp_path) == before
    assert same(state, weights(net))


def test_the_same_cell_from_a_checkpoint_runs_again(tmp_path):
    _, own, _, _ = fitted(HeadNet())
    own.save_checkpoint(tmp_path / "run.ckpt")
    for _ in range(2):
        callback = UnlearningCallback()
        result = trainer(callback).unlearn(
            [1, 2], model=HeadNet(), train_dataloaders=loader(digits(600)),
            ckpt_path=tmp_path / "run.ckpt", save_to=tmp_path / "clean.ckpt",
            overwrite=True,
        )  # fmt: skip
    assert certificates(tmp_path / "clean.ckpt") == {result.certificate.request_id}


def spoiled(kind, folder):
    """Something else at one of the names."""
    clean = folder / "clean.ckpt"
    if kind == "text":
        clean.write_text("mine")
    elif kind == "folder":
        clean.unlink()
        clean.mkdir()
    elif kind == "link":
        clean.rename(folder / "elsewhere.ckpt")
        clean.symlink_to(folder / "elsewhere.ckpt")
    elif kind == "not private":
        (folder / "clean.private.json").unlink()
    elif kind == "certificate":
        (folder / "clean.certificate.json").write_text("{}")
    elif kind == "receipts":
        (folder / "clean.receipts.jsonl").write_text("mine")
    elif kind == "training":
        fitted(HeadNet())[1].save_checkpoint(clean)
    elif kind == "another training":
        for name in NAMES:
            (folder / name).unlink()
        fitted(HeadNet())[1].unlearn([1], save_to=clean)


@pytest.mark.parametrize(
    ("kind", "match"),
    [
        ("text", "cannot be read as a checkpoint"),
        ("folder", "got a link or a folder"),
        ("link", "got a link or a folder"),
        ("not private", "got one without its clean.private.json"),
        ("certificate", "got a file that does not belong .*clean.certificate.json"),
        ("receipts", "got a file that does not belong .*clean.receipts.jsonl"),
        ("training", "got a file that no request has written"),
        ("another training", "got the checkpoint of another training"),
    ],
)
def test_nothing_else_is_replaced(kind, match, tmp_path):
    net, own, callback, _ = fitted(HeadNet())
    own.unlearn([1, 2], save_to=tmp_path / "clean.ckpt")
    spoiled(kind, tmp_path)
    names, state = sorted(tmp_path.iterdir()), weights(net)
    before = {p: p.read_bytes() for p in names if p.is_file()}
    with pytest.raises(SetupError, match=match):
        own.unlearn([3], save_to=tmp_path / "clean.ckpt", overwrite=True)
    assert sorted(tmp_path.iterdir()) == names
    assert {p: p.read_bytes() for p in names if p.is_file()} == before
    assert callback.record.removed == [1, 2]
    assert same(state, weights(net))


def test_a_checkpoint_that_has_forgotten_more_is_not_replaced(tmp_path):
    _, own, _, _ = fitted(HeadNet())
    own.save_checkpoint(tmp_path / "run.ckpt")
    own.unlearn([1, 2], save_to=tmp_path / "clean.ckpt")
    with pytest.raises(SetupError, match="before 2 samples were unlearned"):
        trainer(UnlearningCallback()).unlearn(
            [3], model=HeadNet(), train_dataloaders=loader(digits(600)),
            ckpt_path=tmp_path / "run.ckpt", save_to=tmp_path / "clean.ckpt",
            overwrite=True,
        )  # fmt: skip
    record = fitted(HeadNet())[2].record
    record.lineage = checkpoint.state_in(tmp_path / "clean.ckpt")["lineage"]
    with pytest.raises(SetupError, match="samples which this model still holds"):
        replacement.check(tmp_path / "clean.ckpt", record, [1, 3])


def test_a_signed_certificate_and_missing_receipts_belong_to_it(tmp_path):
    _, own, _, _ = fitted(HeadNet())
    own.unlearn([1], save_to=tmp_path / "clean.ckpt")
    (tmp_path / "clean.receipts.jsonl").unlink()  # handed out
    shown = tmp_path / "clean.certificate.json"
    plain = json.loads(shown.read_text())
    signature = {"algorithm": "Ed25519", "public_key": "00", "value": "00"}
    shown.write_text(json.dumps(plain | {"signature": signature}))
    result = own.unlearn([2], save_to=tmp_path / "clean.ckpt", overwrite=True)
    assert certificates(tmp_path / "clean.ckpt") == {result.certificate.request_id}


def test_it_needs_a_name():
    _, own, _, _ = fitted(HeadNet())
    with pytest.raises(SetupError, match="expected save_to= with overwrite=True"):
        own.unlearn([1], overwrite=True)


@pytest.mark.parametrize("missing", [True, False])
@pytest.mark.parametrize("ledger", [True, False])
def test_an_error_puts_everything_back(tmp_path, monkeypatch, ledger, missing):
    """At each operation on files in turn (an error that comes after the new names)."""
    options = {"ledger": tmp_path / "ledger.jsonl"} if ledger else {}
    net, own, callback, _ = fitted(HeadNet(), **options)
    own.unlearn([1, 2], save_to=tmp_path / "clean.ckpt")
    if missing:
        (tmp_path / "clean.receipts.jsonl").unlink()
    before, state = contents(tmp_path), weights(net)
    real, calls = Path.replace, []
    for number in range(1, 5):
        calls.clear()

        def failing(path, target, at=number):
            if ".part" in path.name and "clean" in path.name:
                calls.append(path)
                if len(calls) == at:
                    raise OSError("no space left")
            return real(path, target)

        monkeypatch.setattr(Path, "replace", failing)
        with pytest.raises(OSError, match="no space left"):
            own.unlearn([3], save_to=tmp_path / "clean.ckpt", overwrite=True)
        monkeypatch.setattr(Path, "replace", real)
        assert contents(tmp_path) == before
        assert callback.record.removed == [1, 2]
        assert same(state, weights(net))
    own.unlearn([3], save_to=tmp_path / "clean.ckpt", overwrite=True)
    assert callback.record.removed == [1, 2, 3]


def test_a_file_system_without_links_is_refused(tmp_path, monkeypatch):
    _, own, _, _ = fitted(HeadNet())
    own.unlearn([1, 2], save_to=tmp_path / "clean.ckpt")
    before = contents(tmp_path)

    def no_links(path, target):
        raise OSError("not permitted")

    monkeypatch.setattr(Path, "hardlink_to", no_links)
    with pytest.raises(SetupError, match="a file system with links"):
        own.unlearn([3], save_to=tmp_path / "clean.ckpt", overwrite=True)
    assert contents(tmp_path) == before


@pytest.mark.slow
@pytest.mark.parametrize("ledger", [True, False])
def test_a_kill_leaves_the_old_files_or_the_new(tmp_path, ledger):
    """Before each operation on files of a request that replaces (kill_replacing.py)."""
    ended = subprocess.run(
        [sys.executable, "-m", "tests.plugin.helpers.kill_replacing", tmp_path,
         "ledger" if ledger else "none"],
        cwd=ROOT, timeout=240, capture_output=True, text=True,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-3000:]
    cases = json.loads(ended.stdout.splitlines()[-1])
    assert len(cases) >= 20
    assert {case["made"] for case in cases} == {True, False}
    for case in cases:
        assert case["ended"] == -9, case
        assert case["removed"] == ([1, 2, 3] if case["made"] else [1, 2]), case
        assert case["one_request"], case  # what lies beside it is the checkpoint's
        assert case["seconds"] == [], case
        # It goes on from there: the next request ends, and replaces it again.
        assert case["after"] == [1, 2, 3], case


def test_who_comes_while_it_is_replaced_is_told(tmp_path):
    clean = tmp_path / "clean.ckpt"
    _, own, _, _ = fitted(HeadNet())
    own.unlearn([1, 2], save_to=clean)
    before = contents(tmp_path)
    busy = pytest.raises(SetupError, match="no other request that replaces")
    with FileLock(tmp_path / ".clean.ckpt.lock"), busy:
        own.unlearn([3], save_to=clean, overwrite=True)
    assert contents(tmp_path) == before
