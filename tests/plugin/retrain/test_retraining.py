"""``unlearn(how="retrain")``: exact for any network, and nothing moves if it fails."""

import signal

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_unlearn import UnlearningCallback
from lightning_unlearn.certificate import ledger as ledgers
from lightning_unlearn.certificate.verification import verify_text
from lightning_unlearn.errors import (
    ArgumentError,
    ModelError,
    SetupError,
)
from lightning_unlearn.guarantee.claims import Grade
from tests.helpers.lightning import Callback, L, ModelCheckpoint
from tests.helpers.nets import HeadNet, digits, same, trainer, weights

N = 300


class Deep(L.LightningModule):
    """An ordinary network with an ordinary optimizer, and habits of ordinary code."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10)
        )
        self.losses, self.words = [], {}

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.losses.append(loss.item())
        for label in batch[1].tolist():
            self.words.setdefault(label, len(self.words))
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def training(data, kind=Deep, epochs=2, batch_size=60, callbacks=(), **options):
    """What a user's own script makes."""
    saves = any(isinstance(c, ModelCheckpoint) for c in callbacks)
    own = UnlearningCallback(**options)
    also = {"callbacks": list(callbacks), "enable_checkpointing": saves}
    made = trainer(own, epochs, **also)
    return made, kind(), DataLoader(data, batch_size, shuffle=True)


def fitted(make, dataset=None, **options):
    dataset = digits(N) if dataset is None else dataset
    own, net, loader = training(dataset, retrain=make, **options)
    own.fit(net, loader)
    return net, own, dataset


def test_an_ordinary_network_gets_an_exact_certificate(tmp_path):
    given = []

    def make(data):
        given.append(data)
        return training(data)

    ledger = tmp_path / "ledger.jsonl"
    net, own, dataset = fitted(make, ledger=ledger, releases=1)
    before, losses = weights(net), list(net.losses)
    result = own.unlearn([3, 8], how="retrain", save_to=tmp_path / "clean.ckpt")
    certificate = result.certificate
    assert certificate.grade is Grade.EXACT
    assert (certificate.epsilon, certificate.delta, certificate.noise_std) == (0, 0, 0)
    assert (certificate.n_forget, certificate.n_retain) == (2, N - 2)
    assert str(certificate).startswith("EXACT: retrained by this tool on the retained")
    assert "as public" in str(result).splitlines()[0]
    assert "10 training steps from a fresh start" in str(result)
    certificate.verify()
    # The user's own module is the retrained one, and nothing in it saw the samples.
    assert not same(weights(net), before)
    assert net.losses[:1] != losses[:1]
    assert len(given[0]) == N - 2
    held = torch.load(tmp_path / "clean.ckpt", weights_only=True)
    assert same(held["state_dict"], weights(net))
    assert result.n_retain == len(own.callbacks[-1].retained_indices)
    text = (tmp_path / "clean.certificate.json").read_text()
    receipts = result.receipts(3)
    findings = verify_text(text, ledger_text=ledger.read_text(), receipts=receipts)
    assert not [f.text for f in findings if f.holds is False]
    # The positions of a later request are those of the whole dataset, and one more
    # retraining uses up none of the releases that were announced.
    with pytest.warns(UserWarning, match="already removed 8"):
        again = own.unlearn([8, 9], how="retrain").certificate
    assert (again.grade, again.n_forget, again.n_retain) == (Grade.EXACT, 1, N - 3)
    assert (again.release, again.composed_epsilon) == (2, 0)
    assert len(given[1]) == N - 3
    assert [e.mu for e in ledgers.read(ledger).entries] == [0, 0]


def test_in_a_fresh_process(tmp_path):
    _, own, dataset = fitted(training)
    own.save_checkpoint(tmp_path / "run.ckpt")
    fresh, net, loader = training(dataset, retrain=training)
    result = fresh.unlearn(
        [1], model=net, train_dataloaders=loader, ckpt_path=tmp_path / "run.ckpt",
        how="retrain", save_to=tmp_path / "clean.ckpt", delete_stale=True,
    )  # fmt: skip
    assert result.certificate.grade is Grade.EXACT
    assert [p.rpartition("/")[2] for p in result.deleted] == ["run.ckpt"]
    # And goes on from there, in another one.
    later, net, loader = training(dataset, retrain=training)
    two = later.unlearn(
        [2], model=net, train_dataloaders=loader, ckpt_path=tmp_path / "clean.ckpt",
        how="retrain",
    )  # fmt: skip
    assert (two.certificate.release, two.certificate.n_retain) == (2, N - 2)


def test_a_newton_step_after_a_retraining_is_certified():
    def make(data):
        return training(data, HeadNet)

    net, own, _ = fitted(make, kind=HeadNet)
    assert own.unlearn([5], how="retrain").certificate.grade is Grade.EXACT
    certificate = own.unlearn([6]).certificate
    assert certificate.grade is Grade.CERTIFIED
    assert certificate.release_mus[0] == 0
    assert certificate.composed_grade is Grade.CERTIFIED
    own.unlearn([7], how="retrain")
    assert own.callbacks[-1].record.removed == [5, 6, 7]


def heads(data, **options):
    return training(data, HeadNet, **options)


def asked(data, forget, path, how, save_to=None, **options):
    """A request from a checkpoint, in a process of its own."""
    own, net, loader = heads(data, retrain=heads, **options)
    asks = {"how": how, "ckpt_path": path, "save_to": save_to}
    return own.unlearn(forget, net, loader, **asks).certificate


def test_a_release_before_a_retraining_from_an_older_copy_counts(tmp_path):
    """It told of sample 1, and the retraining's ledger would not have it."""
    _, own, data = fitted(heads, kind=HeadNet, releases=3)
    old, clean, again = (tmp_path / f"{n}.ckpt" for n in ("old", "clean", "again"))
    own.save_checkpoint(old)
    asked(data, [1], old, "newton", clean, releases=3)
    with pytest.raises(
        SetupError, match=r"in its ledger.*without that of .*clean\.ckpt"
    ):
        asked(data, [1, 2], old, "retrain", again, releases=3)
    # Nor is one that was made where nothing was announced a start for those that are.
    asked(data, [1, 2], old, "retrain", again)
    with pytest.raises(
        SetupError, match=r"clean\.ckpt.*on two copies of a model, trai"
    ):
        asked(data, [3], again, "newton", releases=3)
    third = tmp_path / "third.ckpt"
    c = asked(data, [2], clean, "retrain", third, releases=3)
    assert (c.grade, c.release, c.composed_epsilon) == (Grade.EXACT, 2, None)
    c = asked(data, [3], third, "newton", releases=3)
    assert (c.grade, c.release, len(c.release_mus)) == (Grade.CERTIFIED, 3, 3)
    # What a retraining has come after is known from its own certificate.
    clean.unlink()
    with pytest.raises(
        SetupError, match=r"in its ledger.*without that of .*third\.ckpt"
    ):
        asked(data, [1, 2], old, "retrain", releases=3)


def test_a_retraining_that_is_known_uses_up_nothing(tmp_path):
    _, own, data = fitted(heads, kind=HeadNet, releases=1)
    old, clean, again = (tmp_path / f"{n}.ckpt" for n in ("old", "clean", "again"))
    own.save_checkpoint(old)
    asked(data, [1], old, "retrain", clean, releases=1)
    c = asked(data, [1, 2], old, "retrain", again, releases=1)
    assert (c.grade, c.composed_epsilon) == (Grade.EXACT, 0)
    c = asked(data, [3], again, "newton", releases=1)
    assert c.grade is Grade.CERTIFIED
    assert c.composed_epsilon == pytest.approx(1.0, rel=1e-6)


def test_nothing_is_retrained_unless_it_is_asked_for():
    def make(data):
        raise AssertionError

    _, own, _ = fitted(make, kind=HeadNet)
    for how in ("auto", "newton"):
        assert own.unlearn([len(how)], how=how).certificate.grade is Grade.CERTIFIED
    with pytest.raises(ArgumentError, match="expected how to be one of"):
        own.unlearn([1], how="again")


class Interrupting(Callback):
    """Ctrl-C at a step."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == self.step:
            raise KeyboardInterrupt


def stopped(own, *args, **options):
    """Ask for a request that is interrupted; Lightning makes its own of it."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            own.unlearn(*args, how="retrain", **options)
    finally:  # Lightning ignores further interrupts while it shuts down
        signal.signal(signal.SIGINT, handler)


def test_what_is_interrupted_changes_nothing_and_goes_on(tmp_path, capsys):
    stops = [Interrupting(7)]

    def make(data):
        kept = ModelCheckpoint(tmp_path, "anew-{step}", every_n_train_steps=5)
        callbacks = [kept, *stops]
        return training(data, callbacks=callbacks, epochs=4)

    net, own, _ = fitted(make)
    before = weights(net)
    stopped(own, [1], save_to=tmp_path / "clean.ckpt")
    assert capsys.readouterr().err.count("Interrupted: nothing was changed") == 1
    assert same(weights(net), before)
    assert not (tmp_path / "clean.ckpt").exists()
    stops.clear()
    (half,) = tmp_path.glob("anew-*.ckpt")
    # Only of this very request, and never of the old model.
    own.save_checkpoint(tmp_path / "old.ckpt")
    for path, forget in ((tmp_path / "old.ckpt", [1]), (half, [2])):
        with pytest.raises(SetupError, match="expected resume_from= to name a checkpo"):
            own.unlearn(forget, how="retrain", resume_from=path)
    result = own.unlearn([1], how="retrain", resume_from=half)
    assert result.certificate.grade is Grade.EXACT
    assert result.solution.steps in (20, 21)  # Lightning 2.4 begins a step later
    assert own.callbacks[-1].record.removed == [1]


def test_another_request_meanwhile_is_seen():
    def make(data):
        own.unlearn([9], how="newton")
        return training(data, HeadNet)

    _, own, _ = fitted(make, kind=HeadNet)
    with pytest.raises(ModelError, match="another request that was done meanwhile"):
        own.unlearn([1], how="retrain")
    assert own.callbacks[-1].record.removed == [9]


class Manual(Deep):
    """No Newton step is defined for it: its training step steps."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self(batch[0]), batch[1])
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()


class Running(Deep):
    """A statistic in a buffer and one in extra state; both are made anew."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(64))
        self.peak = 0.0

    def training_step(self, batch, batch_idx):
        self.mean.mul_(0.9).add_(batch[0].mean(0), alpha=0.1)
        self.peak = max(self.peak, float(batch[0].sum()))
        return super().training_step((batch[0] - self.mean, batch[1]), batch_idx)

    def get_extra_state(self):
        return {"peak": self.peak}

    def set_extra_state(self, state):
        self.peak = state["peak"]


@pytest.mark.parametrize("kind", [Manual, Running])
def test_networks_without_a_newton_step(kind, tmp_path):
    made = []

    def make(data):
        made.append(training(data, kind))
        return made[-1]

    net, own, _ = fitted(make, kind=kind)
    result = own.unlearn([1], how="retrain", save_to=tmp_path / "clean.ckpt")
    assert result.certificate.grade is Grade.EXACT
    new = made[0][1]
    for name, value in new.state_dict().items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, net.state_dict()[name])
    if kind is Running:
        assert "mean" in result.certificate.rebuilt
        assert net.peak == new.peak
