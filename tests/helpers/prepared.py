"""What is known of a head's rows, without a Trainer that reads them."""

from lightning_unlearn.step.head.prepared_head import PreparedHead


def prepare_head(head, rows, positions, w0, *, block, l2, **settings):
    """All that `prepare` makes of rows."""
    nothing = PreparedHead.nothing(block)
    state = nothing.on(positions, rows, rows.n).with_gram(head, nothing)
    objective = state.objective(head, l2)
    step = state.step(objective, head, w0, nothing, **settings)
    return state.at_optimum(step).with_factor(objective)


def touched(state, gone):
    """Samples that were read in one block with forgotten ones, without these."""
    return state.stale(left(state, gone))


def left(state, gone):
    """Positions of the others."""
    return [p for p in state.positions.tolist() if p not in set(gone)]


def without(state, gone, head, fresh=None):
    """The state of the others; samples that are read again give the same rows."""
    positions, again = left(state, gone), touched(state, gone)
    if fresh is None and again:
        fresh = state.of(again)
    return state.on(positions, fresh, len(positions)).with_gram(head, state)


def step_of(state, rest, head, w0, *, l2, **settings):
    """The request's step from one to the other."""
    return rest.step(rest.objective(head, l2), head, w0, state, **settings)
