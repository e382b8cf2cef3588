"""What a private training needs of Trainer, model and data: looked at, not trusted."""

from typing import Any

import torch
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler
from torch.utils.data.sampler import SubsetRandomSampler

from lightning_unlearn._base.problems import Problems
from lightning_unlearn.errors import DataError, ModelError, SetupError
from lightning_unlearn.plugin.data.drawn import under
from lightning_unlearn.plugin.lightning import LightningModule, Trainer
from lightning_unlearn.plugin.private.decision_checks import parts_of
from lightning_unlearn.plugin.private.same_everywhere import check_strategy
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
        check_strategy(trainer)
    with problems.noted():
        _check_trainer(trainer, module)
    with problems.noted():
        _check_resumed(trainer)
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
    if not module.automatic_optimization:
        wrong.append("automatic optimization (training_step returns the loss), not "
                     "automatic_optimization=False")  # fmt: skip
    if len(trainer.optimizers) != 1:
        wrong.append(f"one optimizer (with groups of parameters, if they differ), not "
                     f"{len(trainer.optimizers)}")  # fmt: skip
    if trainer.gradient_clip_val is not None:
        wrong.append("no gradient_clip_val (max_grad_norm clips)")
    if str(trainer.precision) not in _PRECISIONS:
        wrong.append(f"precision 32-true or 64-true, not {trainer.precision}")
    half = [n for n, p in module.named_parameters() if _is_half(p)]
    if half:  # where what a batch also holds shows in the rounding of every gradient
        wrong.append(
            f"weights in float32 or float64, not {', '.join(half[:3])} in "
            f"{module.get_parameter(half[0]).dtype} (module.float())"
        )
    if torch.is_autocast_enabled(module.device.type):
        wrong.append("no torch.autocast around fit")
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
    parts = [part for one in trainer.optimizers for part in parts_of(one)]
    if any(isinstance(part, torch.optim.LBFGS) for part in parts):
        wrong.append("an optimizer that takes one gradient a step, not LBFGS")
    if wrong:
        raise SetupError(f"expected for PrivateTraining {'; '.join(wrong)}")


def _check_resumed(trainer: Trainer) -> None:
    pieces, loop = trainer.accumulate_grad_batches, trainer.fit_loop.epoch_loop
    read, of = loop.batch_progress.current.ready, trainer.num_training_batches
    if pieces > 1 and loop.restarting and 0 < read < of:
        raise SetupError(
            f"expected a PrivateTraining with accumulate_grad_batches={pieces} to go "
            f"on where an epoch has ended, got a checkpoint of batch {read} of {of}: "
            "what one step draws is read in several batches, and a checkpoint keeps "
            "nothing of those that were read; pass ckpt_path= of one that was saved at "
            "the end of an epoch (ModelCheckpoint(save_on_train_epoch_end=True)), or "
            "train a new model"
        )


def _is_half(weight: torch.Tensor) -> bool:
    return weight.is_floating_point() and torch.finfo(weight.dtype).bits < 32


def _check_sampler(trainer: Trainer, loader: DataLoader) -> None:
    sampler: Any = under(loader.sampler)  # what ddp puts before it makes way too
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
