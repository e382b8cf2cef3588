"""What a preflight advises: what to change, and what that would give."""

from collections import Counter

from lightning_unlearn.certificate.words.backbone_words import is_private
from lightning_unlearn.certificate.words.printed import premise
from lightning_unlearn.certificate.words.strength_words import in_100
from lightning_unlearn.guarantee.claims import Decision, Grade
from lightning_unlearn.guarantee.gaussian import gaussian_mu
from lightning_unlearn.guarantee.strength import promised_mu, protects
from lightning_unlearn.guarantee.tolerance import How
from lightning_unlearn.plugin.callback import UnlearningCallback
from lightning_unlearn.plugin.plan.head_plan import HeadPlan
from lightning_unlearn.plugin.plan.network_plan import NetworkPlan
from lightning_unlearn.plugin.plan.plan import Plan
from lightning_unlearn.plugin.plan.size_of_noise import a_tolerance, loud_noise
from lightning_unlearn.plugin.training import public_backbones
from lightning_unlearn.plugin.verbs import forecast

REFUSED = "trainer.unlearn would be refused"
WAIT = 10.0  # seconds: below it nobody minds what is quicker


def _theorem_a(plan: NetworkPlan, max_norm: float) -> str:
    """Whether better constants could give this network more than the norm ball."""
    constants = forecast.newton_constants(plan)
    if constants is None:
        return (
            "Theorem A cannot help: a network with ReLU, max-pooling or the like has "
            "no Lipschitz Hessian; smooth activations (GELU, tanh) do"
        )
    lower = constants.lambda_min_lower
    known = "" if lower is None else f" (at least {lower:.3g}, Lanczos)"
    need = constants.hessian_change * max_norm
    text = (
        "Theorem A needs lambda_min > hessian_lipschitz x max_norm: lambda_min is "
        f"about {constants.lambda_min:.3g}{known}, hessian_lipschitz x max_norm at "
        f"least {need:.3g}"
    )
    if not constants.lambda_min > need:
        return f"{text}: with any damping it says no more than the norm ball"
    return f"{text}: guarantee=NewtonStep(...) with damping=0.0 may be conditional"


def on_your_word(plan: Plan, grade: Grade) -> tuple[str, ...]:
    """What a claim of this grade takes as public, with the number of weights."""
    if grade not in (Grade.CERTIFIED, Grade.CONDITIONAL):
        return ()
    in_scope, claimed = {id(p) for p in plan.scope.parameters}, plan.claim().bound
    backbones, sizes = public_backbones.backbones(plan.module), Counter[str]()
    for name, p in plan.module.named_parameters():
        if id(p) not in in_scope:
            sizes[public_backbones.part_of(name, backbones)] += p.numel()
    parts = []
    for part in plan.outside.public_parts:
        if is_private(claimed, part):
            continue
        n = sizes[part.name]
        parts.append(f"{part.name} ({n:,} weights)" if n else part.name)
    return (premise(plan.ways_checked, claimed), *parts)


def strength(plan: Plan, decision: Decision) -> tuple[str, ...]:
    """What a test finds under this claim, and what to change if that is too much."""
    if decision.delta is None:
        return ()
    mu, n = promised_mu(decision.release_mus[-1], plan.options.releases), plan.retained
    found = f"a test with 1% false alarms finds at most {in_100(mu)} of 100"
    if protects(mu, decision.delta, len(n)):
        return ()
    if not decision.delta * len(n) < 1:
        found = f"delta is not below 1/n_retain = {1 / len(n):.2g}"
        return (f"{found}, which is graded vacuous: lower delta",)
    return (f"{found}, which is graded vacuous: lower epsilon",)


def slower(seconds: float | None, trained: float | None) -> tuple[str, ...]:
    """That training again would be quicker, if it would."""
    if trained is None or seconds is None or not seconds > max(trained, WAIT):
        return ()
    return (
        f"training again without these samples is quicker than this request, and "
        f"exact (how='retrain'): the last training took {trained:.3g} s, it would take "
        f"{seconds:.3g} s or more",
    )


def advice(
    plan: Plan,
    decision: Decision,
    callback: UnlearningCallback,
    logit: float | None,
) -> tuple[str, ...]:
    """What to change, and what it would give.

    Args:
        plan: The request.
        decision: What may be said of it.
        callback: Ours.
        logit: What the noise moves a logit by, or None.
    """
    options, found, grade = plan.options, [], decision.grade
    if plan.outside.unscrubbed:
        found.append(
            f"{', '.join(plan.outside.unscrubbed[:3])} changed in training outside "
            "the scope: freeze it before training on private data, or bring it into "
            "scope"
        )
    if grade in (Grade.VACUOUS, Grade.NONE) and not isinstance(plan, HeadPlan):
        l2 = plan.l2 if plan.l2 > 0 else 1e-3
        tolerance = a_tolerance(options)
        std = 2 * tolerance / l2 / gaussian_mu(options.epsilon, options.delta)
        found.append(
            "for a useful guarantee train a ConvexHead on a public backbone "
            f"that never saw this data: certified at noise_std {std:.2g} (l2 = {l2:g}, "
            f"tolerance = {tolerance:g})"
        )
    radius = options.max_norm if grade is Grade.VACUOUS else None
    if radius is not None and isinstance(plan, NetworkPlan):
        found.append(_theorem_a(plan, radius))
    if grade is Grade.CONDITIONAL and callback.record.outside is None:
        found.append(
            "no training run was seen by the callback: train with it, or pass the "
            "ckpt_path= of a run that was, for grade certified"
        )
    head = plan if isinstance(plan, HeadPlan) else None
    if head is not None and head.tolerance.how is How.BY_ROUNDING:
        found.append(
            f"tolerance = {head.tolerance.value:.2g} is as fine as rows in float32 "
            "allow, so the noise moves a logit by more than three hundredths: raise l2"
        )
    elif head is not None and logit is not None and logit > 0.1:
        found.append(
            f"logit noise {logit:.2g} costs accuracy: tolerance = "
            f"{head.tolerance.value * 0.05 / logit:.1g} would bring it to 0.05"
        )
    longest = logit / decision.noise_std if logit and decision.noise_std else None
    if (problem := loud_noise(plan, longest)) is not None:
        found.insert(0, f"{REFUSED}: {problem}")
    return tuple(found)
