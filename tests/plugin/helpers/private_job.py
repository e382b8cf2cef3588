"""A private training in two processes of its own, and a request after it.

`main` takes a folder, a strategy and faults, one after the other (or another kind of
module or DDP); each process writes what it saw of them to ``<rank>.json``.
"""

import json
import os

import torch
from torch import nn
from torch.utils.data import DataLoader, Subset

from lightning_unlearn import PrivateTraining, UnlearningCallback
from lightning_unlearn.errors import UnlearningError
from lightning_unlearn.weights.digests import state_digest, tensors_digest
from tests.helpers.lightning import Callback, DDPStrategy, ModelParallelStrategy
from tests.helpers.nets import MLP, digits, trainer
from tests.plugin.helpers.distributed_nets import ShardedMLP

N = 301  # not divisible by two


class Watch(Callback):
    """Notes what a process draws, and the gradients that the optimizer sees."""

    def __init__(self):
        self.drawn, self.grads = [], []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        run = trainer.callbacks[0].attached.private
        self.drawn.append(run._piece.positions)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.grads.append(torch.cat([p.grad.flatten() for p in module.parameters()]))


class Second(Callback):
    """Does something wrong in the second process alone."""

    def __init__(self, fault):
        self.fault = fault

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_rank == 1 and trainer.global_step == 4:
            if self.fault == "momentum":
                inner = trainer.optimizers[0].optim
                inner.state[inner.param_groups[0]["params"][0]][
                    "momentum_buffer"
                ].zero_()
            if self.fault == "rows":
                batch[0].add_(1.0)
            if self.fault == "weights":
                next(module.parameters()).data.add_(1.0)

    def on_train_epoch_end(self, trainer, module):
        when = {"early": 0, "late": 1}.get(self.fault)
        if trainer.global_rank == 1 and trainer.current_epoch == when:
            next(module.parameters()).data.add_(1.0)


class Skips(MLP):
    """Leaves out a step, or takes it twice, in the second process."""

    times = 1

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None):
        second = self.trainer.global_rank == 1 and self.trainer.global_step == 4
        if second and self.times == 0:
            optimizer_closure()
        for _ in range(self.times if second else 1):
            optimizer.step(closure=optimizer_closure)


class Sharing(MLP):
    """Shares the optimizer's state out over the processes."""

    def configure_optimizers(self):
        from torch.distributed.optim import ZeroRedundancyOptimizer  # warns

        return ZeroRedundancyOptimizer(
            self.parameters(), torch.optim.SGD, lr=0.1, momentum=0.9
        )


class Idle(MLP):
    """Has weights that no loss reaches, or every other one alone."""

    def __init__(self):
        super().__init__()
        self.idle, self.late = nn.Linear(3, 3), nn.Linear(64, 10)

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss + self.late(batch[0]).square().mean() * (batch_idx % 2)


KINDS = {"zero": Sharing, "momentum": Sharing, "idle": Idle, "unused": Idle}
DDP = {
    "static": {"static_graph": True},
    "unused": {"find_unused_parameters": True},
    "bucket": {"gradient_as_bucket_view": True},
}


def flat(net):
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def replayed(start, grads, group):
    """Where plain SGD goes with the gradients that the optimizer has seen."""
    at = nn.Parameter(start)
    names = "lr", "momentum", "weight_decay"
    plain = torch.optim.SGD([at], **{name: group[name] for name in names})
    for at.grad in grads:
        plain.step()
    return at.detach()


def trained(folder, name, fault):
    """What one process saw of a training with a fault, and of a request after it."""
    rank = int(os.environ.get("LOCAL_RANK", 0))
    strategy = ModelParallelStrategy(2, 1) if name == "fsdp2" else name
    if fault in DDP:
        strategy = DDPStrategy(**DDP[fault])
    settings = PrivateTraining(noise_multiplier=4.0)
    callback = UnlearningCallback(epsilon=4.0, delta=1e-4, private=settings)
    watch, data = Watch(), digits(N)
    net = ShardedMLP() if name == "fsdp2" else KINDS.get(fault, MLP)()
    if fault in ("skips", "twice"):
        net = Skips()
        net.times = 0 if fault == "skips" else 2
    if fault == "order" and rank == 1:
        data = Subset(data, list(reversed(range(N))))
    callbacks = [watch, Second(fault)]
    own = trainer(callback, 2, strategy=strategy, devices=2, callbacks=callbacks)
    loader = DataLoader(data, 15, shuffle=True)
    start = flat(net)
    own.fit(net, loader)
    read = own.train_dataloader or loader  # none here, if launched processes read it
    told = {
        "sampler": type(read.batch_sampler).__name__,
        "grads": tensors_digest((str(i), g) for i, g in enumerate(watch.grads)),
        "std": float(torch.stack(watch.grads).std()) if watch.grads else None,
        "drawn": watch.drawn,
        "moved": float((flat(net) - start).abs().max()),
        "weights": state_digest(net.state_dict()),
    }
    saved = folder / f"{'clean' if fault == 'none' else fault}.ckpt"
    if watch.grads:
        found = replayed(start, watch.grads, own.optimizers[0].param_groups[0])
        told["off"] = float((flat(net) - found).abs().max())
    result = own.unlearn([3, 8], net, loader, save_to=saved)
    told["certificate"] = result.certificate.to_json()
    told["after"] = state_digest(net.state_dict())
    told["private"] = vars(callback.record.private)
    return told


def main(folder, name, *faults):
    torch.set_num_threads(1)
    rank, told = int(os.environ.get("LOCAL_RANK", 0)), {}
    for fault in faults:
        try:
            told[fault] = trained(folder, name, fault)
        except UnlearningError as error:
            told[fault] = {"error": f"{type(error).__name__}: {error}"}
        rank = int(os.environ.get("LOCAL_RANK", rank))
        (folder / f"{rank}.json").write_text(json.dumps(told))
