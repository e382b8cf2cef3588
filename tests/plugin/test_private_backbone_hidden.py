"""Ways in which what a privately trained backbone tells would go uncounted."""

import shutil

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import ConcatDataset, DataLoader, Subset, TensorDataset

from lightning_unlearn import (
    CertifiedClassifier,
    ConvexHead,
    NormBall,
    PrivatelyTrained,
    PublicBackbone,
    ShardedClassifier,
    UnlearningCallback,
)
from lightning_unlearn.certificate import ledger as ledgers
from lightning_unlearn.certificate.model_state import check_model, load as state_in
from lightning_unlearn.errors import (
    BudgetError,
    GuaranteeError,
    ModelError,
    SetupError,
)
from lightning_unlearn.guarantee.accounting.private_training import Mechanism, privacy
from lightning_unlearn.guarantee.claims import Bound, Grade
from lightning_unlearn.plugin.training import trained_marks
from lightning_unlearn.step.head.reading import private_readers
from tests.helpers.lightning import L, ModelCheckpoint
from tests.helpers.nets import MLP, digits, trainer
from tests.plugin.test_privately_trained import (
    EVAL,
    SETTINGS,
    N,
    OwnHead,
    People,
    PlainHead,
    backbone,
    forgotten,
    numbers,
    train_privately,
    with_head,
)

pytest.importorskip("dp_accounting")
PUBLIC = {"standardize": "none", "public_data": torch.zeros(1, 64)}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return train_privately(tmp_path_factory.mktemp("private") / "net.ckpt")


def grown(module, callback, samples):
    """The Trainer of a fit on the retained samples and others."""
    x, y = digits(N + 50).tensors
    data = ConcatDataset(
        [Subset(samples, callback.retained_indices), TensorDataset(x[N:], y[N:])]
    )
    own = trainer(callback, -1)
    own.fit(module, DataLoader(data, 64, shuffle=True), DataLoader(digits(N), 256))
    return own


def test_who_was_forgotten_before_the_data_grew_counts_too(checkpoint, tmp_path):
    ledger = tmp_path / "ledger.jsonl"
    module, own, callback = with_head(backbone(checkpoint), ledger=ledger)
    first = own.unlearn([3, 4], save_to=tmp_path / "one.ckpt").certificate
    second = grown(module, callback, digits(N)).unlearn([7]).certificate
    assert [numbers(c)["forgotten"] for c in (first, second)] == [2, 3]
    assert second.epsilon > privacy(Mechanism(4.0, 0.05, 40), 3, 1e-4).epsilon
    assert [e.group for e in ledgers.read(ledger).entries] == [2, 3]


def test_growth_of_the_data_gives_no_new_budget(checkpoint):
    assert privacy(Mechanism(4.0, 0.05, 40), 3, 1e-4, 0.05).epsilon < 1  # of 3 alone
    module, own, callback = with_head(backbone(checkpoint), epsilon=1.0)
    own.unlearn([3, 4])
    again = grown(module, callback, digits(N))
    with pytest.raises(BudgetError, match="of the 5 forgotten so far"):
        again.unlearn([5, 6, 7])
    again.unlearn([5])  # control


def beside(base, last, features):
    """A module that holds the network by a name of its own, before its backbone."""

    class Beside(base):
        def __init__(self):
            L.LightningModule.__init__(self)
            self.net, self.features, self.last = features.model, features, last

    return Beside()


@EVAL
def test_another_name_of_its_weights_is_no_premise(checkpoint, tmp_path):
    module = beside(OwnHead, ConvexHead(8, 10), backbone(checkpoint))
    own = trainer(UnlearningCallback(epsilon=2.0, delta=1e-4, accept_noise=True), 2)
    own.fit(module, DataLoader(digits(N), 64, shuffle=True))
    c = own.unlearn([3], save_to=tmp_path / "clean.ckpt").certificate
    assert (c.grade, c.bound) == (Grade.CERTIFIED, Bound.PRIVATE_BACKBONE)
    assert [part.name for part in c.public_parts] == ["features"]
    findings = check_model(c, state_in(tmp_path / "clean.ckpt"))
    assert all(f.holds is not False for f in findings), findings


@EVAL
def test_another_name_of_its_weights_is_no_public_part(checkpoint):
    module = beside(PlainHead, nn.Linear(8, 10), backbone(checkpoint))
    c = forgotten(module, max_norm=5.0, guarantee=NormBall())
    assert c.grade is Grade.NONE
    assert "net.net.0.weight" in c.unscrubbed


def listed(base, last, features):
    """A module that keeps its backbone out of its checkpoints, in a list."""

    class Listed(base):
        def __init__(self):
            super().__init__(nn.Identity())
            self.last, self.kept = last, [features]

        def training_step(self, batch, batch_idx):
            rows = self.kept[0](batch[0])
            if isinstance(self.last, ConvexHead):
                return self.last.loss(rows, batch[1]).mean()
            return F.cross_entropy(self.last(rows), batch[1])

    return Listed()


def test_a_backbone_that_the_module_keeps_elsewhere(checkpoint):
    with pytest.raises(ModelError, match="a part of the module, got one .*in a list"):
        forgotten(listed(OwnHead, ConvexHead(8, 10), backbone(checkpoint)))
    public = PublicBackbone(MLP(), ["net.1"], **PUBLIC)  # control
    c = forgotten(listed(OwnHead, ConvexHead(8, 10), public))
    assert (c.grade, c.bound) == (Grade.CERTIFIED, Bound.STRONGLY_CONVEX)


def test_a_backbone_of_a_global_name(checkpoint):
    features = backbone(checkpoint)

    class Global(OwnHead):
        def training_step(self, batch, batch_idx):
            return self.last.loss(features(batch[0]), batch[1]).mean()

    with pytest.raises(ModelError, match="a part of the module, got one .*global"):
        forgotten(Global(nn.Identity()))


def test_a_hidden_one_is_no_public_part_of_a_ball(checkpoint):
    options = {"max_norm": 5.0, "guarantee": NormBall()}
    hidden = listed(PlainHead, nn.Linear(8, 10), backbone(checkpoint))
    c = forgotten(hidden, **options)
    assert (c.grade, c.unscrubbed) == (Grade.NONE, ("kept",))
    public = PublicBackbone(MLP(), ["net.1"], **PUBLIC)  # control
    assert not forgotten(
        listed(PlainHead, nn.Linear(8, 10), public), **options
    ).unscrubbed


def test_features_that_were_kept_as_a_dataset(checkpoint):
    x, y = digits(N).tensors
    module = OwnHead(nn.Identity())
    own = trainer(UnlearningCallback(epsilon=2.0, delta=1e-4, accept_noise=True), 2)
    rows = backbone(checkpoint).features(x)
    own.fit(module, DataLoader(TensorDataset(rows, y), 64, shuffle=True))
    with pytest.raises(GuaranteeError, match="in the module, got .* features that one"):
        own.unlearn([3])


def test_features_that_were_looked_at(checkpoint):
    features = backbone(checkpoint)
    features.features(digits(N).tensors[0])
    _, own, _ = with_head(features)
    assert own.unlearn([3]).certificate.grade is Grade.CERTIFIED
    public = PublicBackbone(MLP(), ["net.1"], **PUBLIC)
    x, y = digits(N).tensors
    own = trainer(UnlearningCallback(epsilon=2.0, delta=1e-4, accept_noise=True), 2)
    data = TensorDataset(public.features(x), y)
    own.fit(OwnHead(nn.Identity()), DataLoader(data, 64, shuffle=True))
    assert own.unlearn([3]).certificate.grade is Grade.CERTIFIED


def test_its_network_is_not_public_under_another_class(checkpoint, monkeypatch):
    monkeypatch.setattr(trained_marks, "_VALUES", set())  # as in another process
    monkeypatch.setattr(private_readers, "_ROWS", set())
    net = MLP()
    net.load_state_dict(torch.load(checkpoint, weights_only=True)["state_dict"])
    made = backbone(checkpoint).model
    for plain in (net, made):
        _, own, _ = with_head(PublicBackbone(plain, ["net.1"], **PUBLIC))
        c = own.unlearn([3]).certificate
        assert c.grade is Grade.NONE
        assert "backbone.model.net.0.weight" in c.unscrubbed


def test_a_public_backbone_around_it(checkpoint):
    with pytest.raises(ModelError, match="a model without a PrivatelyTrained .*itself"):
        PublicBackbone(backbone(checkpoint), [""], **PUBLIC)


def test_no_shards_on_it(checkpoint):
    def make(data):
        callback = UnlearningCallback(epsilon=2.0, delta=1e-4, retrain=make)
        own = trainer(callback, -1)
        module = CertifiedClassifier(backbone(checkpoint), 10, l2=1e-2)
        return own, module, DataLoader(data, 64, shuffle=True)

    with pytest.raises(ModelError, match="got a PrivatelyTrained .* saw all of them"):
        ShardedClassifier(make, shards=2, by="user_id").fit(People(N))


def test_a_checkpoint_of_weights_alone(tmp_path):
    saves = ModelCheckpoint(dirpath=tmp_path / "bare", save_weights_only=True)
    options = {"enable_checkpointing": True, "callbacks": [saves]}
    whole = train_privately(tmp_path / "whole.ckpt", SETTINGS, **options)
    (bare,) = (tmp_path / "bare").glob("*.ckpt")
    with pytest.raises(GuaranteeError, match="got none in .*save_weights_only=True"):
        backbone(bare)
    assert backbone(whole).private_steps["steps"] == 40  # control


def test_a_clean_checkpoint_without_its_private_file(tmp_path):
    own = trainer(UnlearningCallback(epsilon=2.0, delta=1e-4, private=SETTINGS), 2)
    own.fit(MLP(), DataLoader(digits(N), 30, shuffle=True))
    own.unlearn([1], save_to=tmp_path / "clean.ckpt")
    assert isinstance(backbone(tmp_path / "clean.ckpt"), PrivatelyTrained)  # control
    (tmp_path / "moved").mkdir()
    shutil.copy(tmp_path / "clean.ckpt", tmp_path / "moved")
    with pytest.raises(SetupError, match=r"clean\.private\.json beside .*copy"):
        backbone(tmp_path / "moved" / "clean.ckpt")
