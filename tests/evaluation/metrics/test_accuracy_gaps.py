"""Accuracy gaps: against counting, merged, logged by Lightning, in a collection."""

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from lightning_unlearn.errors import ArgumentError
from lightning_unlearn.evaluation import AccuracyGaps, OutputDivergence
from tests.helpers.lightning import L

SPLITS = ("forget", "retain", "test")


def predictions(n=200, classes=4):
    generator = torch.Generator().manual_seed(0)
    u, r = torch.randn(2, n, classes, generator=generator)
    return u, r, torch.randint(classes, (n,), generator=generator)


def parts():
    yield from zip(SPLITS, (slice(0, 20), slice(20, 150), slice(150, 200)), strict=True)


def test_gaps_are_differences_of_torchmetrics_accuracies():
    u, r, y = predictions()
    metric, gaps = AccuracyGaps(), []
    for split, part in parts():
        metric.update(u[part], r[part], y[part], split=split)
        accuracy = [
            MulticlassAccuracy(4, average="micro")(p[part], y[part]).item()
            for p in (u, r)
        ]
        gaps.append(accuracy[0] - accuracy[1])
        got = metric.n  # partial sums are there before all splits are
        assert got.sum() == part.stop
    result = metric.compute()
    for split, gap in zip(SPLITS, gaps, strict=True):
        assert result[f"{split}_gap"].item() == pytest.approx(gap, abs=1e-6)
        assert result[f"{split}_gap"] == (
            result[f"{split}_unlearned"] - result[f"{split}_retrained"]
        )
    average = sum(map(abs, gaps)) / 3
    assert result["average_gap"].item() == pytest.approx(average, abs=1e-6)


def test_forgetting_too_much_is_a_gap_too():
    y = torch.arange(4)
    metric = AccuracyGaps(splits=("forget",))
    metric.update((y + 1) % 4, y, y)
    assert metric.compute()["forget_gap"] == -1
    assert metric.compute()["average_gap"] == 1


def test_classes_and_logits_count_alike():
    u, r, y = predictions()
    a, b = AccuracyGaps(("test",)), AccuracyGaps(("test",))
    a.update(u, r, y, split="test")
    b.update(u.argmax(1), r, y, split="test")
    assert a.compute() == b.compute()


def test_halves_merged_are_the_whole():
    u, r, y = predictions()
    whole, first, second = (AccuracyGaps() for _ in range(3))
    for split, part in parts():
        whole.update(u[part], r[part], y[part], split=split)
        for metric, half in ((first, slice(0, None, 2)), (second, slice(1, None, 2))):
            metric.update(u[part][half], r[part][half], y[part][half], split=split)
    first.merge_state(second)
    assert first.compute() == whole.compute()


def test_in_a_collection():
    u, r, y = predictions()
    together = MetricCollection(
        {"gap": AccuracyGaps(("forget",)), "kl": OutputDivergence()}
    )
    result = together(unlearned=u, retrained=r, targets=y)
    assert {"forget_gap", "average_gap", "kl"} <= set(result)


class Evaluated(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.unlearned, self.retrained = torch.nn.Linear(3, 4), torch.nn.Linear(3, 4)
        self.gaps, self.js = AccuracyGaps(("test",)), OutputDivergence("js")

    def validation_step(self, batch, batch_idx):
        x, y = batch
        u, r = self.unlearned(x), self.retrained(x)
        self.gaps.update(u, r, y, split="test")
        self.js.update(u, r)
        self.log("js", self.js)

    def on_validation_epoch_end(self):
        self.log_dict(self.gaps.compute())


def test_lightning_logs_them():
    u, _, y = predictions(40)
    module, data = Evaluated(), TensorDataset(u[:, :3], y)
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, barebones=False
    )
    trainer.validate(module, DataLoader(data, batch_size=16), verbose=False)
    logged = trainer.callback_metrics
    expected = OutputDivergence("js")(
        module.unlearned(u[:, :3]), module.retrained(u[:, :3])
    )
    assert logged["js"].item() == pytest.approx(expected.item(), rel=1e-6)
    assert {"test_unlearned", "test_gap", "average_gap"} <= set(logged)


Y = torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((Y, None, Y), "the predictions, of a model retrained without.*got None"),
        ((Y, Y, Y, "train"), "one of 'forget', 'retain', 'test', got 'train'"),
        ((Y, Y[:1], Y), "expected retrained to be 2 class indices"),
        ((torch.zeros(3, 4), Y, Y), "unlearned: 3, targets: 2"),
        ((torch.full((2, 4), torch.nan), Y, Y), "unlearned to be finite, got 8 of 8"),
        ((Y, Y, Y - 1), "got values from -1 to 0"),
        ((Y, Y, Y.float()), "expected targets to be 2 class indices"),
        ((Y, "no", Y), "expected retrained to be 2 class indices.*got str"),
    ],
)
def test_what_cannot_be_counted_is_refused(given, message):
    with pytest.raises(ArgumentError, match=message):
        AccuracyGaps().update(*given)


def test_empty_splits_are_refused():
    metric = AccuracyGaps()
    metric.update(Y, Y, Y, split="retain")
    with pytest.raises(ArgumentError, match="got none of forget, test: update with"):
        metric.compute()


@pytest.mark.parametrize("splits", [(), ("test", "test")])
def test_splits_are_different_names(splits):
    with pytest.raises(ArgumentError, match="different names, at least one"):
        AccuracyGaps(splits)
