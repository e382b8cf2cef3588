"""Looking at rows leaves no trace, and rows are no matter of the order of reading."""

import itertools
from collections import defaultdict

import numpy as np
import pytest
import torch

from lightning_unlearn.guarantee.claims import Grade
from tests.helpers.nets import HeadNet, UnlearningCallback, digits, fitted, trainer
from tests.plugin.helpers.words import worded


def bag(words, number):
    """Counts of words by the columns that `number` gives them."""
    rows = torch.zeros(len(words), 64)
    for row, line in zip(rows, words.tolist(), strict=True):
        for word in line:
            row[number(word)] += 1
    return rows


class OwnVocabulary(HeadNet):
    """Numbers words in the order they come."""

    def __init__(self):
        super().__init__()
        self.vocabulary = {}

    def number(self, word):
        return self.vocabulary.setdefault(word, len(self.vocabulary))

    def training_step(self, batch, batch_idx):
        rows = self.backbone(bag(batch[0], self.number))
        return self.head.loss(rows, batch[1]).mean()


class InAClosure(OwnVocabulary):
    def __init__(self):
        super().__init__()
        vocabulary = defaultdict(itertools.count().__next__)
        self.number = lambda word: vocabulary[word]


_GLOBAL = {}


class InAGlobal(OwnVocabulary):
    def number(self, word):
        return _GLOBAL.setdefault(word, len(_GLOBAL))


class OnItsClass(OwnVocabulary):
    known = ()

    def number(self, word):
        if word not in self.known:
            type(self).known = (*self.known, word)
        return self.known.index(word)


class Collates:
    def __init__(self):
        self.vocabulary = {}

    def __call__(self, samples):
        words = torch.stack([words for words, _ in samples])
        rows = bag(words, lambda w: self.vocabulary.setdefault(w, len(self.vocabulary)))
        return rows, torch.stack([y for _, y in samples])


@pytest.mark.parametrize("kind", [OwnVocabulary, InAClosure, InAGlobal, OnItsClass])
@pytest.mark.parametrize("shuffle", [False, True])
def test_words_that_are_numbered_as_they_come(kind, shuffle):
    _GLOBAL.clear()
    OnItsClass.known = ()
    fit_trainer = trainer(UnlearningCallback(), max_epochs=2)
    data = torch.utils.data.DataLoader(worded(), 50, shuffle=shuffle)
    fit_trainer.fit(kind(), data)
    certificate = fit_trainer.unlearn([1, 2]).certificate
    assert certificate.grade is Grade.NONE
    assert any("which samples were read first" in x for x in certificate.unscrubbed)


def test_words_that_are_numbered_where_batches_are_made():
    fit_trainer = trainer(UnlearningCallback(), max_epochs=2)
    data = torch.utils.data.DataLoader(worded(), 50, collate_fn=Collates())
    fit_trainer.fit(HeadNet(), data)
    certificate = fit_trainer.unlearn([1, 2]).certificate
    assert certificate.grade is Grade.NONE
    assert any("collate_fn.vocabulary" in text for text in certificate.unscrubbed)


def test_a_vocabulary_that_was_public_stays_certified():
    net = OwnVocabulary()
    net.vocabulary = {word: word for word in range(40)}
    _, fit_trainer, _, _ = fitted(net, dataset=worded())
    assert fit_trainer.unlearn([1]).certificate.grade is Grade.CERTIFIED


class Guide(HeadNet):
    """Lightning's migration guide, and everything else that a step may count with."""

    def __init__(self):
        super().__init__()
        self.outputs, self.lengths, self.ids = [], [], itertools.count()
        self.numbered = defaultdict(itertools.count().__next__)
        self.draws, self.array = np.random.default_rng(0), np.zeros(2, dtype=int)
        self.steps = 0

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.outputs.append(loss.detach())
        self.numbered[int(batch[1].sum())] += 0
        self.draws.random()
        self.array += 1
        self.steps += 1
        return loss

    def on_train_epoch_end(self):
        self.lengths.append(len(self.outputs))
        self.outputs.clear()


@pytest.mark.parametrize("log_gradient", [False, True])
def test_looking_leaves_no_trace_in_the_module(log_gradient):
    def trained(*callbacks):
        torch.manual_seed(0)
        net, own = Guide(), trainer(None, max_epochs=2, callbacks=list(callbacks))
        own.fit(net, torch.utils.data.DataLoader(digits(300), 50))
        own.preflight([1]) if callbacks else None
        return net

    plain, watched = trained(), trained(UnlearningCallback(log_gradient=log_gradient))
    assert watched.lengths == plain.lengths == [6, 6]
    assert watched.outputs == plain.outputs == []
    assert (watched.steps, watched.array.tolist()) == (12, [12, 12])
    assert watched.numbered == plain.numbered
    assert next(watched.numbered.default_factory.__self__) == len(plain.numbered)
    assert watched.draws.random() == plain.draws.random()
