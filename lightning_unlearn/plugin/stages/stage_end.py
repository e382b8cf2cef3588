"""The model at the end of a stage, in a file of its own: where a request can go on."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor

from lightning_unlearn._base.files import is_remote
from lightning_unlearn.errors import DataError, SetupError
from lightning_unlearn.plugin.files.secret_file import SecretFile
from lightning_unlearn.plugin.training.training_record import Stage, TrainingRecord
from lightning_unlearn.weights.digests import state_digest

FILE = SecretFile("lightning_unlearn.stage.v1", "the model of a stage", "stages=")
_SUFFIX = ".stage"


def model_name(record: TrainingRecord) -> str:
    """Name of a model through all its stages and requests, which gives nothing away."""
    return hashlib.sha256(f"stages|{record.ledger_key}".encode()).hexdigest()[:32]


def check_folder(folder: Path) -> None:
    """Raise `SetupError` unless files can be put into a folder; it is made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise SetupError(
            f"expected a folder for stages=, got {folder} ({problem!s:.200}): name "
            "another"
        ) from None


def ended(
    folder: Path,
    model: str,
    state: dict[str, Tensor],
    drawn: list[int],
    seconds: float | None,
    validated: list[str] | None,
) -> Stage:
    """A stage that has ended; `write` keeps what it has ended with.

    Args:
        folder: The user's, for these files.
        model: See `model_name`.
        state: Its parameters and buffers by name.
        drawn: Positions that it could draw.
        seconds: How long it took, or None.
        validated: As of a `Stage`.
    """
    digest = state_digest(state)
    path = folder / f"{model[:8]}-{len(drawn)}-{digest[:16]}{_SUFFIX}"
    return Stage(drawn, digest, str(path), seconds, validated)


def write(
    stage: Stage,
    model: str,
    state: dict[str, Tensor],
    token: str = "",
    record: str = "",
    attributes: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Keep the model at the end of a stage; one process of several does it.

    Args:
        stage: Made by `ended`.
        model: See `model_name`.
        state: Its parameters and buffers by name.
        token: Of the retraining that it is part of, if it is one.
        record: Of that retraining, as JSON.
        attributes: Digests of the plain attributes that it ended with.
    """
    if stage.path is not None:
        learnt = json.dumps(dict(attributes))
        text = {"model": model, "token": token, "record": record, "learnt": learnt}
        FILE.write(Path(stage.path), text, state)


def read(stage: Stage, folder: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The model that a stage has ended with, and digests of its plain attributes.

    Args:
        stage: Which.
        folder: Where its file is, if not where it was written.

    Raises:
        DataError: If its file is gone, or is not the one that was written.
    """
    if stage.path is None:
        raise DataError("it was deleted, since it held what was forgotten")
    path = Path(stage.path)
    if not path.exists():
        path = folder / path.name
    text, state = FILE.read(path)
    if state_digest(state) != stage.digest:
        raise DataError(f"{path} is not the file that the stage has written")
    try:
        return state, dict(json.loads(text["learnt"]))
    except (ValueError, TypeError, KeyError) as problem:
        raise DataError(f"the head of {path} is damaged ({problem!s:.100})") from None


def problem_with(stage: Stage, folder: Path) -> str | None:
    """Why a stage cannot be gone back to; None if it can."""
    try:
        read(stage, folder)
    except DataError as problem:
        return str(problem)
    return None


def found(folder: Path, model: str) -> dict[Path, str]:
    """The files of a model in a folder, whichever record names them -> their tokens."""
    files = dict[Path, str]()
    for path in sorted(folder.glob(f"{model[:8]}-*{_SUFFIX}")):
        text = FILE.text(path)
        if text is None or text.get("model") == model:  # a damaged one is told of
            files[path] = (text or {}).get("token", "")
    return files


def warn_of_others(folder: Path, model: str) -> None:
    """Warn if other models have files there: no request of this one deletes them."""
    if {*folder.glob(f"*{_SUFFIX}")} - {*found(folder, model)}:
        rank_zero_warn(
            f"the folder {folder} of stages= holds ends of other trainings, which a "
            "request to this model does not delete: use one folder for each model, and "
            "delete files that are not needed; they are as secret as their data"
        )


def left_over(
    folder: Path | None, before: TrainingRecord, after: TrainingRecord
) -> list[Path]:
    """Files of stages that a request has made old: they hold what it has forgotten.

    Args:
        folder: Where they are by now, or None.
        before: The record before it.
        after: And after it.
    """
    kept = {Path(s.path).name for s in after.stages or () if s.path is not None}
    known = [Path(s.path) for s in before.stages or () if s.path is not None]
    if folder is not None and not is_remote(folder):
        known += found(folder, model_name(before))
    return sorted({path for path in known if path.name not in kept})


def delete(paths: Iterable[Path]) -> None:
    """Delete such files; anything else that stands there is left, with a warning."""
    for path in paths:
        FILE.delete(path)
