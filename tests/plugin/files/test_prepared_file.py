"""The file of what is prepared: another process reads it, and it is deleted."""

import os
import stat

import pytest

from lightning_unlearn import UnlearningCallback, prepare
from lightning_unlearn.errors import ArgumentError, DataError, SetupError
from lightning_unlearn.plugin.files import prepared_file
from tests.helpers.nets import (
    MLP,
    HeadNet,
    fitted,
    loader,
    same,
    trainer,
    weights,
)
from tests.plugin.verbs.test_prepare import FORGET


@pytest.mark.parametrize("make", [HeadNet, MLP])
def test_a_file_serves_another_process(make):
    options = {"prepared": "secret.pt"} | ({"noise_std": 0.0} if make is MLP else {})
    _, fit_trainer, _, dataset = fitted(make(), **options)
    fit_trainer.save_checkpoint("trained.ckpt")
    done = prepare(fit_trainer)
    assert done.path.name == "secret.pt"
    assert stat.S_IMODE(os.stat("secret.pt").st_mode) == 0o600
    fresh = trainer(UnlearningCallback(**options))
    result = fresh.unlearn(
        FORGET,
        model=make(),
        train_dataloaders=loader(dataset),
        ckpt_path="trained.ckpt",
    )
    passes = result.solution.matvecs
    assert "factor" in result.solution.method if make is HeadNet else passes < 40
    assert os.path.exists("secret.pt") == (make is HeadNet)
    words = "what is kept" if make is HeadNet else "what was prepared"
    assert any(words in t for t in result.certificate.not_covered)


def test_a_file_that_cannot_be_deleted_is_named(monkeypatch, tmp_path):
    _, fit_trainer, callback, _ = fitted(prepared="secret.pt")
    prepare(fit_trainer)
    path = callback.options.prepared
    assert path == tmp_path / "secret.pt"  # wherever the process goes later

    def refuse(self, missing_ok=False):
        raise PermissionError("no")

    with monkeypatch.context() as patch:
        patch.setattr(type(path), "unlink", refuse)
        with pytest.warns(UserWarning, match="could not delete .*secret.pt.*delete it"):
            prepared_file.delete(path)
    (tmp_path / ".secret.pt.part").write_text("left by a killed process")
    prepared_file.delete(path)
    assert not list(tmp_path.glob("*secret*"))


def test_a_file_of_something_else_is_left_and_nothing_changes(tmp_path):
    net, fit_trainer, callback, _ = fitted(prepared="secret.pt")
    prepare(fit_trainer)
    fit_trainer.unlearn([0])  # from memory from now on
    before = weights(net)
    (tmp_path / "secret.pt").write_text("somebody else's by now")
    with pytest.raises(DataError, match="expected a new file.*prepared=.*not touched"):
        fit_trainer.unlearn([1])
    assert (tmp_path / "secret.pt").read_text() == "somebody else's by now"
    assert same(before, weights(net))


@pytest.mark.parametrize("name", ["save_to=", "ledger=", "ckpt_path="])
def test_the_file_must_be_no_other_one(name):
    options = {"ledger": "same.file"} if name == "ledger=" else {}
    _, fit_trainer, _, dataset = fitted(prepared="same.file", **options)
    request = {} if name == "ledger=" else {name.strip("="): "same.file"}
    if name == "ckpt_path=":
        fit_trainer.save_checkpoint("same.file")
    with pytest.raises(SetupError, match=f"file of its own.*which is {name} too"):
        fit_trainer.unlearn(FORGET, **request)


@pytest.mark.parametrize("name", ["save_to", "prepared"])
def test_a_path_that_records_could_not_hold_is_refused(name):
    path = "caf\udce9.ckpt"  # what Python makes of a name that is not UTF-8
    options, request = ({}, {name: path}) if name == "save_to" else ({name: path}, {})
    net, fit_trainer, _, _ = fitted(**options)
    before = weights(net)
    with pytest.raises(SetupError, match=f"valid Unicode for {name}="):
        fit_trainer.unlearn(FORGET, **request)
    assert same(before, weights(net))


def test_a_missing_folder_is_said_before_the_work(monkeypatch):
    _, fit_trainer, callback, _ = fitted(prepared="nowhere/secret.pt")
    monkeypatch.setattr("lightning_unlearn.plugin.plan.head_plan.capture", None)
    with pytest.raises(SetupError, match="folder of prepared=.*create it"):
        prepare(fit_trainer)
    assert callback.bound_state is None


@pytest.mark.parametrize("name", ["prepared", "state_file"])
def test_a_folder_is_refused_by_name(name, tmp_path):
    (tmp_path / "kept").mkdir()
    with pytest.raises(ArgumentError, match=f"expected {name}= .* folder .*kept: name"):
        UnlearningCallback(**{name: tmp_path / "kept"})
