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
from lightning_unlearn.storage import part_of, remove, whole


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


def write(
    trainer: Trainer,
    callback: Callback,
    path: Path,
    certificate: Certificate,
    optimizers: list[Optimizer],
) -> None:
    """Write the module and our callback's state, and nothing else training left.

    Optimizer moments, schedulers and other callbacks' states were computed on the
    forgotten samples and are left out. ``trainer.fit(ckpt_path=)`` and
    ``load_from_checkpoint`` accept the file.

    Args:
        trainer: Inside the run, with the new weights in its module.
        callback: Ours.
        path: A new file.
        certificate: Written beside it as JSON.
        optimizers: Fresh ones, if the strategy cannot do without.
    """
    strategy = strategies.adapter(trainer)
    save = partial(_save, trainer, callback, optimizers)
    if strategy.processes.rank > 0:
        strategy.save(partial(save, part_of(path)))
        return
    with whole(path) as temporary, whole(certificate_path(path)) as beside:
        strategy.save(partial(save, temporary))
        beside.write_text(certificate.to_json())


def _save(
    trainer: Trainer, callback: Callback, optimizers: list[Optimizer], path: Path
) -> None:
    with (
        borrowed(trainer, callbacks=[callback], optimizers=optimizers),
        borrowed(trainer.strategy, lr_scheduler_configs=[]),
    ):
        trainer.save_checkpoint(path, weights_only=False)


def discard(path: Path) -> None:
    """Remove what `write` wrote, for a request that failed after it."""
    remove(path)
    remove(certificate_path(path))
