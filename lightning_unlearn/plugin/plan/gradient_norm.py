"""The gradient over a module's whole training data, for the record."""

import math

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch.utils.data import DataLoader

from lightning_unlearn.plugin.mixin import hooks, quiet
from lightning_unlearn.plugin.options import Options
from lightning_unlearn.plugin.plan.network_plan import objective_over
from lightning_unlearn.plugin.plan.plan import PassContext
from lightning_unlearn.plugin.plan.sharded_plan import sharded_objective
from lightning_unlearn.plugin.run import strategies
from lightning_unlearn.plugin.training.weight_decay import known_l2
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
    strategy = strategies.adapter(trainer, options.curvature)
    with strategy.gathered(module):
        loss, in_scope, own_l2 = hooks(module)
        scope = strategy.scope(module, in_scope)
        context = PassContext(
            trainer=trainer,
            module=module,
            options=options,
            loader=loader,
            loss=loss,
            scope=scope,
            l2=known_l2(options.l2, own_l2, trained_l2) or 0.0,
        )
        indices = list(range(len(loader.dataset)))  # type: ignore[arg-type]
        with isolate_rng(), quiet(module), passes(module, scope, context.dtype):
            if isinstance(scope, Shards):
                objective = sharded_objective(context, scope, indices)
            else:
                objective = objective_over(context, context.batches(loader, indices))
            gradient = objective.value_and_gradient()[1]
            return math.sqrt(objective.dot(gradient, gradient))
