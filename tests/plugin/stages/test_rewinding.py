"""``UnlearningCallback(stages=)``: a request goes back to where nobody was seen yet."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import ConcatDataset, DataLoader, Subset, SubsetRandomSampler

from lightning_unlearn import UnlearningCallback
from lightning_unlearn.certificate.certificate import Certificate
from lightning_unlearn.guarantee.claims import Bound, Grade
from lightning_unlearn.plugin.stages import stage_end
from tests.helpers.lightning import L
from tests.helpers.nets import digits, same, trainer, weights

N, STAGES = 300, 3


class Net(L.LightningModule):
    """A small network that draws nothing but what it is given."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 10))

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


class Validated(Net):
    def validation_step(self, batch, batch_idx):
        self.log("loss", F.cross_entropy(self.net(batch[0]), batch[1]))


class Script:
    """What a user's script does, and which samples each of its trainings was given."""

    def __init__(self, folder, **options):
        self.given, self.options = [], {"stages": folder, **options}
        self.steps, self.val, self.kind = 6, (), Net

    def make(self, data):
        self.given.append(len(data))
        torch.manual_seed(len(self.given))
        own = UnlearningCallback(retrain=self.make, **self.options)
        made = trainer(own, max_epochs=-1, max_steps=self.steps)
        return made, self.kind(), DataLoader(data, 50, shuffle=True)

    def train(self, dataset, stages=STAGES):
        """In stages of 100 samples, each fit on those of before and some more."""
        own = UnlearningCallback(retrain=self.make, **self.options)
        net = self.kind()
        for k in range(stages):
            seen = SubsetRandomSampler(range(100 * (k + 1)))
            fit = trainer(own, max_epochs=-1, max_steps=self.steps)
            fit.fit(net, DataLoader(dataset, 50, sampler=seen), *self.val)
        return net, fit, own


@pytest.fixture
def script(tmp_path):
    return Script(tmp_path / "stages")


def files(script):
    return sorted(script.options["stages"].glob("*"))


def test_someone_of_the_last_stage_costs_the_last_stage(script):
    net, fit, own = script.train(digits(N))
    assert [len(s.drawn) for s in own.record.stages] == [100, 200]
    assert len(files(script)) == 2
    certificate = fit.unlearn([250, 260], how="retrain").certificate
    assert script.given == [N - 2]
    assert certificate.grade is Grade.EXACT
    assert certificate.bound is Bound.REWOUND
    assert {c.name: c.value for c in certificate.constants}["stages_kept"] == 2
    words = " ".join(str(certificate).split())
    assert "from the end of the first 2 stages, which never saw" in words
    assert "assuming that no earlier model led to this request" in words
    assert any("because of what an earlier model" in t for t in certificate.not_covered)
    Certificate.from_json(certificate.to_json()).verify()
    assert len(files(script)) == 2


def test_the_model_is_the_one_that_is_trained_by_hand(script):
    """By another loop: the end of stage 1, then the later stages without the sample."""
    dataset = digits(N)
    net, fit, own = script.train(dataset)
    start, _ = stage_end.read(own.record.stages[0], script.options["stages"])
    fit.unlearn([150], how="retrain")
    assert script.given == [199, N - 1]
    by_hand = Script(None)
    other, state = None, start
    for gone, n in ((150, 200), (150, N)):
        kept = [i for i in range(n) if i != gone]
        by_hand.options = {}
        made, other, loader = by_hand.make(Subset(dataset, kept))
        other.load_state_dict(state, strict=True)
        made.fit(other, loader)
        state = weights(other)
    assert same(weights(net), weights(other))


def test_someone_of_the_first_stage_costs_all(script):
    _, fit, own = script.train(digits(N))
    old = files(script)
    result = fit.unlearn([3], how="retrain")
    certificate = result.certificate
    assert script.given == [99, 199, 299]
    assert "18 training steps from a fresh start" in str(result)
    assert certificate.bound is Bound.RETRAINED
    assert certificate.grade is Grade.EXACT
    # The ends that held it are gone, and new ones are there for the next request.
    assert len(files(script)) == 2
    assert not {*old} & {*files(script)}
    assert [len(s.drawn) for s in own.record.stages] == [99, 199]
    again = fit.unlearn([150], how="retrain").certificate
    assert script.given[3:] == [198, 298]
    assert again.bound is Bound.REWOUND


def test_growth_after_a_request(script, tmp_path):
    dataset = digits(N)
    net, fit, own = script.train(dataset)
    fit.unlearn([250], how="retrain")
    old = Subset(dataset, own.retained_indices)
    new = torch.utils.data.TensorDataset(*(t + 0 for t in digits(400)[N:]))
    grown = ConcatDataset([old, new])
    fit = trainer(own, max_epochs=-1, max_steps=script.steps)
    fit.fit(net, DataLoader(grown, 50, shuffle=True))
    assert [len(s.drawn) for s in own.record.stages] == [100, 200, 299]
    script.given.clear()
    result = fit.unlearn([350], how="retrain")
    assert script.given == [398]
    assert result.certificate.bound is Bound.REWOUND
    script.given.clear()
    fit.unlearn([299 - 1], how="retrain")  # the last of those of before
    assert script.given == [298, 397]


def test_in_a_fresh_process(script, tmp_path):
    dataset = digits(N)
    _, fit, own = script.train(dataset)
    fit.save_checkpoint(tmp_path / "run.ckpt")
    fresh, net, loader = script.make(dataset)
    script.given.clear()
    result = fresh.unlearn(
        [299], model=net, train_dataloaders=loader, ckpt_path=tmp_path / "run.ckpt",
        how="retrain", save_to=tmp_path / "clean.ckpt",
    )  # fmt: skip
    assert script.given == [N - 1]
    assert result.certificate.bound is Bound.REWOUND
    later, net, loader = script.make(dataset)
    script.given.clear()
    later.unlearn(
        [150], model=net, train_dataloaders=loader, ckpt_path=tmp_path / "clean.ckpt",
        how="retrain", save_to=tmp_path / "two.ckpt",
    )  # fmt: skip
    assert script.given == [199, 298]


def test_a_step_drops_the_ends_that_saw_someone(script):
    _, fit, own = script.train(digits(N))
    one, two = (s.path for s in own.record.stages)
    own.options = replace(own.options, noise_std=0.0)
    fit.unlearn([150])
    assert [s.path for s in own.record.stages] == [one, None]
    assert [str(path) for path in files(script)] == [one]
    fit.unlearn([250], how="retrain")
    assert script.given == [199, 298]


def test_preflight_says_from_where_and_how_long(script):
    _, fit, own = script.train(digits(N))
    for stage, seconds in zip(own.record.stages, (10.0, 20.0), strict=True):
        stage.seconds = seconds
    own.attached.fit_seconds = 30.0
    (again,) = [r for r in fit.preflight([250]).routes if r.name.startswith("retrain")]
    assert again.name == "retraining from stage 3"
    assert again.seconds == pytest.approx(30.0 * 299 / 300)
    (again,) = [r for r in fit.preflight([3]).routes if r.name.startswith("retrain")]
    assert again.name == "retraining"
    expected = 10 * 99 / 100 + 20 * 199 / 200 + 30 * 299 / 300
    assert again.seconds == pytest.approx(expected)
