"""What a private training needs of Trainer, model and data: looked at, not trusted."""

from typing import Any

import torch
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler
from torch.utils.data.sampler import SubsetRandomSampler

from lightning_unlearn._base.problems import Problems
from lightning_unlearn.errors import DataError, ModelError, SetupError, StrategyError
from lightning_unlearn.plugin.lightning import LightningModule, Trainer
from lightning_unlearn.plugin.private.per_sample import rows_of
from lightning_unlearn.plugin.run import compat, strategies
from lightning_unlearn.plugin.run.coins import own_coins
from lightning_unlearn.plugin.training.trained_marks import (
    has_trained_value,
    was_trained,
)
from lightning_unlearn.plugin.training.training_record import TrainingRecord

_PRECISIONS = {"32-true", "64-true"}


def check_start(
    module: LightningModule, record: TrainingRecord, unwatched: bool
) -> None:
    """Refuse weights that an ordinary training has seen private data with.

    Args:
        module: Before anything of this training has marked it.
        record: Of the trainings before.
        unwatched: Whether something trained it that no record tells of.

    Raises:
        ModelError: If what it learned was not learned privately.
    """
    if record.private is not None and record.private.problem is None:
        if not record.removed and not unwatched:
            return
        raise ModelError(
            "expected a private training to go on before anything is forgotten of it, "
            f"got {len(record.removed)} forgotten samples, or a start that nobody "
            "watched: train a new model, on the retained samples"
        )
    trained = [
        name
        for name, p in module.named_parameters()
        if was_trained(p) or has_trained_value(p)
    ]
    if unwatched or trained or record.n_train is not None:
        raise ModelError(
            "expected weights that no private data have trained for PrivateTraining, "
            f"got {', '.join(trained[:3]) or 'those of a training before'}: what an "
            "ordinary training has learned is not made private by another; begin with "
            "a new module and a new UnlearningCallback, and no ckpt_path="
        )


def check(trainer: Trainer, module: LightningModule, loader: DataLoader) -> None:
    """Refuse, all at once, what the accountant's theorem does not speak of.

    Args:
        trainer: In ``on_train_start``.
        module: To be trained.
        loader: Its training data.

    Raises:
        UnlearningError: That names each.
    """
    problems = Problems()
    with problems.noted():
        name = type(trainer.strategy).__name__
        if trainer.world_size > 1 or name != "SingleDeviceStrategy":
            raise StrategyError(
                f"expected one device and no strategy for PrivateTraining, got {name} "
                f"with {trainer.world_size}: use devices=1, strategy='auto'"
            )
    with problems.noted():
        _check_trainer(trainer, module)
    with problems.noted():
        _check_sampler(trainer, loader)
    for name, layer in module.named_modules():
        with problems.noted():
            if isinstance(layer, _NormBase) and (
                layer.training or layer.running_mean is None
            ):
                raise ModelError(
                    f"expected layers that see one sample alone, got "
                    f"{type(layer).__name__} at {name!r}, which mixes the samples of a "
                    "batch, or keeps statistics of them: use GroupNorm or LayerNorm"
                )
    problems.check()


def _check_trainer(trainer: Trainer, module: LightningModule) -> None:
    wrong = []
    if not module.automatic_optimization or len(trainer.optimizers) != 1:
        wrong.append("automatic optimization with one optimizer")
    if trainer.accumulate_grad_batches != 1:
        wrong.append("accumulate_grad_batches=1 (memory is bounded anyway)")
    if trainer.gradient_clip_val is not None:
        wrong.append("no gradient_clip_val (max_grad_norm clips)")
    if str(trainer.precision) not in _PRECISIONS:
        wrong.append(f"precision 32-true or 64-true, not {trainer.precision}")
    if getattr(trainer, "reload_dataloaders_every_n_epochs", 0):
        wrong.append("reload_dataloaders_every_n_epochs=0")
    if (
        trainer.limit_train_batches != 1.0
        or getattr(trainer, "overfit_batches", 0)
        or getattr(trainer, "fast_dev_run", False)
    ):
        wrong.append("whole epochs (no limit_train_batches, overfit_batches or "
                     "fast_dev_run)")  # fmt: skip
    if not trainer.estimated_stepping_batches < float("inf"):
        wrong.append("a number of steps that is known before (max_epochs, max_steps)")
    if any(isinstance(o, torch.optim.LBFGS) for o in trainer.optimizers):
        wrong.append("an optimizer that takes one gradient a step, not LBFGS")
    if wrong:
        raise SetupError(f"expected for PrivateTraining {'; '.join(wrong)}")


def _check_sampler(trainer: Trainer, loader: DataLoader) -> None:
    sampler: Any = loader.sampler
    known = type(sampler) in (SequentialSampler, SubsetRandomSampler) or (
        type(sampler) is RandomSampler
        and not sampler.replacement
        and sampler.num_samples == len(sampler.data_source)
    )
    if not known:
        raise DataError(
            "expected a training loader with shuffle=True or False for "
            f"PrivateTraining, got {type(sampler).__name__}: each sample is drawn with "
            "one probability, by coins that replace the loader's sampler"
        )


def check_monitors(trainer: Trainer) -> None:
    """Refuse decisions made on what the training logs, which is not private.

    Raises:
        SetupError: If a callback or a schedule goes by it.
    """
    logged = compat.logged_in_training(trainer)
    watched = [
        (type(callback).__name__, getattr(callback, "monitor", None))
        for callback in trainer.callbacks  # type: ignore[attr-defined]
    ]
    watched += [
        (type(config.scheduler).__name__, config.monitor)
        for config in trainer.lr_scheduler_configs
        if config.reduce_on_plateau
    ]
    found = [f"{who} by {what!r}" for who, what in watched if what in logged]
    if found:
        raise SetupError(
            "expected no decision by what the training steps log for "
            f"PrivateTraining, got {', '.join(found)}: it is computed on private "
            "samples without noise; monitor a metric of validation data that are no "
            "training data"
        )


def check_company(
    trainer: Trainer, loader: DataLoader, batch: Any, positions: list[int]
) -> None:
    """Refuse batches whose rows depend on more than the sample they are of.

    Some samples are put together again, with others in their company, by the loader's
    collate function and the module's transfer hooks: their rows must stay. Where
    reading is repeatable, the batch must have the very rows of the drawn samples.

    Args:
        trainer: In a training step.
        loader: Of the training.
        batch: As the step has it.
        positions: Of its samples.

    Raises:
        DataError: If a row changes with its company, or is another sample's.
    """
    dataset: Any = loader.dataset
    few = positions[:16]
    samples = [dataset[i] for i in few]
    half = (len(few) + 1) // 2
    others = [*samples[:half], *(samples[i % half] for i in range(half, len(few)))]
    strategy = strategies.adapter(trainer)

    def together(parts: list[Any], seed: int) -> list[Any]:
        with own_coins(seed):
            made = strategy.transfer(loader.collate_fn(parts))
        return rows_of(made)[0]

    first, again = together(samples, 1), together(others, 1)
    if any(not _same(a[:half], b[:half]) for a, b in zip(first, again, strict=True)):
        raise DataError(
            "expected batches in which each row depends on one sample for "
            "PrivateTraining, got rows that change with the others of their batch: "
            "leave mixtures of samples (mixup, cutmix, padding to the longest) out of "
            "collate_fn and of the transfer hooks"
        )
    alone = [together([sample], 2) for sample in samples]
    rereading = [dataset[i] for i in few]
    repeatable = all(
        _same(a, b)
        for a, b in zip(first, together(rereading, 3), strict=True)
    )  # fmt: skip
    if not repeatable:
        return
    for place, rows in enumerate(alone):
        for a, b in zip(rows_of(batch)[0], rows, strict=True):
            if not _same(a[place], b[0]):
                raise DataError(
                    "expected the drawn samples in the batch for PrivateTraining, got "
                    f"another row at place {place}: something between the sampler and "
                    "the step (a callback, another sampler, a hook) has changed it"
                )


def _same(a: Any, b: Any) -> bool:
    return a.shape == b.shape and torch.equal(a, b)
