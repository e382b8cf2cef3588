"""All or nothing: kills, interrupts, signals, full disks, and two requests at once."""

import json
import os
import resource
import signal
import subprocess
import sys
from array import array
from pathlib import Path

import pytest
import torch

from lightning_unlearn._base import files
from lightning_unlearn.certificate import ledger as ledgers
from lightning_unlearn.errors import LedgerError, SetupError, UnlearningError
from lightning_unlearn.plugin.files import checkpoint, journal
from lightning_unlearn.step.head.convex_objective import ConvexObjective
from tests.helpers.lightning import SIGTERMException
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


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["one", "ddp_fork"])
def test_all_or_nothing_wherever_a_request_is_stopped(strategy, tmp_path):
    """Before each of its batches and of its operations on files (kill_job.py)."""
    ended = subprocess.run(
        [sys.executable, "-m", "tests.plugin.helpers.kill_job", tmp_path, strategy],
        cwd=ROOT, timeout=240, capture_output=True, text=True,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-3000:]
    cases = json.loads(ended.stdout.splitlines()[-1])
    problems = [p.read_text() for p in tmp_path.glob("*/problem.txt")]
    assert not problems or strategy != "one", problems[:1]
    kinds = [case["kind"] for case in cases]
    assert kinds.count("batches") + kinds.count("files") >= 20
    assert kinds.count("interrupts") >= 12
    for case in cases:
        made = case["clean"] is not None
        assert case["old"], case  # the model is not lost
        assert case["ended"] == (-9 if case["kind"] != "interrupts" else 1) or (
            strategy == "ddp_fork" and case["ended"] == 9
        ), case
        secret = {"clean.private.json", "clean.receipts.jsonl"}
        assert set(case["shown"]) - secret <= {
            "old.ckpt", "clean.ckpt", "clean.certificate.json", "ledger.jsonl",
        }, case  # fmt: skip
        # They are there before the checkpoint is, and go if it never is.
        assert not made or secret <= set(case["shown"]), case
        assert case["secret"] == (2 if made else 0), case
        assert case["entries"] <= made, case
        # The next request asks again, or goes on; the ledger has every release once.
        assert case["after"] == ([2, 1] if made else [2]), case
        assert case["removed"] == ([1, 2, 3] if made else [1, 2]), case
        assert case["certificate"] == made, case
        assert not case["hidden"], case
    # Both ends are met: killed before the checkpoint shows, and after it.
    assert {case["clean"] is not None for case in cases} == {True, False}


ARMED = array("b", [False])  # neither a module's nor a container: not put back


class Terminated(HeadNet):
    """Is asked to end in the middle of a request."""

    def training_step(self, batch, batch_idx):
        if ARMED[0]:
            ARMED[0] = False
            os.kill(os.getpid(), signal.SIGTERM)
        return super().training_step(batch, batch_idx)


def test_a_request_that_is_asked_to_end_changes_nothing(tmp_path):
    net, fit_trainer, callback, _ = fitted(Terminated(), ledger=tmp_path / "l.jsonl")
    before, handler = weights(net), signal.getsignal(signal.SIGTERM)
    ARMED[0] = True
    try:
        with pytest.raises(SIGTERMException, match="nothing was changed") as ended:
            fit_trainer.unlearn([1], save_to=tmp_path / "clean.ckpt")
        assert ended.value.code not in (None, 0)  # a script must not go on
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert not ARMED[0]
    assert same(weights(net), before)
    assert callback.record.removed == []
    assert not (tmp_path / "clean.ckpt").exists()
    assert not (tmp_path / "l.jsonl").exists()
    assert trainer(callback).unlearn([1], model=net).n_forget == 1


def test_a_head_whose_features_are_read_hears_that_it_should_end(tmp_path, monkeypatch):
    """The solve reads no batch any more: it listens at each of its steps."""
    net, fit_trainer, callback, _ = fitted(ledger=tmp_path / "l.jsonl")
    before, gradient = weights(net), ConvexObjective.gradient

    def told_to_end(self, w):
        fit_trainer._signal_connector.received_sigterm = True
        return gradient(self, w)

    monkeypatch.setattr(ConvexObjective, "gradient", told_to_end)
    with pytest.raises(SIGTERMException, match="nothing was changed"):
        fit_trainer.unlearn([1], save_to=tmp_path / "clean.ckpt")
    assert same(weights(net), before)
    assert callback.record.removed == []
    assert not (tmp_path / "clean.ckpt").exists()


@pytest.mark.parametrize("room", [100, 2_000, 6_000])
def test_a_full_disk_changes_nothing(room, tmp_path):
    path = tmp_path / "ledger.jsonl"
    net, fit_trainer, callback, _ = fitted(ledger=path)
    fit_trainer.unlearn([1], save_to=tmp_path / "one.ckpt")
    before, text = weights(net), path.read_text()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        with pytest.raises((OSError, RuntimeError), match="File too large|write|fail"):
            fit_trainer.unlearn([2], save_to=tmp_path / "two.ckpt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert same(weights(net), before)
    assert path.read_text() == text
    assert callback.record.removed == [1]
    names = {p.name for p in tmp_path.iterdir()}
    lock = ".ledger.jsonl.lock"
    assert names - {lock} == {
        "ledger.jsonl", "one.ckpt", "one.certificate.json", "one.private.json",
        "one.receipts.jsonl",
    }  # fmt: skip
    assert fit_trainer.unlearn([2], save_to=tmp_path / "two.ckpt").n_forget == 1


def test_folders_that_cannot_be_written():
    net, fit_trainer, _, _ = fitted(ledger="/proc/ledger.jsonl")
    before = weights(net)
    with pytest.raises(LedgerError, match="a folder for the ledger .* can be written"):
        fit_trainer.unlearn([1])
    assert same(weights(net), before)
    net, fit_trainer, _, _ = fitted()
    before = weights(net)
    with pytest.raises((OSError, RuntimeError)):
        fit_trainer.unlearn([1], save_to="/proc/clean.ckpt")
    assert same(weights(net), before)
    assert fit_trainer.unlearn([1]).n_forget == 1


def test_two_requests_with_one_ledger_do_not_mix(tmp_path):
    path = tmp_path / "ledger.jsonl"
    net, fit_trainer, callback, _ = fitted(ledger=path)
    before = weights(net)
    with (
        journal.locked(path),
        pytest.raises(LedgerError, match="no other request .* wait until it has ended"),
    ):
        fit_trainer.unlearn([1], save_to=tmp_path / "clean.ckpt")
    assert same(weights(net), before)
    assert [p.name for p in tmp_path.iterdir()] == [".ledger.jsonl.lock"]
    assert fit_trainer.unlearn([1]).n_forget == 1


def test_a_checkpoint_that_somebody_else_writes_meanwhile_is_theirs(
    tmp_path, monkeypatch
):
    net, fit_trainer, _, _ = fitted()
    before, clean = weights(net), tmp_path / "clean.ckpt"
    save = fit_trainer.save_checkpoint

    def slow(*args, **kwargs):
        clean.write_text("theirs")
        return save(*args, **kwargs)

    monkeypatch.setattr(fit_trainer, "save_checkpoint", slow)
    with pytest.raises(Exception, match="save_to= to name a new file"):
        fit_trainer.unlearn([1], save_to=clean)
    assert clean.read_text() == "theirs"
    assert [p.name for p in tmp_path.iterdir()] == ["clean.ckpt"]
    assert same(weights(net), before)


NOTE = {
    "checkpoint": "/nowhere/clean.ckpt", "certificate": "", "ledger": "",
    "entries_before": 0, "secret": [],
}  # fmt: skip


@pytest.mark.parametrize(
    ("note", "message"),
    [
        ("{", "note .* as JSON"),
        ("[]", "as a JSON object"),
        ("[" * 100_000, "as JSON"),
        (json.dumps(NOTE), "expected a certificate as JSON"),
        (
            json.dumps(NOTE | {"entries_before": True}),
            "the note of an unfinished request",
        ),
        (json.dumps(NOTE | {"checkpoint": 3}), "the note of an unfinished request"),
        (json.dumps(NOTE | {"more": 3}), "the note of an unfinished request"),
        (json.dumps(NOTE | {"ledger": "{}\n"}), "the fields"),
        ("\udcff", "a note at"),
    ],
)
def test_damaged_notes_are_refused_and_kept(note, message, tmp_path):
    path = tmp_path / "ledger.jsonl"
    net, fit_trainer, _, _ = fitted(ledger=path)
    pending = tmp_path / ".ledger.jsonl.pending"
    pending.write_text(note, errors="surrogateescape")
    before = weights(net)
    with pytest.raises(UnlearningError, match=message):
        fit_trainer.unlearn([1])
    assert same(weights(net), before)
    assert pending.exists()
    assert not path.exists()


def stopped(folder, monkeypatch, before):
    """A request that is killed before or after its checkpoint shows; its files."""
    folder.mkdir()
    path, clean = folder / "ledger.jsonl", folder / "clean.ckpt"
    net, fit_trainer, _, data = fitted(ledger=path)
    fit_trainer.save_checkpoint(folder / "old.ckpt")
    publish = checkpoint.publish

    def killed(part, target):
        if not before or target != clean:
            publish(part, target)
        if target == clean:
            raise Killed

    # Nothing is undone either, as if by SIGKILL.
    monkeypatch.setattr(checkpoint, "publish", killed)
    monkeypatch.setattr(
        "lightning_unlearn.plugin.request.commit.Files.undo", lambda self: None
    )
    with pytest.raises((Killed, SystemExit)):
        fit_trainer.unlearn([1, 2], save_to=clean)
    monkeypatch.undo()
    assert (folder / ".ledger.jsonl.pending").exists()
    return path, clean, data


class Killed(BaseException):
    """The process is gone."""


def request(path, ckpt, data, forget, **options):
    own = UnlearningCallback(ledger=path)
    trainer(own).unlearn(
        forget, model=HeadNet(), train_dataloaders=loader(data), ckpt_path=ckpt,
        **options,
    )  # fmt: skip
    return [] if path is None else [e.n_forget for e in ledgers.read(path).entries]


def test_another_checkpoint_of_that_name_is_not_taken_for_the_request_s(
    tmp_path, monkeypatch
):
    path, clean, data = stopped(tmp_path / "a", monkeypatch, before=True)
    for path_left in (tmp_path / "a").glob("clean.*"):
        path_left.unlink()  # or the name would be taken
    request(None, tmp_path / "a" / "old.ckpt", data, [7], save_to=clean)
    assert request(path, tmp_path / "a" / "old.ckpt", data, [7, 9]) == [2]


def test_a_file_there_that_cannot_be_read_decides_nothing(tmp_path, monkeypatch):
    path, clean, data = stopped(tmp_path / "a", monkeypatch, before=True)
    clean.write_text("what is this?")
    with pytest.raises(LedgerError, match="whether the request was made cannot be"):
        request(path, tmp_path / "a" / "old.ckpt", data, [9])
    clean.unlink()
    assert request(path, tmp_path / "a" / "old.ckpt", data, [9]) == [1]


def test_a_checkpoint_that_was_taken_away_is_asked_for(tmp_path, monkeypatch):
    path, clean, data = stopped(tmp_path / "a", monkeypatch, before=False)
    with pytest.warns(UserWarning, match="the ledger .* has been completed"):
        entries = request(path, clean, data, [9])
    assert entries == [2, 1]
    path, clean, data = stopped(tmp_path / "b", monkeypatch, before=False)
    note = json.loads((tmp_path / "b" / ".ledger.jsonl.pending").read_text())
    (tmp_path / "b" / "clean.certificate.json").write_text(note["certificate"])
    clean.rename(tmp_path / "production.ckpt")
    with pytest.raises(LedgerError, match="clean.ckpt of a request that was stopped"):
        request(path, tmp_path / "b" / "old.ckpt", data, [9])


def test_the_same_call_again_finishes_the_first_and_says_so(tmp_path, monkeypatch):
    path, clean, data = stopped(tmp_path / "a", monkeypatch, before=False)
    old = tmp_path / "a" / "old.ckpt"
    with (
        pytest.warns(UserWarning, match="after it had written .* has been completed"),
        pytest.raises(SetupError, match="a new file, got .*, which exists"),
    ):
        request(path, old, data, [1, 2], save_to=clean)
    assert [e.n_forget for e in ledgers.read(path).entries] == [2]
    assert clean.with_name("clean.certificate.json").exists()
    assert not (tmp_path / "a" / ".ledger.jsonl.pending").exists()


def test_the_same_call_again_undoes_what_was_begun(tmp_path, monkeypatch):
    """Its secret files are there, and would be in the way of the same names."""
    path, clean, data = stopped(tmp_path / "a", monkeypatch, before=True)
    assert (tmp_path / "a" / "clean.private.json").exists()
    old = tmp_path / "a" / "old.ckpt"
    assert request(path, old, data, [1, 2], save_to=clean) == [2]
    assert clean.exists()
    assert not (tmp_path / "a" / ".ledger.jsonl.pending").exists()


def test_a_note_of_another_ledger_changes_nothing(tmp_path, monkeypatch):
    one, clean, _ = stopped(tmp_path / "a", monkeypatch, before=False)
    two = tmp_path / "two.jsonl"
    _, second, _, _ = fitted(ledger=two)
    second.unlearn([1])
    text = two.read_text()
    note = (tmp_path / "a" / ".ledger.jsonl.pending").read_text()
    (tmp_path / ".two.jsonl.pending").write_text(note)
    with pytest.raises(LedgerError, match="as the unfinished request .* left it"):
        second.unlearn([2])
    assert two.read_text() == text


def test_undone_halfway_and_killed_the_ledger_has_no_lost_release(
    tmp_path, monkeypatch
):
    """An error after everything was written, and a kill while it is taken back."""
    path, clean = tmp_path / "ledger.jsonl", tmp_path / "clean.ckpt"
    net, fit_trainer, callback, data = fitted(ledger=path)
    fit_trainer.save_checkpoint(tmp_path / "old.ckpt")
    rewind = ledgers.rewind

    def fail(*args):
        raise RuntimeError("a hook failed")

    def killed(*args):
        raise Killed

    monkeypatch.setattr(callback, "committed", fail)
    monkeypatch.setattr(ledgers, "rewind", killed)
    with pytest.raises((Killed, SystemExit)):
        fit_trainer.unlearn([1, 2], save_to=clean)
    monkeypatch.setattr(ledgers, "rewind", rewind)
    assert len(ledgers.read(path).entries) == 1
    assert not clean.exists()
    assert request(path, tmp_path / "old.ckpt", data, [9]) == [1]


def test_a_file_that_appears_at_the_last_moment_is_theirs(tmp_path, monkeypatch):
    net, fit_trainer, _, _ = fitted(ledger=tmp_path / "ledger.jsonl")
    before, clean = weights(net), tmp_path / "clean.ckpt"
    settle = files.settle

    def slow(path):
        settle(path)
        if "ckpt" in path.name:
            clean.write_text("theirs")

    monkeypatch.setattr(files, "settle", slow)
    with pytest.raises(SetupError, match="save_to= to name a new file"):
        fit_trainer.unlearn([1], save_to=clean)
    assert clean.read_text() == "theirs"
    assert same(weights(net), before)
    assert not (tmp_path / "ledger.jsonl").exists()


def test_links_are_not_followed_and_not_replaced(tmp_path):
    ledger, link = tmp_path / "ledger.jsonl", tmp_path / "link.jsonl"
    link.symlink_to(ledger)
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / ".ledger.jsonl.part").symlink_to(victim)
    _, fit_trainer, _, _ = fitted(ledger=link)
    with (
        journal.locked(ledger),
        pytest.raises(LedgerError, match="no other request"),
    ):
        fit_trainer.unlearn([1])
    fit_trainer.unlearn([1])
    assert link.is_symlink()
    assert len(ledgers.read(ledger).entries) == 1
    assert victim.read_text() == "precious"
    dangling = tmp_path / "clean.ckpt"
    dangling.symlink_to(tmp_path / "nowhere")
    with pytest.raises(SetupError, match="which exists"):
        fit_trainer.unlearn([2], save_to=dangling)
    assert dangling.is_symlink()


def test_the_torch_generators_know_nothing_of_the_noise(tmp_path):
    """Seeded alike, two requests differ by their noise; no seed is in any file."""
    found, states = [], []
    net, fit_trainer, _, dataset = fitted()
    fit_trainer.save_checkpoint(tmp_path / "run.ckpt")
    for name in ("one", "two"):
        torch.manual_seed(0)
        own, again = UnlearningCallback(ledger=tmp_path / f"{name}.jsonl"), HeadNet()
        trainer(own).unlearn(
            [1], model=again, train_dataloaders=loader(digits(len(dataset))),
            ckpt_path=tmp_path / "run.ckpt", save_to=tmp_path / f"{name}.ckpt",
        )  # fmt: skip
        found.append(weights(again))
        states.append(torch.get_rng_state())
    assert not same(*found)
    assert torch.equal(*states)
    saved = torch.load(tmp_path / "one.ckpt", weights_only=True)
    record = saved["callbacks"]["UnlearningCallback"]
    text = json.dumps(record) + (tmp_path / "one.jsonl").read_text()
    assert "seed" not in text.replace("noise_source", "")
