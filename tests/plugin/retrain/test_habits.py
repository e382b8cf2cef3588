"""Ordinary code that made `exact`, or what came after it, false; and good use of it."""

import pytest
import torch
import torchmetrics
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset, random_split

from lightning_unlearn import ConvexHead, UnlearningCallback
from lightning_unlearn.errors import DataError, ModelError, SetupError
from lightning_unlearn.guarantee.claims import Grade
from tests.helpers.lightning import Callback, ModelCheckpoint
from tests.helpers.nets import HeadNet, digits, same, trainer, weights
from tests.plugin.retrain.test_retraining import Deep, N, fitted, training


class Referring(HeadNet):
    """Refers to its own layers in every way."""

    def __init__(self):
        super().__init__()
        self.classify = self.head.forward
        self.layers = [*self.backbone, self.head]
        self.way = lambda x: self.head(x)
        self.mean = torchmetrics.MeanMetric()
        self.seen = []

    def forward(self, x):
        for layer in self.layers[:-1]:
            x = layer(x)
        return self.classify(x)

    def training_step(self, batch, batch_idx):
        self.seen.append(batch_idx)
        return super().training_step(batch, batch_idx)


def test_the_users_module_computes_with_its_own_layers():
    made = []

    def make(data):
        made.append(training(data, Referring))
        return made[-1]

    net, own, dataset = fitted(make, kind=Referring)
    assert own.unlearn([1], how="retrain").certificate.grade is Grade.EXACT
    new, x = made[0][1], dataset.tensors[0][:20]
    assert torch.equal(net(x), new(x))
    assert torch.equal(net.way(torch.ones(1, 32)), new.way(torch.ones(1, 32)))
    assert net.seen == new.seen
    assert net.seen is not new.seen
    net.mean.update(5.0)
    assert float(net.mean.compute()) == 5
    before = net(x)
    assert own.unlearn([5, 6, 7]).certificate.grade is Grade.CERTIFIED
    assert not torch.equal(net(x), before)
    with torch.no_grad():
        net.head.weight.zero_()
        net.head.bias.zero_()
    assert not net(x).any()


class Lazy(HeadNet):
    """Makes a mean of its first batch."""

    def __init__(self):
        super().__init__()
        self.mean = None

    def training_step(self, batch, batch_idx):
        if self.mean is None:
            self.mean = batch[0].mean(0)
        loss = self.head.loss(self.backbone(batch[0] - self.mean), batch[1])
        return loss.mean()


@pytest.mark.parametrize("fails", [False, True])
def test_what_is_known_of_rows_stays_known(fails, monkeypatch, tmp_path):
    net, own, dataset = fitted(lambda data: training(data, Lazy), kind=Lazy)
    if fails:

        def full(*args, **kwargs):
            raise OSError(28, "full")

        monkeypatch.setattr(own, "save_checkpoint", full)
        with pytest.raises(OSError, match="full"):
            own.unlearn([1], how="retrain", save_to=tmp_path / "clean.ckpt")
    else:
        own.unlearn([1], how="retrain")
    later = trainer(UnlearningCallback())
    later.fit(net, DataLoader(Subset(dataset, range(2, N)), 60, shuffle=True))
    assert later.unlearn([5]).certificate.grade is Grade.NONE


class Fragile(Deep):
    """Its second part takes no other state."""

    class Part(nn.Module):
        def __init__(self, fails):
            super().__init__()
            self.fails, self.state = fails, 0

        def get_extra_state(self):
            return {"state": self.state}

        def set_extra_state(self, state):
            if self.fails:
                raise RuntimeError("no other state")
            self.state = state["state"]

    def __init__(self):
        super().__init__()
        self.one, self.two = self.Part(False), self.Part(True)

    def training_step(self, batch, batch_idx):
        for part in (self.one, self.two):
            part.state = float(batch[0].sum())
        return super().training_step(batch, batch_idx)


def test_a_module_is_replaced_as_a_whole_or_not_at_all():
    net, own, _ = fitted(lambda data: training(data, Fragile), kind=Fragile)
    before = [p.detach().clone() for p in net.parameters()]
    losses, state = net.losses, net.one.state
    with pytest.raises(RuntimeError, match="no other state"):
        own.unlearn([1], how="retrain")
    assert net.losses is losses
    assert net.one.state == state
    pairs = zip(net.parameters(), before, strict=True)
    assert all(torch.equal(p, old) for p, old in pairs)


class Closing(Deep):
    """A function that holds a layer, and something learnt."""

    def __init__(self):
        super().__init__()
        learnt = []
        self.learn, self.look = learnt.append, lambda: (self.net, learnt)

    def training_step(self, batch, batch_idx):
        self.learn(float(batch[0].sum()))
        return super().training_step(batch, batch_idx)


def test_what_cannot_be_taken_over_is_named():
    _, own, _ = fitted(lambda data: training(data, Closing), kind=Closing)
    certificate = own.unlearn([1], how="retrain").certificate
    assert certificate.grade is Grade.NONE
    assert certificate.unscrubbed == ("look",)


class Complex(Deep):
    def __init__(self):
        super().__init__()
        self.phase = nn.Parameter(torch.ones(3, dtype=torch.complex64))

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss + (self.phase * 1j).real.sum() * 1e-3


def test_complex_weights_are_refused_before_training():
    _, own, _ = fitted(lambda data: training(data, Complex), kind=Complex)
    with pytest.raises(ModelError, match="expected real weights for how='retrain'"):
        own.unlearn([1], how="retrain")


class Swapping(Callback):
    """Puts an average in place of the weights, when it is over."""

    def __init__(self, hook):
        setattr(self, hook, self.swap)

    def swap(self, trainer, pl_module):
        with torch.no_grad():
            for p in pl_module.parameters():
                p.mul_(0.5)


@pytest.mark.parametrize("hook", ["on_train_end", "on_fit_end"])
def test_what_is_released_is_what_the_training_left(hook):
    made = []

    def make(data):
        made.append(training(data, callbacks=[Swapping(hook)], max_norm=100.0))
        return made[-1]

    net, own, _ = fitted(make, max_norm=1.0, accept_noise=True)
    own.unlearn([1], how="retrain")
    assert same(weights(net), weights(made[0][1]))
    assert float(net.net[0].weight.detach().norm()) > 1  # in no ball


def test_checkpoints_of_a_retraining_are_old_ones_later(tmp_path):
    def make(data):
        kept = ModelCheckpoint(tmp_path / "anew", every_n_epochs=1, save_top_k=-1)
        return training(data, callbacks=[kept])

    _, own, _ = fitted(make)
    own.unlearn([1], how="retrain", save_to=tmp_path / "one.ckpt")
    written = sorted(str(p) for p in (tmp_path / "anew").iterdir())
    assert len(written) == 2
    result = own.unlearn([2], how="retrain", save_to=tmp_path / "two.ckpt",
                         delete_stale=True)  # fmt: skip
    assert {*written} <= {*result.deleted}


def test_a_start_that_an_earlier_attempt_trained():
    once = Deep()

    class Stops(Callback):
        def on_train_batch_end(self, *args):
            raise RuntimeError("out of memory")

    calls = [
        lambda d: (training(d, callbacks=[Stops()])[0], once, DataLoader(d, 60)),
        lambda d: (training(d)[0], once, DataLoader(d, 60)),
        lambda d: copied(d, once),
    ]

    def copied(data, other):
        made = training(data)
        made[1].load_state_dict(other.state_dict())
        return made

    _, own, _ = fitted(lambda d: calls[0](d))
    with pytest.raises(RuntimeError, match="out of memory"):
        own.unlearn([1], how="retrain")
    del calls[0]
    with pytest.raises(SetupError, match="to make a new module, got one that was use"):
        own.unlearn([2], how="retrain")
    del calls[0]
    with pytest.raises(ModelError, match="those of an earlier training in net.0.weig"):
        own.unlearn([2], how="retrain")


TOLD = {}


class Loading(Deep):
    """Its hooks load what it is told to; its temperature is one number."""

    def __init__(self):
        super().__init__()
        self.temperature = nn.Parameter(torch.tensor(1.0))

    def forward(self, x):
        return super().forward(x) * self.temperature

    def on_fit_start(self):
        self.load("on_fit_start")

    def on_train_start(self):
        self.load("on_train_start")

    def load(self, hook):
        if TOLD.get("hook") == hook:
            state, names = TOLD["state"], TOLD["names"]
            found = {k: v for k, v in state.items() if k.startswith(names)}
            self.load_state_dict(found, strict=False)


@pytest.mark.parametrize("hook", ["on_fit_start", "on_train_start"])
@pytest.mark.parametrize("names", ["net", "temperature"])
def test_a_start_that_a_hook_loads(hook, names, monkeypatch):
    net, own, _ = fitted(lambda d: training(d, Loading), kind=Loading)
    for key, value in (("hook", hook), ("names", names), ("state", weights(net))):
        monkeypatch.setitem(TOLD, key, value)
    with pytest.raises(ModelError, match=f"earlier training in {names}"):
        own.unlearn([1], how="retrain")


def test_a_teacher_in_a_list():
    def make(data):
        made = training(data)
        made[1].teacher = [net]
        return made

    net, own, _ = fitted(make)
    with pytest.raises(ModelError, match=r"earlier training in teacher\[0\]"):
        own.unlearn([1], how="retrain")


class Averages(Callback):
    """Keeps a shadow of the weights, and tells nobody."""

    shadow = None

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.shadow = weights(pl_module)


def test_a_callback_that_was_used_before():
    ema = Averages()
    _, own, _ = fitted(lambda d: training(d, callbacks=[ema]), callbacks=[ema])
    with pytest.raises(SetupError, match="got Averages of the old Trainer"):
        own.unlearn([1], how="retrain")


class Validated(Deep):
    data = None

    def val_dataloader(self):
        return DataLoader(digits(20) if self.data is None else self.data, 60)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))


@pytest.mark.parametrize("positions", [None, [0, 1, 2], [5, 6]])
def test_validation_on_what_is_to_be_forgotten(positions):
    def make(data):
        made = training(data, Validated)
        made[1].data = dataset if positions is None else Subset(dataset, positions)
        return made

    _, own, dataset = fitted(make, kind=Validated)
    if positions == [5, 6]:
        assert own.unlearn([1], how="retrain").certificate.grade is Grade.EXACT
    else:
        with pytest.raises(DataError, match="got them in a validation DataLoader"):
            own.unlearn([1], how="retrain")


def test_what_it_is_given_is_read_as_any_dataset_is():
    def make(data):
        assert len(list(data)) == N - 1
        with pytest.raises(AttributeError, match=r"data\[i\] for i in range"):
            data.tensors  # noqa: B018
        generator = torch.Generator().manual_seed(0)
        train, val = random_split(data, [N - 11, 10], generator)
        made = training(train, Validated)
        made[1].data, given[:] = val, train.indices
        return made

    given = []
    _, own, _ = fitted(make, kind=Validated)
    assert own.unlearn([1], how="retrain").certificate.grade is Grade.EXACT
    rest = [i for i in range(N) if i != 1]
    record = own.callbacks[-1].record
    assert record.retained == sorted(rest[i] for i in given)


class Idle(Deep):
    """A layer from a public seed that no gradient reaches, and one that is frozen."""

    def __init__(self, frozen=False):
        super().__init__()
        torch.manual_seed(3)
        self.pooler = nn.Linear(64, 8)
        self.extra = nn.Linear(64, 10).requires_grad_(not frozen)

    def forward(self, x):
        return super().forward(x) + self.extra(x)


def test_what_no_training_moved_may_be_a_start():
    def make(data):
        return training(data, lambda: Idle(frozen=True))

    net, own, _ = fitted(make, kind=Idle)
    result = own.unlearn([1], how="retrain")
    assert result.certificate.grade is Grade.EXACT
    torch.manual_seed(3)
    assert torch.equal(net.pooler.weight, nn.Linear(64, 8).weight)
    assert any(p.name.startswith("extra") for p in result.certificate.public_parts)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@torch.compiler.set_stance("force_eager")
def test_a_compiled_model_and_a_sampler_that_nobody_knows():
    class Twice(torch.utils.data.Sampler):
        def __init__(self, n):
            self.n = n

        def __len__(self):
            return self.n

        def __iter__(self):
            yield from range(self.n)

    def make(data):
        own, net, _ = training(data)
        return own, torch.compile(net), DataLoader(data, 60, sampler=Twice(len(data)))

    _, own, _ = fitted(make)
    assert own.unlearn([1], how="retrain").certificate.grade is Grade.EXACT


def test_the_head_of_a_later_request_is_on_the_new_backbone():
    net, own, _ = fitted(lambda d: training(d, HeadNet), kind=HeadNet)
    own.unlearn([1], how="retrain")
    assert isinstance(net.head, ConvexHead)
    assert own.preflight([2]).grade is Grade.CERTIFIED
