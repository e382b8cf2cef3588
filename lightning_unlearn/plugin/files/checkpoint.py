"""A clean checkpoint and its certificate, written as files that appear whole."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from torch.optim import Optimizer

from lightning_unlearn._base.files import appear, part_of
from lightning_unlearn.errors import DataError, SetupError
from lightning_unlearn.plugin.files.plain_values import plain_values
from lightning_unlearn.plugin.run import strategies
from lightning_unlearn.plugin.training.training_record import STATE_KEY, adopt_record


@contextmanager
def borrowed(obj: object, **attributes: object) -> Iterator[None]:
    """Set attributes for the length of a block and restore them whatever happens."""
    old = {name: getattr(obj, name) for name in attributes}
    try:
        for name, value in attributes.items():
            setattr(obj, name, value)
        yield
    finally:
        for name, value in old.items():
            setattr(obj, name, value)


def certificate_path(checkpoint: Path) -> Path:
    """Where the certificate of a checkpoint stands: ``clean.certificate.json``."""
    return checkpoint.with_name(f"{checkpoint.stem}.certificate.json")


def check_free(target: Path) -> None:
    """Raise `SetupError` if something has this name."""
    if os.path.lexists(target):
        raise SetupError(
            f"expected save_to= to name a new file, got {target}, which exists: "
            "choose another name; nothing is overwritten"
        )


def check_target(path: Path) -> None:
    """Raise `SetupError` if a file would be overwritten or the folder is missing."""
    for target in (path, certificate_path(path)):
        check_free(target)
    if not path.parent.is_dir():
        raise SetupError(
            f"expected the folder of save_to={path} to exist, got none at "
            f"{path.parent}: create it"
        )


def stage(
    trainer: Trainer,
    callback: Callback,
    part: Path,
    optimizers: list[Optimizer],
) -> None:
    """Write the module and our callback's state, and nothing else training left.

    Optimizer moments, schedulers and other callbacks' states were computed on the
    forgotten samples and are left out. ``trainer.fit(ckpt_path=)`` and
    ``load_from_checkpoint`` accept the file.

    Args:
        trainer: Inside the run, with the new weights in its module.
        callback: Ours.
        part: A name of the request's own, until the file appears.
        optimizers: Fresh ones, if the strategy cannot do without.
    """
    save = partial(_save, trainer, callback, optimizers, part)
    strategies.adapter(trainer).save(save)


def _save(
    trainer: Trainer, callback: Callback, optimizers: list[Optimizer], path: Path
) -> None:
    precision: Any = trainer.precision_plugin
    callbacks = [callback]
    if isinstance(trainer.progress_bar_callback, RichProgressBar):
        # Its thread draws meanwhile and asks the Trainer for one: any will do, and
        # this one has nothing to save.
        callbacks.append(RichProgressBar())
    with (
        borrowed(trainer, callbacks=callbacks, optimizers=optimizers),
        borrowed(trainer.strategy, lr_scheduler_configs=[]),
    ):
        precision.state_dict = dict  # a scaler knows which gradients overflowed
        try:
            trainer.save_checkpoint(path, weights_only=False)
        finally:
            del precision.state_dict


def parts(path: Path, request_id: str) -> dict[Path, Path]:
    """A checkpoint and its certificate -> names only this request stages them by."""
    token = request_id[:16]
    return {p: part_of(p, token) for p in (path, certificate_path(path))}


def publish(part: Path, target: Path) -> None:
    """Have a staged file take its name.

    Raises:
        SetupError: If somebody else has taken it meanwhile.
    """
    try:
        appear(part, target)
    except FileExistsError:
        check_free(target)
        raise


def record_in(path: Path) -> dict[str, Any]:
    """Our callback's state in a checkpoint; empty if it holds none.

    Nothing else is read from the disk.

    Raises:
        DataError: If it cannot be read as a checkpoint.
    """
    file = path / "meta.pt" if path.is_dir() else path  # of a sharded checkpoint
    try:
        held: Any = plain_values(file)
    except Exception as error:  # whatever a file that is no checkpoint makes of it
        kind = type(error).__name__
        raise DataError(f"it cannot be read as a checkpoint ({kind})") from None
    try:
        adopt_record(held["callbacks"])
        state = held["callbacks"][STATE_KEY]
    except (KeyError, TypeError, IndexError, AttributeError):
        return {}
    return state if isinstance(state, dict) else {}
