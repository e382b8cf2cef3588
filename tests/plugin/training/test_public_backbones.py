"""Samples that a backbone's statistics are of are no training samples."""

import copy
import io
import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_unlearn import (
    CertifiedClassifier,
    PublicBackbone,
    RandomFeatures,
    UnlearningCallback,
)
from lightning_unlearn.errors import GuaranteeError
from lightning_unlearn.guarantee.claims import Grade
from tests.helpers.nets import HeadNet, digits, loader, trainer

pytestmark = pytest.mark.filterwarnings("ignore:Found .* in eval mode")
FORGET = [3, 14, 59]


def net(public):
    own = HeadNet()
    layers = nn.Sequential(nn.Linear(64, 32), nn.Tanh())
    own.backbone = PublicBackbone(layers, public_data=public)
    return own


def test_a_training_on_public_samples_ends_before_they_are_forgotten():
    private, public = digits(600), digits(900).tensors[0][600:]
    own = net(torch.cat([public, private.tensors[0][FORGET]]))
    with pytest.raises(GuaranteeError, match="no training samples.*are both"):
        trainer(UnlearningCallback(), max_epochs=1).fit(own, loader(private))
    own.backbone(public)  # nobody watches any more


def test_public_samples_may_be_validated_on_and_copied():
    private, public = digits(600), digits(900).tensors[0][600:]
    own, copies = net(public), []

    class Validated(type(own)):
        def validation_step(self, batch, batch_idx):
            self.backbone(batch[0])

        def on_train_epoch_end(self):
            copies.append(copy.deepcopy(self.backbone))
            torch.save(self.backbone, io.BytesIO())

    own.__class__ = Validated
    fit_trainer = trainer(UnlearningCallback(), max_epochs=1)
    fit_trainer.fit(own, loader(private), DataLoader(TensorDataset(public), 50))
    assert fit_trainer.unlearn(FORGET).certificate.grade is Grade.CERTIFIED
    for backbone in (own.backbone, *copies):
        backbone(public)


def unwatched(own, private):
    """A model whose training nobody watched, and a Trainer to unlearn it with."""
    trainer(max_epochs=1).fit(own, loader(private))
    return trainer(UnlearningCallback(l2=1e-3))


def test_a_request_compares_what_it_forgets():
    private, public = digits(600), digits(900).tensors[0][600:]
    own = net(torch.cat([public, private.tensors[0][FORGET]]))
    once = unwatched(own, private)
    for ask in (once.preflight, once.unlearn):
        with pytest.raises(GuaranteeError, match=r"both \(positions 3, 14, 59 of the"):
            ask(FORGET, model=own, train_dataloaders=loader(private))
    with pytest.raises(GuaranteeError, match=r"both \(position 3 of the training"):
        once.unlearn([100], model=own, train_dataloaders=loader(private))
    own.backbone(public)


def test_from_a_checkpoint_in_a_fresh_process_too(tmp_path):
    private, public = digits(600), digits(900).tensors[0][600:]
    own = net(public)
    first = trainer(UnlearningCallback(), max_epochs=1)
    first.fit(own, loader(private))
    first.save_checkpoint(tmp_path / "t.ckpt")
    state = torch.load(tmp_path / "t.ckpt", weights_only=True)
    other = net(torch.cat([public, private.tensors[0][FORGET]]))
    state["state_dict"]["backbone.known"] = other.backbone.known
    torch.save(state, tmp_path / "t.ckpt")
    with pytest.raises(GuaranteeError, match="positions 3, 14, 59 of the training"):
        trainer(UnlearningCallback()).unlearn(
            FORGET, model=net(public), train_dataloaders=loader(private),
            ckpt_path=tmp_path / "t.ckpt",
        )  # fmt: skip


def test_what_was_forgotten_earlier_is_compared_if_it_can_be_read():
    private, public = digits(600), digits(900).tensors[0][600:]

    class Files(type(private)):
        gone = ()

        def __getitem__(self, i):
            if i in self.gone:
                raise FileNotFoundError(str(i))
            return super().__getitem__(i)

    data = Files(*private.tensors)
    own, late = net(public), UnlearningCallback(l2=1e-3)
    trainer(max_epochs=1).fit(own, loader(data))
    ask = trainer(late)
    ask.unlearn(FORGET, model=own, train_dataloaders=loader(data))
    layers = own.backbone.model
    own.backbone = PublicBackbone(
        layers, public_data=torch.cat([public, private.tensors[0][FORGET]])
    )
    with pytest.raises(GuaranteeError, match="positions 3, 14, 59 of the training"):
        ask.unlearn([7], model=own, train_dataloaders=loader(data))
    data.gone = FORGET
    ask.unlearn([7], model=own, train_dataloaders=loader(data))


def test_a_fit_names_positions_though_it_draws_at_random():
    private, public = digits(600), digits(900).tensors[0][600:]
    own = net(torch.cat([public, private.tensors[0][FORGET]]))
    with pytest.raises(GuaranteeError, match=r"\(positions 3, 14, 59 of the training"):
        trainer(UnlearningCallback(), max_epochs=1).fit(own, loader(private))


def near_copies(private):
    generator = torch.Generator().manual_seed(0)
    chosen = private.tensors[0][FORGET]
    return chosen + 1e-3 * torch.randn(chosen.shape, generator=generator)


def test_near_copies_of_forgotten_samples_leave_it_on_the_user_s_word():
    private, public = digits(600), digits(900).tensors[0][600:]
    own = net(torch.cat([public, near_copies(private)]))
    fit_trainer = trainer(UnlearningCallback(), max_epochs=1)
    fit_trainer.fit(own, loader(private))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        forecast = fit_trainer.preflight(FORGET[:2])
        certificate = fit_trainer.unlearn(FORGET[:2]).certificate
    texts = " ".join(str(w.message) for w in told)
    assert "to be forgotten: at positions 3, 14 of the training data" in texts
    assert "by their features, are at position 59 of the training" in texts  # retained
    assert forecast.grade is Grade.CONDITIONAL
    assert certificate.grade is Grade.CONDITIONAL
    assert "some forgotten samples are near copies" in certificate.public_parts[0].note
    assert any("1 retained samples are near" in t for t in certificate.warnings)
    assert not any("14" in t for t in certificate.warnings)
    certificate.verify()


def test_forgetting_others_stays_certified_with_a_word_about_the_copies():
    private, public = digits(600), digits(900).tensors[0][600:]
    own = net(torch.cat([public, near_copies(private)]))
    fit_trainer = trainer(UnlearningCallback(), max_epochs=1)
    fit_trainer.fit(own, loader(private))
    with pytest.warns(UserWarning, match="are at positions 3, 14, 59 of the training"):
        certificate = fit_trainer.unlearn([100, 200]).certificate
    assert certificate.grade is Grade.CERTIFIED
    assert any("3 retained samples are near copies" in t for t in certificate.warnings)


def test_blank_images_are_no_copies():
    private, public = digits(600), digits(900).tensors[0][600:]
    private.tensors[0][[5, 6, 7]] = 0.0
    own = net(torch.cat([public, torch.zeros(2, 64)]))
    fit_trainer = trainer(UnlearningCallback(), max_epochs=1)
    fit_trainer.fit(own, loader(private))
    certificate = fit_trainer.unlearn([5, 100]).certificate
    assert certificate.grade is Grade.CERTIFIED
    assert any("2 retained samples are blank" in t for t in certificate.warnings)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_usual_numbers_that_another_training_made_say_nothing(value):
    """A mean of zeros, or deviations of ones: of other models of the process too."""

    class Changing(HeadNet):
        def __init__(self):
            super().__init__()
            self.register_buffer("seen", torch.full((64,), 7.0))

        def on_train_epoch_end(self):
            self.seen.fill_(value)

    trainer(UnlearningCallback(), 1).fit(Changing(), loader(digits(600)))
    made = RandomFeatures(kind="identity", shape=64, low=0, high=1)
    assert bool((made.mean == 0).all() and (made.std == 1).all())
    module = CertifiedClassifier(made, 10, l2=1e-3)
    own, data = trainer(UnlearningCallback(), -1), digits(600)
    own.fit(module, loader(data), DataLoader(data, 300))
    assert own.unlearn(FORGET).certificate.grade is Grade.CERTIFIED
