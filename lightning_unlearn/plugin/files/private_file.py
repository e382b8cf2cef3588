"""The private file of a clean checkpoint: what the next request needs to know.

A checkpoint that is served says nothing that depends on the forgotten samples: which
they were, and where older checkpoints lie, stands in a file of its own beside it
(``clean.private.json``), as secret as the data.
"""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning_unlearn._base.strict_json import strict_object
from lightning_unlearn.errors import DataError
from lightning_unlearn.plugin.training.training_record import (
    STATE_KEY,
    TrainingRecord,
)

_MOST = 1_000_000_000  # characters: positions of every sample may stand in it


def private_path(checkpoint: Path) -> Path:
    """Where the private file of a checkpoint stands: ``clean.private.json``."""
    return checkpoint.with_name(f"{checkpoint.stem}.private.json")


def text_of(record: TrainingRecord) -> str:
    """What stands in it."""
    return json.dumps(record.to_dict()) + "\n"


def complete(states: dict[str, Any], checkpoint: str | Path | None) -> None:
    """Add to the callbacks' states of a checkpoint what its private file holds."""
    if STATE_KEY in states and checkpoint is not None:
        states[STATE_KEY] = completed(states[STATE_KEY], Path(checkpoint))


def completed(state: Any, checkpoint: Path) -> Any:
    """A callback's state in a checkpoint, with what its private file adds.

    Args:
        state: As the checkpoint has it.
        checkpoint: Its path.

    Returns:
        The whole state; as it was if it is whole, or no file beside it belongs to it.

    Raises:
        DataError: If the private file of its name is there and damaged.
    """
    if not isinstance(state, dict) or state.get("whole") is not False:
        return state
    beside, certificate = private_path(checkpoint), state.get("certificate")
    private = read_of(beside, certificate)
    for other in sorted(beside.parent.glob("*.private.json")):
        if private is not None:
            break
        with suppress(DataError):  # the checkpoint was renamed; others may be damaged
            private = read_of(other, certificate)
    return state if private is None else private


def read(path: Path) -> dict[str, Any] | None:
    """What stands in a private file, or None if there is none.

    Raises:
        DataError: If it is damaged.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as problem:
        raise DataError(f"expected a private file at {path}: {problem}") from None
    private = strict_object(text, DataError, f"the private file {path}", _MOST)
    return TrainingRecord.from_dict(private).to_dict()


def read_of(path: Path, certificate: object) -> dict[str, Any] | None:
    """What stands in a private file of the request with this certificate, or None.

    Raises:
        DataError: If it is damaged.
    """
    private = read(path)
    if private is None or certificate is None or private["certificate"] != certificate:
        return None
    return private


def check_whole(record: TrainingRecord, checkpoint: object) -> None:
    """Refuse to go on from a clean checkpoint without its private file.

    Args:
        record: As it was loaded.
        checkpoint: The path it was loaded from, for the message.

    Raises:
        DataError: If it is not whole.
    """
    if record.whole:
        return
    where = "it"
    if isinstance(checkpoint, (str, Path)):
        where = str(private_path(Path(checkpoint)))
    raise DataError(
        f"expected {where} beside the clean checkpoint, as its request wrote both, got "
        "none that belongs to it: it says which samples are forgotten, and a training "
        "or a request that goes on must know; put it back (to validate, test, predict "
        "or serve, the checkpoint alone is enough)"
    )
