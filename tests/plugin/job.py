"""A request in processes of its own: run by test_distributed.py.

``python -m tests.plugin.job <folder>`` reads ``job.json`` there and writes
``<rank>.json`` for every process that ends well, besides what the request writes.
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch
from torch import nn

from lightning_unlearn.scope import state_digest
from tests.plugin.nets import MLP, HeadNet, UnlearningCallback, digits, loader, trainer


def model(name):
    torch.manual_seed(0)
    return HeadNet(lr=0.1) if name == "head" else MLP(nn.Tanh, hidden=12)


class Suicide(MLP):
    """Its second process is killed in the middle of the solve."""

    def training_step(self, batch, batch_idx):
        self.calls = getattr(self, "calls", 0) + 1
        if self.calls > 10 and os.environ.get("LOCAL_RANK") == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().training_step(batch, batch_idx)


class Poisoned(MLP):
    """Its second process meets a loss that is NaN."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.calls = getattr(self, "calls", 0) + 1
        bad = self.calls > 10 and os.environ.get("LOCAL_RANK") == "1"
        return loss * float("nan") if bad else loss


def main(folder):
    job = json.loads((folder / "job.json").read_text())
    torch.set_num_threads(1)
    callback = UnlearningCallback(
        ledger=folder / "ledger.jsonl", **job.get("callback", {})
    )
    own = trainer(callback, **job["trainer"])
    net = {"suicide": Suicide, "poisoned": Poisoned}.get(job["model"])
    net = model(job["model"]) if net is None else net(nn.Tanh, hidden=12)
    data = loader(digits(job["n"]))
    if job.get("fit"):
        own.fit(net, data)
    forget = job["forget"]
    if job.get("disagree"):
        forget = [int(os.environ.get("LOCAL_RANK", 0))]
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
    if job.get("again"):
        again = trainer(callback, max_epochs=1, **job["again"])
        again.fit(net, loader(torch.utils.data.Subset(
            digits(job["n"]), callback.retained_indices)))  # fmt: skip
        told["after"] = callback.record.certificate is not None
    (folder / f"{own.global_rank}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
