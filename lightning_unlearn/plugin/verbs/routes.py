"""The ways to answer a request, side by side: what each proves, costs and needs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from lightning_unlearn._base.notebook import table
from lightning_unlearn._base.text import columns, point
from lightning_unlearn.errors import UnlearningError
from lightning_unlearn.guarantee.accounting.capacity import capacity
from lightning_unlearn.guarantee.accounting.private_training import privacy
from lightning_unlearn.guarantee.claims import Grade
from lightning_unlearn.guarantee.strength import MOST_FOUND
from lightning_unlearn.plugin.lightning import LightningModule
from lightning_unlearn.plugin.mixin import scope_of
from lightning_unlearn.plugin.options import Options
from lightning_unlearn.plugin.plan.which_guarantee import convex_head
from lightning_unlearn.plugin.private import whole_people
from lightning_unlearn.plugin.private.private_steps import in_words, mechanism_of
from lightning_unlearn.plugin.retrain.retrained import Job
from lightning_unlearn.plugin.training.training_record import TrainingRecord
from lightning_unlearn.plugin.verbs import advice
from lightning_unlearn.weights.scope import Scope

_HEAD = ("route", "grade", "epsilon", "expect", "time", "memory")


@dataclass(frozen=True, kw_only=True)
class Route:
    """One way to answer a request.

    Args:
        name: Of the route.
        grade: It would get; None if it cannot be taken as things are.
        epsilon: It would state, or None.
        metric: What the model is expected to be worth after it, in words; "" where
            nobody can say before.
        seconds: Wall time, or None where it is not known.
        memory: In words.
        needs: What must be changed for it, and what stands in its way.
        recommended: Whether it is the one to take.
    """

    name: str
    grade: Grade | None
    epsilon: float | None
    metric: str
    seconds: float | None
    memory: str
    needs: tuple[str, ...] = ()
    recommended: bool = False

    @property
    def cells(self) -> tuple[str, ...]:
        """As a row of a table."""
        return (
            self.name,
            "refused" if self.grade is None else self.grade.value,
            "-" if self.epsilon is None else f"{self.epsilon:g}",
            self.metric or "-",
            "not known" if self.seconds is None else f"{self.seconds:.3g} s",
            self.memory,
        )


def lines(routes: Sequence[Route]) -> list[str]:
    """The routes as a table for the terminal, with what each needs beneath it."""
    head, *rows = columns([_HEAD, *(route.cells for route in routes)])
    found = [f"  {head}"]
    for route, row in zip(routes, rows, strict=True):
        found.append(f"{'*' if route.recommended else ' '} {row}")
        for need in route.needs:
            found += point(need, 4)
    if any(route.recommended for route in routes):
        found += ["", "* recommended"]
    return found


def html(routes: Sequence[Route]) -> str:
    """The same for a notebook."""
    rows = []
    for route in routes:
        notes = ("recommended",) * route.recommended + route.needs
        rows.append((*route.cells, "; ".join(notes)))
    return table(rows, (*_HEAD, "notes"), ends=len(_HEAD) + 1)


def retraining(
    options: Options,
    record: TrainingRecord,
    seconds: float | None,
    job: Job,
    metric: str,
    private_backbone: bool = False,
) -> Route:
    """Training again without the samples.

    Args:
        options: Of the callback.
        record: Of the training.
        seconds: That the last training took, or None if nobody saw it.
        job: What would be trained.
        metric: What the model is worth now.
        private_backbone: Whether a part of it was trained privately on the samples.
    """
    needs = list[str]()
    if options.retrain is None:
        needs.append(
            "UnlearningCallback(retrain=make_training) and how='retrain'; from the "
            "command line --how retrain is enough"
        )
    kept, covered = len(job.kept), record.covered is not None
    impossible = covered or private_backbone
    if covered:
        needs = ["a new model: a retrained head was not among the announced releases"]
    if private_backbone:
        needs = [
            "its backbone was trained on the samples too (privately): train it anew "
            "as well"
        ]
    return Route(
        name=f"retraining from stage {kept + 1}" if kept else "retraining",
        grade=None if impossible else Grade.EXACT,
        epsilon=None if impossible else 0.0,
        metric=metric,
        seconds=_seconds(record, seconds, job),
        memory="as training",
        needs=tuple(needs),
    )


def _seconds(record: TrainingRecord, last: float | None, job: Job) -> float | None:
    """What the stages that would be trained again took, for the samples that stay."""
    stages = (record.stages or [])[len(job.kept) :] if job.parts else []
    n = len(record.retained) + len(record.removed)
    gone = {*job.removed}
    took = [(last, len(job.retained) / n if n else 1.0)]
    for stage in stages:
        left = sum(i not in gone for i in stage.drawn)
        took.append((stage.seconds, left / max(1, len(stage.drawn))))
    found = [None if s is None else s * share for s, share in took]
    known = [s for s in found if s is not None]
    return sum(known) if len(known) == len(found) else None


def convex_head_on_public(
    module: LightningModule, options: Options, record: TrainingRecord
) -> list[Route]:
    """A convex head in place of what is trained; none if that is what there is.

    Args:
        module: The module.
        options: Of the callback.
        record: Of the training.
    """
    if convex_head(module, Scope(module, scope_of(module))) is not None:
        return []
    frozen = sum(p.numel() for p in module.parameters() if not p.requires_grad)
    known = record.outside is not None and not record.drawn_problem
    where = "on a public network that never saw this data (RandomFeatures for tables)"
    if frozen and known:
        where = f"on the {frozen:,} weights that are frozen here, if they are public"
    needs = f"a new training: CertifiedClassifier or ConvexHead {where}"
    return [
        Route(
            name="convex head",
            grade=Grade.CERTIFIED,
            epsilon=options.epsilon,
            metric="",
            seconds=None,
            memory="-",
            needs=(needs,),
        )
    ]


def private_training(
    options: Options, record: TrainingRecord, job: Job, dataset: Any
) -> Route:
    """What differential privacy gives, or would give.

    Args:
        options: Of the callback.
        record: Of the training.
        job: What would be forgotten.
        dataset: Of the training.
    """
    grade, epsilon, seconds = Grade.CERTIFIED, options.epsilon, None
    needs = (
        "a new training with UnlearningCallback(private=PrivateTraining(...)), for a "
        "few deletions, none of which changes a weight",
    )
    steps = record.private
    if steps is not None:  # it is one: what does it allow?
        grade, epsilon = None, None
    gone, problem = 0, None if steps is None else steps.problem
    try:
        if steps is not None:
            gone = whole_people.forgotten(record, dataset, job.removed)
    except UnlearningError as why:
        problem = problem or str(why)
    if steps is not None and problem is not None:
        needs = (problem,)
    elif steps is not None:
        found = privacy(mechanism_of(steps), gone, options.delta)
        most = capacity(mechanism_of(steps), options.epsilon, options.delta)
        left = in_words(most, options.epsilon, gone)
        people = "" if steps.by is None else "people "
        if found.epsilon > options.epsilon:
            needs = (
                f"epsilon = {found.epsilon:g} of all {gone} {people}forgotten so far "
                f"is above {options.epsilon:g}, which allows "
                f"{in_words(most, options.epsilon)}",
            )
        else:
            grade, epsilon, seconds = Grade.CERTIFIED, found.epsilon, 0.0
            weak = found.most_found > MOST_FOUND
            if weak or not options.delta * len(job.retained) < 1:
                grade = Grade.VACUOUS
            needs = (f"no weight is changed; {left} more {people}could follow",)
    return Route(
        name="private training",
        grade=grade,
        epsilon=epsilon,
        metric="",
        seconds=seconds,
        memory="-",
        needs=needs,
    )


def with_recommended(routes: Sequence[Route]) -> tuple[Route, ...]:
    """Mark the one to take: certified as it stands, unless training again is quicker.

    Args:
        routes: The step on this model first, then retraining.
    """
    for route in routes:
        now = route.name == "private training" and route.seconds is not None
        if now and route.grade is Grade.CERTIFIED:
            return tuple(replace(r, recommended=r is route) for r in routes)
    step, again = routes[0], routes[1]
    slow = bool(advice.slower(step.seconds, again.seconds))
    best = step if step.grade is Grade.CERTIFIED and not slow else again
    best = step if again.grade is None else best
    return tuple(replace(r, recommended=r is best) for r in routes)
