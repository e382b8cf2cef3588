"""Requests by retraining that are killed at chosen points.

``python -m tests.plugin.helpers.kill_retraining <folder>`` makes one request after
another, each in a process of its own that kills itself with SIGKILL just before the
n-th hook of its retraining (steps, epochs and checkpoints), or just before the n-th
thing it does to a file. Each is asked again, in a process that was not killed, from the
retraining's newest checkpoint if one is there. It prints what was found as JSON.
"""

import json
import os
import shutil
import sys
import warnings
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_unlearn.certificate import ledger as ledgers
from lightning_unlearn.certificate.verification import verify_text
from lightning_unlearn.errors import SetupError
from tests.helpers.lightning import Callback, L, ModelCheckpoint
from tests.helpers.nets import UnlearningCallback, digits, loader, trainer
from tests.plugin.helpers.kill_job import at_file, in_child, stop, whole

N, BATCH, EPOCHS = 60, 20, 2  # three batches an epoch
FORGET = [1, 2]
HOOKS = (
    *("on_fit_start", "on_train_start", "on_train_epoch_start", "on_train_batch_start"),
    *("on_train_batch_end", "on_train_epoch_end", "on_save_checkpoint", "on_train_end"),
    "teardown",
)


class Net(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10)
        )

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


class Dies(Callback):
    """Before the n-th hook that it hears; None: never."""

    def __init__(self, number):
        self.number, self.heard = number, 0

    def hear(self, *args, **options):
        self.heard += 1
        if self.heard == self.number:
            stop()


for name in HOOKS:
    setattr(Dies, name, Dies.hear)


def request(folder, dies=None, **options):
    """The result of a request of a fresh process."""

    def make(samples):
        kept = [
            ModelCheckpoint(folder, "anew-{step}", save_top_k=-1),
            ModelCheckpoint(
                folder, "anew-half-{step}", save_top_k=-1, every_n_train_steps=2
            ),
        ]
        own = trainer(
            UnlearningCallback(retrain=make), EPOCHS, enable_checkpointing=True,
            callbacks=[Dies(dies), *kept],
        )  # fmt: skip
        return own, Net(), DataLoader(samples, BATCH, shuffle=True)

    own = UnlearningCallback(ledger=folder / "ledger.jsonl", retrain=make)
    return trainer(own).unlearn(
        FORGET, model=Net(), train_dataloaders=loader(digits(N), BATCH), how="retrain",
        ckpt_path=folder / "old.ckpt", save_to=folder / "clean.ckpt", **options,
    )  # fmt: skip


def killed(folder, hooks=None, files=None):
    """The exit status of a request that is killed, if it comes that far."""

    def work():
        if files is not None:
            at_file(folder, files, stop)
        request(folder, hooks)
        return 0

    return in_child(work)


def newest(folder):
    """The retraining's last checkpoint; all must be whole."""
    found = sorted(
        folder.glob("anew-*.ckpt"), key=lambda path: torch.load(path)["global_step"]
    )
    return found[-1] if found else None


def left(folder, old):
    """What a killed request has left, and what the same request then comes to."""
    shown = [p.name for p in folder.iterdir() if not p.name.startswith((".", "anew"))]
    half = newest(folder)
    found = {
        "old": whole(folder / "old.ckpt") == old,
        "made": whole(folder / "clean.ckpt") is not None,
        "shown": sorted(shown),
        "entries": len(ledgers.read(folder / "ledger.jsonl").entries),  # or it raises
        "resumed": None if half is None else torch.load(half)["global_step"],
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            result = request(folder, resume_from=half)
        except SetupError as problem:  # it was made: the ledger has been completed
            found["again"] = str(problem)
        else:
            found["steps"] = result.solution.steps
    found["after"] = [
        entry.n_forget for entry in ledgers.read(folder / "ledger.jsonl").entries
    ]
    same = half is not None and whole(half) == whole(folder / "clean.ckpt")
    found["weights_as_resumed"] = same
    text = (folder / "clean.certificate.json").read_text()
    found["certificate"] = json.loads(text)["grade"]
    findings = verify_text(
        text, (folder / "ledger.jsonl").read_text(), whole(folder / "clean.ckpt")
    )
    found["failed"] = [str(f) for f in findings if f.holds is False]
    names = [p.name for p in folder.iterdir()]
    found["hidden"] = [n for n in names if n.startswith(".") and "lock" not in n]
    found["secret"] = sum(
        n in names for n in ("clean.private.json", "clean.receipts.jsonl")
    )
    return found


def main(folder):
    torch.set_num_threads(1)
    first = trainer(UnlearningCallback(), 1)
    first.fit(Net(), loader(digits(N), BATCH))
    trained = folder / "trained.ckpt"
    first.save_checkpoint(trained)
    old, told = whole(trained), []
    for kind in ("hooks", "files"):
        for number in range(1, 100):
            case = folder / f"{kind}{number}"
            case.mkdir()
            os.chdir(case)
            shutil.copy(trained, case / "old.ckpt")
            ended = killed(case, **{kind: number})
            if ended == 0:  # there was no n-th of them
                break
            told.append({"kind": kind, "number": number, "ended": ended})
            told[-1] |= left(case, old)
    print(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
