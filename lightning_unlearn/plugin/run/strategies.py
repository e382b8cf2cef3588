"""What the Trainer's strategy means for a request: one small class a kind."""

import atexit
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn import Parameter
from torch.optim import Optimizer

from lightning_unlearn.errors import StrategyError
from lightning_unlearn.plugin.lightning import (
    DDPStrategy,
    LightningModule,
    ModelParallelStrategy,
    SingleDeviceStrategy,
    Trainer,
    check_package,
)
from lightning_unlearn.plugin.training.trained_marks import mark_trained, was_trained
from lightning_unlearn.weights.large_arrays import free_bytes
from lightning_unlearn.weights.processes import Processes
from lightning_unlearn.weights.scope import Scope, Shards

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
        return processes_of(self.trainer)

    def scope(self, module: nn.Module, parameters: Iterable[Parameter]) -> Scope:
        """The weights a request may move, as this strategy holds them."""
        return Scope(module, parameters)

    @contextmanager
    def gathered(self, module: LightningModule) -> Iterator[None]:
        """A block in which the module's parameters are whole plain tensors."""
        del module  # they always are
        yield

    def save(self, write: Callable[[], None]) -> None:
        """Write a checkpoint where this strategy writes it; no process waits here."""
        if self.processes.rank == 0:
            with self._no_barrier():
                write()

    def fresh_optimizers(self) -> list[Optimizer]:
        """What a checkpoint must hold in place of the trained optimizers' states."""
        return []

    @contextmanager
    def _no_barrier(self) -> Iterator[None]:
        """A failed write must be told to the others, who must not wait for it."""
        strategy: Any = self.trainer.strategy
        strategy.barrier = lambda *args, **kwargs: None
        try:
            yield
        finally:
            del strategy.barrier


class Resident(Replicated):
    """FSDP2: shards of the model in every process, gathered for the request.

    While they are gathered the parameters are plain tensors, and second derivatives
    exist (https://github.com/pytorch/pytorch/pull/172770).
    """

    @contextmanager
    def gathered(self, module: LightningModule) -> Iterator[None]:
        """A block in which the module's parameters are whole plain tensors.

        Raises:
            StrategyError: If they are not those that are trained.
        """
        self._check_mesh()
        before = dict(module.named_parameters())
        _check_room(before, self.processes)
        with _borrowed_settings(module) as sharded:
            for part in sharded:
                part.set_reshard_after_forward(False, recurse=False)
                part.set_reshard_after_backward(False, recurse=False)
                part.set_requires_gradient_sync(False, recurse=False)
                part.unshard()
            _check_gathered(dict(module.named_parameters()), before)
            with _without_sharding_hooks(module):
                yield

    def _check_mesh(self) -> None:
        mesh: Any = self.trainer.strategy.device_mesh  # type: ignore[attr-defined]
        if mesh["tensor_parallel"].size() > 1:
            raise StrategyError(
                "expected tensor_parallel_size=1, got "
                f"{mesh['tensor_parallel'].size()}: layers that are split have no "
                "second derivatives here; use data_parallel_size for all processes"
            )

    def save(self, write: Callable[[], None]) -> None:
        """Write a checkpoint, every process its part."""
        with self._no_barrier():
            write()

    def fresh_optimizers(self) -> list[Optimizer]:
        """New ones: a sharded checkpoint without optimizers cannot be resumed from."""
        # torch makes the states of an optimizer only where no gradient lies around.
        self.trainer.lightning_module.zero_grad(set_to_none=True)
        self.trainer.strategy.setup_optimizers(self.trainer)
        return self.trainer.optimizers


class Sharded(Resident):
    """FSDP2: the weights stay shards, and so does every vector of the solve.

    For models whose vectors do not fit in one process: chosen by
    ``curvature="central_difference"``, for gradients are all there is this way.
    """

    def scope(self, module: nn.Module, parameters: Iterable[Parameter]) -> Scope:
        """The weights a request may move; each process holds its shards of them."""
        return Shards(module, parameters)

    @contextmanager
    def gathered(self, module: LightningModule) -> Iterator[None]:
        """A block in which passes gather what they need, and free it again.

        Raises:
            StrategyError: If a pass would not compute with the weights as they are.
        """
        self._check_mesh()
        before = dict(module.named_parameters())
        with _borrowed_settings(module) as sharded:
            stay = dict(before)
            for part in sharded:
                part.set_reshard_after_backward(True, recurse=False)
                part.set_requires_gradient_sync(True, recurse=False)
                part.unshard()
                now = dict(module.named_parameters())
                plain = {n: p for n, p in now.items() if not isinstance(p, DTensor)}
                _check_gathered(plain, before)
                stay = {n: p for n, p in stay.items() if n not in plain}
                part.reshard()  # one at a time
            _check_gathered(stay, before)
            yield


@contextmanager
def _borrowed_settings(module: LightningModule) -> Iterator[list[FSDPModule]]:
    """FSDP's parts of a module, whose settings and shards are back at the end."""
    sharded = sharded_parts(module)
    settings = [pair for part in sharded for pair in _settings(part)]
    try:
        yield sharded
    finally:
        for part in sharded:
            part.reshard()
        for holder, values in settings:
            vars(holder).update(values)


def sharded_parts(module: nn.Module) -> list[FSDPModule]:
    """The modules FSDP2 holds in shards."""
    return [m for m in module.modules() if isinstance(m, FSDPModule)]


# What `gathered` sets. There is no public way to read them.
_SET = {
    *("_auto_reshard_after_forward", "post_forward_mesh_info"),
    *("reshard_after_backward", "reduce_grads", "all_reduce_grads"),
}


def _settings(part: FSDPModule) -> list[tuple[object, dict[str, Any]]]:
    """Objects that hold a module's settings, and these."""
    state: Any = part._get_fsdp_state()
    groups = getattr(state, "_fsdp_param_groups", None)
    if groups is None:  # torch with one group a module
        groups = [state._fsdp_param_group]
    holders = [state, *(group for group in groups if group is not None)]
    return [
        (holder, {k: v for k, v in vars(holder).items() if k in _SET})
        for holder in holders
    ]


def _check_room(parameters: dict[str, Parameter], processes: Processes) -> None:
    """Two copies at least: gathered, and what passes change."""
    needed = 2 * sum(p.numel() * p.element_size() for p in parameters.values())
    free = min(processes.gather(free_bytes(processes.device)))
    if needed > free:
        raise StrategyError(
            f"expected {needed / 2**30:.3g} GiB of free memory on every device for "
            f"whole weights, got {free / 2**30:.3g}: FSDP2 has no second derivatives "
            "on shards; use devices with more memory, or for a smooth network "
            "curvature='central_difference', which keeps weights and vectors sharded"
        )


def _check_gathered(now: dict[str, Parameter], before: dict[str, Parameter]) -> None:
    for name, p in now.items():
        if isinstance(p, DTensor):
            raise StrategyError(
                f"expected parameters that fully_shard gathers, got {name}, which "
                "stays sharded: apply fully_shard to the module that holds it, and no "
                "tensor parallelism"
            )
        if p.dtype != before[name].dtype:
            raise StrategyError(
                f"expected FSDP2 to compute with the weights as they are, got {name} "
                f"in {p.dtype} in place of {before[name].dtype}: unlearn without a "
                "MixedPrecisionPolicy(param_dtype=...) in configure_model"
            )
        if was_trained(before[name]):
            mark_trained([p])


@contextmanager
def _without_sharding_hooks(module: LightningModule) -> Iterator[None]:
    """``state_dict()`` would shard the parameters again."""
    found = {m: m._state_dict_pre_hooks for m in module.modules()}
    for m, hooks in found.items():
        own = {
            key: hook
            for key, hook in hooks.items()
            if not hook.__module__.startswith("torch.distributed")
        }
        m._state_dict_pre_hooks = OrderedDict(own)
    try:
        yield
    finally:
        for m, hooks in found.items():
            m._state_dict_pre_hooks = hooks


def processes_of(trainer: Trainer) -> Processes:
    """The processes of a run under any strategy, also one that only trains."""
    device, world = trainer.strategy.root_device, trainer.world_size
    if world == 1 or not dist.is_initialized():
        return Processes(device=device)
    atexit.unregister(_leave)
    atexit.register(_leave)
    return Processes(
        rank=trainer.global_rank,
        world=world,
        device=device,
        add=dist.all_reduce,  # strategy.reduce waits at a barrier first
        gather=_gather,
        broadcast=trainer.strategy.broadcast,
    )


def without_sums(trainer: Trainer) -> AbstractContextManager[object]:
    """A block in which backward passes add up no gradients over the processes."""
    strategy = trainer.strategy
    if isinstance(strategy, DDPStrategy):
        return strategy.block_backward_sync()
    return nullcontext()


def _leave() -> None:
    """Lightning leaves NCCL's group only; gloo may abort the process at its end.

    Its threads drop what they have sent a moment later, and groups of a mesh stay: an
    interpreter that is gone by then aborts
    (https://github.com/pytorch/pytorch/pull/179291).
    """
    if dist.is_initialized():
        dist.destroy_process_group()
        time.sleep(0.2)


def _gather(value: Any) -> list[Any]:
    found = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


def adapter(trainer: Trainer, curvature: str = "hessian") -> Replicated:
    """The adapter for a Trainer's strategy, and for a curvature formed under it.

    Raises:
        StrategyError: If requests cannot run under it.
    """
    check_package(trainer)
    strategy = trainer.strategy
    names = [cls.__name__ for cls in type(strategy).__mro__]
    refused = next((name for name in names if name in _INSTEAD), None)
    if refused is None and isinstance(strategy, (SingleDeviceStrategy, DDPStrategy)):
        return Replicated(trainer)
    if isinstance(strategy, ModelParallelStrategy):
        kind = Sharded if curvature == "central_difference" else Resident
        return kind(trainer)
    why = _INSTEAD.get(refused or "", "use ddp or ModelParallelStrategy")
    raise StrategyError(
        "expected a strategy that can hold whole weights (one device, ddp, ddp_spawn, "
        f"ddp_fork, ddp_notebook, FSDP2), got {type(strategy).__name__}; {why}, or "
        "save a checkpoint and run the request with "
        "Trainer(devices=1, callbacks=[UnlearningCallback(...)]) and ckpt_path="
    )


def check_alone(trainer: Trainer, what: str) -> None:
    """Raise `StrategyError` if a Trainer runs in several processes, or in a new one."""
    adapter(trainer)
    if not isinstance(trainer.strategy, SingleDeviceStrategy):
        raise StrategyError(
            f"expected one device for {what}, got {type(trainer.strategy).__name__} "
            f"with {trainer.world_size} processes: call it with Trainer(devices=1, "
            "callbacks=[UnlearningCallback(...)]), and ckpt_path= if need be"
        )
