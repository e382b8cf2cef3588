"""A request in processes of its own.

A test calls `start` or `done`; that runs `main`, forked or as ``python -m
tests.plugin.helpers.distributed_job <folder>``, which reads ``job.json`` in the folder
and writes ``<rank>.json`` for every process that ends well, besides what the request
writes.
"""

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Subset, SubsetRandomSampler

from lightning_unlearn.plugin.request.stage import run_in_trainer
from lightning_unlearn.weights.digests import state_digest
from tests.helpers.lightning import ModelParallelStrategy
from tests.helpers.nets import UnlearningCallback, digits, loader, trainer
from tests.plugin.helpers import forked
from tests.plugin.helpers.distributed_nets import dataset, model
from tests.plugin.helpers.vectors import Vectors

ROOT = Path(__file__).parents[3]
N = 397  # divisible neither by two processes nor by a batch of 64


@dataclass(kw_only=True)
class Job:
    """What to do.

    Attributes:
        model: Its name in `distributed_nets`.
        trainer: Options of the Trainer; ``fsdp2`` and ``fsdp2-file`` are strategies.
        callback: Options of the callback.
        n: Samples.
        forget: Positions.
        ckpt_path: Checkpoint to begin with.
        public: Options of a Trainer that trains the "public" part first.
        fit: Train before the request.
        disagree: Every process forgets the sample of its own rank.
        vectors: Take the gradient and a product in place of a request.
        again: Options of a Trainer that trains on after the request.
        resume: From its checkpoint.
        how: To answer the request.
        first: Samples of a training before, or None.
    """

    model: str
    trainer: dict
    callback: dict = field(default_factory=dict)
    n: int = N
    forget: list = field(default_factory=lambda: [3, 100])
    ckpt_path: str | None = None
    public: dict | None = None
    fit: bool = False
    disagree: bool = False
    vectors: bool = False
    again: dict | None = None
    resume: bool = False
    how: str = "auto"
    first: int | None = None


def start(folder, *, anew=False, **job):
    """Run a `Job` in a folder that is made for it.

    Args:
        folder: It.
        anew: In a new interpreter, where Lightning starts the second process itself.
        job: See `Job`.
    """
    folder.mkdir()
    (folder / "job.json").write_text(json.dumps(asdict(Job(**job))))
    if not anew:
        return forked.run(main, folder, strategy=job["trainer"].get("strategy"))
    return subprocess.run(
        [sys.executable, "-m", "tests.plugin.helpers.distributed_job", str(folder)],
        cwd=ROOT, timeout=240, capture_output=True, text=True,
    )  # fmt: skip


def done(folder, **job):
    """What each process told, once all have ended well."""
    ended = start(folder, **job)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return [json.loads(path.read_text()) for path in sorted(folder.glob("?.json"))]


def saved(folder):
    return torch.load(folder / "clean.ckpt", weights_only=True)


def make_trainer(callback, strategy="auto", **options):
    if strategy.startswith("fsdp2"):
        strategy = ModelParallelStrategy(
            data_parallel_size=options["devices"], tensor_parallel_size=1,
            save_distributed_checkpoint=strategy == "fsdp2",
        )  # fmt: skip
    return trainer(callback, strategy=strategy, **options)


def train_in_public(job, callback, net, data):
    """It is not public: the backbone is trained on the same data."""
    net.backbone.requires_grad_(True)
    make_trainer(callback, **job.public).fit(net, data)
    net.backbone.requires_grad_(False)


def take_vectors(job, own, net, data):
    return run_in_trainer(
        own, Vectors(job.forget), model=net, train_dataloaders=data, datamodule=None,
        ckpt_path=job.ckpt_path, weights_only=None,
    ).found  # fmt: skip


def request(job, folder, own, callback, net, data):
    """Make the request, and what comes after it; what is told of it."""
    clean, forget = folder / "clean.ckpt", job.forget
    if job.disagree:
        forget = [int(os.environ.get("LOCAL_RANK", 0))]
    result = own.unlearn(
        forget, model=net, train_dataloaders=data, save_to=clean,
        ckpt_path=job.ckpt_path, how=job.how,
    )  # fmt: skip
    told = {
        "certificate": result.certificate.to_json(),
        "state": state_digest(net.state_dict()),
        "record": callback.state_dict(),
        "world": own.world_size,
        "finite": bool(torch.isfinite(result.solution.x).all()),
    }
    if job.again is not None:
        again = make_trainer(callback, **job.again)
        rest = Subset(digits(job.n), callback.retained_indices)
        again.fit(net, loader(rest), ckpt_path=clean if job.resume else None)
        told["after"] = again.global_step
    return told


def main(folder):
    job = Job(**json.loads((folder / "job.json").read_text()))
    torch.set_num_threads(1)
    fsdp = str(job.trainer.get("strategy")).startswith("fsdp2")

    def make(data):
        anew = make_trainer(UnlearningCallback(), **job.trainer)
        return anew, model(job.model, fsdp), loader(data)

    ledger = folder / "ledger.jsonl"
    callback = UnlearningCallback(ledger=ledger, retrain=make, **job.callback)
    own = make_trainer(callback, **job.trainer)
    net, data = model(job.model, fsdp), loader(dataset(job.model, job.n))
    if job.public is not None:
        train_in_public(job, callback, net, data)
    if job.first is not None:
        sampler = SubsetRandomSampler(range(job.first))
        first = DataLoader(data.dataset, 64, sampler=sampler)
        make_trainer(callback, **job.trainer).fit(net, first)
    if job.fit:
        own.fit(net, data)
    if job.vectors:
        told = take_vectors(job, own, net, data)
    else:
        told = request(job, folder, own, callback, net, data)
    (folder / f"{own.global_rank}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
