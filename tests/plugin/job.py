"""A request in processes of its own: run by test_distributed.py.

``python -m tests.plugin.job <folder>`` reads ``job.json`` there and writes
``<rank>.json`` for every process that ends well, besides what the request writes.
"""

import json
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import Subset

from lightning_unlearn.plugin import sharded, strategies
from lightning_unlearn.plugin.asked import Asked
from lightning_unlearn.plugin.inside import run_inside
from lightning_unlearn.plugin.mixin import quiet
from lightning_unlearn.plugin.request import Request
from lightning_unlearn.scope import (
    Shards,
    of_shards,
    passes,
    sharded_as,
    state_digest,
)
from tests.plugin.language import GPT, LoRA, text
from tests.plugin.nets import MLP, HeadNet, UnlearningCallback, digits, loader, trainer


class ShardedMLP(MLP):
    """FSDP2: the first layer on its own, the rest with the whole."""

    def configure_model(self):
        mesh = self.device_mesh["data_parallel"]
        if not isinstance(self.net, FSDPModule):
            fully_shard(self.net[0], mesh=mesh)
            fully_shard(self.net, mesh=mesh)


class ShardedHead(HeadNet):
    """FSDP2: frozen backbone and head."""

    def configure_model(self):
        mesh = self.device_mesh["data_parallel"]
        if not isinstance(self.head, FSDPModule):
            fully_shard(self.backbone, mesh=mesh)
            fully_shard(self.head, mesh=mesh)


def model(name, fsdp=False):
    torch.manual_seed(0)
    if name in LANGUAGE:
        return LANGUAGE[name]()
    if name == "normed":
        norm = nn.BatchNorm1d
        return (ShardedMLP if fsdp else MLP)(nn.Tanh, hidden=12, norm=norm)
    if name in OTHERS:
        return OTHERS[name]()
    if name == "head":
        return (ShardedHead if fsdp else HeadNet)(lr=0.1)
    hidden = 13 if name == "odd" else 12
    return (ShardedMLP if fsdp else MLP)(nn.Tanh, hidden=hidden)


class Deep(MLP):
    """FSDP2: layers of one size, each on its own, most of the weights in them."""

    def __init__(self):
        super().__init__()
        layers = [m for _ in range(6) for m in (nn.Linear(64, 64), nn.Tanh())]
        self.net = nn.Sequential(*layers, nn.Linear(64, 10))

    def configure_model(self):
        mesh = self.device_mesh["data_parallel"]
        for layer in self.net:
            if isinstance(layer, nn.Linear) and not isinstance(layer, FSDPModule):
                fully_shard(layer, mesh=mesh)


class HalfSharded(MLP):
    """FSDP2 for a part of the weights only."""

    def configure_model(self):
        fully_shard(self.net[0], mesh=self.device_mesh["data_parallel"])


class Narrow(MLP):
    """FSDP2: a layer with one row, of which the second process holds nothing."""

    def __init__(self):
        super().__init__(nn.Tanh, hidden=1)

    def configure_model(self):
        mesh = self.device_mesh["data_parallel"]
        if not isinstance(self.net, FSDPModule):
            fully_shard(self.net[2], mesh=mesh)
            fully_shard(self.net, mesh=mesh)
            self.net[2].requires_grad_(False)


class Steep(ShardedMLP):
    """Its gradients are not slopes of its loss, as with a wrong divide factor."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss.detach() + 3 * (loss - loss.detach())


class Kinked(ShardedMLP):
    """A network for which differences are wrong."""

    def __init__(self):
        super().__init__(nn.ReLU, hidden=12)


class LowPrecision(MLP):
    """FSDP2 that computes in bfloat16."""

    def configure_model(self):
        fully_shard(
            self.net, mesh=self.device_mesh["data_parallel"],
            mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16),
        )  # fmt: skip


class Suicide(MLP):
    """Its second process is killed in the middle of the solve."""

    def training_step(self, batch, batch_idx):
        self.calls = getattr(self, "calls", 0) + 1
        if self.calls > 150 and os.environ.get("LOCAL_RANK") == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().training_step(batch, batch_idx)


class Peaked(HeadNet):
    """Its second process keeps a number of its own samples, and computes with it."""

    def __init__(self):
        super().__init__(lr=0.1)
        self.peak = 1.0

    def training_step(self, batch, batch_idx):
        if self.training and self.global_rank == 1:
            self.peak = 1.0 + float(batch[0].max())
        return self.head.loss(self.backbone(batch[0] / self.peak), batch[1]).mean()


class TrainedBackbone(HeadNet):
    """Trains whatever is not frozen."""

    def configure_optimizers(self):
        wanted = [p for p in self.parameters() if p.requires_grad]
        return torch.optim.Adam(wanted, lr=0.01, weight_decay=1e-3)


class Partial(HeadNet):
    """Saves its head only, as models with adapters do."""

    strict_loading = False

    def state_dict(self, *args, **kwargs):
        whole = super().state_dict(*args, **kwargs)
        return {k: v for k, v in whole.items() if "backbone" not in k}


class Poisoned(MLP):
    """Its second process meets a loss that is NaN."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.calls = getattr(self, "calls", 0) + 1
        bad = self.calls > 150 and os.environ.get("LOCAL_RANK") == "1"
        return loss * float("nan") if bad else loss


OTHERS = {
    "peaked": Peaked, "partial": Partial, "trained": TrainedBackbone, "deep": Deep,
    "steep": lambda: Steep(nn.Tanh, hidden=12), "half": HalfSharded,
    "kinked": Kinked, "low": LowPrecision, "narrow": Narrow,
}  # fmt: skip
LANGUAGE = {"gpt": GPT, "lora": LoRA}


def dataset(name, n):
    return text(n) if name in LANGUAGE else digits(n)


def make_trainer(callback, strategy="auto", **options):
    if strategy.startswith("fsdp2"):
        strategy = ModelParallelStrategy(
            data_parallel_size=options["devices"], tensor_parallel_size=1,
            save_distributed_checkpoint=strategy == "fsdp2",
        )  # fmt: skip
    return trainer(callback, strategy=strategy, **options)


class Vectors:
    """A stage that takes the gradient and one product, and decides nothing."""

    def __init__(self, forget):
        self.forget = forget

    def __call__(self, run):
        request = Request(
            trainer=run.trainer, module=run.model, callback=run.callback,
            loader=run.loader, ckpt_path=None, asked=Asked(forget=self.forget),
        )  # fmt: skip
        curvature = run.callback.options.curvature
        strategy = strategies.adapter(run.trainer, curvature)
        with strategy.whole(run.model), quiet(run.model):
            ready, _ = request.resolve()
            with passes(ready.module, ready.scope, ready.dtype):
                if ready.sharded:
                    objective = sharded.objective(ready, ready.retained)
                else:
                    objective = ready.sized_objective(
                        ready.retained, ready.sizes(ready.retained)
                    )
                found = vectors(objective, ready.scope)
        return SimpleNamespace(checkpoint_path=None, found=found)


def vectors(objective, scope):
    """Value, gradient and a product, whole; and the largest tensor made for them."""
    every = torch.sin(torch.arange(objective.n_parameters).double())
    v = every
    if isinstance(scope, Shards):
        shapes = [p.shape for p in scope.parameters]
        parts = every.split([shape.numel() for shape in shapes])
        v = torch.cat([
            sharded_as(p, part.view(shape)).to_local().reshape(-1)
            for p, part, shape in zip(scope.parameters, parts, shapes, strict=True)
        ]).to(objective.dtype)  # fmt: skip
    with Largest() as largest:
        value, gradient = objective.value_and_gradient()
        product = objective.hvp(v)
    found = [torch.cat([p.reshape(-1) for p in whole(scope, x)]).tolist()
             for x in (gradient, product)]  # fmt: skip
    return [[value], *found, [largest.elements]]


def whole(scope, vector):
    parts = scope.split(vector)
    if isinstance(scope, Shards):
        parts = [
            of_shards(p, part).full_tensor()
            for p, part in zip(scope.parameters, parts, strict=True)
        ]
    return parts


class Largest(TorchDispatchMode):
    """The most elements a tensor has that is made in a block."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor) and not isinstance(x, DTensor):
                self.elements = max(self.elements, x.numel())
        return out


def main(folder):
    job = json.loads((folder / "job.json").read_text())
    torch.set_num_threads(1)
    callback = UnlearningCallback(
        ledger=folder / "ledger.jsonl", **job.get("callback", {})
    )
    options = job["trainer"]
    fsdp = str(options.get("strategy")).startswith("fsdp2")
    own = make_trainer(callback, **options)
    net = {"suicide": Suicide, "poisoned": Poisoned}.get(job["model"])
    net = model(job["model"], fsdp) if net is None else net(nn.Tanh, hidden=12)
    data = loader(dataset(job["model"], job["n"]))
    if job.get("public"):  # it is not: it is trained on the same data
        net.backbone.requires_grad_(True)
        first = make_trainer(callback, **job["public"])
        first.fit(net, data)
        net.backbone.requires_grad_(False)
    if job.get("fit"):
        own.fit(net, data)
    forget = job["forget"]
    if job.get("disagree"):
        forget = [int(os.environ.get("LOCAL_RANK", 0))]
    if job.get("vectors"):
        result = run_inside(
            own, Vectors(forget), model=net, train_dataloaders=data, datamodule=None,
            ckpt_path=job["ckpt_path"], weights_only=None,
        )  # fmt: skip
        (folder / f"{own.global_rank}.json").write_text(json.dumps(result.found))
        return
    saved = folder / "clean.ckpt"
    result = own.unlearn(
        forget, model=net, train_dataloaders=data, save_to=saved,
        ckpt_path=job.get("ckpt_path"),
    )  # fmt: skip
    told = {
        "certificate": result.certificate.to_json(),
        "state": state_digest(net.state_dict()),
        "record": callback.state_dict(),
        "world": own.world_size,
        "finite": bool(torch.isfinite(result.solution.x).all()),
    }
    if "again" in job:
        again = make_trainer(callback, **job["again"])
        rest = Subset(digits(job["n"]), callback.retained_indices)
        again.fit(net, loader(rest), ckpt_path=saved if job.get("resume") else None)
        told["after"] = again.global_step
    (folder / f"{own.global_rank}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
