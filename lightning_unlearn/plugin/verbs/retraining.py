"""``trainer.unlearn(forget, how="retrain")``: exact, and as long as a training."""

from dataclasses import replace
from typing import Any

from lightning_unlearn.errors import SetupError
from lightning_unlearn.plugin.lightning import pl
from lightning_unlearn.plugin.request.execution import Unlearn
from lightning_unlearn.plugin.request.pending_rows import Pending
from lightning_unlearn.plugin.request.request import Request
from lightning_unlearn.plugin.request.resolution import share_record
from lightning_unlearn.plugin.request.result import UnlearningResult
from lightning_unlearn.plugin.request.retrain_request import asked_for
from lightning_unlearn.plugin.request.stage import (
    StageContext,
    callback_of,
    run_in_trainer,
    said_if_interrupted,
)
from lightning_unlearn.plugin.retrain.fresh_training import MakeTraining
from lightning_unlearn.plugin.retrain.in_stages import InStages
from lightning_unlearn.plugin.retrain.retrained import Job, trained_values
from lightning_unlearn.plugin.run import compat
from lightning_unlearn.plugin.training.training_record import TrainingRecord


def retrain(
    trainer: pl.Trainer,
    request: Request,
    make: MakeTraining | None,
    **where: Any,
) -> UnlearningResult:
    """Answer a request by a training without the forgotten samples.

    Args:
        trainer: Of the request.
        request: What is asked for.
        make: Makes the training; None is refused.
        where: ``model``, data, and checkpoint, as `unlearn` takes them.

    Raises:
        UnlearningError: If it is refused; the old model is as before.
    """
    if make is None:
        raise SetupError(
            "expected UnlearningCallback(retrain=make_training) for how='retrain', got "
            "none: make_training(data) makes the Trainer, the module and its "
            "DataLoader or DataModule anew, over the samples it is given, and returns "
            "the three"
        )
    model = trainer.lightning_module if where["model"] is None else where["model"]
    model = compat.unwrapped(model)
    callback = callback_of(trainer, model)
    job, dataset, record, pending = run_in_trainer(
        trainer, _AskedFor(request), **where, changes_nothing=True
    )
    old = (trainer, model, callback)
    with said_if_interrupted(trainer):
        retrained = InStages(make, job, old, dataset, record).run(request.resume_from)
    if compat.is_spawning(trainer):  # its attributes never left the processes
        retrained = replace(retrained, module=None)
    done = replace(request, retrained=retrained, resume_from=None, pending=pending)
    return run_in_trainer(trainer, Unlearn(done), **where)


# An object, for the same reasons as `stage._InEachProcess`.
class _AskedFor:
    """The stage that says what is to be retrained; it changes nothing."""

    def __init__(self, request: Request) -> None:
        self.request = request

    def __call__(
        self, context: StageContext
    ) -> tuple[Job, Any, TrainingRecord, Pending | None]:
        share_record(context)
        with (
            self.request.opened(context) as request,
            context.strategy.gathered(context.module),
        ):
            job = asked_for(context, request)
            made = trained_values(context.module, context.callback.record)
            record = context.callback.record
            job, dataset = replace(job, trained=made), context.loader.dataset
            return job, dataset, record, request.pending
