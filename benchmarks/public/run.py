"""A convex head on several depths of a public network: accurate, certified, fast?

    LIGHTNING_UNLEARN_DATA=folder python benchmarks/public/run.py

Public: a ResNet-20 of CIFAR-10, and a plain CNN trained here on CIFAR-10. Private: four
groups of 20 classes of CIFAR-100, 2,000 training and 400 test images each; 500 random
training images are forgotten. Settings (l2, depths, learning rate, epochs) were chosen
on a fifth group, which is not measured. Three hours on one thread; what is measured is
kept in results/public-backbone.json, and only what is missing there is run again.
"""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch.utils.data import TensorDataset

sys.path.insert(0, str(Path(__file__).parent))
import world
from auditing import audited
from common import machine
from draw import publish_all
from heads import Kind, curve, distances, request, solved
from networks import fine_tuned, from_new, noisy, reset

FILE = world.ROOT / "results" / "public-backbone.json"
SEVERAL = Kind()
FIVE = replace(
    SEVERAL, pool=(3, 3),
    taps=["layer2.1", "layer2.2", "layer3.0", "layer3.1", "layer3.2"],
)  # fmt: skip
ALONE = "several depths, samples read one by one"
VIEWED = "five blocks, ten views of each image"
KINDS = {
    "last layer": Kind(taps=["layer3.2"], pool=(1, 1)),
    "several depths": SEVERAL,
    "several depths, 100 releases": replace(SEVERAL, releases=100, tolerance=1e-8),
    "five blocks, 3 x 3 grid": FIVE,
    ALONE: replace(SEVERAL, batch_size=1),
    VIEWED: replace(FIVE, views=True, batch_size=10),
    "several depths, squared error": replace(
        SEVERAL, loss="mse", l2=1e-3, tolerance=1e-8
    ),
}
CNN = {
    "last layer": Kind(taps=["blocks.3"], pool=(1, 1)),
    "several depths": SEVERAL,
    "several depths, ten views of each image": replace(
        SEVERAL, views=True, batch_size=10
    ),
}
CURVES = ("last layer", "several depths", "several depths, 100 releases", VIEWED)
SEEDS = (0, 1, 2)


def forgotten(group, seed):
    """500 positions."""
    generator = torch.Generator().manual_seed(1000 * group + seed)
    return torch.randperm(2000, generator=generator)[: world.N_FORGET].tolist()


def retained(group):
    """(what is left of the images, test data), for whole networks."""
    train, test = world.private(group)
    keep = torch.ones(len(train), dtype=torch.bool)
    keep[forgotten(group, 0)] = False
    return TensorDataset(*(t[keep] for t in train.tensors)), test


def task(kind, group, seed):
    """(private training data, positions to forget, test data)."""
    train, test = world.private(group)
    forget, views = forgotten(group, seed), len(world.VIEWS)
    if kind.views:
        forget = [views * i + k for i in forget for k in range(views)]
    return world.viewed(train) if kind.views else train, forget, test


def head_cell(model, kind, group, seed):
    """A certified request, and retraining without noise."""
    train, forget, test = task(kind, group, seed)
    backbone = kind.backbone(model(), world.public_images())
    rows = backbone.features(test.tensors[0])
    return request(backbone, kind, train, rows, test.tensors[1], forget)


def curve_cell(model, kind, group):
    """The true distance, and accuracy against epsilon."""
    train, forget, test = task(kind, group, 0)
    backbone = kind.backbone(model(), world.public_images())
    net, w, found = distances(backbone, kind, train, forget)
    rows = backbone.features(test.tensors[0])
    return {**found, "curve": curve(net, w, kind, rows, test.tensors[1])}


def network_cell(model, width, augment, group):
    """Ordinary fine-tuning on the retained images."""
    accuracy, seconds = fine_tuned(model(), *retained(group), width, augment, group)
    return {"accuracy": accuracy, "seconds": seconds}


def noisy_cell(model, group):
    """Noisy fine-tuning at several epsilons."""
    data = retained(group)
    return {str(e): noisy(model(), *data, 64, e) for e in (1.0, 10.0, 100.0)}


def reset_cell(model, group):
    """The same at epsilon 1, then fine-tuning without noise, as its authors do."""
    accuracy, seconds = reset(model(), *retained(group), 64, 1.0, group)
    found = {"accuracy": accuracy, "seconds": seconds}
    accuracy, seconds = from_new(model(), *retained(group), 64, group)
    found |= {"from_new": accuracy, "seconds_from_new": seconds}
    return {**found, "machine": machine()}


def timing_cell(model, group):
    """Requests, and fine-tuning on what is left, with nothing else at work."""
    found = {name: [] for name in ("several depths", ALONE, VIEWED)}
    for seed in SEEDS:
        for name, seconds in found.items():
            train, forget, _ = task(KINDS[name], group, seed)
            backbone = KINDS[name].backbone(model(), world.public_images())
            _, trainer = solved(backbone, KINDS[name], train)
            seconds.append(trainer.unlearn(forget).seconds)
    for name, augment in (("fine-tuning", False), ("augmented", True)):
        found[name] = [network_cell(model, 64, augment, group)["seconds"]]
    return found


def audit_cell(model, group):
    """Ten audits, and one of a model that is not unlearned."""
    train, _ = world.private(group)
    backbone = SEVERAL.backbone(model(), world.public_images())
    found, trained = audited(backbone, SEVERAL, train, world.public_images())
    return {"audits": found, "trained": trained}


def head_cells(net, model, kinds, group):
    """(name of a cell, how to measure it) of each kind and seed."""
    for name, kind in kinds.items():
        for seed in SEEDS:
            work = partial(head_cell, model, kind, group, seed)
            yield f"{net} | {group} | {name} | seed {seed}", work


def network_cells(net, model, width, group):
    """The same of whole networks."""
    for augment in (False, True):
        work = partial(network_cell, model, width, augment, group)
        yield f"{net} | {group} | fine-tuning | {augment}", work


def cells():
    """Everything, the quick and important first."""
    for group in world.GROUPS:
        yield from head_cells("resnet", world.resnet20, KINDS, group)
        for name in CURVES:
            work = partial(curve_cell, world.resnet20, KINDS[name], group)
            yield f"resnet | {group} | curve | {name}", work
    for group in world.GROUPS:
        yield from network_cells("resnet", world.resnet20, 64, group)
    yield "resnet | 1 | audit", partial(audit_cell, world.resnet20, 1)
    yield "resnet | 1 | noisy", partial(noisy_cell, world.resnet20, 1)
    yield "resnet | 1 | reset", partial(reset_cell, world.resnet20, 1)
    yield "resnet | 1 | timing", partial(timing_cell, world.resnet20, 1)
    for group in world.GROUPS[:2]:
        yield from head_cells("cnn", world.plain_cnn, CNN, group)
        yield from network_cells("cnn", world.plain_cnn, 128, group)


def read() -> dict:
    """What is measured so far."""
    return json.loads(FILE.read_text()) if FILE.exists() else {}


def measure(name: str, work: Callable[[], dict]) -> None:
    """Keep one more; others may be at work on the same file."""
    found = work()
    FILE.write_text(json.dumps({**read(), name: found}, indent=1) + "\n")
    print(name, found, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--draw", action="store_true", help="measure nothing")
    parser.add_argument("--only", default="", help="names that begin so, as 'cnn'")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name, work in () if options.draw else cells():
        if name.startswith(options.only) and name not in read():
            measure(name, work)
    publish_all(read())


if __name__ == "__main__":
    main()
