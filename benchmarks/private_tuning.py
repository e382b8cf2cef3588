"""Fine-tune a public network privately: accuracy against epsilon, beside other ways.

    LIGHTNING_UNLEARN_DATA=folder python benchmarks/private_tuning.py

The large CNN of `private_training` is trained on the digits 0 to 4 of MNIST, which are
public here, and then tuned on the digits 5 to 9: privately (all weights), privately
from a fresh start, ordinarily, and not at all, with a certified head where there can be
one. Settings are those of `private_training`, not chosen for this. Finished runs are
kept in ``results/private-tuning.json``.
"""

import functools
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, accuracy, mnist, publish, table, trainer
from private_training import (
    CNN,
    DELTA,
    GROUPS,
    L2,
    MORE,
    SETTINGS,
    TAPS,
    head_on,
    read_at,
    spread,
)
from torch.utils.data import DataLoader, TensorDataset

import lightning_unlearn as lu
from lightning_unlearn.guarantee.accounting.private_training import Mechanism, privacy

BATCH, EPOCHS, NOISE, RUNS = 500, 5, 1.75, 2
CLIP, LR = SETTINGS["large"]
KEPT = RESULTS / "private-tuning.json"


def part(data: TensorDataset, public: bool) -> TensorDataset:
    """Digits 0 to 4, or 5 to 9."""
    x, y = data.tensors
    chosen = (y < 5) == public
    return TensorDataset(x[chosen], y[chosen])


@functools.cache
def public_weights(run: int) -> dict[str, Any]:
    """Of an ordinary training on the public digits."""
    torch.manual_seed(run)
    net = CNN("large", lr=0.1)
    tune(net, part(mnist("train"), True))
    return {name: t.clone() for name, t in net.state_dict().items()}


def tune(net: CNN, train: TensorDataset) -> None:
    """Ordinary training, without a callback: what is public was not seen by one."""
    optimizer: Any = net.configure_optimizers()
    for _ in range(EPOCHS):
        for i, batch in enumerate(DataLoader(train, BATCH, shuffle=True)):
            optimizer.zero_grad()
            net.training_step(batch, i).backward()
            optimizer.step()


def network(run: int, lr: float, fresh: bool = False) -> CNN:
    """With the public weights, or without."""
    net = CNN("large", lr)
    if not fresh:
        net.load_state_dict(public_weights(run))
    return net


def privately(run: int, fresh: bool, train: Any, test: Any) -> dict[str, Any]:
    """All weights tuned privately, one request; and a certified head on it."""
    net = network(run, LR, fresh)
    settings = lu.PrivateTraining(noise_multiplier=NOISE, max_grad_norm=CLIP)
    callback = lu.UnlearningCallback(epsilon=20.0, delta=DELTA, private=settings)
    fit, cpu = trainer(callback, EPOCHS), time.process_time()
    fit.fit(net, DataLoader(train, BATCH, shuffle=True))
    spent = time.process_time() - cpu
    steps = callback.record.private
    assert steps is not None
    made = Mechanism(NOISE, steps.sampling_rate, steps.steps)
    alone = {k: privacy(made, k, DELTA).epsilon for k in GROUPS}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "private.ckpt"
        fit.save_checkpoint(path)
        cpu = time.process_time()
        result = fit.unlearn([7], save_to=Path(folder) / "clean.ckpt")
        deleted = time.process_time() - cpu
        features = lu.PrivatelyTrained(CNN("large", 0.0), path, **read_at("large"))
    assert result.certificate.grade.value == "certified", result
    head = head_on(features, MORE * alone[1], train, test)
    head["epsilon"] = {k: privacy(made, k, DELTA, head["mu"]).epsilon for k in GROUPS}
    return {
        "accuracy": accuracy(net, test), "fit": spent, "deleted": deleted,
        "epsilon": alone, "head": head,
    }  # fmt: skip


def on_public(run: int, train: Any, test: Any) -> dict[str, Any]:
    """A certified head on the public network as it is."""
    features = lu.PublicBackbone(network(run, 0.0), **read_at("large"))
    head = head_on(features, 1.0, train, test)
    return {**head, "epsilon": dict.fromkeys(GROUPS, head["stated"])}


def ordinarily(run: int, train: Any, test: Any) -> dict[str, Any]:
    """All weights tuned as usual: no certificate."""
    net, cpu = network(run, lr=0.1), time.process_time()
    tune(net, train)
    return {"accuracy": accuracy(net, test), "fit": time.process_time() - cpu}


WAYS: dict[str, Callable[[int, Any, Any], dict[str, Any]]] = {
    "tuned ordinarily": ordinarily,
    "tuned privately": lambda run, *data: privately(run, False, *data),
    "private, from a fresh start": lambda run, *data: privately(run, True, *data),
    "a certified head on the public network": on_public,
}


def main() -> None:
    torch.set_num_threads(1)
    train, test = part(mnist("train"), False), part(mnist("t10k"), False)

    def kept() -> dict[str, Any]:
        return json.loads(KEPT.read_text()) if KEPT.exists() else {}

    for run in range(1, RUNS + 1):
        for way, make in WAYS.items():
            name = f"{way} | {run}"
            if name not in kept():
                found = make(run, train, test)
                print(name, found, file=sys.stderr, flush=True)
                KEPT.write_text(json.dumps({**kept(), name: found}, indent=1) + "\n")
    show(kept())


def show(kept: dict[str, Any]) -> None:
    """The table of what is kept."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for name, found in kept.items():
        way = name.partition(" | ")[0]
        groups.setdefault(way, []).append(found)
        if "head" in found:
            groups.setdefault(f"{way}, a head on it", []).append(found["head"])
    rows = []
    for way, runs in groups.items():
        told = runs[0].get("epsilon", {})
        rows.append([
            way, spread([100 * run["accuracy"] for run in runs]), len(runs),
            *(f"{told[str(k)]:.4g}" if told else "-" for k in GROUPS),
            f"{max(run['fit'] for run in runs):.0f}",
            f"{max(r['deleted'] for r in runs):.2f}" if "deleted" in runs[0] else "-",
        ])  # fmt: skip
    publish(
        "private-tuning",
        "A public network, tuned privately",
        "Command: `python benchmarks/private_tuning.py`.",
        "MNIST: a CNN of 26,010 weights that was trained on the digits 0 to 4 (30,596 "
        "images, taken as public), then tuned on 29,404 images of the digits 5 to 9, "
        f"and tested on 4,861 of these; {EPOCHS} epochs, batches of {BATCH}. Private: "
        f"noise multiplier {NOISE:g}, clip {CLIP:g}, learning rate {LR:g}; ordinary: "
        "learning rate 0.1. All of it from [private training](private-training.md), "
        f"not chosen here. Heads: l2 = {L2:g}, read at {', '.join(TAPS['large'])}. "
        f"Mean ± standard deviation over runs; epsilon at delta = {DELTA:g}.",
        table(
            ["", "test accuracy, %", "runs",
             *(f"epsilon, {k} forgotten" for k in GROUPS), "CPU seconds of fit",
             "of a deletion"],
            rows,
        ),
        "CPU seconds are the largest of the runs, on one thread of two cores, with "
        "tests at work beside it.",
    )  # fmt: skip


if __name__ == "__main__":
    main()
