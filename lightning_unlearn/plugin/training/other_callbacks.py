"""Callbacks beside ours that keep what a request would have to forget."""

from lightning_unlearn.errors import ModelError
from lightning_unlearn.plugin.lightning import (
    ModelPruning,
    StochasticWeightAveraging,
    Trainer,
)

_AVERAGING = {"WeightAveraging", "EMAWeightAveraging"}  # classes of Lightning >= 2.6


def check_others(trainer: Trainer) -> None:
    """Raise `ModelError` if a callback has copies of the weights, or decides on them.

    Args:
        trainer: Of the training, or of the request.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        names = {cls.__name__ for cls in type(callback).__mro__}
        if isinstance(callback, StochasticWeightAveraging) or names & _AVERAGING:
            raise ModelError(
                "expected no callback with copies of the trained weights, got "
                f"{type(callback).__name__}, which would bring them back: run the "
                "request with a Trainer without it (and ckpt_path=)"
            )
        if isinstance(callback, ModelPruning):
            raise ModelError(
                "expected no callback that sets trained weights to zero, got "
                f"{type(callback).__name__}: a request would fill the zeros again, and "
                "which weights are zero was decided with the forgotten samples; prune "
                "after the request, on the retained samples"
            )
