"""A convex head on several depths of a public network: accurate, certified, fast?

    LIGHTNING_UNLEARN_DATA=folder python benchmarks/public/run.py [--draw]

Public: a ResNet-20 of CIFAR-10, and a plain CNN trained here on CIFAR-10. Private: four
groups of 20 classes of CIFAR-100, 2,000 training and 400 test images each; 500 random
training images are forgotten. Settings (l2, depths, learning rate, epochs) were chosen
on a fifth group, which is not measured. About an hour on one thread; what is measured
is kept in results/public-backbone.json, and only what is missing there is run again.
--draw only makes the table and the figure.
"""

import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
import world
from auditing import audited
from draw import publish_all
from heads import Kind, curve, distances, request, solved
from networks import fine_tuned, noisy

FILE = world.ROOT / "results" / "public-backbone.json"
SEVERAL = Kind()
FIVE = ["layer2.1", "layer2.2", "layer3.0", "layer3.1", "layer3.2"]
ALONE = "several depths, samples read one by one"
KINDS = {
    "last layer": Kind(taps=["layer3.2"], pool=(1, 1)),
    "several depths": SEVERAL,
    "several depths, 100 releases": replace(SEVERAL, releases=100, tolerance=1e-8),
    "five blocks, 3 x 3 grid": replace(SEVERAL, taps=FIVE, pool=(3, 3)),
    ALONE: replace(SEVERAL, batch_size=1),
    "several depths, squared error": replace(
        SEVERAL, loss="mse", l2=1e-3, tolerance=1e-8
    ),
}
CNN = {
    "last layer": Kind(taps=["blocks.3"], pool=(1, 1)),
    "several depths": SEVERAL,
}
SEEDS = (0, 1, 2)


def forgotten(group, seed):
    """500 positions."""
    generator = torch.Generator().manual_seed(1000 * group + seed)
    return torch.randperm(2000, generator=generator)[: world.N_FORGET].tolist()


def rest(dataset, forget):
    """The retained images as tensors."""
    keep = torch.ones(len(dataset), dtype=torch.bool)
    keep[forget] = False
    return torch.utils.data.TensorDataset(*(t[keep] for t in dataset.tensors))


def head_cells(model, kinds, group):
    """Name of a cell -> how to measure it."""
    train, test = world.private(group)

    def one(kind, seed):
        backbone = kind.backbone(model, world.public_images())
        rows, y = backbone.features(test.tensors[0]), test.tensors[1]
        return request(backbone, kind, train, rows, y, forgotten(group, seed))

    for name, kind in kinds.items():
        for seed in SEEDS:
            yield f"{name} | seed {seed}", lambda k=kind, s=seed: one(k, s)


def curve_cell(model, kind, group):
    """The true distance, and accuracy against epsilon."""
    train, test = world.private(group)
    backbone = kind.backbone(model, world.public_images())
    net, w, found = distances(backbone, kind, train, forgotten(group, 0))
    rows = backbone.features(test.tensors[0])
    return {**found, "curve": curve(net, w, kind, rows, test.tensors[1])}


def network_cell(model, width, augment, group):
    """Ordinary fine-tuning on the retained images."""
    train, test = world.private(group)
    retained = rest(train, forgotten(group, 0))
    accuracy, seconds = fine_tuned(model, retained, test, width, augment, group)
    return {"accuracy": accuracy, "seconds": seconds}


def noisy_cell(model, group):
    """Noisy fine-tuning at several epsilons."""
    train, test = world.private(group)
    retained = rest(train, forgotten(group, 0))
    return {str(e): noisy(model, retained, test, 64, e) for e in (1.0, 10.0, 100.0)}


def timing_cell(model, group):
    """Requests and fine-tuning in turn, with nothing else at work."""
    train, test = world.private(group)
    backbone = SEVERAL.backbone(model, world.public_images())
    found = {"request": [], ALONE: [], "fine-tuning": [], "augmented": []}
    for seed in SEEDS:
        forget = forgotten(group, seed)
        for name, kind in (("request", SEVERAL), (ALONE, KINDS[ALONE])):
            _, trainer = solved(backbone, kind, train)
            found[name].append(trainer.unlearn(forget).seconds)
    retained = rest(train, forgotten(group, 0))
    for name, augment in (("fine-tuning", False), ("augmented", True)):
        found[name].append(fine_tuned(model, retained, test, 64, augment, group)[1])
    return found


def audit_cell(model, group):
    """Ten audits, and one of a model that is not unlearned."""
    train, _ = world.private(group)
    backbone = SEVERAL.backbone(model, world.public_images())
    found, trained = audited(backbone, SEVERAL, train, world.public_images())
    return {"audits": found, "trained": trained}


def cells():
    """Everything, the quick and important first."""
    model = world.resnet20()
    for group in world.GROUPS:
        for name, work in head_cells(model, KINDS, group):
            yield f"resnet | {group} | {name}", work
        for name in ("last layer", "several depths", "several depths, 100 releases"):
            yield (
                f"resnet | {group} | curve | {name}",
                lambda k=KINDS[name], g=group: curve_cell(model, k, g),
            )
    for group in world.GROUPS:
        for augment in (False, True):
            yield (
                f"resnet | {group} | fine-tuning | {augment}",
                lambda a=augment, g=group: network_cell(model, 64, a, g),
            )
    yield "resnet | 1 | audit", lambda: audit_cell(model, 1)
    yield "resnet | 1 | noisy", lambda: noisy_cell(model, 1)
    yield "resnet | 1 | timing", lambda: timing_cell(model, 1)
    kept = Path(tempfile.gettempdir()) / "lightning_unlearn_benchmark" / "cnn.pt"
    cnn = world.plain_cnn(kept)
    for group in world.GROUPS[:2]:
        for name, work in head_cells(cnn, CNN, group):
            yield f"cnn | {group} | {name}", work
        for augment in (False, True):
            yield (
                f"cnn | {group} | fine-tuning | {augment}",
                lambda a=augment, g=group: network_cell(cnn, 128, a, g),
            )


def measured(name: str, work: Callable[[], dict], known: dict) -> None:
    """Measure a cell that is not known, and keep it."""
    if name not in known:
        known[name] = work()
        FILE.write_text(json.dumps(known, indent=1) + "\n")
        print(name, known[name], flush=True)


def main():
    torch.set_num_threads(1)
    known = json.loads(FILE.read_text()) if FILE.exists() else {}
    if "--draw" not in sys.argv:
        for name, work in cells():
            measured(name, work, known)
    publish_all(known)


if __name__ == "__main__":
    main()
