"""From a request and the Trainer's run to a plan: all is checked, nothing changed."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, Literal

from lightning_utilities.core.rank_zero import rank_zero_warn

from lightning_unlearn._base.problems import Problems
from lightning_unlearn.certificate import ledger as ledgers
from lightning_unlearn.errors import BudgetError, GuaranteeError, ModelError
from lightning_unlearn.guarantee.claims import noise_std_upper
from lightning_unlearn.guarantee.kinds import Guarantee, StronglyConvex
from lightning_unlearn.plugin import covered
from lightning_unlearn.plugin.files.known_checkpoints import (
    Known,
    Standing,
    check_newest,
    check_not_released,
    known,
)
from lightning_unlearn.plugin.mixin import hooks
from lightning_unlearn.plugin.options import Options
from lightning_unlearn.plugin.plan.head_plan import HeadPlan
from lightning_unlearn.plugin.plan.plan import Plan
from lightning_unlearn.plugin.plan.which_guarantee import (
    chosen_guarantee,
    convex_head,
    takes_statistics_anew,
)
from lightning_unlearn.plugin.plan.which_plan import plan_for
from lightning_unlearn.plugin.request.request import Request
from lightning_unlearn.plugin.request.stage import StageContext, drawn_in_training
from lightning_unlearn.plugin.run import guests
from lightning_unlearn.plugin.training import public_backbones
from lightning_unlearn.plugin.training.other_callbacks import check_others
from lightning_unlearn.plugin.training.outside import (
    Outside,
    merge_changes,
    numbers,
    outside_of,
)
from lightning_unlearn.plugin.training.training_record import (
    TrainingRecord,
    check_same_data,
)
from lightning_unlearn.plugin.training.weight_decay import (
    configured_optimizers,
    known_l2,
    l2_of,
)
from lightning_unlearn.step.batch_checks import spread_places
from lightning_unlearn.step.head.convex_head import ConvexHead
from lightning_unlearn.weights.digests import state_digest, tensors_digest
from lightning_unlearn.weights.objective import LossFunction
from lightning_unlearn.weights.opaque import tensors_in
from lightning_unlearn.weights.passes import hooked_weights
from lightning_unlearn.weights.scope import Scope, Shards


def resolve(
    context: StageContext,
    request: Request | None,
    guarantee: Guarantee | Literal["auto"] | None = None,
) -> Plan:
    """Resolve and validate everything; nothing is computed yet.

    Args:
        context: The Trainer's run.
        request: What is asked for; None to forget nothing more.
        guarantee: In place of the callback's, or None.

    Returns:
        The plan.

    Raises:
        UnlearningError: If the request will be refused.
    """
    record, options = context.callback.record, context.callback.options
    if record.private is not None:
        raise GuaranteeError(
            "expected a model of an ordinary training for a step, got a model of "
            "PrivateTraining: call trainer.unlearn, which takes no step there and "
            "changes no weight, or use how='retrain'"
        )
    options = public_backbones.own_part(options, context.module)
    if guarantee is not None:
        options = replace(options, guarantee=guarantee)
    dataset: Any = context.loader.dataset
    resume_from = None if request is None else request.resume_from
    problems, l2 = Problems(), None
    with context.processes.together():  # no process may wait for one that refuses
        save_to = None if request is None else request.save_to
        options.check_paths(save_to, context.ckpt_path, resume_from)
        loss, scope, head, module_l2 = _scope(context)
        drawn, chosen, chosen_one, outside = [], [], None, Outside((), ())
        with problems.noted():
            drawn = drawn_in_training(context)
            check_same_data(dataset, record)
            if request is not None:
                chosen = request.positions(context, record, drawn)
        with problems.noted():
            check_others(context.trainer)
    gone = {*chosen, *record.removed}
    with raising_in_all(context, scope):
        with problems.noted():
            public_backbones.check(context.module)
        with problems.noted():
            l2 = _l2(context, scope, module_l2)
        with problems.noted():
            chosen_one = chosen_guarantee(options, head, l2, scope)
        with problems.noted():
            anew = takes_statistics_anew(options, head, chosen_one)
            outside = outside_of(
                context.module,
                scope,
                record,
                rebuilds=anew,
                covers_private=isinstance(chosen_one, StronglyConvex),
            )
        problems.check()
    assert l2 is not None  # or a problem was noted
    ledger = context.processes.first(lambda: _ledger(context, options))
    if request is not None:
        with raising_in_all(context, scope):
            digest = state_digest(context.module.state_dict())
        with context.processes.together():
            # Noise by hand claims nothing, so nothing is counted.
            counted = options.releases is not None and options.noise_std is None
            check_newest_known(context, request, chosen, digest, counted)
            request.check_replaced(record, sorted(gone))
            covered.check_request(options, record, ledger, len(gone), digest)
    plan = plan_for(
        scope,
        head,
        chosen_one,
        resume_from,
        trainer=context.trainer,
        module=context.module,
        options=options,
        loader=context.loader,
        loss=loss,
        chosen=chosen,
        removed=sorted(gone),
        retained=[i for i in drawn if i not in gone],
        outside=outside,
        ledger=ledger,
        l2=l2,
    )
    check_pair(plan, context.callback.options.epsilon)
    return plan


def check_pair(plan: Plan, epsilon: float) -> None:
    """Raise `BudgetError` if a backbone and its head tell more than was agreed."""
    if not isinstance(plan, HeadPlan):
        return
    if (pair := plan.pair) is not None and not pair.epsilon <= epsilon:
        gone = plan.forgotten
        whom = f"the {gone} forgotten so far" if gone else "one sample"
        raise BudgetError(
            f"expected at most epsilon = {epsilon:g} of the privately trained backbone "
            f"and the head together, got {pair.epsilon:g} of {whom}: train the "
            "backbone anew without them (with more noise, to forget more), or agree "
            "on a larger epsilon before the head is trained"
        )


def raising_in_all(
    context: StageContext, scope: Scope
) -> AbstractContextManager[object]:
    """Raise in every process if this block fails in one.

    With shards it fails in all, for all of them gather what it looks at.
    """
    return nullcontext() if isinstance(scope, Shards) else context.processes.together()


def share_record(context: StageContext) -> None:
    """Look once more at what training may have changed, and share what is known.

    Every process goes by the first one's record: names and keys are random.
    """
    processes, record = context.processes, context.callback.record
    attached, options = context.callback.attached, context.callback.options
    if attached.is_of(context.module):
        attached.compare_rows(context.trainer, context.module, options)
    else:
        guests.unfreeze_trained(context.trainer, context.module, record.trained)
    merge_changes(record, processes)
    shared = processes.first(record.to_dict)
    if processes.rank > 0:
        context.callback.record = TrainingRecord.from_dict(shared)


def check_agreement(context: StageContext, plan: Plan) -> None:
    """All processes must compute the same function of the same samples."""
    processes, loader = context.processes, context.loader
    if processes.world == 1:
        return
    with raising_in_all(context, plan.scope):
        state = state_digest(context.module.state_dict())
    with processes.together():
        some = spread_places(len(plan.retained))
        _, batch = plan.batches(loader, plan.retained).take(some)
        sample = tensors_digest((str(i), x) for i, x in enumerate(tensors_in(batch)))
        plain = numbers(context.module, context.callback.record)
    processes.agree(
        forget_set=plan.chosen,
        training_data=(len(loader.dataset), sample),  # type: ignore[arg-type]
        batch_size=loader.batch_size,
        weights=state,
        public_parts=plan.outside.public_parts,
        plain_numbers=plain,
        options=repr(context.callback.options),
        l2=plan.l2,
    )


def check_newest_known(
    context: StageContext,
    request: Request,
    chosen: list[int],
    digest: str,
    counted: bool = False,
) -> None:
    """No checkpoint that is known may have forgotten what this one would keep."""
    record = context.callback.record
    folders = [] if request.save_to is None else [request.save_to.absolute().parent]
    trainer, path = context.trainer, context.ckpt_path
    check_not_released(context.module, digest, trainer, path, record, *folders)
    files = known(trainer, path, record, *folders)
    since = context.callback.attached.forgotten_since
    if since:
        here = "a request in this process"
        files.append(Known(here, Standing.LATER, named=True, forgotten=since))
    check_newest(files, record, chosen, counted)


def _scope(
    context: StageContext,
) -> tuple[LossFunction, Scope, ConvexHead | None, float | None]:
    module, strategy = context.module, context.strategy
    loss, in_scope, module_l2 = hooks(module)
    scope = strategy.scope(module, in_scope)
    head = convex_head(module, scope)
    if head is not None:  # in the head's own order, whatever the hook returned
        scope = strategy.scope(module, head.parameters())
    else:  # a head is solved from zero, if it must be
        scope.check_finite()
    hooked = hooked_weights(scope)
    if hooked:
        rank_zero_warn(
            f"hooks on the gradients of weights in scope ({', '.join(hooked[:3])}) are "
            "left out of a request: its objective is the loss, so that a part of a "
            "weight that such a hook keeps fixed in training is moved with the rest"
        )
    return loss, scope, head, module_l2


def ledger_so_far(context: StageContext) -> ledgers.Ledger:
    """The checkpoint's, which the file must agree with."""
    file = context.callback.options.ledger_path
    ledger = ledgers.Ledger.from_text(context.callback.record.ledger)
    if file is not None:
        ledgers.agree(ledger, ledgers.read(file))
    return ledger


def _ledger(context: StageContext, options: Options) -> ledgers.Ledger:
    """The same, for a release that must be within the budget."""
    ledger = ledger_so_far(context)
    if options.noise_std is None:
        mu = 1 / noise_std_upper(options.terms, sensitivity=1.0)
        ledger.check_budget(options.releases, mu)
    return ledger


def _l2(context: StageContext, scope: Scope, module_l2: float | None) -> float:
    options, record = context.callback.options, context.callback.record
    l2 = known_l2(options.l2, module_l2, record.l2)
    if l2 is not None:
        return l2
    if record.l2_problem is not None:
        raise ModelError(record.l2_problem)
    return l2_of(configured_optimizers(context.module), scope.parameters)
