"""That the processes of a private training are parts of one, and not several."""

import hashlib
import json
import secrets
from typing import Any

from lightning_unlearn.errors import StrategyError
from lightning_unlearn.plugin.data import training_data
from lightning_unlearn.plugin.lightning import (
    DDPStrategy,
    LightningModule,
    ModelParallelStrategy,
    SingleDeviceStrategy,
    Trainer,
)
from lightning_unlearn.plugin.private.decision_checks import root_of
from lightning_unlearn.plugin.run.coins import own_coins
from lightning_unlearn.plugin.training.training_record import PrivateSteps
from lightning_unlearn.step.batch_checks import spread_places
from lightning_unlearn.weights.digests import tensors_digest
from lightning_unlearn.weights.processes import Processes


def check_strategy(trainer: Trainer) -> None:
    """Refuse strategies under which a gradient is nowhere whole.

    Raises:
        StrategyError: If the Trainer has one.
    """
    strategy = trainer.strategy
    name = type(strategy).__name__
    if isinstance(strategy, ModelParallelStrategy):
        raise StrategyError(
            f"expected one device or ddp for PrivateTraining, got {name} (FSDP2): a "
            "gradient of one sample is nowhere whole there, so that it cannot be "
            "clipped; use strategy='ddp', which holds the whole model in each process"
        )
    if not isinstance(strategy, (SingleDeviceStrategy, DDPStrategy)):
        raise StrategyError(
            f"expected one device or ddp for PrivateTraining, got {name}: use "
            "strategy='auto' or 'ddp'"
        )
    if getattr(strategy.model, "static_graph", False):
        raise StrategyError(
            "expected DDP without static_graph=True for PrivateTraining, got it: torch "
            "cannot leave out its sums of gradients then, which a private training "
            "does itself, after clipping; use strategy='ddp', or "
            "DDPStrategy(find_unused_parameters=True) where some weights get no "
            "gradient"
        )


def check_same(processes: Processes, dataset: Any, steps: PrivateSteps) -> None:
    """Refuse processes with other data, or other steps: each draws from a part.

    Were their data in another order, a sample would be in two parts, or in none.

    Args:
        processes: Of the training.
        dataset: Of the training, in this process.
        steps: That this process is about to take.

    Raises:
        DataError: If they differ.
    """
    if processes.world == 1:
        return
    seed = processes.first(lambda: secrets.randbits(31))
    with processes.together():
        _, places = root_of(dataset)
        listed = json.dumps([int(i) for i in places]).encode()
        found = []
        for i in spread_places(len(dataset)):
            with own_coins(seed):  # one augmentation for all of them
                found.append(training_data.sample_digest(dataset[int(i)], str(seed)))
    processes.agree(
        training_data=(hashlib.sha256(listed).hexdigest(), found),
        private_steps=repr(steps),
    )


def digest_of(module: LightningModule, names: list[str]) -> str:
    """Of the weights that are trained."""
    named = dict(module.named_parameters())
    return tensors_digest((name, named[name]) for name in names)
