"""What comes back from processes that end with the request: bytes, never tensors.

A tensor that is returned as such lies in the memory of a process that is gone.
"""

import pickle
from collections.abc import Callable
from typing import Any

from lightning_unlearn.errors import UnlearningError
from lightning_unlearn.plugin.lightning import LightningModule, Trainer, TrainerStatus
from lightning_unlearn.weights.passes import copies

_RECORD = "unlearning_record"


def pack(
    work: Callable[[], Any], module: LightningModule, state: Callable[[], Any]
) -> bytes:
    """Do some work, and put what it returned or raised into bytes.

    Args:
        work: What to do.
        module: Its parameters and buffers travel too.
        state: Called afterwards for what else travels.

    Returns:
        For `unpack`, in the process that launched this one.
    """
    try:
        result = work()
    except UnlearningError as error:
        return pickle.dumps((type(error), str(error)))
    weights = {name: value.cpu() for name, value in copies(module).items()}
    return pickle.dumps((None, (result, weights, state())))


def unpack(trainer: Trainer, packed: bytes) -> tuple[Any, dict[str, Any], Any]:
    """(result, weights, state) of `pack`; raises what its work raised."""
    kind, content = pickle.loads(packed)
    if kind is not None:
        trainer.state.status = TrainerStatus.INTERRUPTED
        raise kind(content)
    return content


def send_record(trainer: Trainer, record: dict[str, Any]) -> None:
    """Let a record of the training reach the process that launched it.

    Of what a spawned process holds, Lightning brings back the weights, the metrics and
    ``trainer.state``: it travels with the last.
    """
    setattr(trainer.state, _RECORD, record)


def received_record(trainer: Trainer) -> dict[str, Any] | None:
    """What `send_record` has sent, once."""
    return vars(trainer.state).pop(_RECORD, None)
