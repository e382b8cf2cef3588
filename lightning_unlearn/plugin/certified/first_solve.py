"""The head of a certified module: solved where training starts, as a request would."""

from dataclasses import replace

from lightning_unlearn.guarantee.kinds import StronglyConvex
from lightning_unlearn.plugin.certified.first_release import first_release
from lightning_unlearn.plugin.covered import refuse_unaffordable
from lightning_unlearn.plugin.files import prepared_file
from lightning_unlearn.plugin.plan.head_plan import HeadPlan
from lightning_unlearn.plugin.request import known_rows
from lightning_unlearn.plugin.request.resolution import resolve
from lightning_unlearn.plugin.request.stage import StageContext
from lightning_unlearn.plugin.run import progress
from lightning_unlearn.step.head.prepared_head import PreparedHead


def solve_head(context: StageContext) -> tuple[float, int, float]:
    """Put the head of the module at its optimum on all training samples.

    Args:
        context: The Trainer's run.

    Returns:
        Passes over the samples, how many samples there are, and the tolerance.

    Raises:
        UnlearningError: As a request: if the data or the model cannot be solved.
    """
    drawing = context.callback.attached.drawing
    if drawing is not None:
        drawing.all_read()  # though the fit ends after one batch
    run = context.trainer, context.module, context.processes
    with (
        progress.shown(*run, what="Solving", logs=False) as display,
        context.strategy.gathered(context.module),
    ):
        plan = resolve(context, None, guarantee=StronglyConvex())
        assert isinstance(plan, HeadPlan)
        plan = replace(plan, display=display)
        refuse_unaffordable(plan)
        # What a request can use is kept: the features are read once.
        bound, passes = known_rows.prepared(context, plan)
        attached, options = context.callback.attached, context.callback.options
        assert isinstance(bound.state, PreparedHead)
        if options.prepared_path is not None:
            prepared_file.keep(options.prepared_path, plan, bound)
        attached.bound_state = bound
        attached.warn_if_scaled(
            context.trainer, context.loader.dataset, bound.state.rows
        )
        weights = bound.state.start
        if options.cover_served is not None:
            weights = first_release(context, plan, bound.state)
        display.end()
    assert weights is not None
    plan.scope.again().assign(weights)  # in shards again, if they were
    return passes, len(plan.retained), plan.tolerance.value
