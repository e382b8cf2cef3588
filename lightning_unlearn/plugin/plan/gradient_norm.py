"""The gradient over a module's whole training data, for the record."""

import math

from torch.utils.data import DataLoader

from lightning_unlearn.plugin.lightning import LightningModule, Trainer, isolate_rng
from lightning_unlearn.plugin.mixin import quiet
from lightning_unlearn.plugin.options import Options
from lightning_unlearn.plugin.plan.network_plan import objective_over
from lightning_unlearn.plugin.plan.plan import PassContext
from lightning_unlearn.plugin.plan.sharded_plan import sharded_objective
from lightning_unlearn.plugin.run import strategies
from lightning_unlearn.weights.passes import passes
from lightning_unlearn.weights.scope import Shards


def gradient_norm(
    trainer: Trainer,
    module: LightningModule,
    options: Options,
    loader: DataLoader,
    trained_l2: float | None,
) -> float:
    """|grad F| of a module over its whole training data; it changes nothing."""
    with strategies.adapter(trainer, options.curvature).gathered(module):
        context = PassContext.of(trainer, module, options, loader, trained_l2)
        scope = context.scope
        indices = list(range(len(loader.dataset)))  # type: ignore[arg-type]
        with (
            isolate_rng(),
            quiet(module, restore=True),
            passes(module, scope, context.dtype),
        ):
            if isinstance(scope, Shards):
                objective = sharded_objective(context, scope, indices)
            else:
                objective = objective_over(context, context.batches(loader, indices))
            gradient = objective.value_and_gradient()[1]
            return math.sqrt(objective.dot(gradient, gradient))
