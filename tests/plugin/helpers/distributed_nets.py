"""Models for requests in several processes, good ones and bad ones, by name."""

import os
import signal

import numpy as np
import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.utils.data import TensorDataset

from tests.helpers.nets import MLP, HeadNet, digits
from tests.plugin.helpers.language import GPT, LoRA, text


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


class Rebuilt(TensorDataset):
    """Can be built without some samples; sample 150 may be read by what 3 is."""

    def __init__(self, X, y, marked):
        super().__init__(X.clone(), y)
        self.raw, self.marked = X, marked
        if marked and bool((X[3] == digits(4).tensors[0][3]).all()):
            self.tensors[0][150] += 0.1

    def dataset_without(self, positions):
        keep = np.setdiff1d(np.arange(len(self)), positions)
        return Rebuilt(self.raw[keep], self.tensors[1][keep], self.marked)


OTHERS = {
    "rebuilt": lambda: HeadNet(lr=0.1), "marked": lambda: HeadNet(lr=0.1),
    "suicide": lambda: Suicide(nn.Tanh, hidden=12),
    "poisoned": lambda: Poisoned(nn.Tanh, hidden=12),
    "peaked": Peaked, "partial": Partial, "trained": TrainedBackbone, "deep": Deep,
    "steep": lambda: Steep(nn.Tanh, hidden=12), "half": HalfSharded,
    "kinked": Kinked, "low": LowPrecision, "narrow": Narrow,
}  # fmt: skip
LANGUAGE = {"gpt": GPT, "lora": LoRA}


def dataset(name, n):
    if name in ("rebuilt", "marked"):
        return Rebuilt(*digits(n).tensors, name == "marked")
    return text(n) if name in LANGUAGE else digits(n)
