"""What the Trainer's strategy means for a request: one small class a kind."""

from dataclasses import dataclass
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import SingleDeviceStrategy

from lightning_unlearn.errors import StrategyError


@dataclass(frozen=True)
class SingleDevice:
    """The whole model and all the data in one process."""

    trainer: Trainer

    def transfer(self, batch: Any) -> Any:
        """Move a batch to the device, through the module's own transfer hooks."""
        return self.trainer.strategy.batch_to_device(batch, dataloader_idx=0)


def adapter(trainer: Trainer) -> SingleDevice:
    """The adapter for a Trainer's strategy.

    Raises:
        StrategyError: If requests cannot run under it.
    """
    strategy = trainer.strategy
    if isinstance(strategy, SingleDeviceStrategy):
        return SingleDevice(trainer)
    raise StrategyError(
        "expected a strategy for one device, got "
        f"{type(strategy).__name__}: save a checkpoint, then run the request with "
        "Trainer(devices=1, callbacks=[UnlearningCallback(...)]) and ckpt_path="
    )
