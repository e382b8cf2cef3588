"""Checkpoints without the public backbone: it is known again by its digest."""

from typing import Any

from lightning_unlearn.errors import ModelError
from lightning_unlearn.plugin.lightning import LightningModule
from lightning_unlearn.step.head.backbone import PublicBackbone

KEY = "public_backbone"  # of a checkpoint
_PART = "backbone."


def leave_out(checkpoint: dict[str, Any], backbone: PublicBackbone) -> None:
    """Take a module's backbone out of a checkpoint, and note its digest.

    Args:
        checkpoint: As Lightning is about to save it.
        backbone: What the module has under ``backbone``.

    Raises:
        ModelError: If it is not as it was made: its digest would not say what it is.
    """
    backbone.check()
    state = checkpoint["state_dict"]
    own = {name: value for name, value in state.items() if not name.startswith(_PART)}
    checkpoint["state_dict"] = own
    checkpoint[KEY] = backbone.digest


def digest_of(module: LightningModule) -> dict[str, str]:
    """What `leave_out` notes of this module's backbone; nothing if it has none."""
    backbone = getattr(module, "backbone", None)
    return {KEY: backbone.digest} if isinstance(backbone, PublicBackbone) else {}


def fill_in(checkpoint: dict[str, Any], backbone: PublicBackbone) -> None:
    """Complete a checkpoint that was saved without its backbone.

    Args:
        checkpoint: As Lightning has read it; one with a backbone is left as it is.
        backbone: What the module that loads it has.

    Raises:
        ModelError: If that is another one, or not as it was made.
    """
    digest = checkpoint.get(KEY)
    if digest is None:
        return
    backbone.check()
    if backbone.digest != digest:
        raise ModelError(
            "expected the PublicBackbone this checkpoint was saved without, with "
            f"digest {digest!s:.16}..., got {backbone.digest:.16}...: make it from the "
            "same public model, options and public data"
        )
    held = backbone.state_dict(prefix=_PART)
    checkpoint["state_dict"] = {**held, **checkpoint["state_dict"]}
