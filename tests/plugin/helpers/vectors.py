"""A stage that takes the gradient and one product of a request, and decides nothing."""

from types import SimpleNamespace

import torch
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_unlearn.plugin.mixin import quiet
from lightning_unlearn.plugin.request.request import Request
from lightning_unlearn.plugin.request.resolution import resolve
from lightning_unlearn.weights.dtensors import of_shards, sharded_as
from lightning_unlearn.weights.passes import passes
from lightning_unlearn.weights.scope import Shards


class Vectors:
    """The stage; an object, so that it reaches a spawned process."""

    def __init__(self, forget):
        self.forget = forget

    def __call__(self, context):
        with context.strategy.gathered(context.module), quiet(context.module):
            plan = resolve(context, Request(forget=self.forget))
            with passes(plan.module, plan.scope, plan.dtype):
                objective, _ = plan._checked_objective(plan.retained)
                found = vectors(objective, plan.scope)
        return SimpleNamespace(checkpoint_path=None, found=found)


def vectors(objective, scope):
    """Value, gradient and a product, gathered; and the largest tensor made for them."""
    every = torch.sin(torch.arange(objective.n_parameters).double())
    v = every
    if isinstance(scope, Shards):
        shapes = [p.shape for p in scope.parameters]
        parts = every.split([shape.numel() for shape in shapes])
        v = torch.cat([
            sharded_as(p, part.view(shape)).to_local().reshape(-1)
            for p, part, shape in zip(scope.parameters, parts, shapes, strict=True)
        ]).to(objective.dtype)  # fmt: skip
    with Largest() as largest:
        value, gradient = objective.value_and_gradient()
        product = objective.hvp(v)
    found = [torch.cat([p.reshape(-1) for p in gathered(scope, x)]).tolist()
             for x in (gradient, product)]  # fmt: skip
    return [[value], *found, [largest.elements]]


def gathered(scope, vector):
    parts = scope.split(vector)
    if isinstance(scope, Shards):
        parts = [
            of_shards(p, part).full_tensor()
            for p, part in zip(scope.parameters, parts, strict=True)
        ]
    return parts


class Largest(TorchDispatchMode):
    """The most elements a tensor has that is made in a block."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor) and not isinstance(x, DTensor):
                self.elements = max(self.elements, x.numel())
        return out
