"""A clean checkpoint and its certificate, written as files that appear whole."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from lightning.pytorch import Callback, Trainer
from torch.optim import Optimizer

from lightning_unlearn.certificate import Certificate
from lightning_unlearn.errors import SetupError
from lightning_unlearn.plugin import strategies
from lightning_unlearn.storage import appear, part_of, remove


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


def check_target(path: Path) -> None:
    """Raise `SetupError` if a file would be overwritten or the folder is missing."""
    for target in (path, certificate_path(path)):
        if target.exists():
            raise SetupError(
                f"expected save_to= to name a new file, got {target}, which exists: "
                "choose another name; nothing is overwritten"
            )
    if not path.parent.is_dir():
        raise SetupError(
            f"expected the folder of save_to={path} to exist, got none at "
            f"{path.parent}: create it"
        )


def stage(
    trainer: Trainer,
    callback: Callback,
    path: Path,
    certificate: Certificate,
    optimizers: list[Optimizer],
) -> None:
    """Write the module and our callback's state, and nothing else training left.

    Optimizer moments, schedulers and other callbacks' states were computed on the
    forgotten samples and are left out. ``trainer.fit(ckpt_path=)`` and
    ``load_from_checkpoint`` accept the file. It shows once `publish` is called.

    Args:
        trainer: Inside the run, with the new weights in its module.
        callback: Ours.
        path: A new file.
        certificate: Written beside it as JSON.
        optimizers: Fresh ones, if the strategy cannot do without.
    """
    strategy = strategies.adapter(trainer)
    strategy.save(partial(_save, trainer, callback, optimizers, part_of(path)))
    if strategy.processes.rank == 0:
        part_of(certificate_path(path)).write_text(certificate.to_json())


def publish(path: Path) -> None:
    """Make what was staged appear: the checkpoint first, whose name decides."""
    appear(path)
    finish(path)


def finish(path: Path) -> None:
    """Make the certificate of a checkpoint appear, if it does not yet."""
    if part_of(certificate_path(path)).exists():
        appear(certificate_path(path))


def _save(
    trainer: Trainer, callback: Callback, optimizers: list[Optimizer], path: Path
) -> None:
    with (
        borrowed(trainer, callbacks=[callback], optimizers=optimizers),
        borrowed(trainer.strategy, lr_scheduler_configs=[]),
    ):
        trainer.save_checkpoint(path, weights_only=False)


def discard(path: Path, appeared: bool) -> None:
    """Remove what a request staged, and published if it did."""
    for target in (path, certificate_path(path)):
        remove(part_of(target))
        if appeared:
            remove(target)
