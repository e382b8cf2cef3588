"""Bad input: a clear error by name, and nothing changed."""

import copy
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from lightning_unlearn import ConvexHead, UnlearningCallback, preflight, prepare
from lightning_unlearn.errors import (
    ArgumentError,
    DataError,
    ForgetSetError,
    GuaranteeError,
    ModelError,
    SetupError,
    SolverError,
    StrategyError,
    UnlearningError,
)
from lightning_unlearn.plugin.run import strategies
from tests.helpers.lightning import DDPStrategy, FSDPStrategy, L
from tests.helpers.nets import (
    MLP,
    HeadNet,
    digits,
    fitted,
    loader,
    same,
    trainer,
    weights,
)


def refused(error, match, net, fit_trainer, callback, forget, **kwargs):
    """The request raises, and model, record, optimizers and files are as before."""
    before, record = weights(net), copy.deepcopy(callback.record)
    pointers = [p.data_ptr() for p in net.parameters()]
    flags = [(p.requires_grad, p.dtype) for p in net.parameters()]
    modes = [m.training for m in net.modules()]
    optimizers = list(fit_trainer.optimizers)
    with pytest.raises(error, match=match):
        fit_trainer.unlearn(forget, **kwargs)
    assert same(weights(net), before)
    assert callback.record == record
    assert [p.data_ptr() for p in net.parameters()] == pointers
    assert [(p.requires_grad, p.dtype) for p in net.parameters()] == flags
    assert [m.training for m in net.modules()] == modes
    assert fit_trainer.optimizers == optimizers
    assert "log" not in net.__dict__
    assert "_run_stage" not in fit_trainer.__dict__
    if "save_to" in kwargs:
        assert not list(kwargs["save_to"].parent.glob("*clean*"))


@pytest.mark.parametrize(
    ("forget", "message"),
    [
        ([], "at least one sample to forget, got none"),
        (range(600), "at least one sample to retain, got a request for all 600"),
        ([1, 2, 1], "every sample once, got 1 repetitions: 1"),
        ([600], "indices from 0 to 599 .* got 600"),
        ([-1], "indices from 0 to 599 .* got -1"),
        ([0.5], r"hold integers, got 0.5 \(float\)"),
        ([True], r"one True or False for each of the 600 samples .* got 1"),
        (torch.ones(600, dtype=torch.bool), "a request for all 600"),
        (
            torch.zeros(2, 2, dtype=torch.long),
            r"hold integers, got \[0, 0\] \(list\)",
        ),
        (np.zeros((2, 2), int), r"flat list of indices, got ndarray of shape \(2, 2\)"),
        (torch.ones(2, dtype=torch.bfloat16), "hold integers, got 1.0"),
        ("x" * 5000 + ".txt", "expected a file of indices at xxx"),
        (None, "as indices, a path, a Subset or a DataLoader"),
        ({"a": 1}, "as indices, a path, a Subset or a DataLoader"),
        ("nowhere.txt", "expected a file of indices at nowhere.txt, found none"),
        ("forget.parquet", "forget file ending in .txt, .json, .npy, .csv"),
        (Subset(digits(50), [1]), "was never trained on cannot be forgotten"),
        (TensorDataset(torch.zeros(3)), "expected a Subset of the training dataset"),
        (DataLoader(digits(50)), "expected a DataLoader over a Subset"),
    ],
    ids=lambda value: str(value).split(" at 0x")[0],
)
def test_forget_sets(forget, message, tmp_path):
    net, fit_trainer, callback, _ = fitted()
    refused(
        ForgetSetError, message, net, fit_trainer, callback, forget,
        save_to=tmp_path / "clean.ckpt",
    )  # fmt: skip
    fit_trainer.unlearn([0])  # and the trainer is still good for a right one


def test_a_subset_of_another_dataset_of_the_same_size():
    net, fit_trainer, callback, _ = fitted()
    X, y = digits(600).tensors
    other = TensorDataset(X.flip(0), y.flip(0))
    refused(
        ForgetSetError, "another sample at position 4", net, fit_trainer, callback,
        Subset(other, [4]),
    )  # fmt: skip
    assert fit_trainer.unlearn(Subset(digits(600), [4])).n_forget == 1  # made anew


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epsilon": 0.0}, "expected epsilon to be a finite number > 0"),
        ({"epsilon": float("nan")}, "expected epsilon"),
        ({"epsilon": -1}, "expected epsilon"),
        ({"delta": 0.0}, "expected delta strictly between 0 and 1"),
        ({"delta": float("nan")}, "expected delta"),
        ({"max_norm": 0.0}, "expected max_norm"),
        ({"damping": -1.0}, "expected damping"),
        ({"damping": float("nan")}, "expected damping"),
        ({"l2": float("nan")}, "expected l2"),
        ({"tolerance": 0.0}, "expected tolerance"),
        ({"releases": 0}, "expected releases to be an integer >= 1"),
        ({"noise_std": -1.0}, "expected noise_std"),
        ({"batch_size": 0}, "expected batch_size"),
        ({"graph_memory": -1}, "expected graph_memory to be an integer >= 0"),
        ({"noise_seed": -1}, "expected noise_seed"),
        ({"curvature": "fisher"}, "expected curvature to be one of 'hessian'"),
        ({"solver": "magic"}, "expected solver to be 'auto', FlexibleCG"),
        ({"guarantee": "magic"}, "expected guarantee to be 'auto'"),
        ({"solve_precision": "float16"}, "expected solve_precision"),
    ],
)
def test_options_at_birth(options, message):
    with pytest.raises(ArgumentError, match=message):
        UnlearningCallback(**options)


def test_nan_weights_and_nan_loss():
    net, fit_trainer, _, dataset = fitted(MLP(), noise_std=0.0)
    with torch.no_grad():
        net.net[2].weight[0, 0] = float("nan")
    with pytest.raises(ModelError, match=r"1 NaN or infinite values in net\.2\.weight"):
        fit_trainer.unlearn([1])
    X, y = digits(600).tensors
    X = X.clone()
    X[77] = float("nan")
    net = HeadNet()
    fresh = UnlearningCallback(l2=1e-3)
    bad = trainer(fresh)
    with pytest.raises(ModelError, match="expected finite features at the head"):
        bad.unlearn([1], model=net, train_dataloaders=loader(TensorDataset(X, y)))
    mlp = trainer(UnlearningCallback(noise_std=0.0))
    with pytest.raises(ModelError, match="expected a finite loss, got nan on batch 0"):
        mlp.unlearn([1], model=MLP(), train_dataloaders=loader(TensorDataset(X, y)))


def test_setup_errors(tmp_path):
    data = loader(digits(60))
    with pytest.raises(SetupError, match="expected a Trainer with an UnlearningCall"):
        trainer().unlearn([1], model=MLP(), train_dataloaders=data)
    with pytest.raises(SetupError, match="expected a model: pass model="):
        trainer(UnlearningCallback()).unlearn([1], train_dataloaders=data)
    with pytest.raises(SetupError, match="expected a checkpoint at nowhere.ckpt"):
        trainer(UnlearningCallback()).unlearn(
            [1], model=MLP(), train_dataloaders=data, ckpt_path="nowhere.ckpt"
        )
    with pytest.raises(SetupError, match="train_dataloaders= or datamodule=, got both"):
        trainer(UnlearningCallback()).unlearn(
            [1], model=MLP(), train_dataloaders=data, datamodule=L.LightningDataModule()
        )
    with pytest.raises(SetupError, match="expected the folder of save_to"):
        trainer(UnlearningCallback()).unlearn(
            [1], model=MLP(), train_dataloaders=data, save_to=tmp_path / "no" / "x.ckpt"
        )
    for overwrite in (False, True):
        with pytest.raises(SetupError, match=r"got the folder \.: .* such as clean"):
            trainer(UnlearningCallback()).unlearn(
                [1], MLP(), data, save_to=".", overwrite=overwrite
            )
    with pytest.raises(SetupError, match="LightningModule, got list: .*comes first"):
        trainer(UnlearningCallback()).unlearn(MLP(), [1], data)
    (tmp_path / "old.ckpt").write_text("precious")
    with pytest.raises(SetupError, match=r"which exists: choose another name"):
        trainer(UnlearningCallback()).unlearn(
            [1], model=MLP(), train_dataloaders=data, save_to=tmp_path / "old.ckpt"
        )
    assert (tmp_path / "old.ckpt").read_text() == "precious"


class Stream(IterableDataset):
    def __iter__(self):
        yield from digits(10)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (DataLoader(Stream()), "map-style training dataset .* got Stream"),
        (
            {"a": loader(digits(20))},
            "one torch DataLoader as the training data, got dict",
        ),
        (
            [loader(digits(20))] * 2,
            "one torch DataLoader as the training data, got list",
        ),
        ([1, 2, 3], "one torch DataLoader as the training data"),
    ],
    ids=["iterable", "dict", "list", "not a loader"],
)
def test_training_data_without_positions(data, message):
    callback = UnlearningCallback(noise_std=0.0)
    with pytest.raises(DataError, match=message):
        trainer(callback).unlearn([1], model=MLP(), train_dataloaders=data)


def test_other_training_data_than_the_model_s():
    net, fit_trainer, callback, _ = fitted()
    refused(
        DataError, "the training data of 600 samples .* got 500", net, fit_trainer,
        callback, [1], train_dataloaders=loader(digits(500)),
    )  # fmt: skip
    X, y = digits(600).tensors
    refused(
        DataError, "got other samples: indices would point at the wrong ones", net,
        fit_trainer, callback, [1],
        train_dataloaders=loader(TensorDataset(X.flip(0), y.flip(0))),
    )  # fmt: skip


class Augmented(Dataset):
    def __init__(self):
        self.inner = digits(600)

    def __len__(self):
        return 600

    def __getitem__(self, i):
        x, y = self.inner[i]
        return x + 0.1 * torch.randn_like(x), y


def test_random_augmentation_is_named():
    net, fit_trainer, callback, _ = fitted(dataset=Augmented())
    refused(DataError, "turn random augmentation off", net, fit_trainer, callback, [1])
    assert fit_trainer.unlearn([1], train_dataloaders=loader(digits(600))).n_forget == 1


class DeepSpeedStrategy(DDPStrategy):
    """Named as Lightning's own, which needs a package to be made."""


@pytest.mark.parametrize(
    ("strategy", "why"),
    [
        (FSDPStrategy(), "FSDP1 has no second derivatives: use ModelParallel"),
        (DeepSpeedStrategy(), "partitions have no second derivatives: use ddp"),
        (SimpleNamespace(), "got SimpleNamespace; use ddp or ModelParallelStrategy"),
    ],
)
def test_strategies_without_second_derivatives_are_named(strategy, why):
    with pytest.raises(StrategyError, match=why):
        strategies.adapter(SimpleNamespace(strategy=strategy))


@pytest.mark.parametrize("look", [preflight, prepare])
@pytest.mark.parametrize("strategy", ["ddp", "ddp_spawn"])
def test_looking_ahead_is_for_one_device(look, strategy):
    two = trainer(UnlearningCallback(), strategy=strategy, devices=2)
    rest = ([1],) if look is preflight else ()
    with pytest.raises(StrategyError, match=f"one device for {look.__name__}, got DDP"):
        look(two, *rest, model=MLP(), train_dataloaders=loader(digits(60)))


def test_prepare_needs_processes_that_stay():
    two = trainer(UnlearningCallback(), strategy="ddp_spawn", devices=2)
    with pytest.raises(StrategyError, match='that stay after prepare.*strategy="ddp"'):
        prepare(two, model=HeadNet(), train_dataloaders=loader(digits(60)))


@pytest.mark.filterwarnings("ignore:.*there is no last checkpoint available")
def test_a_last_checkpoint_that_is_not_there_is_no_model(tmp_path):
    own, net = UnlearningCallback(), HeadNet()
    refused(
        SetupError, "checkpoint to load for ckpt_path='last', found none", net,
        trainer(own, default_root_dir=tmp_path), own, [1], model=net,
        train_dataloaders=loader(digits(60)), ckpt_path="last",
    )  # fmt: skip


def test_a_failed_request_does_not_leave_the_checkpoint_loaded(tmp_path):
    net, fit_trainer, callback, dataset = fitted()
    fit_trainer.save_checkpoint(tmp_path / "run.ckpt")
    other = HeadNet()
    with torch.no_grad():
        other.head.weight.fill_(1.0)
    fresh = UnlearningCallback()
    refused(
        ForgetSetError, "got 600", other, trainer(fresh), fresh, [600], model=other,
        train_dataloaders=loader(dataset), ckpt_path=tmp_path / "run.ckpt",
    )  # fmt: skip


def test_a_disk_that_fails_while_writing_rolls_back(tmp_path, monkeypatch):
    net, fit_trainer, callback, _ = fitted()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fit_trainer, "save_checkpoint", full)
    refused(
        OSError, "No space left", net, fit_trainer, callback, [1],
        save_to=tmp_path / "clean.ckpt",
    )  # fmt: skip


def test_an_interrupt_in_the_solve_changes_nothing(monkeypatch):
    net, fit_trainer, callback, _ = fitted(MLP(), noise_std=0.0)
    calls = []

    def interrupt(self, v):
        calls.append(1)
        raise KeyboardInterrupt

    monkeypatch.setattr(
        "lightning_unlearn.step.network.empirical_objective.EmpiricalObjective.hvp",
        interrupt,
    )
    handler = signal.getsignal(signal.SIGINT)
    try:
        refused(SystemExit, "1", net, fit_trainer, callback, [1])
    finally:  # Lightning ignores further interrupts while it shuts down
        signal.signal(signal.SIGINT, handler)
    assert calls
    monkeypatch.undo()
    assert fit_trainer.unlearn([1]).n_forget == 1


def test_all_errors_are_of_one_family():
    for error in (ArgumentError, DataError, ForgetSetError, GuaranteeError, ModelError,
                  SetupError, SolverError, StrategyError):  # fmt: skip
        assert issubclass(error, UnlearningError)
    assert ConvexHead(2, 2).extra_repr().startswith("in_features=2")
