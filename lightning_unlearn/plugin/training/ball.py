"""Was the model kept in the norm ball through its whole training?"""

import math

import torch

from lightning_unlearn.plugin.lightning import LightningModule
from lightning_unlearn.plugin.mixin import scope_of
from lightning_unlearn.step.step import project
from lightning_unlearn.weights.dtensors import in_shards
from lightning_unlearn.weights.processes import Processes
from lightning_unlearn.weights.scope import Scope, Shards


@torch.no_grad()
def kept_in_ball(
    module: LightningModule, processes: Processes, max_norm: float
) -> bool:
    """Project the weights in scope onto the norm ball; whether that moved them."""
    weights = scope_of(module)
    shards = all(in_shards(p) for p in weights)
    scope = (Shards if shards else Scope)(module, weights)
    w, dot = scope.flatten(), scope.dot(processes)
    if not math.sqrt(dot(w, w)) > max_norm:
        return False
    # The cast to float32 must not leave the ball: aim a rounding error inside.
    scope.assign(project(w, max_norm * (1 - 1e-6), dot))
    return True
