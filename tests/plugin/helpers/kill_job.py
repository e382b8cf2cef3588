"""Requests that are killed at chosen points, run by test_crashes.py.

``python -m tests.plugin.helpers.kill_job <folder> <strategy>`` makes one request after
another, each in a process of its own that kills itself with SIGKILL just before the
n-th thing it does to a file, or before the n-th batch, or that is interrupted there. It
prints what is left as JSON.
"""

import json
import os
import shutil
import signal
import sys
import traceback
import warnings
from dataclasses import replace
from pathlib import Path

import torch

from lightning_unlearn import prepare
from lightning_unlearn.certificate import ledger as ledgers
from lightning_unlearn.plugin.files import prepared_file
from lightning_unlearn.weights.digests import state_digest
from tests.helpers.nets import HeadNet, UnlearningCallback, digits, loader, trainer

N = 120
EVENTS = {
    "open",
    "os.link",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.mkdir",
    "shutil.rmtree",
}


class Counted(HeadNet):
    """Counts its batches, and dies before one of them."""

    dies_at = None
    calls = 0

    def training_step(self, batch, batch_idx):
        if self.dies_at is not None and self.global_rank == 0:
            self.calls += 1
            if self.calls == self.dies_at:
                os.kill(os.getpid(), signal.SIGKILL)
        return super().training_step(batch, batch_idx)


def stop():
    os.kill(os.getpid(), signal.SIGKILL)


def interrupt():
    raise KeyboardInterrupt


def at_file(folder, number, what):
    """Do something before the n-th operation on a file that is not read only."""
    seen = []

    def hook(event, args):
        if event not in EVENTS or not str(args[0]).startswith(str(folder)):
            return
        writes = args[2] & os.O_ACCMODE if event == "open" else True
        if not writes:
            return
        seen.append(event)
        if len(seen) == number:
            what()

    sys.addaudithook(hook)


def callback(folder):
    """With a row store where the folder has one: strategy "store", on one device."""
    store = folder / "rows.store"
    options = {"prepared": store} if (folder / "with_store").exists() else {}
    return UnlearningCallback(ledger=folder / "ledger.jsonl", **options)


def request(folder, strategy, net, own=None):
    own = own or callback(folder)
    alone = strategy in ("one", "store")
    devices = {"devices": 1} if alone else {"devices": 2, "strategy": strategy}
    return trainer(own, **devices).unlearn(
        [1, 2], model=net, train_dataloaders=loader(digits(N), 16),
        ckpt_path=folder / "old.ckpt", save_to=folder / "clean.ckpt",
    )  # fmt: skip


def killed(folder, strategy, files=None, batches=None):
    """The exit status of a request that is killed, if it comes that far."""

    def work():
        net = Counted(lr=0.1)
        net.dies_at = batches
        if files is not None:
            at_file(folder, files, stop)
        request(folder, strategy, net)
        return 0

    return in_child(work)


def interrupted(folder, strategy, number):
    """1 if an interrupt left all or nothing in memory and in files; 0 if none came."""

    def work():
        net, own = HeadNet(lr=0.1), callback(folder)
        before = state_digest(net.state_dict())
        at_file(folder, number, interrupt)
        try:
            request(folder, strategy, net, own)
        except BaseException as problem:  # Lightning exits, or a process is gone
            print(repr(problem), file=sys.stderr)
        else:
            return 0
        after = state_digest(net.state_dict())
        assert after == (whole(folder / "clean.ckpt") or before)
        entries = len(ledgers.read(folder / "ledger.jsonl").entries)
        assert entries == (after != before)
        assert own.record.removed == ([] if after == before else [1, 2])
        return 1

    return in_child(work)


def in_child(work):
    child = os.fork()
    if child == 0:
        try:
            os._exit(work())
        except BaseException:
            Path("problem.txt").write_text(traceback.format_exc())
            os._exit(9)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def whole(path):
    """The digest of a checkpoint's weights, if there is one; it must be readable."""
    if not path.exists():
        return None
    return state_digest(torch.load(path, weights_only=True)["state_dict"])


def stored(path):
    """How many samples a row store has, and whether 1 or 2 is one; it is readable."""
    if not path.exists():
        return None
    positions = prepared_file.read(path).positions
    return [len(positions), bool({1, 2} & set(positions))]


def left(folder, old):
    """What a killed request has left, and what the next one makes of it."""
    names = [p.name for p in folder.iterdir() if p.name != "problem.txt"]
    ledger = ledgers.read(folder / "ledger.jsonl")  # raises unless it is valid
    found = {
        "shown": sorted(n for n in names if not n.startswith(".")),
        "old": whole(folder / "old.ckpt") == old,
        "clean": whole(folder / "clean.ckpt"),
        "entries": len(ledger.entries),
        "store": stored(folder / "rows.store"),
    }
    if found["clean"] is None:  # nothing has happened: ask again
        path, forget, net = folder / "old.ckpt", [1, 2], HeadNet(lr=0.1)
    else:  # it was made: go on
        path, forget, net = folder / "clean.ckpt", [3], HeadNet(lr=0.1)
    own = callback(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer(own).unlearn(
            forget, model=net, train_dataloaders=loader(digits(N), 16), ckpt_path=path,
            save_to=folder / "next.ckpt",
        )  # fmt: skip
    after = ledgers.read(folder / "ledger.jsonl").entries
    found["after"] = [entry.n_forget for entry in after]
    found["removed"] = own.record.removed
    names = [p.name for p in folder.iterdir()]
    found["hidden"] = [n for n in names if n.startswith(".") and "lock" not in n]
    found["secret"] = sum(
        n in names for n in ("clean.private.json", "clean.receipts.jsonl")
    )
    found["store_after"] = stored(folder / "rows.store")
    found["certificate"] = (folder / "clean.certificate.json").exists()
    return found


def main(folder, strategy):
    torch.set_num_threads(1)
    own = UnlearningCallback()
    net = HeadNet(lr=0.1)
    first = trainer(own, max_epochs=1)
    first.fit(net, loader(digits(N), 16))
    trained = folder / "trained.ckpt"
    first.save_checkpoint(trained)
    if strategy == "store":
        own.options = replace(own.options, prepared=folder / "rows.store")
        prepare(first)
    old = whole(trained)
    told = []
    # One process alone, interrupted after all is done, leaves the launcher waiting.
    interrupts = 12 if strategy == "ddp_fork" else 60
    for kind, most in (("batches", 6), ("files", 60), ("interrupts", interrupts)):
        for number in range(1, most + 1):
            case = folder / f"{kind}{number}"
            case.mkdir()
            os.chdir(case)
            shutil.copy(trained, case / "old.ckpt")
            if strategy == "store":
                shutil.copy(folder / "rows.store", case)
                (case / "with_store").touch()
            if kind == "interrupts":
                ended = interrupted(case, strategy, number)
            else:
                ended = killed(case, strategy, **{kind: number})
            if ended == 0:  # there was no n-th operation
                break
            told.append({"kind": kind, "number": number, "ended": ended})
            told[-1] |= left(case, old)
    print(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
