"""A file that has forgotten more is the one to go on from; what nobody can read."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from lightning_unlearn.errors import DataError, SetupError
from lightning_unlearn.guarantee.claims import Grade
from lightning_unlearn.plugin.files import checkpoint, known_checkpoints
from lightning_unlearn.plugin.files.known_checkpoints import Standing
from lightning_unlearn.plugin.files.plain_values import plain_values
from lightning_unlearn.plugin.training.training_record import TrainingRecord
from tests.helpers.lightning import ModelCheckpoint
from tests.helpers.nets import HeadNet, UnlearningCallback, digits, loader, trainer

DATA = digits(300)


def raw(folder, net=None, name="raw.ckpt"):
    """A trained model's checkpoint."""
    own = trainer(UnlearningCallback(), max_epochs=1)
    own.fit(net or HeadNet(), loader(DATA))
    folder.mkdir(exist_ok=True)
    own.save_checkpoint(folder / name)
    return folder / name


def ask(path, forget, save_to=None, net=None, **options):
    """A request in a process of its own, as far as the callback can tell."""
    return trainer(UnlearningCallback(**options)).unlearn(
        forget, model=net or HeadNet(), train_dataloaders=loader(DATA), ckpt_path=path,
        save_to=save_to, weights_only=False if isinstance(net, Configured) else None,
    )  # fmt: skip


class Configured(HeadNet):
    """Its hyperparameters are objects of all kinds."""

    def __init__(self, part=None, folder=None, rate=None):
        super().__init__()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*is an instance of")
            self.save_hyperparameters()


def configured():
    return Configured(nn.Tanh(), Path("here"), np.float64(0.1))


@pytest.mark.parametrize("make", [HeadNet, configured])
def test_a_second_request_from_the_raw_checkpoint_is_refused(tmp_path, make):
    path = raw(tmp_path / "run", make())
    first, second = tmp_path / "run" / "clean.ckpt", tmp_path / "run" / "more.ckpt"

    def request(start, forget, save_to=None):
        return ask(start, forget, save_to, make())

    request(path, [1, 2], first)
    before = sorted(p.name for p in (tmp_path / "run").iterdir())
    with pytest.raises(SetupError, match=r"2 samples were unlearned, as .*clean.ckpt "):
        request(path, [3], second)
    with pytest.raises(SetupError, match="1 samples were unlearned.*forget them in"):
        request(path, [1, 3], second)
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == before
    assert request(first, [3], second).certificate.grade is Grade.CERTIFIED
    # Of the two that go on, the newest is named.
    with pytest.raises(SetupError, match=r"3 samples were unlearned, as .*more.ckpt "):
        request(path, [4])


def test_the_folder_it_is_saved_to_is_looked_into(tmp_path):
    path = raw(tmp_path / "run")
    ask(path, [1], tmp_path / "clean.ckpt")
    with pytest.raises(SetupError, match="clean.ckpt knows"):
        ask(path, [2], tmp_path / "second.ckpt")


def test_a_sibling_that_has_forgotten_others_is_later_too(tmp_path):
    path = raw(tmp_path / "run")
    one = ask(path, [1], tmp_path / "one.ckpt")
    ask(path, [1, 2], tmp_path / "two.ckpt")  # keeps nothing that was forgotten
    with pytest.raises(SetupError, match="1 samples were unlearned, as .*two.ckpt"):
        ask(tmp_path / "one.ckpt", [3])
    assert one.certificate.release == 1


def test_in_one_process_without_any_file(tmp_path):
    path = raw(tmp_path / "run")
    own = trainer(UnlearningCallback())
    options = {"model": HeadNet(), "train_dataloaders": loader(DATA)}
    own.unlearn([1], ckpt_path=path, **options)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="this checkpoint is from before")
        with pytest.raises(SetupError, match="as a request in this process knows"):
            own.unlearn([2], ckpt_path=path, **options)
        assert own.unlearn([1, 2], ckpt_path=path, **options).n_retain == 298
    assert own.unlearn([3]).n_retain == 297


# -- controls: who goes on from the newest, and who has nothing to do with it ----------


def test_requests_that_go_on_from_the_newest_pass(tmp_path):
    path = raw(tmp_path / "run")
    for request in range(3):
        clean = tmp_path / "run" / f"clean{request}.ckpt"
        assert ask(path, [request], clean).certificate.release == request + 1
        path = clean


def test_the_same_request_with_another_epsilon_passes(tmp_path):
    path = raw(tmp_path / "run")
    for epsilon in (1.0, 3.0):
        clean = tmp_path / "run" / f"{epsilon}.ckpt"
        assert ask(path, [1, 2], clean, epsilon=epsilon).n_forget == 2


def test_other_trainings_in_the_folder_are_others(tmp_path):
    folder = tmp_path / "run"
    one, other = raw(folder), raw(folder, name="other.ckpt")
    ask(one, [1], folder / "clean.ckpt")
    ask(other, [2], folder / "theirs.ckpt")
    scratch = raw(folder, name="scratch.ckpt")  # trained anew, on everything
    assert ask(scratch, [3]).certificate.grade is Grade.CERTIFIED
    record = TrainingRecord.from_dict(checkpoint.record_in(one))
    found = known_checkpoints.known(trainer(), str(one), record)
    assert {Path(k.path).name: k.standing for k in found} == {
        "raw.ckpt": Standing.OURS,
        "clean.ckpt": Standing.LATER,
        "other.ckpt": Standing.OTHER,
        "theirs.ckpt": Standing.OTHER,
        "scratch.ckpt": Standing.OTHER,
    }


# -- what cannot be read ---------------------------------------------------------------


def test_what_cannot_be_read_is_told_and_may_hold_them(tmp_path):
    folder = tmp_path / "run"
    path = raw(folder)
    (folder / "torn.ckpt").write_bytes(path.read_bytes()[:1000])
    torch.save({"state_dict": {}}, folder / "legacy.ckpt",
               _use_new_zipfile_serialization=False)  # fmt: skip
    keeps = ModelCheckpoint(dirpath=folder)
    keeps.best_model_path = "s3://bucket/best.ckpt"
    own = trainer(UnlearningCallback(), callbacks=[keeps], enable_checkpointing=True)
    result = own.unlearn(
        [1], model=HeadNet(), train_dataloaders=loader(DATA), ckpt_path=path
    )
    told = [t for t in result.certificate.not_covered if "could not be read" in t]
    assert len(told) == 1
    assert told[0].startswith("files that may hold the forgotten samples")
    assert len(result.stale.unsure) == 2  # their number may tell how training went
    assert "s3://bucket/best.ckpt" in result.stale.checkpoints
    assert "bucket" not in str(result.certificate)


def test_a_configured_model_s_files_are_ours(tmp_path):
    """torch.load(weights_only=True) refuses them."""
    path = raw(tmp_path / "run", configured())
    with pytest.raises(Exception, match="weights_only"):
        torch.load(path, weights_only=True)
    record = TrainingRecord.from_dict(checkpoint.record_in(path))
    assert record.n_train == 300
    (one,) = known_checkpoints.known(trainer(), str(path), record)
    assert one.standing is Standing.OURS


class _Runs:
    """What a hostile pickle holds: a call."""

    ran = False

    def __reduce__(self):
        return _run, ()


def _run():
    _Runs.ran = True
    return {}


def test_nothing_in_a_file_is_run_or_imported(tmp_path):
    torch.save({"callbacks": _Runs(), "n": [1, "a"]}, tmp_path / "bad.ckpt")
    assert plain_values(tmp_path / "bad.ckpt")["n"] == [1, "a"]
    assert checkpoint.record_in(tmp_path / "bad.ckpt") == {}
    assert not _Runs.ran
    with pytest.raises(DataError, match="cannot be read as a checkpoint"):
        checkpoint.record_in(tmp_path / "nowhere.ckpt")


def test_a_newer_one_that_lies_there_without_its_private_file_is_newer(tmp_path):
    path, clean = raw(tmp_path), tmp_path / "clean.ckpt"
    ask(path, [1, 2], clean)
    (tmp_path / "clean.private.json").unlink()
    with pytest.raises(SetupError, match=r"some samples were unlearned, as .*clean.ck"):
        ask(path, [3])
    clean.rename(tmp_path / "elsewhere")  # no checkpoint that anybody would look for
    assert ask(path, [3]).certificate.grade is Grade.CERTIFIED
