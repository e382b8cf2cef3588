"""What is wrong with a checkpoint that Lightning cannot load, in words."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError

from lightning_unlearn._base.files import is_remote
from lightning_unlearn._base.text import one_line
from lightning_unlearn.errors import SetupError, UnlearningError

_NAMES = ("", "best", "last", "hpc")  # Lightning finds the file of these itself


def check_there(ckpt_path: str | Path | None) -> None:
    """Refuse a checkpoint that cannot be loaded, before anything is made.

    Raises:
        SetupError: If it is not on this machine, or not there.
    """
    name = str(ckpt_path or "")
    if name in _NAMES or name.startswith("registry"):
        return
    if is_remote(name):
        raise SetupError(
            f"expected ckpt_path= on a disk of this machine, got {name}: what belongs "
            "to a checkpoint stands beside it; copy its folder here first"
        )
    if not Path(name).exists():
        raise SetupError(f"expected a checkpoint at {name}, found none there")


@contextmanager
def named(path: object) -> Iterator[None]:
    """A block that loads a checkpoint: whatever fails in it is said of the file.

    Args:
        path: Of the checkpoint, or None.

    Raises:
        SetupError: If loading fails, with what failed as its cause.
    """
    try:
        yield
    except (UnlearningError, MemoryError):
        raise
    except Exception as problem:  # whatever a file, or a hook that reads it, provokes
        if path is None:
            raise
        said = one_line(problem, (), "below")
        raise SetupError(
            f"expected a checkpoint of this model at {path}, as "
            f"trainer.save_checkpoint writes it, got {_what(problem)} "
            f"[{said.removesuffix(' (below)')[:300]}]"
        ) from problem


def _what(problem: Exception) -> str:
    text = str(problem)
    if isinstance(problem, UnpicklingError) and "Weights only load failed" in text:
        return (
            "a file with Python objects, which are run when they are read: pass "
            "weights_only=False if you trust it"
        )
    if "loading state_dict" in text:
        return (
            "one of another model: make the module as it was for that training (sizes, "
            "classes, hyper-parameters)"
        )
    if isinstance(problem, KeyError) and problem.args[:1] in (
        ("pytorch-lightning_version",),
        ("state_dict",),
    ):
        return (
            "a file that is not Lightning's (weights alone?): load it into the model "
            "yourself, and leave out ckpt_path="
        )
    if isinstance(problem, (IsADirectoryError, PermissionError)):
        return "what cannot be read: name the file"
    return "one that is damaged, or no checkpoint: name another, or save it again"
