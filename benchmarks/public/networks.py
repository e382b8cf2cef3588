"""The whole network: ordinary fine-tuning, and noisy fine-tuning with a claim."""

import copy
import time

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.data import DataLoader, TensorDataset
from world import DELTA, N_CLASSES, accuracy

from lightning_unlearn.errors import ModelError
from lightning_unlearn.evaluation import fine_tune, noisy_fine_tune

_BATCH, _EPOCHS, _LR = 64, 20, 0.1  # chosen on the tuning group


def _augmented(x):
    """A flip for each image, a shift of up to four pixels for each batch."""
    flipped = torch.rand(len(x)) < 0.5
    x = torch.where(flipped[:, None, None, None], x.flip(3), x)
    left, up = torch.randint(0, 9, (2,)).tolist()
    return F.pad(x, (4, 4, 4, 4))[:, :, up : up + 32, left : left + 32]


def fine_tuned(model, dataset, test, width, augment, seed):
    """(accuracy in percent, seconds): all weights, from the public ones.

    SGD with Nesterov momentum, one cycle of the learning rate, ten times as much for
    the new head, over images held in memory.
    """
    torch.manual_seed(seed)
    net, head = copy.deepcopy(model).requires_grad_(True), nn.Linear(width, N_CLASSES)
    groups = [
        {"params": net.parameters(), "lr": _LR},
        {"params": head.parameters(), "lr": 10 * _LR},
    ]
    optimizer = torch.optim.SGD(groups, momentum=0.9, nesterov=True, weight_decay=5e-4)
    x, y = dataset.tensors
    steps = _EPOCHS * -(-len(x) // _BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [_LR, 10 * _LR], total_steps=steps
    )
    begin = time.perf_counter()
    net.train()
    for _ in range(_EPOCHS):
        for part in torch.randperm(len(x)).split(_BATCH):
            batch = _augmented(x[part]) if augment else x[part]
            optimizer.zero_grad()
            F.cross_entropy(head(net(batch)), y[part]).backward()
            optimizer.step()
            schedule.step()
    seconds = time.perf_counter() - begin
    net.eval()
    with torch.no_grad():
        found = head(net(test.tensors[0]))
    return accuracy(found, test.tensors[1]), seconds


def noisy(model, dataset: TensorDataset, test: TensorDataset, width, epsilon):
    """Accuracy in percent by Koloskova et al., 2025; None if the noise overflows.

    Batch normalisation is folded into the convolutions: its statistics would get no
    noise.
    """
    try:
        net, _ = _noisy(model, DataLoader(dataset, 250), width, epsilon, radius=1.0)
    except ModelError as error:
        if "finite" not in str(error):
            raise
        return None
    return _accuracy(net, test)


def reset(model, dataset: TensorDataset, test: TensorDataset, width, epsilon, seed):
    """(accuracy in percent, seconds): the same, then epochs without noise by Adam.

    From a ball so small that the noisy weights have the size of a new network's.
    """
    torch.manual_seed(seed)
    net, seconds = _noisy(
        model,
        DataLoader(dataset, _BATCH, shuffle=True),
        width,
        epsilon,
        radius=1.3e-3,
        fine_tune_epochs=_EPOCHS,
        optimizer=_adam,
    )
    return _accuracy(net, test), seconds


def from_new(model, dataset: TensorDataset, test: TensorDataset, width, seed):
    """(accuracy in percent, seconds): those epochs from weights as torch makes them."""
    torch.manual_seed(seed)
    net = nn.Sequential(_folded(copy.deepcopy(model)), nn.Linear(width, N_CLASSES))
    net.requires_grad_(True)
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.reset_parameters()
    batches = DataLoader(dataset, _BATCH, shuffle=True)
    done = fine_tune(net, _loss, batches, epochs=_EPOCHS, optimizer=_adam)
    return _accuracy(net, test), done.seconds


def _adam(parameters):
    return torch.optim.Adam(parameters, 1e-3)


def _loss(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def _noisy(model, batches, width, epsilon, radius, **again):
    net = nn.Sequential(_folded(copy.deepcopy(model)), nn.Linear(width, N_CLASSES))
    net.requires_grad_(True)
    done = noisy_fine_tune(
        net,
        _loss,
        batches,
        epsilon=epsilon,
        delta=DELTA,
        max_norm=radius,
        gradient_norm=radius,
        l2=5e-4,
        lr=0.1,
        steps=20,
        **again,
    )
    return net, done.seconds


@torch.no_grad()
def _accuracy(net, test):
    return accuracy(net.eval()(test.tensors[0]), test.tensors[1])


def _folded(model):
    model.eval()
    for block in [model, *model.layer1, *model.layer2, *model.layer3]:
        for i in (1, 2):
            conv, norm = (
                getattr(block, f"conv{i}", None),
                getattr(block, f"bn{i}", None),
            )
            if conv is not None:
                setattr(block, f"conv{i}", fuse_conv_bn_eval(conv, norm))
                setattr(block, f"bn{i}", nn.Identity())
    return model
