"""Module, callbacks and Trainer of two packages; and a world with only one of them."""

import importlib
import subprocess
import sys

import pytest
import torch

import lightning_unlearn as lu
from lightning_unlearn import UnlearningCallback
from lightning_unlearn.cli import LightningCLI
from lightning_unlearn.errors import SetupError
from lightning_unlearn.guarantee.claims import Grade
from lightning_unlearn.plugin.which_lightning import PACKAGES, VARIABLE
from tests.helpers.cli_project import ROOT, copy_to
from tests.helpers.lightning import PACKAGE, Callback, L
from tests.helpers.nets import MLP, HeadNet, digits, fitted, loader, trainer, weights
from tests.plugin.helpers import publics

(OTHER,) = PACKAGES.keys() - {PACKAGE}
QUIET = {
    "accelerator": "cpu", "logger": False, "enable_checkpointing": False,
    "enable_progress_bar": False, "enable_model_summary": False, "max_epochs": 1,
}  # fmt: skip


@pytest.fixture
def other():
    """The other package, imported after ours as users come to do it."""
    if OTHER == "lightning":
        pytest.skip("tests/conftest.py hides lightning")
    return importlib.import_module(PACKAGES[OTHER])


@pytest.fixture
def foreign(other):
    """A module of the other package, which fails if it is trained."""

    class Foreign(other.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = torch.nn.Linear(64, 10)

        def training_step(self, batch, batch_idx):
            raise AssertionError("training has begun")

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    return Foreign()


def refused(what, of=OTHER, used_with=PACKAGE):
    message = (
        f"got {what} of {of} with {used_with}: import one .* lightning_unlearn uses "
        f"{PACKAGE}; for {OTHER}, import {OTHER}, and not {PACKAGE}, before "
        f"lightning_unlearn, or set the environment variable {VARIABLE}={OTHER}$"
    )
    return pytest.raises(SetupError, match=message)


def test_our_callback_in_the_other_s_trainer(other, foreign):
    """What comes of ``from lightning_unlearn`` above ``from pytorch_lightning``."""
    # Lightning 2.4 looks at callbacks when a Trainer is made, 2.6 no longer does.
    with refused(
        "(Trainer|UnlearningCallback)", f"({OTHER}|{PACKAGE})", f"({PACKAGE}|{OTHER})"
    ):
        other.Trainer(callbacks=[UnlearningCallback()], **QUIET).fit(
            foreign, loader(digits(64))
        )
    with refused("UnlearningCallback", PACKAGE, OTHER):
        other.Trainer(callbacks=UnlearningCallback(), **QUIET)


def test_a_module_of_the_other_in_our_trainer(foreign):
    name = ".*Foreign"
    ours = trainer(UnlearningCallback())
    with refused(name):
        ours.fit(foreign, loader(digits(64)))
    with refused(name):
        ours.unlearn([1], model=foreign, train_dataloaders=loader(digits(64)))
    with refused(name):
        lu.preflight(ours, [1], model=foreign)
    with refused(name):
        lu.prepare(ours, model=foreign)
    with refused(name):
        LightningCLI(type(foreign), args=["fit"])


def test_a_module_of_ours_in_the_other_s_trainer(other):
    data = publics.loader(publics.private())
    net = lu.CertifiedClassifier(publics.backbone(), num_classes=5)
    for callbacks in ([], [UnlearningCallback()]):
        with refused("(CertifiedClassifier|UnlearningCallback)", PACKAGE, OTHER):
            other.Trainer(callbacks=callbacks, **QUIET).fit(net, data)


@pytest.mark.parametrize("verb", [lu.unlearn, lu.preflight])
def test_the_other_s_trainer_in_our_verbs(verb, other):
    with refused("Trainer"):
        verb(other.Trainer(**QUIET), [1], model=HeadNet())
    with refused("Trainer"):
        lu.prepare(other.Trainer(**QUIET), model=HeadNet())
    with refused("Trainer"):
        LightningCLI(HeadNet, trainer_class=other.Trainer, args=["fit"])


def test_an_experiment_of_the_other_s(other):
    def train(dataset):
        return other.Trainer(**QUIET)

    experiment = lu.TrainerExperiment(train, digits(40), [1, 2])
    with refused("Trainer"):
        experiment(torch.tensor([True, False]))


def test_the_other_s_callbacks_would_not_be_seen(other):
    """Lightning runs them; that one keeps the weights of old we could not tell."""
    average = importlib.import_module(f"{PACKAGES[OTHER]}.callbacks")
    average = average.StochasticWeightAveraging(swa_lrs=0.1)
    with refused("StochasticWeightAveraging"):
        run = trainer(UnlearningCallback(), callbacks=[average])
        run.fit(MLP(), loader(digits(64)))
    late = fitted()
    late[1].callbacks.append(average)
    before = weights(late[0])
    with refused("StochasticWeightAveraging"):
        late[1].unlearn([1])
    assert all(torch.equal(w, before[name]) for name, w in weights(late[0]).items())


@pytest.mark.filterwarnings("ignore:You passed in a .val_dataloader.")
def test_the_other_s_data_module(other):
    class Foreign(other.LightningDataModule):
        def train_dataloader(self):
            return loader(digits(64))

    with refused(".*Foreign"):
        trainer(UnlearningCallback()).fit(HeadNet(), datamodule=Foreign())
    with refused(".*Foreign"):
        fitted()[1].unlearn([1], datamodule=Foreign())


def test_a_variable_that_is_set_is_what_to_change(other, monkeypatch):
    monkeypatch.setenv(VARIABLE, PACKAGE)
    with pytest.raises(
        SetupError, match=f"; for {OTHER}, set the .*{VARIABLE}={OTHER}$"
    ):
        lu.unlearn(other.Trainer(**QUIET), [1])


def test_each_alone_goes_on_beside_the_other(other):
    """The controls: nothing that does not mix is refused."""

    class Counted(other.Callback):
        steps = 0

        def on_train_batch_end(self, *_):
            self.steps += 1

    class Own(other.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = torch.nn.Linear(64, 10)

        def training_step(self, batch, batch_idx):
            return self.net(batch[0]).square().mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    counted = Counted()
    other.Trainer(callbacks=[counted], **QUIET).fit(Own(), loader(digits(64)))
    assert counted.steps == 1
    other.Trainer(callbacks=Counted(), **QUIET)
    L.Trainer(callbacks=Callback(), **QUIET)
    assert not hasattr(other.Trainer, "unlearn")
    net, run, _, _ = publics.solved()
    assert run.unlearn([1]).certificate.grade is Grade.CERTIFIED


WITHOUT = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "lightning":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Refuse())
import runpy
from lightning_unlearn.cli import LightningCLI
import pytorch_lightning as pl
names = runpy.run_path("train.py")
def cli(*args):
    return LightningCLI(names["Classifier"], names["Digits"], args=[
        *args, "--config=config.yaml", "--trainer.enable_progress_bar=false"])
made = cli("fit", "--trainer.max_epochs=1")
assert isinstance(made.trainer, pl.Trainer)
print(made.trainer.preflight([3]))
print(made.trainer.unlearn([3, 14], save_to="python.ckpt").certificate)
cli("unlearn", "--ckpt_path=python.ckpt", "--forget=[15]", "--save_to=cli.ckpt")
"""


def test_lightning_cannot_be_imported(tmp_path):
    """No file of ours asks for it: fit, preflight, unlearn, the command line."""
    copy_to(tmp_path / "cli", "pytorch_lightning")
    environment = {"PATH": "", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT], cwd=tmp_path / "cli", env=environment,
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "PREFLIGHT" in done.stdout
    assert done.stdout.count("CERTIFIED: ") == 2
    assert (tmp_path / "cli/cli.certificate.json").exists()
