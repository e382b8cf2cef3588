"""Ordinary training code after which a claim was once not true; and plain code.

Each case is refused, has a lower grade, or is right: what is released before noise is
within the certified distance of an oracle's answer without the forgotten samples. How a
sample is read cannot be seen by a program: that premise stands in the first sentence.
docs/CONTRIBUTING.md lists which test answers which case.
"""

import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import SubsetRandomSampler

from lightning_unlearn import PublicBackbone, UnlearningCallback
from lightning_unlearn.errors import GuaranteeError
from lightning_unlearn.guarantee.claims import Grade
from tests.helpers.lightning import EarlyStopping
from tests.helpers.nets import trainer
from tests.plugin.helpers.two_worlds import (
    FORGET,
    K,
    N,
    Net,
    against,
    is_harmless,
    kept,
    loader,
    toy,
    unlearn,
)

pytestmark = pytest.mark.filterwarnings("ignore:Found .* in eval mode")
X, y = toy()
KEPT = kept()


def watched(net, data, *callbacks, epochs=2, val=None):
    fit_trainer = trainer(UnlearningCallback(), epochs, callbacks=list(callbacks))
    fit_trainer.fit(net, data, val)
    return fit_trainer


# -- controls -------------------------------------------------------------------------


def test_plain_code_is_certified_and_right(monkeypatch):
    fit_trainer = watched(Net(), loader(X, y))
    answer = unlearn(fit_trainer, monkeypatch)
    outcome = against(Net(), (X[KEPT], y[KEPT]), *answer)
    assert outcome.certificate.grade is Grade.CERTIFIED
    assert outcome.is_right
    # The harness can tell: with the forgotten samples it is another answer.
    assert not against(Net(), (X, y), *answer).is_right


class Scaled(Net):
    """Standardised by numbers that somebody took from all samples before."""

    def __init__(self, seen):
        super().__init__()
        self.mean, self.std = seen.mean(0), seen.std(0)

    def training_step(self, batch, batch_idx):
        return self.head.loss((batch[0] - self.mean) / self.std, batch[1]).mean()


def test_what_was_fitted_before_the_training_is_the_premise_said_first(monkeypatch):
    fit_trainer = watched(Scaled(X), loader(X, y))
    answer = unlearn(fit_trainer, monkeypatch)
    outcome = against(Scaled(X[KEPT]), (X[KEPT], y[KEPT]), *answer)
    assert not outcome.is_right  # and no program could see it
    assert "taking how samples are read and preprocessed" in outcome.first_sentence


# -- state that the training makes --------------------------------------------------


TOKENS = torch.randint(0, 20, (N, 12), generator=torch.Generator().manual_seed(1))
TOKENS[FORGET] = 19


class BagOfWords(Net):
    """Counts the words that were the most frequent when training began."""

    def __init__(self):
        super().__init__(6)
        self.vocabulary = {}

    def on_train_start(self):
        seen = self.trainer.train_dataloader.dataset.tensors[0]
        common = Counter(seen.flatten().tolist()).most_common(6)
        self.vocabulary = {word: i for i, (word, _) in enumerate(common)}

    def training_step(self, batch, batch_idx):
        counts = [[r.count(w) for w in self.vocabulary] for r in batch[0].tolist()]
        found = torch.tensor(counts).float()
        return self.head.loss(F.pad(found, (0, 6 - found.shape[1])), batch[1]).mean()


def test_a_vocabulary_of_the_training_set(monkeypatch):
    fit_trainer = watched(BagOfWords(), loader(TOKENS, y))
    answer = unlearn(fit_trainer, monkeypatch)
    other = BagOfWords()
    watched(other, loader(TOKENS[KEPT], y[KEPT]))
    outcome = against(other, (TOKENS[KEPT], y[KEPT]), *answer)
    assert outcome.certificate.grade is Grade.NONE
    assert is_harmless(outcome)
    assert any("vocabulary" in text for text in outcome.certificate.unscrubbed)


class Centred(Net):
    """By a running mean; the training may end with an exception."""

    mean, fails = 0.0, True

    def training_step(self, batch, batch_idx):
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * float(batch[0].mean())
            if self.fails and self.current_epoch == 2:
                raise RuntimeError("disk full")
        return self.head.loss(batch[0] - self.mean, batch[1]).mean()


@pytest.mark.parametrize("ends", ["well", "with an exception"])
def test_a_running_mean(monkeypatch, ends):
    net, data = Centred(), loader(3 * X + 1, y)
    net.fails = ends != "well"
    own = trainer(UnlearningCallback(), 3)
    if net.fails:
        with pytest.raises(RuntimeError, match="disk full"):
            own.fit(net, data)
        net.fails = False
    else:
        own.fit(net, data)
    certificate, _ = unlearn(own, monkeypatch, train_dataloaders=data)
    assert certificate.grade is Grade.NONE
    assert any("mean" in text for text in certificate.unscrubbed)


# -- which samples, and when -----------------------------------------------------------


def test_a_split_by_samplers(monkeypatch):
    split = SubsetRandomSampler(range(150))
    fit_trainer = watched(Net(), loader(X, y, shuffle=None, sampler=split))
    answer = unlearn(fit_trainer, monkeypatch)
    trained = kept(150)
    outcome = against(Net(), (X[trained], y[trained]), *answer)
    assert outcome.certificate.n_retain == len(trained)
    assert outcome.certificate.grade is Grade.CERTIFIED
    assert outcome.is_right


class Smoothed(Net):
    """Labels are smoothed more and more; early stopping decides how much."""

    def training_step(self, batch, batch_idx):
        amount = 0.3 * min(1, self.current_epoch / 20)
        targets = (1 - amount) * F.one_hot(batch[1], K).float() + amount / K
        return self.head.loss(batch[0], targets).mean()

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.head.loss(*batch).mean())


def test_targets_that_follow_the_epoch_under_early_stopping(monkeypatch):
    stop = EarlyStopping("val_loss", min_delta=1e-3, patience=1)
    few = loader(X[:60], y[:60], shuffle=False)
    fit_trainer = watched(Smoothed(), loader(X, y), stop, epochs=30, val=few)
    with pytest.raises(GuaranteeError, match="the same at every epoch, step and batch"):
        unlearn(fit_trainer, monkeypatch)


# -- what was called public ------------------------------------------------------------


class OnPublic(Net):
    """A head on a public network, whose statistics are of these samples."""

    def __init__(self, public):
        super().__init__(24)
        torch.manual_seed(7)
        layers = nn.Sequential(nn.Linear(8, 24), nn.Tanh())
        self.backbone = PublicBackbone(layers, public_data=public)

    def training_step(self, batch, batch_idx):
        return self.head.loss(self.backbone(batch[0]), batch[1]).mean()


PUBLIC, _ = toy(60, seed=9)


def test_public_data_that_are_private_are_refused_watched_or_not(monkeypatch):
    own = OnPublic(torch.cat([PUBLIC, X[FORGET]]))
    with pytest.raises(GuaranteeError, match="are both"):
        watched(own, loader(X, y))
    late = trainer(UnlearningCallback(l2=1e-2))
    with pytest.raises(GuaranteeError, match=r"positions 3, 14, 15, 65, 92 of the tra"):
        unlearn(late, monkeypatch, model=own, train_dataloaders=loader(X, y))


def noisy(x, size):
    return x + size * torch.randn(x.shape, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("size", [1e-4, 1e-2])
def test_public_data_made_from_private_are_not_certified(monkeypatch, size):
    fit_trainer = watched(
        OnPublic(torch.cat([PUBLIC, noisy(X[FORGET], size)])), loader(X, y)
    )
    with pytest.warns(UserWarning, match="near copies of public_data"):
        answer = unlearn(fit_trainer, monkeypatch)
    outcome = against(OnPublic(PUBLIC), (X[KEPT], y[KEPT]), *answer)
    assert not outcome.is_right  # the statistics remember them
    assert outcome.certificate.grade is Grade.CONDITIONAL


def test_public_data_of_the_same_kind_are_certified_and_right(monkeypatch):
    fit_trainer = watched(OnPublic(PUBLIC), loader(X, y))
    answer = unlearn(fit_trainer, monkeypatch)
    outcome = against(OnPublic(PUBLIC), (X[KEPT], y[KEPT]), *answer)
    assert outcome.certificate.grade is Grade.CERTIFIED
    assert outcome.is_right


# -- the table ----------------------------------------------------------------------


def test_the_table_of_cases_names_tests_that_are_there():
    root = Path(__file__).parents[3]
    page = (root / "docs/CONTRIBUTING.md").read_text()
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", page)
    assert len(named) > 20
    for file, test in named:
        text = (root / file).read_text()
        assert not test or re.search(rf"def {test}\b", text), (file, test)
