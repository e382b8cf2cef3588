"""Images: 20 classes of CIFAR-100 on a ResNet-20 of CIFAR-10; a seed is a group."""

import sys
from functools import cache, partial
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from ways import (
    Private,
    Rows,
    Tuned,
    audited_head,
    audited_private,
    certified,
    choose_private,
    network_trainer,
    percent,
    private,
    refit,
    retrained,
    told,
)

sys.path.insert(0, str(Path(__file__).parent.parent / "public"))
import world
from heads import Kind
from networks import _augmented

GROUPS, EPOCHS = world.GROUPS[:3], 12
FIVE = ("layer2.1", "layer2.2", "layer3.0", "layer3.1", "layer3.2")
#: As benchmarks/public chose them on the group that it does not measure either.
VIEWED = Kind(FIVE, (3, 3), l2=3e-3, views=True, batch_size=10)
SINGLE = Kind(FIVE, (3, 3), l2=3e-3)
LAST = Kind(("layer3.2",), (1, 1))
SETTINGS = [Private(lr, 20, 250) for lr in (0.02, 0.1, 0.4)]


def few(data: TensorDataset, most: int | None) -> TensorDataset:
    """Of a quick try, the first."""
    return TensorDataset(*(t[:most] for t in data.tensors))


@cache
def task(group: int, most: int | None):
    """Training and test images of a group."""
    train, test = world.private(group)
    return few(train, most), few(test, most)


@cache
def backbone(kind: Kind):
    return kind.backbone(world.resnet20(), world.public_images())


def rows(kind: Kind, group: int, most: int | None) -> Rows:
    """What a head sees of a group."""
    train, test = task(group, most)
    train = world.viewed(train) if kind.views else train
    read = backbone(kind).features
    return Rows(read(train.tensors[0]), train.tensors[1],
                read(test.tensors[0]), test.tensors[1])  # fmt: skip


def person(kind: Kind, group: int) -> list[int]:
    """The rows of one image."""
    views = len(world.VIEWS) if kind.views else 1
    return [group * views + k for k in range(views)]


def head(group: int, most: int | None):
    train, test = task(group, most)
    loader = DataLoader(world.viewed(train), 250, shuffle=True)
    x_test = backbone(VIEWED).features(test.tensors[0])
    return certified(
        backbone(VIEWED), world.N_CLASSES, VIEWED.l2, loader, person(VIEWED, group),
        lambda net: percent(net.head, x_test, test.tensors[1]),
    )  # fmt: skip


def augmented(batch):
    images = _augmented(batch[0]).contiguous(memory_format=torch.channels_last)
    return images, batch[1]


def network(epochs: int):
    """(how the whole network is made and trained), as benchmarks/public does it."""

    def sgd(module, steps):
        body, last = module.net
        groups = [
            {"params": body.parameters(), "lr": 0.1},
            {"params": last.parameters(), "lr": 1.0},
        ]
        optimizer = torch.optim.SGD(
            groups, momentum=0.9, nesterov=True, weight_decay=5e-4
        )
        return optimizer, torch.optim.lr_scheduler.OneCycleLR(
            optimizer, [0.1, 1.0], total_steps=steps
        )

    def make(data):
        body = world.resnet20().requires_grad_(True).train()  # it came in eval mode
        net = nn.Sequential(body, nn.Linear(64, world.N_CLASSES))
        own = network_trainer(make, epochs, "bf16-mixed")
        module = Tuned(net, sgd, augmented)
        return own, module, DataLoader(data, 64, shuffle=True)

    return make


def fine_tuned(group: int, most: int | None, epochs: int):
    train, test = task(group, most)

    def rate(net):
        return percent(net.eval(), *test.tensors)

    return retrained(network(epochs), train, [group], rate, group)


def choice(most: int | None):
    """For the private training, on training images of the group that is not measured.

    The head's features and l2 were chosen on that group by benchmarks/public.
    """
    named = {
        "last layer": rows(LAST, world.TUNING, most).split(),
        "five blocks": rows(SINGLE, world.TUNING, most).split(),
    }
    return told(**choose_private(named, SETTINGS), head="five blocks, ten views",
                l2=VIEWED.l2)  # fmt: skip


def cells(known, quick: bool):
    """(name of a cell, how to measure it); `known` gives what was measured before."""
    most, epochs, groups = (60, 1, GROUPS[:1]) if quick else (None, EPOCHS, GROUPS)

    def private_kind():
        chosen = known("images | choice | 0")
        kind = LAST if chosen["features"] == "last layer" else SINGLE
        return kind, Private(*chosen["private"])

    def privately(group):
        kind, settings = private_kind()
        return private(rows(kind, group, most), [group], settings)

    def audit_private():
        kind, settings = private_kind()
        z = known(f"images | private | {groups[0]}")["noise_multiplier"]
        canaries = 20 if quick else 50
        return audited_private(rows(kind, groups[0], most), settings, z, canaries)

    for group in groups:
        yield f"images | certified | {group}", partial(head, group, most)
        yield f"images | network | {group}", partial(fine_tuned, group, most, epochs)
    yield "images | choice | 0", partial(choice, most)
    for group in groups:
        yield f"images | private | {group}", partial(privately, group)
    yield (
        f"images | audit certified | {groups[0]}",
        lambda: audited_head(
            rows(SINGLE, groups[0], most), SINGLE.l2, 20 if quick else 100
        ),
    )
    for group in groups:
        yield (
            f"images | refit | {group}",
            lambda g=group: refit(rows(VIEWED, g, most), person(VIEWED, g), VIEWED.l2),
        )
    yield f"images | audit private | {groups[0]}", audit_private
