"""One curvature product over one gradient of the same batch, for every way to form it.

    LIGHTNING_UNLEARN_DATA=folder python benchmarks/hvp.py

MNIST on two MLPs, CIFAR-10 on a small CNN and on ResNet-18. One thread, rounds
interleaved. "kept graph" is what a request does between its products while memory
lasts; building the graph is the gradient. curvlinops is measured if it is installed:
put it into an environment of its own, without its dependencies (``pip install
--no-deps``), since they replace torch.
"""

import copy
import statistics
from functools import partial

import torch
from common import (
    CNN,
    MLP,
    bars,
    cifar10,
    mnist,
    publish,
    resnet18,
    spread,
    table,
    timed,
)
from torch import nn
from torch.nn import functional as F

from lightning_unlearn.step.network.graphs import GaussNewtonGraph, HessianGraph
from lightning_unlearn.step.network.products import PRODUCTS
from lightning_unlearn.weights.scope import Scope

ROUNDS = 9


def cases():
    X, y = mnist("train").tensors
    images, labels = cifar10(256).tensors
    wide = nn.Sequential(
        nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(),
        nn.Linear(512, 10),
    )  # fmt: skip
    torch.manual_seed(0)
    yield "MLP, 26,506 weights, batch 2,000", MLP().net, X[:2000], y[:2000]
    yield "wide MLP, 669,706 weights, batch 2,000", wide, X[:2000], y[:2000]
    yield "CNN, 23,946 weights, batch 256", CNN().net, images, labels
    yield "ResNet-18, 11.2 M weights, batch 16", resnet18(), images[:16], labels[:16]


def curvlinops_product(net, X, y, v):
    """A product of curvlinops' Hessian, or None if it is not installed."""
    try:
        from curvlinops import HessianLinearOperator
    except ImportError:
        return None
    shapes = [p.shape for p in net.parameters()]
    operator = HessianLinearOperator(
        net, nn.CrossEntropyLoss(reduction="sum"), list(net.parameters()),
        [(X, y)], check_deterministic=False, num_data=len(X),
    )  # fmt: skip
    parts = [t.reshape(s) for t, s in zip(v, shapes, strict=True)]
    return lambda: operator @ parts


def ways(net, X, y):
    """Name -> what is timed, and the gradient they are compared with."""
    scope = Scope(net, net.parameters())
    loss = lambda: F.cross_entropy(net(X), y, reduction="sum")  # noqa: E731
    v = scope.split(torch.randn(scope.size))
    hessian, gauss_newton = HessianGraph(loss, scope), GaussNewtonGraph(loss, scope)
    found = {
        "gradient": lambda: torch.autograd.grad(loss(), scope.parameters),
        "gradient with its graph": lambda: HessianGraph(loss, scope),
        "Hessian, kept graph": lambda: hessian.product(v),
        "Gauss-Newton, kept graph": lambda: gauss_newton.product(v),
        **{f"{name}, anew": partial(PRODUCTS[name], loss, scope, v)
           for name in ("hessian", "hessian_forward", "gauss_newton")},
    }  # fmt: skip
    other = curvlinops_product(copy.deepcopy(net), X, y, v)
    if other is not None:
        ours, theirs = hessian.product(v), other()
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-4)
        found["curvlinops, Hessian"] = other
    return found


def main():
    torch.set_num_threads(1)
    parts, panels = [], {}
    for title, net, X, y in cases():
        net.eval()
        actions = ways(net, X, y)
        for action in actions.values():
            action()  # warm up
        seconds = {name: [] for name in actions}
        for _ in range(ROUNDS):
            for name, action in actions.items():
                seconds[name].append(timed(action)[0])
        base = statistics.median(seconds["gradient"])
        rows = [
            [name, spread([1e3 * t for t in taken]),
             f"{statistics.median(taken) / base:.2f}"]
            for name, taken in seconds.items()
        ]  # fmt: skip
        parts += [f"## {title}", table(["", "ms, median (range)", "/ gradient"], rows)]
        panels[title] = {
            name: [t / base for t in taken] for name, taken in seconds.items()
        }
    picture = bars("hvp", panels, "gradients")
    publish("hvp", "Curvature products over gradients", *parts, picture)


if __name__ == "__main__":
    main()
