"""What is published or served tells neither samples nor epochs."""

import json
import re

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_unlearn.certificate.certificate import Certificate
from lightning_unlearn.certificate.report.evidence import Evidence
from lightning_unlearn.certificate.report.page import write
from lightning_unlearn.errors import DataError
from lightning_unlearn.guarantee.claims import Grade
from tests.helpers.lightning import CSVLogger, EarlyStopping, ModelCheckpoint
from tests.helpers.nets import HeadNet, UnlearningCallback, digits, loader, trainer

FORGOTTEN = [3, 14, 15, 65, 92]
# What differs between any two releases: weights and digests of them, time, random ids.
RANDOM = ("weights_digest", "created", "request_id", "commitment", "digest")


class Watched(HeadNet):
    """Stopped by its loss on the samples that are forgotten later."""

    def __init__(self):
        super().__init__(lr=0.02)

    def validation_step(self, batch, batch_idx):
        loss = self.head.loss(self.backbone(batch[0]), batch[1]).mean()
        self.log("val_loss", loss)


def world(folder, monkeypatch, wrong, every_epoch, **options):
    """Certificate, public report and clean checkpoint where some labels are wrong."""
    folder.mkdir()
    monkeypatch.chdir(folder)
    X, y = digits(300).tensors
    y = y.clone()
    if wrong:
        y[FORGOTTEN] = (y[FORGOTTEN] + 5) % 10
    data = TensorDataset(X, y)
    watched = TensorDataset(X[FORGOTTEN], y[FORGOTTEN])
    torch.manual_seed(0)
    keeps = ModelCheckpoint(
        "old", "{epoch}-{val_loss:.6f}", monitor="val_loss",
        save_top_k=-1 if every_epoch else 1,
    )  # fmt: skip
    own = trainer(
        UnlearningCallback(max_norm=2.0, accept_noise=True, **options), max_epochs=12,
        callbacks=[keeps, EarlyStopping("val_loss", patience=1)],
        enable_checkpointing=True, logger=CSVLogger("logs"),
    )  # fmt: skip
    own.fit(Watched(), loader(data), DataLoader(watched, 50))
    epochs = own.current_epoch
    result = own.unlearn(FORGOTTEN, save_to="clean.ckpt")
    assert result.stale.checkpoints
    page = write("public.html", result.certificate.to_json(), Evidence())
    return epochs, result.certificate, page.read_text(), served("clean.ckpt")


def served(path):
    return torch.load(path, weights_only=True)


def blind(text, certificate):
    """A text without what differs between any two releases."""
    plain = json.loads(certificate.to_json())
    for name in RANDOM:
        value = plain[name]
        for shown in (value, value[:16], value[:8]):
            text = text.replace(shown, name)
    return re.sub(r"\d{4}-\d\d-\d\d[^<\"]{0,30}", "time", text)


@pytest.mark.parametrize("every_epoch", [False, True])
def test_two_worlds_publish_the_same(every_epoch, tmp_path, monkeypatch):
    one, two = (
        world(tmp_path / name, monkeypatch, wrong, every_epoch)
        for name, wrong in (("one", False), ("two", True))
    )
    assert one[0] != two[0]  # early stopping has seen them
    assert one[1].grade is Grade.CERTIFIED
    assert blind(one[1].to_json(), one[1]) == blind(two[1].to_json(), two[1])
    assert blind(one[2], one[1]) == blind(two[2], two[1])
    for file in (one[3], two[3]):
        record = file["callbacks"]["UnlearningCallback"]
        assert Certificate.from_json(record.pop("certificate"))
        assert re.fullmatch("[0-9a-f]{32}", record.pop("lineage"))
        file["state_dict"] = sorted(file["state_dict"])
    assert one[3] == two[3]
    assert (one[3]["epoch"], one[3]["global_step"]) == (0, 0)
    assert "loops" not in one[3]


def request(folder, forget, name="clean.ckpt"):
    own = UnlearningCallback()
    return own, trainer(own).unlearn(
        forget, model=HeadNet(), train_dataloaders=loader(digits(300)),
        ckpt_path=folder / name, save_to=folder / f"next-{forget[0]}.ckpt",
    )  # fmt: skip


class Predicting(HeadNet):
    """A model as it is served."""

    def predict_step(self, batch, batch_idx):
        return self.head(self.backbone(batch[0]))


@pytest.fixture
def clean(tmp_path):
    own = trainer(UnlearningCallback(), max_epochs=1)
    own.fit(HeadNet(), loader(digits(300)))
    own.unlearn([3, 4], save_to=tmp_path / "clean.ckpt")
    return tmp_path


def test_the_private_file_is_what_the_next_request_needs(clean):
    own, result = request(clean, [5])
    assert own.record.removed == [3, 4, 5]
    assert result.certificate.grade is Grade.CERTIFIED
    assert str(clean / "clean.ckpt") in result.stale.checkpoints


def test_a_checkpoint_that_was_renamed_finds_its_private_file(clean):
    (clean / "clean.ckpt").rename(clean / "production.ckpt")
    (clean / "a.private.json").write_text("{")  # somebody else's, damaged
    own, _ = request(clean, [5], "production.ckpt")
    assert own.record.removed == [3, 4, 5]


@pytest.mark.parametrize("what", ["missing", "of another request"])
def test_without_its_private_file_a_checkpoint_serves_and_no_more(what, clean):
    private = clean / "clean.private.json"
    text = private.read_text()
    private.unlink()
    if what != "missing":
        record = json.loads(text)
        record["certificate"] = record["certificate"].replace("certified", "other", 1)
        private.write_text(json.dumps(record))
    data = loader(digits(300))
    shown = trainer(UnlearningCallback()).predict(
        Predicting(), DataLoader(digits(20), 10), ckpt_path=clean / "clean.ckpt"
    )
    assert len(shown) == 2
    with pytest.raises(
        DataError, match="clean.private.json beside the clean checkpoint"
    ):
        request(clean, [5])
    on = trainer(UnlearningCallback(), max_epochs=1)
    with pytest.raises(DataError, match="says which samples are forgotten"):
        on.fit(HeadNet(), data, ckpt_path=clean / "clean.ckpt")
    private.write_text(text)
    assert request(clean, [5])[0].record.removed == [3, 4, 5]


def test_a_damaged_private_file_is_refused(clean):
    private = clean / "clean.private.json"
    private.write_text(private.read_text()[:-40])
    with pytest.raises(DataError, match="the private file .* as JSON"):
        request(clean, [5])


def test_training_goes_on_from_a_clean_checkpoint_from_epoch_0(clean):
    on = trainer(UnlearningCallback(), max_epochs=2)
    rest = torch.utils.data.Subset(
        digits(300), [i for i in range(300) if i not in (3, 4)]
    )
    on.fit(HeadNet(), loader(rest), ckpt_path=clean / "clean.ckpt")
    assert on.current_epoch == 2
