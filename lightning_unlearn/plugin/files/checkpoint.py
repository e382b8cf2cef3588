"""A clean checkpoint and what belongs to it, written as files that appear whole."""

import os
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from torch.optim import Optimizer

from lightning_unlearn._base.files import (
    appear,
    check_writable,
    is_remote,
    part_of,
    remove,
)
from lightning_unlearn._base.modes import borrowed
from lightning_unlearn.certificate.certificate import Certificate
from lightning_unlearn.certificate.receipts import from_text, receipts_path
from lightning_unlearn.errors import CertificateError, DataError, SetupError
from lightning_unlearn.plugin.files import head_only, private_file
from lightning_unlearn.plugin.files.plain_values import plain_values
from lightning_unlearn.plugin.files.private_file import private_path
from lightning_unlearn.plugin.files.served import Served
from lightning_unlearn.plugin.lightning import Callback, RichProgressBar, Trainer
from lightning_unlearn.plugin.run import strategies
from lightning_unlearn.plugin.training.training_record import STATE_KEY, adopt_record


def certificate_path(checkpoint: Path) -> Path:
    """Where the certificate of a checkpoint stands: ``clean.certificate.json``."""
    return checkpoint.with_name(f"{checkpoint.stem}.certificate.json")


def check_free(target: Path) -> None:
    """Raise `SetupError` if something has this name."""
    if os.path.lexists(target):
        raise SetupError(
            f"expected save_to= to name a new file, got {target}, which exists: "
            "choose another name; nothing is overwritten, unless overwrite=True asks "
            "for the clean checkpoint of an earlier request to be replaced"
        )


def check_target(path: Path) -> None:
    """Raise `SetupError` if a file would be overwritten, or cannot be written there."""
    if is_remote(path):
        raise SetupError(
            f"expected save_to= on a disk of this machine, got {path}: checkpoint, "
            "certificate and ledger appear together, which no remote store does; save "
            "here, and copy what appears (not the private and receipts files)"
        )
    for target in (path, *targets(path)):  # the name that was asked for first
        check_free(target)
    if not path.parent.is_dir():
        raise SetupError(
            f"expected the folder of save_to={path} to exist, got none at "
            f"{path.parent}: create it"
        )
    for target in targets(path):
        check_writable(target, f"save_to={path}")


def stage(
    trainer: Trainer,
    callback: Callback,
    part: Path,
    optimizers: list[Optimizer],
) -> None:
    """Write the module and what may be served of our record, and nothing else.

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
    strategy: Any = trainer.strategy
    write = strategy.save_checkpoint
    served = Served(head_only.digest_of(trainer.lightning_module))

    def write_served(held: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        served.keep(held)  # after every hook of the module
        write(held, *args, **kwargs)

    callbacks = [callback]
    if isinstance(trainer.progress_bar_callback, RichProgressBar):
        # Its thread draws meanwhile and asks the Trainer for one: any will do, and
        # this one has nothing to save.
        callbacks.append(RichProgressBar())
    with (
        borrowed(trainer, callbacks=callbacks, optimizers=optimizers),
        borrowed(callback, serves=served),
        borrowed(strategy, lr_scheduler_configs=[]),
    ):
        precision.state_dict = dict  # a scaler knows which gradients overflowed
        strategy.save_checkpoint = write_served
        try:
            trainer.save_checkpoint(path, weights_only=False)
        finally:
            del precision.state_dict, strategy.save_checkpoint


def targets(path: Path) -> tuple[Path, ...]:
    """What a request writes, in the order it appears: the checkpoint's name decides."""
    return *secrets(path), path, certificate_path(path)


def secrets(path: Path) -> tuple[Path, Path]:
    """What belongs to a clean checkpoint and is as secret as the data."""
    return private_path(path), receipts_path(path)


def parts(path: Path, request_id: str) -> dict[Path, Path]:
    """What a request writes, in order -> names only this request stages it by."""
    token = request_id[:16]
    return {p: part_of(p, token) for p in targets(path)}


def remove_secrets(path: Path, certificate: Certificate) -> None:
    """Remove private file and receipts of a request whose checkpoint never appeared."""
    private, opened = private_path(path), receipts_path(path)
    with suppress(DataError):  # somebody else's
        if private_file.read_of(private, certificate.to_json()) is not None:
            remove(private)
    if are_receipts_of(opened, certificate):
        remove(opened)


def are_receipts_of(path: Path, certificate: Certificate) -> bool:
    """Whether a file holds the receipts of the request with this certificate."""
    with suppress(CertificateError, OSError, UnicodeDecodeError):  # somebody else's
        return from_text(path.read_text("utf-8"))[1] == certificate.request_id
    return False


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

    Nothing else is read from the disk but its private file, if it has one.

    Raises:
        DataError: If it cannot be read as a checkpoint, or its private file is damaged.
    """
    state = private_file.completed(state_in(path), path)
    return state if isinstance(state, dict) else {}


def state_in(path: Path) -> dict[str, Any]:
    """As `record_in`, without what a private file adds.

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
