"""Requests that are killed while they replace a clean checkpoint.

``python -m tests.plugin.helpers.kill_replacing <folder> ledger|none`` kills a request
before the n-th operation on a file, for every n, lets the next one go on from what is
there, and prints what was found as JSON.
"""

import json
import os
import shutil
import sys
import warnings
from pathlib import Path

import torch

from lightning_unlearn import Certificate
from lightning_unlearn.plugin.files import checkpoint, replacement
from tests.helpers.nets import HeadNet, UnlearningCallback, digits, loader, trainer
from tests.plugin.helpers.kill_job import at_file, in_child, stop

N = 120


def request(folder, forget, ledger, ckpt="clean.ckpt"):
    own = UnlearningCallback(ledger=folder / "ledger.jsonl" if ledger else None)
    trainer(own).unlearn(
        forget, model=HeadNet(lr=0.1), train_dataloaders=loader(digits(N), 16),
        ckpt_path=folder / ckpt, save_to=folder / "clean.ckpt", overwrite=True,
    )  # fmt: skip
    return own.record.removed


def killed(folder, number, ledger):
    def work():
        at_file(folder, number, stop)
        request(folder, [3], ledger)
        return 0

    return in_child(work)


def left(folder, ledger):
    """What whoever reads the checkpoint next finds, and a request after it."""
    clean = folder / "clean.ckpt"
    replacement.finish(clean)  # as every request and every fit that reads it does
    record = checkpoint.record_in(clean)
    certificate = Certificate.from_json(record["certificate"])
    shown = Certificate.from_json((folder / "clean.certificate.json").read_text())
    lines = (folder / "clean.receipts.jsonl").read_text().splitlines()
    opened = json.loads(lines[0])
    ids = {certificate.request_id, shown.request_id, opened["request_id"]}
    found = {
        "removed": record["removed"],  # there only if the private file belongs to it
        "made": certificate.release == 2,
        "one_request": len(ids) == 1,
        "seconds": [p.name for p in folder.iterdir() if p.name.endswith(".old")],
    }
    forget = [3] if not found["made"] else [4]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        after = request(folder, forget, ledger)
    found["after"] = [i for i in after if i != 4]
    return found


def main(folder, ledger):
    torch.set_num_threads(1)
    made = folder / "made"
    made.mkdir()
    first = trainer(
        UnlearningCallback(ledger=made / "ledger.jsonl" if ledger else None),
        max_epochs=1,
    )
    first.fit(HeadNet(lr=0.1), loader(digits(N), 16))
    first.unlearn([1, 2], save_to=made / "clean.ckpt")
    told = []
    for number in range(1, 60):
        case = folder / f"case{number}"
        shutil.copytree(made, case)
        os.chdir(case)
        ended = killed(case, number, ledger)
        if ended == 0:  # there was no n-th operation
            break
        told.append({"number": number, "ended": ended} | left(case, ledger))
    print(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] == "ledger")
