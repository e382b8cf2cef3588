"""The gradient over a module's whole training data, for the record."""

import math

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch.utils.data import DataLoader

from lightning_unlearn import ledger as ledgers
from lightning_unlearn.plugin import strategies
from lightning_unlearn.plugin.mixin import hooks, quiet
from lightning_unlearn.plugin.options import Options
from lightning_unlearn.plugin.record import Outside
from lightning_unlearn.plugin.resolved import Resolved
from lightning_unlearn.plugin.weight_decay import stated_l2
from lightning_unlearn.scope import passes


def gradient_norm(
    trainer: Trainer,
    module: LightningModule,
    options: Options,
    loader: DataLoader,
    l2: float | None,
) -> float:
    """|grad F| of a module over its whole training data; it changes nothing."""
    strategy = strategies.adapter(trainer, options.curvature)
    with strategy.whole(module):
        loss, in_scope, own_l2 = hooks(module)
        stated = stated_l2(options.l2, own_l2)
        everything = Resolved(
            trainer=trainer,
            module=module,
            options=options,
            loader=loader,
            loss=loss,
            scope=strategy.scope(module, in_scope),
            head=None,
            chosen=[],
            removed=[],
            retained=list(range(len(loader.dataset))),  # type: ignore[arg-type]
            outside=Outside((), ()),
            ledger=ledgers.Ledger(),
            l2=(l2 if stated is None else stated) or 0.0,
            guarantee=None,
        )
        with (
            isolate_rng(),
            quiet(module),
            passes(module, everything.scope, everything.dtype),
        ):
            objective = everything.plain_objective(everything.retained)
            gradient = objective.value_and_gradient()[1]
            return math.sqrt(objective.dot(gradient, gradient))
