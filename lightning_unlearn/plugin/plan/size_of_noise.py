"""How large the noise of a request will be, and whether it would leave a model."""

import math

from torch import nn

from lightning_unlearn.errors import GuaranteeError
from lightning_unlearn.guarantee.claims import Bound, noise_std_upper, sensitivity_upper
from lightning_unlearn.guarantee.kinds import NewtonStep, NormBall, StronglyConvex
from lightning_unlearn.guarantee.tolerance import USUAL, Tolerance, usual_tolerance
from lightning_unlearn.plugin.options import Options
from lightning_unlearn.plugin.plan.plan import Plan
from lightning_unlearn.plugin.training.public_backbones import fixed_row_norm
from lightning_unlearn.step.head.convex_head import ConvexHead
from lightning_unlearn.step.step import Step

_MOST = 1.0  # of logit noise, and of noise per weight norm: beyond it nothing is left
_ACCEPT = (
    "or pass accept_noise=True to the UnlearningCallback (--unlearning.accept_noise "
    "true), if noise is what you want"
)


def head_tolerance(
    options: Options, module: nn.Module, head: ConvexHead, l2: float
) -> Tolerance:
    """What a head is solved to: the user's, or what follows from fixed numbers alone.

    Args:
        options: Of the callback.
        module: That has the head.
        head: All that is in scope.
        l2: Of the objective, > 0.
    """
    if options.tolerance != "auto":
        return Tolerance(options.tolerance)
    return usual_tolerance(options.terms, l2, fixed_row_norm(module, head))


def a_tolerance(options: Options) -> float:
    """The user's, or the constant one: where there is no head to set one for."""
    return USUAL if options.tolerance == "auto" else options.tolerance


def refuse_loud_noise(plan: Plan, step: Step | None = None) -> None:
    """Raise if a request would destroy its model, and nobody has said that it may.

    Args:
        plan: The request.
        step: Its step, once it is taken: then the rows of a head are measured. Before
            it what is fixed counts, so that nobody waits for a refusal.

    Raises:
        GuaranteeError: If noise moves a logit by more than 1, or is larger than the
            weights of a network. Noise that was chosen by hand for a network may be.
    """
    if step is None and isinstance(plan.guarantee, NewtonStep):
        return  # what its constants need is looked at in the step
    measured = {} if step is None else {c.name: c.value for c in step.measured}
    problem = loud_noise(plan, measured.get("feature_norm"))
    if problem is not None:
        raise GuaranteeError(problem)


def loud_noise(plan: Plan, row_norm: float | None = None) -> str | None:
    """Why `refuse_loud_noise` would raise, or None.

    Args:
        plan: The request.
        row_norm: Of the longest row of a head, where it was measured.
    """
    options, std = plan.options, plan.options.noise_std
    if options.accept_noise:
        return None
    if std is None:
        claim = plan.claim()
        if claim.bound is Bound.PRIVATE_TRAINING:
            return None  # its noise is in the model that there is
        sensitivity = sensitivity_upper(claim.bound, claim.constants)
        if sensitivity == 0:
            return None  # an exact release has no noise
        std = noise_std_upper(options.terms, sensitivity)
    if isinstance(plan.guarantee, StronglyConvex) and plan.head is not None:
        longest = row_norm or fixed_row_norm(plan.module, plan.head)
        return None if longest is None else _head_problem(std, longest)
    if options.noise_std is not None:
        return None
    w, dot = plan.scope.flatten(plan.dtype), plan.scope.dot(plan.processes)
    return _network_problem(std, plan.scope.n_parameters, math.sqrt(dot(w, w)))


def loud_noise_early(
    options: Options,
    guarantee: object,
    module: nn.Module,
    head: ConvexHead | None,
    l2: float,
    size: int,
) -> str | None:
    """Why a request after a training will be refused, as far as it is known before.

    Args:
        options: Of the callback.
        guarantee: Of `chosen_guarantee`.
        module: That will be trained.
        head: All that is in scope, or None.
        l2: Of the objective.
        size: Weights in scope.
    """
    if options.accept_noise:
        return None
    terms, radius = options.terms, options.max_norm
    if isinstance(guarantee, StronglyConvex) and head is not None:
        longest = fixed_row_norm(module, head)
        tolerance = head_tolerance(options, module, head, l2).value
        std = options.noise_std
        if std is None:
            std = noise_std_upper(terms, 2 * tolerance / l2)
        return None if longest is None else _head_problem(std, longest)
    if options.noise_std is None and isinstance(guarantee, NormBall) and radius:
        return _network_problem(noise_std_upper(terms, 2 * radius), size, radius)
    return None


def _head_problem(noise_std: float, row_norm: float) -> str | None:
    moved = noise_std * row_norm
    if moved <= _MOST:
        return None
    return (
        f"expected noise that moves a logit by at most {_MOST:g}, got {moved:.3g} "
        f"(noise_std {noise_std:.3g} on rows of norm {row_norm:.3g}): the head would "
        "be replaced by noise. Three ways out: lower the tolerance, which the noise is "
        "proportional to (tolerance='auto' does it before any data is seen, where a "
        "PublicBackbone with unit_norm=True fixes the norm of the rows); raise l2, or "
        f"epsilon; {_ACCEPT}"
    )


def _network_problem(noise_std: float, size: int, weight_norm: float) -> str | None:
    noise = noise_std * math.sqrt(size)
    if noise <= _MOST * weight_norm:
        return None
    return (
        f"expected noise smaller than the weights, got noise of norm {noise:.3g} "
        f"(noise_std {noise_std:.3g} on {size:,} weights) and weights of norm "
        f"{weight_norm:.3g}: the network would be replaced by noise. Four ways out: "
        "retrain without the samples (how='retrain', exact for any network); put a "
        "ConvexHead on a public backbone that never saw this data (grade certified); "
        "set noise_std= by hand (0.0 is the bare Newton step) and claim nothing; "
        f"{_ACCEPT}"
    )
