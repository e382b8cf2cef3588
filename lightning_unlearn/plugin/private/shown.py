"""What a private training has told so far, for bars, loggers and people."""

from dataclasses import dataclass

from lightning_utilities.core.rank_zero import rank_zero_info

from lightning_unlearn._base.text import number
from lightning_unlearn.plugin.lightning import LightningModule, Trainer
from lightning_unlearn.plugin.private import decision_checks
from lightning_unlearn.plugin.private.private_steps import epsilon_one, in_words
from lightning_unlearn.plugin.training.training_record import PrivateSteps

_PARTS = 20  # of the steps: an epsilon takes half a second


@dataclass
class Shown:
    """Epsilon of one sample, or person, of the steps that are done.

    Args:
        trainer: Of the training.
        module: That is trained.
        steps: Of the training.
        epsilon: Of the callback, for the line at the end.
        delta: Of the callback.
    """

    trainer: Trainer
    module: LightningModule
    steps: PrivateSteps
    epsilon: float
    delta: float
    _told: int = 0

    def epoch_done(self) -> None:
        """Log it, unless few steps were taken since, or nobody looks."""
        done, total = self.steps.done, self.steps.steps
        if done < total and done - self._told < total / _PARTS:
            return
        shown = self.trainer.loggers or self.trainer.progress_bar_callback is not None
        watched = decision_checks.SHOWN in decision_checks.watched(self.trainer)
        if not shown and not watched:
            return
        self._told = done
        self.module.log(
            decision_checks.SHOWN,
            epsilon_one(self.steps, self.delta, done),
            prog_bar=True,
            on_step=False,
            on_epoch=True,
            sync_dist=True,  # the same everywhere
            batch_size=1,
        )

    def tell(self) -> None:
        """The line at the end."""
        rank_zero_info(line(self.steps, self.epsilon, self.delta))


def line(steps: PrivateSteps, epsilon: float, delta: float) -> str:
    """What a training has cost, and how many may be forgotten of it.

    Args:
        steps: Of the training.
        epsilon: Of the callback.
        delta: Of the callback.
    """
    if steps.problem is not None:
        return f"private training: nothing is claimed of this one, {steps.problem}"
    one, many = ("sample", "samples") if steps.by is None else ("person", "people")
    few = one if steps.capacity == 1 else many
    return (
        f"private training: epsilon = {number(epsilon_one(steps, delta))} of one {one} "
        f"at delta = {number(delta)}, of all {steps.steps:,} steps; "
        f"{in_words(steps.capacity, epsilon)} {few} may be forgotten within "
        f"epsilon = {number(epsilon)}"
    )
