"""What may stand in a checkpoint that is served: what a certificate speaks of."""

from collections.abc import Mapping
from copy import copy
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_warn

from lightning_unlearn._base.text import some
from lightning_unlearn.certificate.model_state import CHECKPOINT_KEYS
from lightning_unlearn.plugin.training.hyper_parameters import KEYS, as_before
from lightning_unlearn.plugin.training.training_record import (
    STATE_KEY,
    TrainingRecord,
)

_TYPES = dict(zip(KEYS, ("hparams_type", "datamodule_hparams_type"), strict=True))
_LEFT_OUT = ("loops",)  # of every training: the clock


class Served:
    """A checkpoint that is being made to be served.

    Lightning asks the callbacks first and the module's ``on_save_checkpoint`` last, so
    that what is known is taken first, and goes to the disk in place of what a hook has
    made of it.

    Args:
        public: What a hook may add besides, name -> value; anything else under such a
            name is left out.
    """

    def __init__(self, public: Mapping[str, str]) -> None:
        self._public = public
        self._known: dict[str, Any] = {}
        self._before: dict[str, dict[str, str]] = {}

    def take(self, checkpoint: Mapping[str, Any], record: TrainingRecord) -> None:
        """Take what may be served, before any hook of the module.

        Args:
            checkpoint: As Lightning has made it.
            record: Of the training.
        """
        known = {
            key: copy(checkpoint[key]) for key in CHECKPOINT_KEYS if key in checkpoint
        }
        # The clock says how long the training was, and so how well it went.
        known |= {"epoch": 0, "global_step": 0}
        known["callbacks"] = {STATE_KEY: record.public()}
        self._known, self._before = known, record.hyper_parameters or {}

    def keep(self, checkpoint: dict[str, Any]) -> None:
        """Leave nothing else in it, and say by name what is left out.

        Args:
            checkpoint: As the hooks have left it, on its way to the disk.
        """
        known = self._known
        known |= {k: v for k, v in self._public.items() if checkpoint.get(k) == v}
        left = _others(checkpoint, known)
        names = checkpoint.get("state_dict", {})
        if {*names} < {*known["state_dict"]}:  # a frozen part may be left out
            for name in {*known["state_dict"]} - {*names}:
                del known["state_dict"][name]
        changed = self._taken_back()
        checkpoint.clear()
        checkpoint.update(known)
        if left:
            rank_zero_warn(
                f"left out of the checkpoint to be served: {some(left)} (state of the "
                "datamodule, or from the module's on_save_checkpoint), of which no "
                "certificate speaks; what the model needs to be loaded belongs in its "
                "hyper-parameters before training, and must be public"
            )
        if changed:
            rank_zero_warn(
                f"hyper-parameters changed in training: {some(changed)}; the "
                "checkpoint to be served has them as they were before it, or not at "
                "all; what training writes belongs in a logger"
            )

    def _taken_back(self) -> list[str]:
        """Take back what training has made of hyper-parameters; their names."""
        known, names = self._known, list[str]()
        for key in KEYS:
            if key not in self._before:
                continue  # nothing is known of before the training
            kept, changed = as_before(known.get(key, {}), self._before[key])
            if changed:
                known[key] = kept
                known.pop(_TYPES[key], None)
                names += changed
        return names


def _others(checkpoint: Mapping[str, Any], known: Mapping[str, Any]) -> list[str]:
    """Names of what is not known, at the top and in what is."""
    found = [
        str(k) for k in checkpoint if k not in {*CHECKPOINT_KEYS, *known, *_LEFT_OUT}
    ]
    for key in ("state_dict", *KEYS):
        own = known.get(key, {})
        found += [f"{key}[{n!r}]" for n in checkpoint.get(key, {}) if n not in own]
    now, own = checkpoint.get("state_dict", {}), known["state_dict"]
    found += [f"state_dict[{n!r}]" for n in own if n in now and now[n] is not own[n]]
    return found
