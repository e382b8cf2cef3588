"""What the Trainer's strategy means for a request: one small class a kind."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from lightning_unlearn.errors import StrategyError
from lightning_unlearn.processes import Processes

_XLA = "nothing here was tried on XLA: use a CPU or CUDA device"
# Class names: importing the classes would import what they need.
_INSTEAD = {
    "FSDPStrategy": (
        "FSDP1 has no second derivatives: use ModelParallelStrategy (FSDP2) or ddp"
    ),
    "DeepSpeedStrategy": (
        "its partitions have no second derivatives: use ddp, or "
        "ModelParallelStrategy (FSDP2)"
    ),
    "XLAStrategy": _XLA,
    "SingleDeviceXLAStrategy": _XLA,
}


@dataclass(frozen=True)
class Replicated:
    """The whole model in every process, the samples dealt out: one device, or DDP."""

    trainer: Trainer

    def transfer(self, batch: Any) -> Any:
        """Move a batch to the device, through the module's own transfer hooks."""
        return self.trainer.strategy.batch_to_device(batch, dataloader_idx=0)

    @property
    def processes(self) -> Processes:
        """Those of the run; inside it only."""
        device, world = self.trainer.strategy.root_device, self.trainer.world_size
        if world == 1 or not dist.is_initialized():
            return Processes(device=device)
        return Processes(
            rank=self.trainer.global_rank,
            world=world,
            device=device,
            add=dist.all_reduce,  # strategy.reduce waits at a barrier first
            gather=_gather,
            broadcast=self.trainer.strategy.broadcast,
        )

    @contextmanager
    def whole(self, module: LightningModule) -> Iterator[None]:
        """A block in which the module's parameters are whole plain tensors."""
        del module  # they always are
        yield

    def save(self, write: Callable[[], None]) -> None:
        """Write a checkpoint where this strategy writes it; no process waits here."""
        if self.processes.rank == 0:
            with self._no_barrier():
                write()

    @contextmanager
    def _no_barrier(self) -> Iterator[None]:
        """A failed write must be told to the others, who must not wait for it."""
        strategy: Any = self.trainer.strategy
        strategy.barrier = lambda *args, **kwargs: None
        try:
            yield
        finally:
            del strategy.barrier


def _gather(value: Any) -> list[Any]:
    found = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


def adapter(trainer: Trainer) -> Replicated:
    """The adapter for a Trainer's strategy.

    Raises:
        StrategyError: If requests cannot run under it.
    """
    strategy = trainer.strategy
    names = [cls.__name__ for cls in type(strategy).__mro__]
    refused = next((name for name in names if name in _INSTEAD), None)
    if refused is None and isinstance(strategy, (SingleDeviceStrategy, DDPStrategy)):
        return Replicated(trainer)
    why = _INSTEAD.get(refused or "", "use ddp or ModelParallelStrategy")
    raise StrategyError(
        "expected a strategy that keeps whole weights at hand (one device, ddp, "
        f"ddp_spawn, ddp_fork, ddp_notebook), got {type(strategy).__name__}; {why}, or "
        "save a checkpoint and run the request with "
        "Trainer(devices=1, callbacks=[UnlearningCallback(...)]) and ckpt_path="
    )


def check_alone(trainer: Trainer, what: str) -> None:
    """Raise `StrategyError` if a Trainer runs in several processes, or in a new one."""
    adapter(trainer)
    if trainer.world_size > 1 or not isinstance(trainer.strategy, SingleDeviceStrategy):
        raise StrategyError(
            f"expected one device for {what}, got {type(trainer.strategy).__name__} "
            f"with {trainer.world_size} processes: call it with Trainer(devices=1, "
            "callbacks=[UnlearningCallback(...)]), and ckpt_path= if need be"
        )
