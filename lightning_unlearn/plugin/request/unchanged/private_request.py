"""A request to a model that was trained privately: what it means and proves."""

from dataclasses import replace

from lightning_unlearn.errors import BudgetError, GuaranteeError
from lightning_unlearn.guarantee.accounting.capacity import capacity
from lightning_unlearn.guarantee.accounting.private_training import privacy
from lightning_unlearn.plugin.private import whole_people
from lightning_unlearn.plugin.private.private_plan import PrivatePlan
from lightning_unlearn.plugin.private.private_steps import (
    in_words,
    mechanism_of,
    what_it_made,
)
from lightning_unlearn.plugin.request.request import Request
from lightning_unlearn.plugin.request.retrain_request import (
    check_current,
    loss_or_none,
    meant,
)
from lightning_unlearn.plugin.request.stage import StageContext
from lightning_unlearn.plugin.retrain.retrained import Job
from lightning_unlearn.plugin.stages.kept_stages import Gone

_INSTEAD = "how='retrain' answers any request, of any model"


def plan_of(context: StageContext, request: Request) -> PrivatePlan:
    """The plan of a request to a private training; nothing is computed of its data.

    Args:
        context: The Trainer's run.
        request: What is asked for.

    Raises:
        BudgetError: If more would be forgotten than the callback's epsilon allows.
        GuaranteeError: If the training is not known to have been private to its end.
        UnlearningError: If the request will be refused for another reason.
    """
    job = meant(context, request)
    check_current(context, request, job)
    with context.processes.together():
        return _plan_of(context, job)


def _plan_of(context: StageContext, job: Job) -> PrivatePlan:
    record, options, module = (
        context.callback.record,
        context.callback.options,
        context.module,
    )
    steps = record.private
    assert steps is not None  # or nobody would have asked
    scope, outside = what_it_made(module, record, _INSTEAD)
    training, dataset = mechanism_of(steps), context.loader.dataset
    seen = Gone.of(record, dataset, job.chosen).digests & {*(record.validated or ())}
    if steps.decided_by and seen:
        raise GuaranteeError(
            f"expected validation data without the samples to forget, got {len(seen)} "
            f"of these among them, and {', '.join(steps.decided_by)}: what was decided "
            f"by their metrics had no noise. {_INSTEAD}"
        )
    group = whole_people.forgotten(record, dataset, job.removed)
    found = privacy(training, group, options.delta)
    if found.epsilon > options.epsilon:
        before = whole_people.forgotten(record, dataset, record.removed)
        most = capacity(training, options.epsilon, options.delta)  # of this callback
        raise BudgetError(
            f"expected at most epsilon = {options.epsilon:g} of all "
            f"{'samples' if steps.by is None else 'people'} forgotten so far of this "
            f"private training, got {found.epsilon:g} of {group}: it allows "
            f"{in_words(most, options.epsilon)} ({before} are used up); {_INSTEAD}"
        )
    return PrivatePlan(
        clip=steps.clip,
        training=training,
        privacy=found,
        group=group,
        people=steps.by is not None,
        scope=scope,
        head=None,
        guarantee=None,
        trainer=context.trainer,
        module=module,
        options=replace(options, epsilon=found.epsilon),
        loader=context.loader,
        loss=loss_or_none(context),
        chosen=job.chosen,
        removed=job.removed,
        retained=job.retained,
        outside=outside,
        ledger=job.ledger,
        l2=record.l2 or 0.0,
    )
