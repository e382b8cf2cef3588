"""A backbone that was trained privately on the people whom the head may forget."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_unlearn.certificate import model_state
from lightning_unlearn.errors import GuaranteeError, ModelError, SetupError
from lightning_unlearn.plugin.files import checkpoint as checkpoints
from lightning_unlearn.plugin.files.private_file import private_path
from lightning_unlearn.plugin.private.private_steps import what_it_made
from lightning_unlearn.plugin.training.trained_marks import (
    remember_values,
    values_of,
)
from lightning_unlearn.plugin.training.training_record import TrainingRecord
from lightning_unlearn.step.head.backbone import PublicBackbone
from lightning_unlearn.step.head.inputs import Samples
from lightning_unlearn.step.head.reading import private_readers
from lightning_unlearn.weights.digests import tensors_digest

_INSTEAD = "train with UnlearningCallback(private=PrivateTraining(...))"


class PrivatelyTrained(PublicBackbone):
    """Features of a network trained with `PrivateTraining`, under a certified head.

    The certificate then speaks of both: what the backbone's training lets anyone tell
    of all samples forgotten so far, composed with the head's release. Every forgotten
    sample counts as one that the backbone has seen. Nine tenths of the callback's
    epsilon are meant for the backbone; once both together exceed it requests are
    refused. The backbone is a part of the module: features that were computed before
    and kept as a dataset would hide it.

    Args:
        model: The module that was trained; its weights are replaced by those of the
            checkpoint.
        checkpoint: Of that training, with the record of its `UnlearningCallback`. It
            is read wherever the backbone is made, in later processes too.
        taps: As of `PublicBackbone`, as are the others. `public_data` must be none of
            the training samples: its statistics are not private.
        pool: As there.
        standardize: As there.
        unit_norm: As there.
        tokens: As there.
        public_data: As there.
        scale: As there.
        batch_size: As there.

    Raises:
        SetupError: If the checkpoint cannot be read.
        GuaranteeError: If its training was not private from its start to its end, drew
            people, or ended when some metric said so.
        ModelError: If the module is another one.
        ArgumentError: As `PublicBackbone`.
        DataError: As `PublicBackbone`.
    """

    def __init__(
        self,
        model: nn.Module,
        checkpoint: str | Path,
        taps: Sequence[str] | Literal["auto"] = "auto",
        pool: tuple[int, int] = (2, 2),
        standardize: Literal["auto", "public", "none"] = "auto",
        unit_norm: bool = True,
        *,
        tokens: Sequence[str] | Literal["auto"] = "auto",
        public_data: Samples | None = None,
        scale: float = 8.0,
        batch_size: int = 256,
    ) -> None:
        self.private_steps, self.n_trained = _trained(model, Path(checkpoint))
        super().__init__(
            model,
            taps,
            pool,
            standardize,
            unit_norm,
            tokens=tokens,
            public_data=public_data,
            scale=scale,
            batch_size=batch_size,
        )

    @override
    def forward(self, inputs: Any) -> Tensor:
        """As of `PublicBackbone`; a request learns that it is read."""
        private_readers.note(self)
        return super().forward(inputs)

    @override
    def features(self, data: Samples) -> Tensor:
        """As of `PublicBackbone`, to look at: a head on them alone is refused."""
        rows = super().features(data)
        private_readers.remember(rows)
        return rows

    @override
    def _digests(self) -> dict[str, str]:
        steps: Any = self.private_steps
        numbers = torch.tensor([steps[name] for name in sorted(steps)]).double()
        return {**super()._digests(), "steps": tensors_digest([("steps", numbers)])}


def _trained(module: nn.Module, path: Path) -> tuple[dict[str, float], int | None]:
    """Load what a private training has made; the numbers of its steps, and samples."""
    held: dict[str, Any] = model_state.load(path)
    state = checkpoints.record_in(path)
    if not state:
        raise GuaranteeError(
            f"expected a checkpoint with the record of an UnlearningCallback, got none "
            f"in {path} (weights alone, as of save_weights_only=True, have none): "
            f"{_INSTEAD}, and take a whole checkpoint of it"
        )
    record = TrainingRecord.from_dict(state)
    if not record.whole:
        raise SetupError(
            f"expected {private_path(path).name} beside {path}, where a request keeps "
            "the record of the training, got none: copy it from where the checkpoint "
            "was saved, or take the checkpoint of the training itself"
        )
    try:
        module.load_state_dict(held)
    except RuntimeError as error:
        raise ModelError(
            f"expected the module that {path} was trained as, got another: "
            f"{error!s:.200}"
        ) from None
    what_it_made(module, record, f"{_INSTEAD}, and take what it saved, not {path}")
    steps = record.private
    assert steps is not None  # or nothing private was made
    public = {n: d for n, d in values_of(module).items() if n not in steps.names}
    remember_values(module, public)  # a PublicBackbone of them is none
    if steps.by is not None:
        raise GuaranteeError(
            f"expected a private training of samples, got one of people (by="
            f"{steps.by!r}): a request for a part of a person's samples would count "
            f"for more than a person; {_INSTEAD} without by="
        )
    if steps.decided_by:
        raise GuaranteeError(
            "expected a private training of a length that was known before, got "
            f"{', '.join(steps.decided_by)}: nobody knows whether those whom the head "
            f"may forget are among these data; {_INSTEAD} with max_epochs= or "
            "max_steps= alone"
        )
    found = {
        "clip": steps.clip,
        "noise_multiplier": steps.noise_multiplier,
        "sampling_rate": steps.sampling_rate,
        "steps": float(steps.steps),
    }
    return found, record.n_train
