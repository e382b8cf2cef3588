"""A request that is answered by retraining: before it, and after it."""

import secrets
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.utils.data import Subset

from lightning_unlearn._base.problems import Problems
from lightning_unlearn.errors import ModelError, StrategyError
from lightning_unlearn.plugin import covered
from lightning_unlearn.plugin.mixin import hooks
from lightning_unlearn.plugin.request.request import Request
from lightning_unlearn.plugin.request.resolution import (
    check_newest_known,
    ledger_so_far,
)
from lightning_unlearn.plugin.request.stage import StageContext, drawn_in_training
from lightning_unlearn.plugin.retrain.retrain_plan import RetrainPlan
from lightning_unlearn.plugin.retrain.retrained import (
    Job,
    Retrained,
    check_same_model,
)
from lightning_unlearn.plugin.retrain.transplant import Transplant
from lightning_unlearn.plugin.run.strategies import Sharded
from lightning_unlearn.plugin.stages import stage_end
from lightning_unlearn.plugin.stages.kept_stages import Gone
from lightning_unlearn.plugin.training.other_callbacks import check_others
from lightning_unlearn.plugin.training.outside import Outside
from lightning_unlearn.plugin.training.training_record import Stage, check_same_data
from lightning_unlearn.weights.digests import state_digest
from lightning_unlearn.weights.objective import LossFunction
from lightning_unlearn.weights.scope import Scope


def asked_for(context: StageContext, request: Request) -> Job:
    """What is to be retrained; all that can be refused before it is refused now.

    Args:
        context: The Trainer's run; its module is gathered.
        request: What is asked for.

    Raises:
        UnlearningError: If the request will be refused.
    """
    covered.refuse_retraining(context.callback.record)
    job = meant(context, request)
    check_current(context, request, job)
    return job


def meant(context: StageContext, request: Request) -> Job:
    """What a request means, whatever answers it.

    Args:
        context: The Trainer's run.
        request: What is asked for.

    Raises:
        UnlearningError: If that cannot be told, or not be done.
    """
    record, options = context.callback.record, context.callback.options
    dataset: Any = context.loader.dataset
    problems, drawn, chosen = Problems(), list[int](), list[int]()
    with context.processes.together():
        options.check_paths(request.save_to, context.ckpt_path, None)
        with problems.noted():
            every = list(range(len(dataset)))  # whatever sampler drew from it
            drawn = every if record.drawn_problem else drawn_in_training(context)
            check_same_data(dataset, record)
            chosen = request.positions(context, record, drawn)
        with problems.noted():
            check_others(context.trainer)
        problems.check()
    gone = {*chosen, *record.removed}
    retained = [i for i in drawn if i not in gone]
    kept, parts = context.processes.first(lambda: _stages(context, chosen, retained))
    return Job(
        kept=kept,
        parts=parts,
        staged=options.stages is not None and not record.drawn_problem,
        coins=context.processes.first(lambda: secrets.randbits(32)),
        chosen=chosen,
        removed=sorted(gone),
        retained=retained,
        n_train=len(dataset),
        lineage=record.lineage,
        key=record.ledger_key,
        # Whatever budget is left: a retraining uses up nothing.
        ledger=context.processes.first(lambda: ledger_so_far(context)),
    )


def _stages(
    context: StageContext, chosen: list[int], retained: list[int]
) -> tuple[tuple[Stage, ...], tuple[list[int], ...]]:
    """The stages that are kept, and what each of the others draws."""
    record, folder = context.callback.record, context.callback.options.stages_path
    if folder is not None:
        stage_end.check_folder(folder)
    stages = record.stages
    if not stages or folder is None or record.drawn_problem:
        return (), ()
    gone = Gone.of(record, context.loader.dataset, chosen)
    kept = gone.last_before(stages, folder)
    left = frozenset(retained)
    parts = [[i for i in stage.drawn if i in left] for stage in stages[kept:]]
    return tuple(stages[:kept]), (*(part for part in parts if part), retained)


def check_current(context: StageContext, request: Request, job: Job) -> None:
    """Refuse a model that is not the newest one, and files that may not be replaced.

    Args:
        context: The Trainer's run; its module is gathered.
        request: What is asked for.
        job: What it means.

    Raises:
        SetupError: If it is refused.
    """
    digest = state_digest(context.module.state_dict())
    counted = context.callback.options.releases is not None
    with context.processes.together():
        check_newest_known(context, request, job.chosen, digest, counted)
        request.check_replaced(context.callback.record, job.removed)


def known_request(request: Request, context: StageContext, job: Job) -> Request:
    """The same request, once what it means is known: nothing is warned of again.

    Args:
        request: As it was asked for.
        context: The Trainer's run.
        job: What it means.
    """
    dataset: Any = context.loader.dataset
    return replace(request, forget=Subset(dataset, job.chosen), by=None, pending=None)


def plan_of(
    context: StageContext, request: Request, retrained: Retrained
) -> RetrainPlan:
    """The plan that puts what was retrained in the place of the old model.

    Args:
        context: The Trainer's run.
        request: As it was asked for.
        retrained: What the retraining left.

    Raises:
        UnlearningError: If something else was done meanwhile, or it is another model.
    """
    job = asked_for(context, known_request(request, context, retrained.job))
    retrained.job.check_same(job)
    module = context.module
    check_same_model(module, retrained.state)
    if isinstance(context.strategy, Sharded):
        raise StrategyError(
            "expected whole weights for how='retrain', got shards "
            "(curvature='central_difference'): leave curvature= at its default"
        )
    transplant = Transplant()
    if retrained.module is not None:
        transplant = Transplant.between(module, retrained.module)
    named = dict(module.named_parameters())
    options = context.callback.options
    return RetrainPlan(
        retrained=retrained,
        scope=Scope(module, [named[name] for name in retrained.scope]),
        head=None,
        guarantee=None,
        trainer=context.trainer,
        module=module,
        options=replace(
            options, noise_std=None, noise_seed=None, releases=None, max_norm=None
        ),
        loader=context.loader,
        loss=loss_or_none(context),
        chosen=job.chosen,
        removed=job.removed,
        retained=job.retained,
        outside=Outside(retrained.public_parts, tuple(transplant.left)),
        transplant=transplant,
        ledger=job.ledger,
        l2=context.callback.record.l2 or 0.0,
    )


def loss_or_none(context: StageContext) -> LossFunction:
    """That of the module, which need not have one: it is measured with it, no more."""
    try:
        return hooks(context.module)[0]
    except ModelError as problem:
        return _raising(problem)


def _raising(problem: ModelError) -> Callable[[Any, int], Tensor]:
    def loss(batch: Any, batch_idx: int) -> Tensor:
        del batch, batch_idx
        raise problem

    return loss
