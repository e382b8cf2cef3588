"""Run by test_certified_distributed.py: solve, then forget, in two processes."""

import json

import torch
from torch.distributed.fsdp import FSDPModule, fully_shard

from lightning_unlearn import CertifiedClassifier, UnlearningCallback, prepare
from tests.helpers.lightning import ModelParallelStrategy
from tests.helpers.nets import trainer
from tests.plugin.helpers.publics import backbone, loader, private


class Sharded(CertifiedClassifier):
    """FSDP2: the head in shards, the backbone as it is in every process."""

    def configure_model(self):
        mesh = self.device_mesh["data_parallel"]
        if not isinstance(self.head, FSDPModule):
            fully_shard(self.head, mesh=mesh)


class ShardedWhole(Sharded):
    """The frozen network in shards too."""

    def configure_model(self):
        if not isinstance(self.backbone.model, FSDPModule):
            fully_shard(self.backbone.model, mesh=self.device_mesh["data_parallel"])
        super().configure_model()


def main(folder, name):
    torch.set_num_threads(1)
    kind, strategy = CertifiedClassifier, name
    if name.startswith("fsdp2"):
        kind = Sharded if name == "fsdp2" else ShardedWhole
        strategy = ModelParallelStrategy(2, 1, save_distributed_checkpoint=False)
    net = kind(backbone(), 5)
    store = folder / "rows.store"
    callback = UnlearningCallback(noise_std=0.0, tolerance=1e-8, prepared=store)
    own = trainer(callback, strategy=strategy, devices=2, limit_val_batches=0)
    data = loader(private(), 50)
    own.fit(net, data)
    own.save_checkpoint(folder / "solved.ckpt", weights_only=True)
    if name == "ddp":  # all of it is known; and once more, from nothing
        assert prepare(own).passes == 0
        callback.attached.bound_state = None
        own.strategy.barrier()
        if own.is_global_zero:
            store.unlink()
        own.strategy.barrier()
        assert prepare(own).passes > 0
    target = folder / "clean.ckpt"
    result = own.unlearn(range(40), train_dataloaders=data, save_to=target)
    if own.is_global_zero:
        found = [result.certificate.bound.value, result.n_retain]
        (folder / "found.json").write_text(json.dumps(found))
