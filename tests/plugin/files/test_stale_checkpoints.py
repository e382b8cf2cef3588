"""Old files: those that are known, those that may be deleted, and no others."""

import warnings
from contextlib import nullcontext

import pytest
import torch
from torch.utils.data import TensorDataset

from lightning_unlearn.errors import SetupError
from lightning_unlearn.plugin.files import stale_checkpoints
from tests.helpers.lightning import CSVLogger, ModelCheckpoint
from tests.helpers.nets import (
    HeadNet,
    UnlearningCallback,
    digits,
    fitted,
    loader,
    trainer,
)


def test_files_beside_the_one_a_fresh_process_began_with_are_known(tmp_path):
    """Without the ModelCheckpoint that wrote them nothing else names them."""
    data = digits(300)
    keeps = ModelCheckpoint(tmp_path / "k", save_top_k=-1, save_last=True)
    own = trainer(UnlearningCallback(), max_epochs=2, enable_checkpointing=True,
                  callbacks=[keeps])  # fmt: skip
    own.fit(HeadNet(), loader(data))
    files = sorted((tmp_path / "k").glob("*.ckpt"))
    assert len(files) == 3
    _, other, _, _ = fitted()
    other.save_checkpoint(tmp_path / "k" / "other.ckpt")  # of another training
    result = trainer(UnlearningCallback()).unlearn(
        [1], model=HeadNet(), train_dataloaders=loader(data), ckpt_path=files[0],
        save_to=tmp_path / "clean.ckpt", delete_stale=True,
    )  # fmt: skip
    assert sorted(map(str, files)) == sorted(result.deleted)
    left = [p.name for p in (tmp_path / "k").glob("*.ckpt")]
    assert left == ["other.ckpt"]
    assert sorted(map(str, files)) == sorted(result.stale.checkpoints)


def watched(folder, **options):
    """A training that keeps every epoch's checkpoint, and a file that is no such."""
    own, net = UnlearningCallback(**options), HeadNet()
    keeps = ModelCheckpoint(dirpath=folder / "run", save_top_k=-1, save_last=True)
    fit_trainer = trainer(
        own, max_epochs=2, callbacks=[keeps], enable_checkpointing=True,
        logger=CSVLogger(folder / "logs"),
    )  # fmt: skip
    fit_trainer.fit(net, loader(digits(300)))
    return net, fit_trainer, own


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_old_files_are_named_and_stay_unless_asked(tmp_path):
    _, fit_trainer, _ = watched(tmp_path)
    before = names(tmp_path / "run")
    assert len(before) == 3
    result = fit_trainer.unlearn([1], save_to=tmp_path / "clean.ckpt")
    assert result.deleted == ()
    assert names(tmp_path / "run") == before
    told = " ".join(result.certificate.not_covered)
    assert "older checkpoints of this training: delete them" in told
    assert "whatever the Trainer's loggers have written" in told
    assert str(tmp_path) not in result.certificate.to_json()
    paths = [str(tmp_path / "run" / name) for name in before]
    assert sorted(result.stale.checkpoints) == paths
    assert result.stale.logs == (str(tmp_path / "logs" / "lightning_logs"),)


def test_the_checkpoints_of_this_training_are_deleted_and_no_other_file(tmp_path):
    _, fit_trainer, _ = watched(tmp_path)
    run, theirs = tmp_path / "run", tmp_path / "other"
    _, other, _ = watched(theirs)
    foreign = theirs / "run" / "last.ckpt"
    (run / "foreign.ckpt").write_bytes(foreign.read_bytes())
    (run / "noise.ckpt").write_bytes(b"not a checkpoint")
    (run / "notes.txt").write_text("mine")
    (run / "link.ckpt").symlink_to(run / "last.ckpt")
    before = names(run)
    with pytest.warns(UserWarning, match="has left .*link.ckpt: it is a link"):
        result = fit_trainer.unlearn([1], save_to=run / "clean.ckpt", delete_stale=True)
    assert names(run) == sorted([
        "clean.ckpt", "clean.certificate.json", "clean.private.json",
        "clean.receipts.jsonl", "foreign.ckpt", "link.ckpt", "noise.ckpt", "notes.txt",
    ])  # fmt: skip
    assert sorted(result.deleted) == sorted(
        str(run / n) for n in before if n.startswith(("epoch", "last"))
    )
    assert names(theirs / "run") == [
        "epoch=0-step=5.ckpt",
        "epoch=1-step=10.ckpt",
        "last.ckpt",
    ]
    told = " ".join(result.certificate.not_covered)
    assert "to be deleted once this request is done" in told
    # The next request finds the clean checkpoint of this one old.
    again = fit_trainer.unlearn([2], save_to=tmp_path / "two.ckpt", delete_stale=True)
    assert again.deleted == (str(run / "clean.ckpt"),)
    # With its private file; receipts may not have been handed out yet.
    assert not (run / "clean.private.json").exists()
    assert (run / "clean.receipts.jsonl").exists()
    assert torch.load(tmp_path / "two.ckpt", weights_only=True)


def test_paths_in_a_callback_s_state_are_not_believed(tmp_path):
    """Checkpoints of strangers may name any file."""
    _, fit_trainer, _ = watched(tmp_path)
    victim = tmp_path / "victim.txt"
    victim.write_text("precious")
    (keeps,) = (c for c in fit_trainer.callbacks if isinstance(c, ModelCheckpoint))
    keeps.best_k_models[str(victim)] = torch.tensor(0.0)
    keeps.best_model_path = str(victim)
    with pytest.warns(UserWarning, match="has left .*victim.txt: it cannot be read"):
        result = fit_trainer.unlearn(
            [1], save_to=tmp_path / "clean.ckpt", delete_stale=True
        )
    assert victim.read_text() == "precious"
    assert len(result.deleted) == 3


def test_a_request_that_fails_deletes_nothing(tmp_path, monkeypatch):
    _, fit_trainer, _ = watched(tmp_path)
    before = names(tmp_path / "run")

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fit_trainer, "save_checkpoint", full)
    with pytest.raises(OSError, match="No space left"):
        fit_trainer.unlearn([1], save_to=tmp_path / "clean.ckpt", delete_stale=True)
    assert names(tmp_path / "run") == before


def test_the_only_copy_of_a_model_is_not_deleted(tmp_path):
    _, fit_trainer, _ = watched(tmp_path)
    before = names(tmp_path / "run")
    with pytest.raises(SetupError, match="save_to= with delete_stale=True, got None"):
        fit_trainer.unlearn([1], delete_stale=True)
    assert names(tmp_path / "run") == before


def test_a_file_that_cannot_be_deleted_is_left_and_said(tmp_path, monkeypatch):
    _, fit_trainer, own = watched(tmp_path)
    found = stale_checkpoints.find(fit_trainer, None, own.record)
    assert len(found.checkpoints) == 3

    def busy(self):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("pathlib.Path.unlink", busy)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        deleted, left = stale_checkpoints.delete(
            found, own.record, [1], tmp_path / "clean.ckpt"
        )
    assert not deleted
    assert left == found.checkpoints
    assert all("not permitted" in str(w.message) for w in caught)


def test_models_of_other_data_or_of_later_requests_are_left(tmp_path):
    """Fine-tunes of one base share its record; a later request's model is newer."""
    everything, run = digits(900), tmp_path / "run"

    def fit(first, last, start=None):
        own, net = UnlearningCallback(), HeadNet()
        one = trainer(own, max_epochs=1 if start is None else 2)
        data = TensorDataset(*(t[first:last] for t in everything.tensors))
        told = pytest.warns(UserWarning, match="other samples than the one before")
        with nullcontext() if start is None else told:
            one.fit(net, loader(data), ckpt_path=start)
        return one, data

    run.mkdir()
    base, _ = fit(0, 300)
    base.save_checkpoint(run / "base.ckpt")
    other, _ = fit(600, 900, run / "base.ckpt")
    other.save_checkpoint(run / "other.ckpt")
    mine, data = fit(300, 600, run / "base.ckpt")
    mine.save_checkpoint(run / "mine.ckpt")
    trainer(UnlearningCallback()).unlearn(
        [5, 6, 7], model=HeadNet(), train_dataloaders=loader(data),
        ckpt_path=run / "mine.ckpt", save_to=run / "newer.ckpt",
    )  # fmt: skip
    mine.callbacks.append(ModelCheckpoint(dirpath=run, save_top_k=0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = mine.unlearn(
            [5, 6, 7], save_to=tmp_path / "clean.ckpt", delete_stale=True
        )
    assert result.deleted == (str(run / "mine.ckpt"),)
    assert {"base.ckpt", "other.ckpt", "newer.ckpt"} <= set(names(run))


class Noisy(TensorDataset):
    """Has no fingerprint: it is another one at every read."""

    def __getitem__(self, index):
        X, y = super().__getitem__(index)
        return X + 1e-6 * torch.rand(64), y


def test_trainings_on_data_without_a_fingerprint_cannot_be_told_apart(tmp_path):
    own, net = UnlearningCallback(), HeadNet()
    keeps = ModelCheckpoint(dirpath=tmp_path / "run")
    one = trainer(own, callbacks=[keeps], enable_checkpointing=True)
    one.fit(net, loader(Noisy(*digits(300).tensors)))
    with pytest.warns(UserWarning, match="its data has no fingerprint"):
        result = one.unlearn(
            [1], train_dataloaders=loader(digits(300)),
            save_to=tmp_path / "clean.ckpt", delete_stale=True,
        )  # fmt: skip
    assert result.deleted == ()
    assert len(names(tmp_path / "run")) == 1


def test_one_file_under_two_names_is_named_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, fit_trainer, own = watched(tmp_path)
    own.record.saved = ["run/last.ckpt"]
    found = stale_checkpoints.find(fit_trainer, "run/last.ckpt", own.record)
    assert len(found.checkpoints) == 3
    assert found.logs == (str(tmp_path / "logs" / "lightning_logs"),)


def test_a_folder_with_other_files_is_left(tmp_path):
    _, fit_trainer, own = watched(tmp_path)
    folder = tmp_path / "sharded.ckpt"
    folder.mkdir()
    (folder / "meta.pt").write_bytes((tmp_path / "run" / "last.ckpt").read_bytes())
    (folder / "notes.txt").write_text("mine")
    own.record.saved = [str(folder), "x" * 5000, ""]
    with pytest.warns(UserWarning, match="it is a folder with other files"):
        fit_trainer.unlearn([1], save_to=folder / "clean.ckpt", delete_stale=True)
    assert (folder / "notes.txt").exists()
    assert (folder / "clean.ckpt").exists()
