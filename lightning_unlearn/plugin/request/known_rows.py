"""What is known of the samples before they are read: in memory, or in the row store."""

from collections.abc import Callable

from lightning_utilities.core.rank_zero import rank_zero_warn

from lightning_unlearn.errors import DataError
from lightning_unlearn.plugin.files import prepared_file
from lightning_unlearn.plugin.files.prepared_file import BoundState
from lightning_unlearn.plugin.lightning import isolate_rng
from lightning_unlearn.plugin.mixin import quiet
from lightning_unlearn.plugin.plan.head_plan import HeadPlan
from lightning_unlearn.plugin.plan.plan import Plan
from lightning_unlearn.plugin.request.stage import StageContext
from lightning_unlearn.plugin.run import strategies
from lightning_unlearn.step.head.prepared_head import PreparedHead


def usable(context: StageContext, plan: Plan) -> BoundState | None:
    """What a request may begin with: of this model, environment and these samples.

    Args:
        context: The Trainer's run.
        plan: The request.

    Raises:
        DataError: If it was asked for, and the dataset holds other samples now; if the
            file is damaged.
    """
    state = _known(context)
    if state is None:
        return None
    processes = plan.processes
    if processes.world > 1 and not isinstance(plan, HeadPlan):
        rank_zero_warn(
            "what was prepared of an ordinary network is used on one device only: this "
            "request goes without it"
        )
        return None
    if not _all_say(plan, lambda: state.fits(plan)):
        if state.asked:
            rank_zero_warn(
                "what was prepared is of another model, l2, scope or set of samples "
                "than this request's: it is not used; call lightning_unlearn.prepare "
                "again"
            )
        return None
    elsewhere = processes.first(lambda: state.elsewhere(plan))
    if not _all_say(plan, lambda: not state.elsewhere(plan)):
        # Its rows have other last bits than those of this place.
        if state.asked:
            rank_zero_warn(
                "what was prepared was computed in another environment "
                f"({elsewhere or 'of another process'}): it is not used, and all "
                "samples are read again"
            )
        return None
    if state.asked:
        with processes.together(), isolate_rng(), quiet(plan.module, restore=True):
            state.check_data(plan)
    elif not _all_say(plan, lambda: _is_of_these(plan, state)):
        rank_zero_warn(
            "samples are others than at the request before: all of them are read again"
        )
        return None
    return state


def prepared(
    context: StageContext, plan: Plan, afresh: bool = False
) -> tuple[BoundState, float]:
    """What is prepared for requests, and passes that were spent on it.

    Nothing is read that is known: after a fit of a certified module all of it is there
    already, after a request the rows of the retained samples and the optimum on them.

    Args:
        context: The Trainer's run.
        plan: That forgets nothing more.
        afresh: Read every sample, whatever is known.
    """
    known = None if afresh else _known(context)
    if not isinstance(plan, HeadPlan):
        strategies.check_alone(plan.trainer, "prepare")
        same = known is not None and known.positions == plan.retained
        if known is not None and same and _fits_here(plan, known):
            return known, 0.0
        bound = prepared_file.bind(plan, plan.prepare())
        return bound, bound.state.passes
    rows, own = None, plan.own(plan.retained)
    if known is not None and _all_say(plan, lambda: _fits_here(plan, known)):
        assert isinstance(known.state, PreparedHead)
        rows = known.state.share(plan.processes)
        whole = rows.start is not None and rows.is_of(own)
        if _all_say(plan, lambda: whole):
            same = rows is known.state
            return known if same else prepared_file.bind(plan, rows), 0.0
    bound = prepared_file.bind(plan, plan.prepare(rows))
    return bound, bound.state.passes


def _known(context: StageContext) -> BoundState | None:
    """What this process has in memory, or the file holds; None if one has nothing.

    A file that somebody has deleted takes with it what is in memory: that is how a
    user says that all is to be read again.
    """
    processes, file = context.processes, context.callback.options.prepared_path
    state = context.callback.bound_state
    if file is not None and not processes.first(file.exists):
        state = None
    with processes.together():
        if state is None and file is not None and file.exists():
            state = prepared_file.read(file)
        elif file is not None:  # it will be written: before the work, not after it
            prepared_file.check_target(file)
    return state if all(processes.gather(state is not None)) else None


def _fits_here(plan: Plan, known: BoundState) -> bool:
    """Whether it is of this model and environment, and of these samples."""
    here = known.fits(plan) and not known.elsewhere(plan)
    return here and _is_of_these(plan, known)


def _is_of_these(plan: Plan, known: BoundState) -> bool:
    try:
        with isolate_rng(), quiet(plan.module, restore=True):
            known.check_data(plan)
    except DataError:
        return False
    return True


def _all_say(plan: Plan, so: Callable[[], bool]) -> bool:
    """Whether every process says so."""
    with plan.processes.together():
        own = so()
    return all(plan.processes.gather(own))
