"""The head of a certified module: solved where training starts, as a request would."""

from dataclasses import replace

from lightning_unlearn.guarantee.kinds import StronglyConvex
from lightning_unlearn.plugin.files import prepared_file
from lightning_unlearn.plugin.plan.head_plan import HeadPlan
from lightning_unlearn.plugin.request.resolution import resolve
from lightning_unlearn.plugin.request.stage import StageContext
from lightning_unlearn.plugin.run import progress


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
        if context.processes.world > 1:
            step = plan.step(plan.retained)
            weights, passes = step.weights, step.solution.matvecs
        else:  # what a request can use is kept: the features are read once
            state = plan.prepare()
            assert state.start is not None
            weights, passes = state.start, state.passes
            attached, dataset = context.callback.attached, context.loader.dataset
            attached.bound_state = prepared_file.bind(plan, state)
            attached.warn_if_scaled(context.trainer, dataset, state.rows)
        display.end()
    plan.scope.again().assign(weights)  # in shards again, if they were
    return passes, len(plan.retained), plan.tolerance.value
