"""Run by test_cover_served.py: serve with noise, then forget, in two processes."""

import json

import torch

from lightning_unlearn import CertifiedClassifier, UnlearningCallback
from tests.helpers.lightning import ModelParallelStrategy
from tests.helpers.nets import trainer
from tests.plugin.helpers.certified_job import Sharded
from tests.plugin.helpers.publics import backbone, loader, private


def main(folder, name):
    torch.set_num_threads(1)
    kind, strategy = CertifiedClassifier, name
    if name == "fsdp2":
        kind = Sharded
        strategy = ModelParallelStrategy(2, 1, save_distributed_checkpoint=False)
    net = kind(backbone(scale=0.5, taps=["10"]), 5, l2=1e-1)
    options = {"cover_served": 6, "releases": 3, "accept_noise": True}
    callback = UnlearningCallback(**options, ledger=folder / "ledger.jsonl")
    own = trainer(callback, strategy=strategy, devices=2, limit_val_batches=0)
    data = loader(private(), 50)
    own.fit(net, data)
    own.save_checkpoint(folder / "served.ckpt")
    target = folder / "clean.ckpt"
    result = own.unlearn([1, 2], train_dataloaders=data, save_to=target)
    if own.is_global_zero:
        c = result.certificate
        left = next(k.value for k in c.constants if k.name == "left")
        found = [c.bound.value, c.grade.value, c.release, left, c.n_retain]
        (folder / "found.json").write_text(json.dumps(found))
