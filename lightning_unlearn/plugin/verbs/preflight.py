"""``preflight``: what a request will prove and cost, before anything is changed."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

from torch.utils.data import DataLoader

from lightning_unlearn._base.notebook import box, listed, table
from lightning_unlearn._base.problems import separate
from lightning_unlearn._base.text import point
from lightning_unlearn.certificate.words.printed import so_far
from lightning_unlearn.errors import BudgetError, GuaranteeError, ModelError
from lightning_unlearn.guarantee import claims
from lightning_unlearn.guarantee.claims import Grade
from lightning_unlearn.plugin.callback import UnlearningCallback
from lightning_unlearn.plugin.data import duplicates
from lightning_unlearn.plugin.data.forget_set import Forget
from lightning_unlearn.plugin.files.prepared_file import BoundState
from lightning_unlearn.plugin.lightning import (
    LightningDataModule,
    LightningModule,
    isolate_rng,
    pl,
)
from lightning_unlearn.plugin.mixin import quiet
from lightning_unlearn.plugin.plan.plan import Plan
from lightning_unlearn.plugin.request import known_rows
from lightning_unlearn.plugin.request.premises.public_forgotten import compared
from lightning_unlearn.plugin.request.premises.rebuilt_data import with_ways_checked
from lightning_unlearn.plugin.request.request import Request, file_of_requests
from lightning_unlearn.plugin.request.resolution import (
    resolve,
    share_record,
)
from lightning_unlearn.plugin.request.retrain_request import (
    check_current,
    known_request,
    meant,
)
from lightning_unlearn.plugin.request.stage import StageContext, run_in_trainer
from lightning_unlearn.plugin.retrain.retrained import Job
from lightning_unlearn.plugin.run import strategies
from lightning_unlearn.plugin.training import public_backbones
from lightning_unlearn.plugin.verbs import advice, forecast, routes
from lightning_unlearn.plugin.verbs.routes import Route

_NOTHING_CHANGED = "PREFLIGHT: nothing was changed"
_EPSILONS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)


@dataclass(frozen=True, kw_only=True)
class Preflight:
    """What to expect of a request.

    Args:
        grade: The grade it will get.
        epsilon: That of the callback, or None for grade ``none``.
        delta: Likewise.
        sensitivity: Bound on how far the weights can differ before noise, or None.
        noise_std: Standard deviation of the noise on each weight.
        noise_to_weight: noise_std sqrt(p) / |w|.
        logit_noise: noise_std times the largest norm of a feature row of the
            validation data, for a `ConvexHead`; else None.
        metric: "accuracy" or "loss", on `metric_data`.
        metric_data: "validation", or "retained" if there is no validation data.
        metric_before: The metric of the weights as they are.
        metric_after: That expected with the noise (mean of a few draws).
        curve: (epsilon, noise_std, expected metric) for other epsilons.
        seconds: Predicted wall time.
        training_seconds: Wall time of the last training, or None.
        memory_bytes: Predicted peak memory added by the request.
        n_forget: Samples to forget.
        n_retain: Samples retained.
        advice: What to change, and what it would give.
        duplicates: Positions of retained samples that are exact copies of forgotten
            ones; None if they were not looked for.
        release: Which release it will be, from 1 on.
        releases: Announced number of them, or None.
        composed_epsilon: Of all releases so far and this one seen together, or None
            where there is none.
        composed_grade: The grade of that: the lowest of all of them.
        on_your_word: What the claim takes as public: you vouch for it.
        covers: Whether the claim also speaks of the heads that were served before.
        refused: Why a step on this model would be refused, or None. If it would be,
            the fields that are known of a step alone are None.
        routes: The ways to answer the request, the step on this model first.
    """

    grade: Grade
    n_forget: int
    n_retain: int
    epsilon: float | None = None
    delta: float | None = None
    sensitivity: float | None = None
    noise_std: float | None = None
    noise_to_weight: float | None = None
    logit_noise: float | None = None
    metric: str = ""
    metric_data: str = ""
    metric_before: float | None = None
    metric_after: float | None = None
    curve: tuple[tuple[float, float, float], ...] = ()
    seconds: float | None = None
    memory_bytes: int | None = None
    advice: tuple[str, ...] = ()
    duplicates: tuple[int, ...] | None = None
    release: int = 1
    releases: int | None = None
    composed_epsilon: float | None = None
    composed_grade: Grade | None = None
    on_your_word: tuple[str, ...] = ()
    covers: bool = False
    training_seconds: float | None = None
    refused: str | None = None
    routes: tuple[Route, ...] = ()

    def __str__(self) -> str:
        lines = [_NOTHING_CHANGED, ""]
        lines += [f"  {name:<22} {value}" for name, value in self._rows()]
        for text in self.advice:
            lines += point(text, 2)
        return "\n".join([*lines, "", *routes.lines(self.routes)])

    def _repr_html_(self) -> str:
        ways = routes.html(self.routes)
        return box(_NOTHING_CHANGED, table(self._rows()), listed(self.advice), ways)

    def _rows(self) -> list[tuple[str, str]]:
        qualifier = "" if self.grade is Grade.CERTIFIED else f" ({self.grade.value})"
        if self.noise_std is None or self.seconds is None or self.memory_bytes is None:
            return self._refused_rows()
        claim = "no epsilon"
        if self.epsilon is not None:
            claim = f"epsilon = {self.epsilon:g}{qualifier}, delta = {self.delta:g}"
        sensitivity = "none" if self.sensitivity is None else f"{self.sensitivity:.4g}"
        rows = [
            ("grade to expect", f"{self.grade.value}: {claim}"),
            ("forget / retain", f"{self.n_forget:,} / {self.n_retain:,} samples"),
            ("sensitivity", sensitivity),
            ("noise_std", f"{self.noise_std:.4g} per weight"),
            ("noise / weights", f"{self.noise_to_weight:.3g}"),
            (
                f"{self.metric_data} {self.metric}",
                f"{self.metric_before:.4g} now, {self.metric_after:.4g} with the noise",
            ),
            ("time", self._time()),
            ("memory", f"about {self.memory_bytes / 2**20:,.0f} MiB more"),
        ]
        rows.insert(1, ("release", self._release()))
        if self.on_your_word:
            rows.insert(1, ("taken as public", ", ".join(self.on_your_word)))
        if self.duplicates is not None:
            found = f"{len(self.duplicates)} exact copies among the retained"
            rows.insert(3, ("duplicates", found))
        if self.logit_noise is not None:
            rows.append(("logit noise", f"{self.logit_noise:.3g}"))
        return rows

    def _refused_rows(self) -> list[tuple[str, str]]:
        rows = [
            ("grade to expect", "no step on this model can be taken: see the routes"),
            ("forget / retain", f"{self.n_forget:,} / {self.n_retain:,} samples"),
        ]
        if self.metric_before is not None:
            now = f"{self.metric_before:.4g} now"
            rows.append((f"{self.metric_data} {self.metric}", now))
        return rows

    def _time(self) -> str:
        text = f"about {self.seconds:.3g} s"
        if self.training_seconds is not None:
            text += f"; the last training took {self.training_seconds:.3g} s"
        return text

    def _release(self) -> str:
        text = f"{self.release}" + (
            f" of {self.releases} announced" if self.releases else ""
        )
        if self.composed_epsilon is None or self.composed_grade is None:
            return text
        worth = self.composed_grade.value
        of = self.composed_epsilon, self.release, self.releases, worth, self.covers
        return f"{text}; {so_far(*of)}"


def preflight(
    trainer: pl.Trainer,
    forget: Forget = None,
    model: LightningModule | None = None,
    train_dataloaders: DataLoader | None = None,
    datamodule: LightningDataModule | None = None,
    ckpt_path: str | Path | None = None,
    weights_only: bool | None = None,
    val_dataloaders: DataLoader | None = None,
    by: str | None = None,
    find_duplicates: bool = False,
    requests: str | Path | None = None,
) -> Preflight:
    """Look before unlearning: grade, noise, expected metric, time, memory, advice.

    Nothing is modified: a checkpoint loaded for it is unloaded again.

    Args:
        trainer: With an `UnlearningCallback`.
        forget: As for `unlearn`.
        model: As for `unlearn`.
        train_dataloaders: As for `unlearn`.
        datamodule: As for `unlearn`; its validation data is used.
        ckpt_path: As for `unlearn`.
        weights_only: As for `unlearn`.
        val_dataloaders: Data for the expected metric; that of the datamodule or the
            model by default, else the retained samples.
        by: As for `unlearn`.
        find_duplicates: As for `unlearn`.
        requests: As for `unlearn`; what would be refused is named in a warning, and
            nothing is written into the file.

    Returns:
        The forecast.

    Raises:
        StrategyError: If the Trainer has several processes.
        UnlearningError: If the request would be refused in whatever way it is made,
            with the reason.
    """
    strategies.check_alone(trainer, "preflight")

    file = file_of_requests(forget, requests)

    def look_at(context: StageContext, request: Request) -> Preflight:
        job = meant(context, request)
        try:
            plan = resolve(context, known_request(request, context, job))
        except (GuaranteeError, ModelError, BudgetError) as problem:
            check_current(context, request, job)  # else a part of `resolve`
            return _without_step(context, job, str(problem), val_dataloaders)
        plan = compared(plan, context.callback.record.certificate)
        state = known_rows.usable(context, plan)
        plan = with_ways_checked(context, plan, state)
        copies = None
        if find_duplicates:
            dataset = context.loader.dataset
            copies = duplicates.find(dataset, plan.chosen, plan.retained)
        look = _look(plan, state, context.callback, val_dataloaders)
        ways = _routes(context, job, look)
        return replace(look, duplicates=copies, routes=ways)

    def stage(context: StageContext) -> Preflight:
        with isolate_rng(), quiet(context.module, restore=True):
            share_record(context)
            asked = Request(forget=forget, by=by, requests=file)
            with asked.opened(context, keeps=False) as request:
                return look_at(context, request)

    return run_in_trainer(
        trainer,
        stage,
        model=model,
        train_dataloaders=train_dataloaders,
        datamodule=datamodule,
        ckpt_path=ckpt_path,
        weights_only=weights_only,
        changes_nothing=True,
    )


def _look(
    plan: Plan,
    state: BoundState | None,
    callback: UnlearningCallback,
    validation: DataLoader | None,
) -> Preflight:
    options, basis = plan.options, plan.basis(plan.claim().constants)
    decision = claims.decide(plan.terms, basis)
    loader, indices, name = forecast.data_of(plan, validation)
    outlook = forecast.outlook(plan, loader, indices)
    noise_std, weights = decision.noise_std, float(plan.scope.flatten().norm())
    row = outlook.largest_row
    logit = None if row is None else noise_std * row
    trained = _trained(callback, plan.module)
    enough = math.inf if trained is None else max(trained, advice.WAIT)
    prepared = None if state is None else state.state
    seconds = forecast.seconds(plan, prepared, enough)
    return Preflight(
        grade=decision.grade,
        epsilon=decision.epsilon,
        delta=decision.delta,
        sensitivity=decision.sensitivity,
        noise_std=noise_std,
        noise_to_weight=noise_std * math.sqrt(plan.scope.size) / max(weights, 1e-300),
        logit_noise=logit,
        metric=outlook.name,
        metric_data=name,
        metric_before=outlook.before,
        metric_after=outlook.before if noise_std == 0 else outlook.at(noise_std),
        curve=_curve(plan, outlook) if decision.sensitivity is not None else (),
        seconds=seconds,
        training_seconds=trained,
        memory_bytes=forecast.memory_bytes(plan),
        n_forget=len(plan.chosen),
        n_retain=len(plan.retained),
        advice=(
            *advice.strength(plan, decision),
            *advice.advice(plan, decision, callback, logit),
            *advice.slower(seconds, trained),
        ),
        release=basis.release,
        releases=options.releases,
        composed_epsilon=decision.composed_epsilon,
        composed_grade=decision.composed_grade,
        on_your_word=advice.on_your_word(plan, decision.grade),
        covers=basis.bound is claims.Bound.SERVED_HEAD,
    )


def _curve(
    plan: Plan, outlook: forecast.Outlook
) -> tuple[tuple[float, float, float], ...]:
    """(epsilon, noise_std, expected metric) for other epsilons than the callback's."""
    found = []
    for epsilon in _EPSILONS:
        there = replace(plan, options=replace(plan.options, epsilon=epsilon))
        claim = there.claim()  # a tolerance may follow from epsilon
        needed = claims.sensitivity_upper(claim.bound, claim.constants)
        std = claims.noise_std_upper(there.options.terms, needed)
        found.append((epsilon, std, outlook.at(std)))
    return tuple(found)


def _without_step(
    context: StageContext, job: Job, problem: str, validation: DataLoader | None
) -> Preflight:
    """What is known where no step on the model as it is can be taken."""
    look = Preflight(
        grade=Grade.NONE,
        n_forget=len(job.chosen),
        n_retain=len(job.retained),
        training_seconds=_trained(context.callback, context.module),
        refused=problem,
    )
    if (now := forecast.as_it_is(context, job, validation)) is not None:
        metric, before, data = now
        look = replace(look, metric=metric, metric_before=before, metric_data=data)
    return replace(look, routes=_routes(context, job, look))


def _trained(callback: UnlearningCallback, module: LightningModule) -> float | None:
    """How long the last training took, where it was watched."""
    attached = callback.attached
    own = attached.fit_seconds if attached.is_of(module) else None
    return callback.record.fit_seconds if own is None else own


def _routes(context: StageContext, job: Job, look: Preflight) -> tuple[Route, ...]:
    """The ways to answer the request, the step on this model first."""
    options, record = context.callback.options, context.callback.record
    metric = before = ""
    if look.metric_before is not None:
        before = f"{look.metric_before:.3g} {look.metric}"
    if look.metric_after is not None:
        metric = f"{look.metric_after:.3g} {look.metric}"
    stops = [text for text in look.advice if text.startswith(advice.REFUSED)]
    stops += [] if look.refused is None else separate(look.refused)
    step = Route(
        name="step on this model",
        grade=None if stops else look.grade,
        epsilon=None if stops else look.epsilon,
        metric=metric,
        seconds=look.seconds,
        memory="-"
        if look.memory_bytes is None
        else f"{look.memory_bytes / 2**20:,.0f} MiB",
        needs=tuple(stops),
    )
    return routes.with_recommended(
        [
            step,
            routes.retraining(
                options,
                record,
                look.training_seconds,
                job,
                before,
                bool(public_backbones.private_weights(context.module)),
            ),
            *routes.convex_head_on_public(context.module, options, record),
            routes.private_training(options, record, job, context.loader.dataset),
        ]
    )
