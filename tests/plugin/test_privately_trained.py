"""A head on a backbone that was trained privately on the same people."""

import json
import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_unlearn import (
    CertifiedClassifier,
    ConvexHead,
    NormBall,
    PrivatelyTrained,
    PrivateTraining,
    PublicBackbone,
    UnlearningCallback,
    preflight,
)
from lightning_unlearn.certificate import ledger as ledgers
from lightning_unlearn.certificate.certificate import Certificate
from lightning_unlearn.certificate.report.ledger_table import ledger_table
from lightning_unlearn.certificate.verification import (
    on_your_word,
    verdict,
    verify_text,
)
from lightning_unlearn.errors import (
    BudgetError,
    CertificateError,
    GuaranteeError,
    ModelError,
    SetupError,
)
from lightning_unlearn.guarantee.accounting.private_training import Mechanism, privacy
from lightning_unlearn.guarantee.claims import Bound, Grade
from lightning_unlearn.guarantee.gaussian import gaussian_epsilon
from tests.helpers.lightning import EarlyStopping, L
from tests.helpers.nets import MLP, digits, same, trainer, weights

pytest.importorskip("dp_accounting")
N = 600
SETTINGS = PrivateTraining(noise_multiplier=4.0, max_grad_norm=1.0)


def train_privately(path, settings=SETTINGS, net=None, data=None, **options):
    callback = UnlearningCallback(epsilon=2.0, delta=1e-4, private=settings)
    own = trainer(callback, 2, **options)
    own.fit(net or MLP(), DataLoader(data or digits(N), 30, shuffle=True))
    own.save_checkpoint(path)
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return train_privately(tmp_path_factory.mktemp("private") / "net.ckpt")


def backbone(checkpoint, **options):
    made = {"taps": ["net.1"], "public_data": torch.zeros(1, 64), **options}
    return PrivatelyTrained(MLP(), checkpoint, standardize="none", **made)


def with_head(features, releases=None, epsilon=2.0, **options):
    """(module, trainer, callback) of a head that was fitted on some features."""
    settings = {"epsilon": epsilon, "delta": 1e-4, "accept_noise": True, **options}
    callback = UnlearningCallback(releases=releases, **settings)
    module = CertifiedClassifier(features, 10, l2=1e-2)
    own = trainer(callback, -1)
    data = DataLoader(digits(N), 64, shuffle=True)
    own.fit(module, data, DataLoader(digits(N), 256))
    return module, own, callback


def numbers(c):
    return {k.name: k.value for k in c.constants}


def test_backbone_and_head_are_certified_together(checkpoint, tmp_path):
    ledger = tmp_path / "ledger.jsonl"
    features = backbone(checkpoint)
    module, own, callback = with_head(features, ledger=ledger)
    before = weights(module.backbone)
    result = own.unlearn([3], save_to=tmp_path / "clean.ckpt")
    c = result.certificate
    assert (c.grade, c.bound) == (Grade.CERTIFIED, Bound.PRIVATE_BACKBONE)
    assert same(before, weights(module.backbone))
    found = numbers(c)
    alone = privacy(Mechanism(4.0, 0.05, 40), 1, 1e-4).epsilon
    assert alone < c.epsilon < alone + 0.2
    assert found["forgotten"] == 1
    assert found["head_epsilon"] == 0.2
    mu = 2 * found["tolerance"] / 1e-2 / c.noise_std
    assert c.epsilon == privacy(Mechanism(4.0, 0.05, 40), 1, 1e-4, mu).epsilon
    assert gaussian_epsilon(mu, 1e-4) == pytest.approx(0.2, rel=1e-3)

    second = own.unlearn([5, 9], save_to=tmp_path / "two.ckpt").certificate
    assert numbers(second)["forgotten"] == 3
    assert second.epsilon > c.epsilon
    for certificate in (c, second):
        findings = verify_text(certificate.to_json(), ledger_text=ledger.read_text())
        assert all(f.holds is not False for f in findings), findings
    assert "this head and its privately trained backbone are indist" in str(result)
    words = verdict(findings, on_your_word(c)).split("on the word of")[1]
    assert "that what the training of backbone and its features used" in words
    assert "never saw the samples" not in words
    entries = ledgers.read(ledger).entries
    assert [e.group for e in entries] == [1, 3]
    table = ledger_table(ledgers.read(ledger))
    assert "2 made, no number announced" in table
    assert "+ = of the head alone: its backbone was trained privately" in table


def test_what_both_tell_together_stays_in_the_budget(checkpoint):
    module, own, _ = with_head(backbone(checkpoint))
    before = weights(module)
    with pytest.raises(BudgetError, match=r"backbone and the head together, got .*100"):
        own.unlearn(list(range(100)))
    assert same(before, weights(module))
    own.unlearn([1])  # control


def test_a_budget_that_the_backbone_has_used_up_already(checkpoint):
    with pytest.raises(BudgetError, match=r"got 0\.\d+ of one sample: train the backb"):
        with_head(backbone(checkpoint), epsilon=0.1)


def test_announced_releases_are_counted_together(checkpoint):
    _, own, _ = with_head(backbone(checkpoint), releases=3)
    c = own.unlearn([1]).certificate
    mu = 2 * numbers(c)["tolerance"] / 1e-2 / c.noise_std
    assert gaussian_epsilon(mu * math.sqrt(3), 1e-4) == pytest.approx(0.2, rel=1e-3)
    together = privacy(Mechanism(4.0, 0.05, 40), 1, 1e-4, mu * math.sqrt(3))
    assert c.epsilon == together.epsilon
    assert own.unlearn([2]).certificate.grade is Grade.CERTIFIED


def changed(c, **values):
    """A certificate with other numbers, as text."""
    held = json.loads(c.to_json())
    for constant in held["constants"]:
        constant["value"] = values.pop(constant["name"], constant["value"])
    held.update(values)
    return json.dumps(held)


@pytest.mark.parametrize(
    "change",
    [
        {"forgotten": 0.0},
        {"noise_multiplier": 5.0},
        {"steps": 39.0},
        {"sampling_rate": 0.04},
        {"head_epsilon": 0.1},
        {"most_found": 0.01},
        {"strong_convexity": 0.02},
        {"tolerance": 1e-9},
        {"epsilon": 0.3},
        {"delta": 1e-3},
        {"bound": "strongly_convex"},
        {"release": 2},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_changed_number_is_refused(once, change):
    with pytest.raises(CertificateError):
        Certificate.from_json(changed(once, **change)).verify()


def test_an_unchanged_one_is_not(once):
    Certificate.from_json(changed(once)).verify()


@pytest.fixture(scope="module")
def once(checkpoint):
    _, own, _ = with_head(backbone(checkpoint))
    return own.unlearn([3]).certificate


def test_a_network_that_was_not_trained_privately(tmp_path):
    own = trainer(UnlearningCallback(), 1)
    own.fit(MLP(), DataLoader(digits(N), 30, shuffle=True))
    own.save_checkpoint(tmp_path / "plain.ckpt")
    with pytest.raises(GuaranteeError, match="private from its start.*PrivateTraining"):
        backbone(tmp_path / "plain.ckpt")


def test_one_without_a_record(tmp_path):
    own = trainer(None, 1)
    own.fit(MLP(), DataLoader(digits(N), 30, shuffle=True))
    own.save_checkpoint(tmp_path / "plain.ckpt")
    with pytest.raises(GuaranteeError, match="got none in .*PrivateTraining"):
        backbone(tmp_path / "plain.ckpt")


def test_weights_that_were_changed_afterwards(checkpoint, tmp_path):
    held = torch.load(checkpoint, weights_only=True)
    held["state_dict"]["net.0.weight"] += 1e-3
    torch.save(held, tmp_path / "other.ckpt")
    with pytest.raises(GuaranteeError, match="weights that the private training ended"):
        backbone(tmp_path / "other.ckpt")


def test_trained_on_without_noise_afterwards(checkpoint, tmp_path):
    own = trainer(UnlearningCallback(), 3)
    own.fit(MLP(), DataLoader(digits(N), 30, shuffle=True), ckpt_path=checkpoint)
    own.save_checkpoint(tmp_path / "on.ckpt")
    with pytest.raises(GuaranteeError, match="private from its start"):
        backbone(tmp_path / "on.ckpt")


def test_a_wrong_path(tmp_path):
    with pytest.raises(SetupError, match="expected a checkpoint at .*none there"):
        backbone(tmp_path / "none.ckpt")
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    with pytest.raises(SetupError, match="expected a checkpoint or weights at"):
        backbone(tmp_path / "text.ckpt")


def test_another_module(checkpoint):
    with pytest.raises(ModelError, match="expected the module that .* was trained as"):
        PrivatelyTrained(MLP(hidden=9), checkpoint, public_data=torch.zeros(1, 64))


#: Of Lightning's own, which is right: the backbone stays in eval mode.
EVAL = pytest.mark.filterwarnings("ignore:.*module.s. in eval mode")


class PlainHead(L.LightningModule):
    """A layer that an optimizer trains: no claim of a head covers it."""

    def __init__(self, features):
        super().__init__()
        self.features, self.last = features, nn.Linear(8, 10)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.last(self.features(batch[0])), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.last.parameters(), lr=0.1, weight_decay=1e-2)


class OwnHead(PlainHead):
    """The same with a head that has a proof, in a module of the user's own."""

    def __init__(self, features):
        super().__init__(features)
        self.last = ConvexHead(8, 10)

    def training_step(self, batch, batch_idx):
        return self.last.loss(self.features(batch[0]), batch[1]).mean()


def forgotten(module, **options):
    options = {"epsilon": 2.0, "delta": 1e-4, "accept_noise": True, **options}
    own = trainer(UnlearningCallback(**options), 2)
    own.fit(module, DataLoader(digits(N), 64, shuffle=True))
    return own.unlearn([3]).certificate


@EVAL
def test_a_claim_that_is_not_of_both_takes_it_for_no_public_part(checkpoint):
    module = PlainHead(backbone(checkpoint))
    c = forgotten(module, max_norm=5.0, damping=1.0)
    assert c.grade is Grade.NONE
    assert "features.model.net.0.weight" in c.unscrubbed
    assert not {
        n for part in c.public_parts for n, _ in part.entries if "0.weight" in n
    }


@EVAL
def test_a_head_in_a_module_of_the_user_s_own(checkpoint):
    c = forgotten(OwnHead(backbone(checkpoint)))
    assert (c.grade, c.bound) == (Grade.CERTIFIED, Bound.PRIVATE_BACKBONE)


@EVAL
def test_a_ball_in_place_of_the_head_s_proof(checkpoint):
    c = forgotten(OwnHead(backbone(checkpoint)), max_norm=5.0, guarantee=NormBall())
    assert c.grade is Grade.NONE
    assert "features.model.net.0.weight" in c.unscrubbed


def test_preflight_shows_both_and_no_retraining_of_the_head_alone(checkpoint):
    _, own, _ = with_head(backbone(checkpoint))
    look = preflight(own, [3])
    step, retraining, *_ = look.routes
    assert (step.grade, retraining.grade) == (Grade.CERTIFIED, None)
    assert step.epsilon == own.unlearn([3]).certificate.epsilon
    assert "was trained on the samples too (privately)" in retraining.needs[0]
    assert not [text for text in look.on_your_word if text.startswith("backbone (")]
    many = preflight(own, list(range(5, 105)))
    assert many.routes[0].grade is None
    assert "backbone and the head together" in many.routes[0].needs[0]


def test_people_and_private_decisions_are_refused(tmp_path):
    by = replace(SETTINGS, by="user_id")
    with pytest.raises(GuaranteeError, match=r"one of people \(by='user_id'\)"):
        backbone(train_privately(tmp_path / "people.ckpt", by, data=People(N)))

    stops = EarlyStopping("val_loss", patience=9)
    path = train_privately(tmp_path / "stops.ckpt", net=Watched(), callbacks=[stops])
    with pytest.raises(GuaranteeError, match=r"length .* got EarlyStopping by 'val_lo"):
        backbone(path)


class Watched(MLP):
    def validation_step(self, batch, batch_idx):
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))

    def val_dataloader(self):
        x, y = digits().tensors
        return DataLoader(TensorDataset(x[N:], y[N:]), 256)


class People(TensorDataset):
    def __init__(self, n):
        super().__init__(*digits(n).tensors)
        self.user_id = [i // 2 for i in range(n)]


def test_a_served_checkpoint_is_loaded_again(checkpoint, tmp_path):
    module, own, _ = with_head(backbone(checkpoint))
    own.unlearn([3], save_to=tmp_path / "clean.ckpt")
    again = CertifiedClassifier.load_from_checkpoint(
        tmp_path / "clean.ckpt", backbone=backbone(checkpoint), weights_only=True
    )
    x = digits(5).tensors[0]
    assert torch.equal(again(x), module(x))
    net = MLP()
    net.load_state_dict(torch.load(checkpoint, weights_only=True)["state_dict"])
    plain = PublicBackbone(
        net, ["net.1"], standardize="none", public_data=torch.zeros(1, 64)
    )
    other = CertifiedClassifier.load_from_checkpoint(
        tmp_path / "clean.ckpt", backbone=plain, weights_only=True
    )
    with pytest.raises(ModelError, match="as it was made"):
        other.backbone.check()


@EVAL
def test_exact_retraining_of_the_head_alone_is_refused(checkpoint):
    def again(data):
        callback = UnlearningCallback(epsilon=2.0, delta=1e-4, retrain=again)
        own = trainer(callback, 2)
        return own, OwnHead(backbone(checkpoint)), DataLoader(data, 64, shuffle=True)

    own, module, loader = again(digits(N))
    own.fit(module, loader)
    before = weights(module)
    with pytest.raises(ModelError, match="got a PrivatelyTrained backbone, which saw"):
        own.unlearn([3], how="retrain")
    assert same(before, weights(module))


def test_delta_is_small_beside_the_samples_of_the_backbone_too(checkpoint):
    made = backbone(checkpoint)
    assert made.n_trained == N
    with_head(made)  # control: a delta of 1e-4
    made.n_trained = 20_000
    with pytest.raises(GuaranteeError, match="delta below 1/20,000.*smaller delta"):
        with_head(made)


def test_noise_by_hand_says_nothing_of_both(checkpoint):
    with pytest.raises(GuaranteeError, match="expected epsilon= and delta= for a head"):
        with_head(backbone(checkpoint), noise_std=0.1)


def test_heads_that_were_served_before_are_not_counted_with_it(checkpoint):
    with pytest.raises(GuaranteeError, match="public backbone for cover_served="):
        with_head(backbone(checkpoint), cover_served=1, releases=2)
