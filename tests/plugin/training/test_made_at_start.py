"""What hooks make of a module before its training starts."""

from collections import Counter
from functools import partial

import pytest
import torch
import torchmetrics
from torch import nn

from lightning_unlearn.guarantee.claims import Grade
from tests.helpers.lightning import Callback
from tests.helpers.nets import (
    HeadNet,
    UnlearningCallback,
    digits,
    fitted,
    loader,
    trainer,
)
from tests.plugin.helpers.words import worded


def most_common(words):
    found = Counter(words.flatten().tolist()).most_common(6)
    return {word: place for place, (word, _) in enumerate(found)}


class Bag(HeadNet):
    """Counts the words of a vocabulary that `when` makes of the data."""

    def __init__(self, when=None):
        super().__init__()
        self.vocabulary, self.data = {}, worded()
        if when is not None:
            setattr(self, when, partial(self._make_in, when))

    def _make_in(self, when, *args, **options):
        self.make()
        return getattr(type(self), when)(self, *args, **options)

    def make(self):
        self.vocabulary = most_common(self.data.tensors[0])

    def train_dataloader(self):
        return loader(self.data)

    def training_step(self, batch, batch_idx):
        rows = torch.zeros(len(batch[0]), 64)
        for row, line in zip(rows, batch[0].tolist(), strict=True):
            for word in line:
                row[self.vocabulary.get(word, 63)] += 1
        return self.head.loss(self.backbone(row_scaled(rows)), batch[1]).mean()


def row_scaled(rows):
    return rows / rows.sum(1, keepdim=True)


class MakesAtTrainStart(Callback):
    def on_train_start(self, trainer, module):
        module.make()


class MakesAtFitStart(Callback):
    def on_fit_start(self, trainer, module):
        module.make()


def certificate_of(net, callbacks=()):
    own = UnlearningCallback()
    fit_trainer = trainer(None, callbacks=[*callbacks, own])
    fit_trainer.fit(net)
    return fit_trainer.unlearn([1, 2]).certificate


HOOKS = ["setup", "on_fit_start", "configure_optimizers", "train_dataloader"]


@pytest.mark.parametrize("when", HOOKS)
def test_a_vocabulary_that_a_hook_makes(when):
    certificate = certificate_of(Bag(when))
    assert certificate.grade is Grade.CONDITIONAL
    sentence = str(certificate).partition("\n\n")[0].replace("\n", " ")
    assert "vocabulary as public" in sentence


@pytest.mark.parametrize("kind", [MakesAtTrainStart, MakesAtFitStart])
def test_a_vocabulary_that_a_callback_of_before_makes(kind):
    certificate = certificate_of(Bag(), [kind()])
    assert certificate.grade is Grade.CONDITIONAL
    assert "vocabulary" in {part.name for part in certificate.public_parts}


def test_it_stays_in_the_checkpoint_of_the_training(tmp_path):
    net = Bag("setup")
    fit_trainer = trainer(UnlearningCallback())
    fit_trainer.fit(net)
    fit_trainer.save_checkpoint(tmp_path / "t.ckpt")
    again = trainer(UnlearningCallback()).unlearn(
        [1], model=Bag("setup"), ckpt_path=tmp_path / "t.ckpt"
    )
    assert again.certificate.grade is Grade.CONDITIONAL


class SetsUp(HeadNet):
    """All that people make in ``setup``: layers, settings, data, names, logs."""

    def setup(self, stage):
        self.num_classes, self.dims, self.scale = 10, (1, 8, 8), 1.0
        self.example_input_array = torch.zeros(1, 64)
        self.train_set = digits(300)
        self.layers = nn.Sequential(nn.LayerNorm(32), nn.Tanh()).requires_grad_(False)
        self.accuracy = torchmetrics.Accuracy("multiclass", num_classes=10)
        self.losses, self.history = [], {"loss": [1.0], "note": "x" * 300}
        self.class_names = [f"digit {i}" for i in range(10)]
        self.id_to_label = dict(enumerate(self.class_names))

    def train_dataloader(self):
        return loader(self.train_set)

    def training_step(self, batch, batch_idx):
        rows = self.layers(self.backbone(batch[0] * self.scale))
        assert len(self.id_to_label) == self.num_classes or not self.id_to_label
        return self.head.loss(rows, batch[1]).mean()


def test_what_people_make_in_setup_stays_certified():
    assert certificate_of(SetsUp()).grade is Grade.CERTIFIED


# -- a cell of a notebook that is run again -------------------------------------------


class OnlyOnce(HeadNet):
    """Centres by a mean that the first training has taken."""

    def __init__(self):
        super().__init__()
        self.mean = None

    def learn(self, X):
        return X.mean(0).tolist()

    def on_train_start(self):
        if self.mean is None:
            self.mean = self.learn(self.trainer.train_dataloader.dataset.tensors[0])

    def training_step(self, batch, batch_idx):
        shift = 0.0 if self.mean is None else torch.as_tensor(self.mean)
        return self.head.loss(self.backbone(batch[0] - shift), batch[1]).mean()


class OnlyOnceInANumber(OnlyOnce):
    def __init__(self):
        super().__init__()
        del self.mean
        self.register_buffer("mean", None)

    def learn(self, X):
        return X.mean()


@pytest.mark.parametrize("kind", [OnlyOnce, OnlyOnceInANumber])
def test_a_later_callback_knows_what_an_earlier_fit_made(kind):
    net = kind()
    trainer(UnlearningCallback()).fit(net, loader(digits(300)))
    _, fit_trainer, _, _ = fitted(net, dataset=digits(300))
    certificate = fit_trainer.unlearn([1]).certificate
    assert certificate.grade is Grade.NONE
    assert any("what reaches the head" in text for text in certificate.unscrubbed)


def test_a_cell_that_is_run_again_stays_certified():
    net = HeadNet()
    trainer(UnlearningCallback()).fit(net, loader(digits(300)))
    _, fit_trainer, _, _ = fitted(net, dataset=digits(300))
    assert fit_trainer.unlearn([1]).certificate.grade is Grade.CERTIFIED


def test_a_number_that_was_trained_is_not_public():
    net = HeadNet()
    net.register_buffer("mean", torch.zeros(()))
    net.on_train_start = lambda: net.mean.fill_(0.123)
    trainer(UnlearningCallback()).fit(net, loader(digits(300)))
    again = HeadNet()
    again.register_buffer("mean", net.mean.clone())
    _, fit_trainer, _, _ = fitted(again, dataset=digits(300))
    certificate = fit_trainer.unlearn([1]).certificate
    assert certificate.grade is Grade.NONE
    assert "mean" in certificate.unscrubbed
