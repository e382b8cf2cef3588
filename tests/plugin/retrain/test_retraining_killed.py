"""A retraining that is stopped at any point loses nothing, and goes on."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lightning_unlearn.errors import SetupError
from lightning_unlearn.guarantee.claims import Grade
from tests.helpers.lightning import Callback, ModelCheckpoint
from tests.helpers.nets import HeadNet, UnlearningCallback, digits, loader, trainer

ROOT = Path(__file__).parents[3]
SECRET = {"clean.private.json", "clean.receipts.jsonl"}


@pytest.mark.slow
def test_killed_anywhere_and_asked_again_it_is_exact(tmp_path):
    """Before each hook of its training and each operation on files, 60 or more."""
    ended = subprocess.run(
        [sys.executable, "-m", "tests.plugin.helpers.kill_retraining", tmp_path],
        cwd=ROOT, timeout=400, capture_output=True, text=True,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert not [p.read_text() for p in tmp_path.glob("*/problem.txt")]
    cases = json.loads(ended.stdout.splitlines()[-1])
    kinds = [case["kind"] for case in cases]
    assert kinds.count("hooks") >= 20
    assert kinds.count("files") >= 30
    for case in cases:
        made, shown = case["made"], set(case["shown"])
        assert case["ended"] == -signal.SIGKILL, case
        assert case["old"], case  # the model is not lost
        # All as it was, or the new model and all that belongs to it.
        assert case["entries"] <= made, case
        if not made:
            assert shown - SECRET == {"old.ckpt"}, case
        else:
            assert shown >= {"old.ckpt", "clean.ckpt"} | SECRET, case
            assert "which exists" in case["again"], case
        # Asked again it ends as one that was never stopped.
        steps = 6 if made else case["steps"]
        assert steps in (6, 7), case  # Lightning 2.4 may go on for a step
        assert case["weights_as_resumed"] == (steps == case["resumed"] == 6), case
        assert case["certificate"] == "exact", case
        assert case["after"] == [2], case
        assert not case["failed"], case
        assert not case["hidden"], case
        assert case["secret"] == 2, case
    # Killed within epochs and between them, after the last, and after all is saved.
    assert {case["resumed"] for case in cases} == {None, 2, 3, 4, 6}
    assert {case["made"] for case in cases} == {True, False}


class Stops(Callback):
    """After its last step, once all is saved."""

    def on_train_end(self, trainer, pl_module):
        raise KeyboardInterrupt


def stopped_at_its_end(folder, **options):
    """A request by a retraining that is complete, and was not put to use."""
    stops = [Stops()]

    def make(samples):
        kept = ModelCheckpoint(folder, "anew-{step}")
        anew = trainer(
            UnlearningCallback(retrain=make), 2, enable_checkpointing=True,
            callbacks=[kept, *stops], **options,
        )  # fmt: skip
        return anew, HeadNet(), loader(samples)

    own = trainer(UnlearningCallback(retrain=make), 1, **options)
    own.fit(HeadNet(), loader(digits(200)))
    handler = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            own.unlearn([1], how="retrain")
    finally:  # Lightning ignores further interrupts while it shuts down
        signal.signal(signal.SIGINT, handler)
    stops.clear()
    (last,) = folder.glob("anew-*.ckpt")
    return own, last


def test_one_that_was_complete_is_taken_as_it_is(tmp_path):
    own, last = stopped_at_its_end(tmp_path)
    result = own.unlearn([1], how="retrain", resume_from=last)
    assert result.certificate.grade is Grade.EXACT
    trained = torch.load(last, weights_only=True)
    assert result.solution.steps == trained["global_step"] == 8
    now = own.lightning_module.state_dict()
    assert all(torch.equal(now[k], v) for k, v in trained["state_dict"].items())
    # Its record is whole: a Newton step goes on from it, and another retraining.
    two = own.unlearn([2]).certificate
    assert (two.grade, two.release, two.n_retain) == (Grade.CERTIFIED, 2, 198)
    assert own.unlearn([3], how="retrain").certificate.n_retain == 197


def test_a_checkpoint_that_cannot_be_read_is_named(tmp_path):
    own, last = stopped_at_its_end(tmp_path)
    torn = tmp_path / "torn.ckpt"
    torn.write_bytes(last.read_bytes()[:5000])
    for path in (torn, tmp_path / "none.ckpt"):
        said = f"{path.name}, but it cannot be read as a checkpoint .* begin anew"
        with pytest.raises(SetupError, match=said):
            own.unlearn([1], how="retrain", resume_from=path)
    assert own.callbacks[-1].record.removed == []
