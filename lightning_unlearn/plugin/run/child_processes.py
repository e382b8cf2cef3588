"""What comes back from processes that end with the request: bytes in a file of theirs.

A tensor that is returned as such lies in the memory of a process that is gone. And
Lightning waits for the end of a process before it reads what the process returned: more
than a pipe holds (64 KiB) would keep both waiting for ever. So the bytes lie in a
folder that only their owner enters, until they are read.
"""

import os
import pickle
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning_unlearn._base.files import new_file
from lightning_unlearn.errors import UnlearningError
from lightning_unlearn.plugin.lightning import LightningModule, Trainer, TrainerStatus
from lightning_unlearn.weights.passes import copies

_RECORD = "unlearning_record"


def pack(
    work: Callable[[], Any],
    trainer: Trainer,
    module: LightningModule,
    state: Callable[[], Any],
) -> str | None:
    """Do some work, and leave what it returned or raised in a file.

    Args:
        work: What to do.
        trainer: Of this process: only the first one of a machine is heard.
        module: Its parameters and buffers travel too.
        state: Called afterwards for what else travels.

    Returns:
        For `unpack`, in the process that launched this one.
    """
    try:
        result = work()
    except UnlearningError as error:
        return _leave(trainer, (type(error), str(error)))
    weights = {name: value.cpu() for name, value in copies(module).items()}
    return _leave(trainer, (None, (result, weights, state())))


def unpack(trainer: Trainer, left: str) -> tuple[Any, dict[str, Any], Any]:
    """(result, weights, state) of `pack`; raises what its work raised."""
    kind, content = _collect(left)
    if kind is not None:
        trainer.state.status = TrainerStatus.INTERRUPTED
        raise kind(content)
    return content


def send_record(trainer: Trainer, record: dict[str, Any]) -> None:
    """Let a record of the training reach the process that launched it.

    Of what a spawned process holds, Lightning brings back the weights, the metrics and
    ``trainer.state``: it travels with the last.
    """
    setattr(trainer.state, _RECORD, _leave(trainer, record))


def received_record(trainer: Trainer) -> dict[str, Any] | None:
    """What `send_record` has sent, once."""
    left = vars(trainer.state).pop(_RECORD, None)
    return None if left is None else _collect(left)


def _leave(trainer: Trainer, content: object) -> str | None:
    """Where some content lies until `_collect` takes it away."""
    if trainer.local_rank != 0:
        return None
    path = Path(tempfile.mkdtemp(prefix="lightning_unlearn-")) / "left"
    with os.fdopen(new_file(path, 0o600), "wb") as file:
        pickle.dump(content, file)
    return str(path)


def _collect(left: str) -> Any:
    path = Path(left)
    try:
        return pickle.loads(path.read_bytes())
    finally:
        shutil.rmtree(path.parent, ignore_errors=True)
