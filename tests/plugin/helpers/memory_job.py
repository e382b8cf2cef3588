"""Run by test_memory.py: what a request adds to the memory of training, in vectors.

``python -m tests.plugin.helpers.memory_job <side> <depth>`` prints that number for an
MLP. The C library must give back what is freed, for the resident set to say what is in
use.
"""

import sys
import threading
import time

import torch
from torch import nn
from torch.nn import functional as F

from tests.helpers.nets import MLP, UnlearningCallback, digits, loader, trainer


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


class Peak:
    """The largest resident set while a block runs."""

    def __enter__(self):
        self.top, self.on = resident(), True
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def watch(self):
        while self.on:
            self.top = max(self.top, resident())
            time.sleep(0.001)

    def __exit__(self, *error):
        self.on = False
        self.thread.join()


class Deep(MLP):
    def __init__(self, side, depth):
        super().__init__()
        layers = [nn.Linear(64, side)]
        for _ in range(depth):
            layers += [nn.Tanh(), nn.Linear(side, side)]
        self.net = nn.Sequential(*layers, nn.Tanh(), nn.Linear(side, 10))


def main(side, depth, n=96, batch=32):
    torch.set_num_threads(1)
    net, data = Deep(side, depth), digits(n)
    p = sum(q.numel() for q in net.parameters())
    X, y = data.tensors
    with Peak() as training:
        for _ in range(2):
            F.cross_entropy(net(X[:batch]), y[:batch]).backward()
    callback = UnlearningCallback(
        low_memory=True, batch_size=batch, max_norm=1e3, accept_noise=True
    )
    with Peak() as request:
        trainer(callback).unlearn(
            [1, 2, 3], model=net, train_dataloaders=loader(data, batch)
        )
    print((request.top - training.top) / 4 / p)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
