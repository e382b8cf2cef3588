"""Data that a DataModule or a Dataset builds again without the forgotten samples."""

import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from lightning_unlearn import Certificate, UnlearningCallback, preflight, prepare
from lightning_unlearn.errors import DataError
from lightning_unlearn.guarantee.claims import Grade
from tests.helpers.lightning import L
from tests.helpers.nets import MLP, HeadNet, digits, same, trainer, weights

FORGET = [3, 60, 61, 117]
X, Y = digits(300).tensors
CHECKED = "rebuilt by dataset_without(): every retained row is the same"
DIFFER = r"got {} of 296 that differ from dataset_without\(positions\)"


def headline(certificate):
    return " ".join(str(certificate).split("\n\n")[0].split())


def rest(positions, n=300):
    return np.setdiff1d(np.arange(n), positions)


class Public(L.LightningDataModule):
    """Scaled by constants that everybody knows."""

    batch_size = 32

    def centre(self, x):
        return torch.full((64,), 0.3)

    def made(self, keep):
        return TensorDataset(X[keep] - self.centre(X[keep]), Y[keep])

    def setup(self, stage):
        self.train = self.made(np.arange(len(X)))

    def train_dataloader(self):
        return DataLoader(self.train, self.batch_size, shuffle=True)

    def dataset_without(self, positions):
        return self.made(rest(positions))


class Centred(Public):
    """Centred on its own mean: every row depends on every sample."""

    def centre(self, x):
        return x.mean(0)


def trained(data, net=None, **options):
    net = HeadNet() if net is None else net
    run = trainer(UnlearningCallback(**options))
    run.fit(net, datamodule=data)
    return net, run


def test_what_was_rebuilt_and_is_the_same_is_no_premise():
    _, run = trained(Public())
    look = preflight(run, FORGET)
    certificate = run.unlearn(FORGET).certificate
    assert certificate.grade is Grade.CERTIFIED
    assert certificate.ways_checked
    text = headline(certificate)
    assert CHECKED in text
    assert "taking how samples are read" not in text
    assert "taking what dataset_without() keeps from before, how batches are" in text
    assert look.on_your_word[0].startswith("what dataset_without() keeps from before")
    assert any("dataset_without() keeps" in entry for entry in certificate.not_covered)
    again = Certificate.from_json(certificate.to_json())
    again.verify()
    assert again == certificate


def test_a_certificate_without_it_says_so():
    run = trainer(UnlearningCallback())
    run.fit(HeadNet(), DataLoader(TensorDataset(X, Y), 32))
    certificate = run.unlearn(FORGET).certificate
    assert certificate.grade is Grade.CERTIFIED
    assert not certificate.ways_checked
    assert "taking how samples are read and preprocessed" in headline(certificate)
    assert replace(certificate, ways_checked=True).digest != certificate.digest


@pytest.mark.parametrize("kept", [False, True])
def test_a_scaler_fitted_on_the_forgotten_is_refused_and_nothing_changes(kept):
    net, run = trained(Centred())
    if kept:
        prepare(run)
    before = weights(net)
    for verb in (preflight, type(run).unlearn):
        with pytest.raises(DataError, match=DIFFER.format(296)):
            verb(run, FORGET)
    assert same(weights(net), before)
    assert not run.callbacks[0].record.removed


class Words(Dataset):
    """Texts as counts of the words that occur often; they are read one by one."""

    def __init__(self, texts, labels, common):
        counts = Counter(word for text in texts for word in text.split())
        self.texts, self.labels = texts, labels
        self.common = [w for w in sorted(counts) if counts[w] >= common]
        self.common = (self.common + [""] * 64)[:64]
        self.least = common

    def __len__(self):
        return len(self.texts)

    def __getitem__(self, i):
        words = Counter(self.texts[i].split())
        row = torch.tensor([float(words[w]) for w in self.common])
        return {"x": row, "y": self.labels[i], "text": self.texts[i]}

    def dataset_without(self, positions):
        keep = rest(positions, len(self)).tolist()
        texts = [self.texts[i] for i in keep]
        return Words(texts, [self.labels[i] for i in keep], self.least)


class WordNet(HeadNet):
    def training_step(self, batch, batch_idx):
        return self.head.loss(self.backbone(batch["x"]), batch["y"]).mean()


def words(common):
    texts = [
        f"a b{i % 5} c{i % 7}" + (" rare" if i in (3, 9) else "") for i in range(90)
    ]
    return Words(texts, [i % 10 for i in range(90)], common)


def test_a_vocabulary_is_refused_for_the_rows_it_changes_and_no_others():
    run = trainer(UnlearningCallback())
    run.fit(WordNet(), DataLoader(words(2), 16))
    with pytest.raises(DataError, match="got 1 of 89 that differ"):
        run.unlearn([3])  # "rare" is not common without it: sample 9 has it too
    certificate = run.unlearn([4]).certificate
    assert certificate.grade is Grade.CERTIFIED
    assert certificate.ways_checked


def test_rows_that_were_prepared_are_compared_too():
    class Opaque:
        """Nobody can look into it."""

        def __init__(self, x):
            self.x = x

    def collate(samples):
        x, y = zip(*samples, strict=True)
        return Opaque(torch.stack(x)), torch.stack(y)

    class Inside(HeadNet):
        def training_step(self, batch, batch_idx):
            return self.head.loss(self.backbone(batch[0].x), batch[1]).mean()

    class Data(Public):
        off = 0.0

        def train_dataloader(self):
            return DataLoader(self.train, 32, collate_fn=collate)

        def centre(self, x):
            return torch.full((64,), 0.3 + self.off)

    data = Data()
    _, run = trained(data, Inside())
    prepare(run)
    data.off = 1e-6
    with pytest.raises(DataError, match=DIFFER.format(r"\d+")):
        run.unlearn(FORGET)
    data.off = 0.0
    certificate = run.unlearn(FORGET).certificate
    assert certificate.grade is Grade.CERTIFIED
    assert certificate.ways_checked
    # Only the prepared rows differ: those of the training data are the rebuilt ones.
    state = run.callbacks[0].bound_state.state
    state.rows.features[200, 0] += 1e-6
    with pytest.raises(DataError, match="got 1 of 295 that differ"):
        run.unlearn([0])


def test_all_that_were_forgotten_are_without_it():
    seen = []

    class Data(Public):
        def dataset_without(self, positions):
            seen.append(positions)
            return super().dataset_without(positions)

    _, run = trained(Data())
    assert run.unlearn([5]).certificate.ways_checked
    assert run.unlearn([2, 70]).certificate.ways_checked
    assert seen == [[5], [2, 5, 70]]


def test_samples_that_are_never_drawn_stay_in_it():
    class Some(Public):
        def train_dataloader(self):
            some = torch.utils.data.SubsetRandomSampler(range(200))
            return DataLoader(self.train, 32, sampler=some)

    _, run = trained(Some())
    result = run.unlearn([5])
    assert result.n_retain == 199
    assert result.certificate.ways_checked


class _Counts(Public):
    def dataset_without(self, positions):
        return self.made(rest(positions)[1:])


class _Itself(Public):
    def dataset_without(self, positions):
        return Subset(self.train, rest(positions).tolist())


class _Iterable(Public):
    def dataset_without(self, positions):
        return iter(())


class _Broken(Public):
    def dataset_without(self, positions):
        raise KeyError("raw")


class _Narrow(Public):
    def dataset_without(self, positions):
        x, y = self.made(rest(positions)).tensors
        return TensorDataset(x[:, :60], y)


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (_Counts, "expected 296 samples from dataset_without.* got 295"),
        (_Itself, "build the data anew, got a part of a dataset that was there"),
        (_Iterable, "return the retained data, got TypeError"),
        (_Broken, "return the retained data, got KeyError: 'raw'"),
        (_Narrow, "that the module can read from dataset_without"),
    ],
)
def test_what_is_no_rebuilt_data_is_refused(data, match):
    net, run = trained(data())
    before = weights(net)
    with pytest.raises(DataError, match=match):
        run.unlearn(FORGET)
    assert same(weights(net), before)


def test_a_scaler_refitted_in_place_does_not_hide_itself():
    """The training data would be scaled by the new one too: nothing would differ."""

    class Lazy(Dataset):
        def __init__(self, x, y, scaler):
            self.x, self.y, self.scaler = x, y, scaler

        def __len__(self):
            return len(self.x)

        def __getitem__(self, i):
            return self.x[i] - self.scaler["mean"], self.y[i]

    class Data(Public):
        def setup(self, stage):
            if hasattr(self, "train"):
                return  # a request sets it up once more
            self.scaler = {"mean": X.mean(0)}
            self.train = Lazy(X, Y, self.scaler)

        def dataset_without(self, positions):
            keep = rest(positions)
            self.scaler["mean"] = X[keep].mean(0)
            return Lazy(X[keep], Y[keep], self.scaler)

    _, run = trained(Data())
    with pytest.raises(DataError, match="leave the training data as it is"):
        run.unlearn(FORGET)


def test_of_an_ordinary_network_inputs_and_targets_are_compared():
    options = {"max_norm": 5.0, "accept_noise": True}
    _, run = trained(Public(), MLP(), **options)
    certificate = run.unlearn(FORGET).certificate
    assert certificate.grade is Grade.VACUOUS
    assert CHECKED in headline(certificate)
    _, run = trained(Centred(), MLP(), **options)
    with pytest.raises(DataError, match=DIFFER.format(296)):
        run.unlearn(FORGET)


def test_nothing_is_asked_where_nothing_is_claimed():
    _, run = trained(Centred(), noise_std=0.0)
    certificate = run.unlearn(FORGET).certificate
    assert certificate.grade is Grade.NONE
    assert not certificate.ways_checked


def test_random_samples_are_called_random():
    class Noisy(Dataset):
        def __init__(self, keep):
            self.keep = keep

        def __len__(self):
            return len(self.keep)

        def __getitem__(self, i):
            return X[self.keep[i]] + 0.1 * torch.rand(64), Y[self.keep[i]]

    class Data(Public):
        def made(self, keep):
            return Noisy(keep)

    _, run = trained(Data())
    with pytest.raises(DataError, match=re.escape("turn random augmentation off")):
        run.unlearn(FORGET)


class Scaled(Dataset):
    """Rows of raw data, and the object that scales them."""

    def __init__(self, raw, targets, scaler):
        self.raw, self.targets, self.scaler = raw, targets, scaler

    def __len__(self):
        return len(self.raw)

    def __getitem__(self, i):
        return self.raw[i] - self.scaler.mean, self.targets[i]


class Mean:
    """A scaler."""

    def __init__(self, raw):
        self.mean = raw.mean(0)


class Keeps(Public):
    """Passes on the scaler that was fitted on everything."""

    def setup(self, stage):
        self.train = Scaled(X, Y, Mean(X))

    def dataset_without(self, positions):
        keep = rest(positions)
        return Scaled(X[keep], Y[keep], self.train.scaler)


def test_a_scaler_that_is_passed_on_is_named_and_stays_a_premise():
    _, run = trained(Keeps())
    with pytest.warns(UserWarning, match=r"use old objects \(Mean\)"):
        certificate = run.unlearn(FORGET).certificate
    assert "taking what dataset_without() keeps from before" in headline(certificate)


class Makes(Keeps):
    """Fits a new one, on rows of which all are the same."""

    def setup(self, stage):
        self.train = Scaled(X, Y, Mean(X[5:60]))

    def dataset_without(self, positions):
        keep = rest(positions)
        return Scaled(X[keep], Y[keep], Mean(X[5:60]))


def test_a_new_scaler_is_not_named():
    _, run = trained(Makes())
    assert run.unlearn(FORGET).certificate.ways_checked
