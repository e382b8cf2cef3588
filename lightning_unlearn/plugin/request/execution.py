"""One request, inside the Trainer's run: plan, step, release, write."""

import time
import uuid
from dataclasses import dataclass, replace

from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor

from lightning_unlearn.certificate import receipts
from lightning_unlearn.certificate.certificate import Certificate
from lightning_unlearn.certificate.inbox.answers import Answers
from lightning_unlearn.certificate.receipts import Leaf
from lightning_unlearn.plugin.data import duplicates
from lightning_unlearn.plugin.files import prepared_file, solve_file, stale_checkpoints
from lightning_unlearn.plugin.files.journal import locked_for_all
from lightning_unlearn.plugin.files.prepared_file import BoundState
from lightning_unlearn.plugin.lightning import isolate_rng
from lightning_unlearn.plugin.mixin import quiet
from lightning_unlearn.plugin.plan.head_plan import HeadPlan
from lightning_unlearn.plugin.plan.measure import BeforeAndAfter
from lightning_unlearn.plugin.plan.plan import Plan
from lightning_unlearn.plugin.plan.sharded_plan import ShardedPlan
from lightning_unlearn.plugin.plan.size_of_noise import refuse_loud_noise
from lightning_unlearn.plugin.request import known_rows, ledger_entry, run_caveats
from lightning_unlearn.plugin.request.commit import Decided, commit
from lightning_unlearn.plugin.request.premises.public_forgotten import compared
from lightning_unlearn.plugin.request.premises.rebuilt_data import with_ways_checked
from lightning_unlearn.plugin.request.request import Request
from lightning_unlearn.plugin.request.resolution import (
    check_agreement,
    resolve,
    share_record,
)
from lightning_unlearn.plugin.request.result import UnlearningResult
from lightning_unlearn.plugin.request.retrain_request import plan_of
from lightning_unlearn.plugin.request.stage import StageContext
from lightning_unlearn.plugin.request.unchanged import private_request
from lightning_unlearn.plugin.run import progress
from lightning_unlearn.plugin.run.progress import Display
from lightning_unlearn.solvers.base import Solution
from lightning_unlearn.step.head.prepared_head import PreparedHead
from lightning_unlearn.step.release import Surroundings, release
from lightning_unlearn.step.step import Step
from lightning_unlearn.weights.digests import state_digest
from lightning_unlearn.weights.scope import Vector


@dataclass(frozen=True)
class _Released:
    """Weights and buffers after the noise, and how things stood before."""

    weights: Vector
    buffers: dict[str, Tensor]
    leaves: tuple[Leaf, ...]
    certificate: Certificate
    before: str
    old: stale_checkpoints.Stale


@dataclass(frozen=True)
class _Solved:
    """A request that is decided, and has changed nothing yet."""

    plan: Plan
    decided: Decided
    solution: Solution
    kept: BoundState | None
    measured: BeforeAndAfter | None
    copies: tuple[int, ...] | None


@dataclass(frozen=True)
class Execution:
    """Carries out one request; it changes nothing until `run` succeeds."""

    context: StageContext
    request: Request

    def run(self) -> UnlearningResult:
        """Solve, release, move the weights once, write; roll back if writing fails."""
        start, context = time.perf_counter(), self.context
        with (
            locked_for_all(context.callback.options.ledger_path, context.processes),
            progress.shown(
                context.trainer, context.module, context.processes
            ) as display,
        ):
            display.stage("reading")
            share_record(context)
            with self.request.opened(context) as request:
                return replace(self, request=request)._run(display, start)

    def _run(self, display: Display, start: float) -> UnlearningResult:
        context = self.context
        with context.strategy.gathered(context.module):
            solved = self._solve(display)
        seconds = time.perf_counter() - start + solved.plan.seconds_before
        display.stage("writing")
        answers = self._answers(solved.decided)
        deleted = self._commit(solved, answers)
        # The model has moved: nothing may raise any more.
        decided, matvecs = solved.decided, solved.solution.matvecs
        display.finish(decided.certificate, matvecs, seconds)
        result = self._result(solved, display, seconds, deleted)
        return replace(result, answers=answers)

    def _answers(self, decided: Decided) -> Answers | None:
        """What becomes of the requests in a file, if there is one."""
        pending, clean = self.request.pending, self.request.save_to
        if pending is None or clean is None:
            return None
        return pending.answers(decided.certificate, clean, decided.leaves)

    def _solve(self, display: Display) -> _Solved:
        context, request = self.context, self.request
        plan, state = self._planned()
        copies = self._duplicates(plan)
        key = context.callback.record.ledger_key
        plan = solve_file.with_solve_file(plan, key, request.resume_from)
        plan = replace(plan, display=display)
        context.module.zero_grad(set_to_none=True)  # room, and nothing worth keeping
        with isolate_rng(), quiet(context.module):
            plan = compared(plan, context.callback.record.certificate)
            measured = BeforeAndAfter(plan) if request.evaluate else None
            step, rest = _step(plan, state)
        kept = self._bound(plan, rest, state)
        refuse_loud_noise(plan, step)
        display.residual(step.solution.residual)
        display.stage("certificate")
        decided = self._decide(plan, step)
        if measured is not None:
            with isolate_rng(), quiet(context.module):
                measured.measure_after(decided.weights, decided.buffers)
        solution = step.solution
        if decided.certificate.noise_std > 0:  # or it would give away the step
            here = plan.scope.flatten(decided.weights.dtype)
            solution = replace(solution, x=here.sub_(decided.weights))
        return _Solved(plan, decided, solution, kept, measured, copies)

    def _bound(
        self, plan: Plan, rest: PreparedHead | None, before: BoundState | None
    ) -> BoundState | None:
        """What is kept for the next request, bound to what it was made from."""
        asked = self.context.callback.options.prepared_path is not None
        asked = asked or (before is not None and before.asked)
        with plan.processes.together():
            return None if rest is None else prepared_file.bind(plan, rest, asked)

    def _planned(self) -> tuple[Plan, BoundState | None]:
        """The plan, checked, and the prepared state that it begins with."""
        context, request = self.context, self.request
        if request.retrained is not None:
            plan = plan_of(context, request, request.retrained)
            check_agreement(context, plan)
            return plan, None
        if context.callback.record.private is not None:
            plan = private_request.plan_of(context, request)
            check_agreement(context, plan)
            return plan, None
        plan = resolve(context, request)
        state = known_rows.usable(context, plan)
        check_agreement(context, plan)
        refuse_loud_noise(plan)
        return with_ways_checked(context, plan, state), state

    def _commit(self, solved: _Solved, answers: Answers | None) -> tuple[str, ...]:
        """Move the weights; the old checkpoints that were deleted after it."""
        plan, decided, context = solved.plan, solved.decided, self.context
        clean = self.request.save_to
        began = context.callback.record
        commit(
            plan,
            decided,
            context.callback,
            clean,
            solved.kept,
            self.request.overwrite,
            answers,
        )
        deleted = ()
        if self.request.delete_stale and clean is not None:
            with progress.told("the request is done, but old checkpoints were left"):
                deleted, _ = context.processes.first(
                    lambda: stale_checkpoints.delete(
                        decided.stale, began, plan.chosen, clean
                    )
                )
        return deleted

    def _result(
        self,
        solved: _Solved,
        display: Display,
        seconds: float,
        deleted: tuple[str, ...],
    ) -> UnlearningResult:
        plan, measured = solved.plan, solved.measured
        file = self.context.callback.options.ledger_path
        return UnlearningResult(
            certificate=solved.decided.certificate,
            solution=solved.solution,
            n_forget=len(plan.chosen),
            n_retain=len(plan.retained),
            seconds=seconds,
            checkpoint_path=self.request.save_to,
            deleted=deleted,
            residuals=tuple(display.residuals),
            quality=() if measured is None else measured.lines,
            metric="accuracy" if measured is None else measured.metric,
            ledger=None if file is None else solved.decided.ledger.to_text(),
            ledger_path=file,
            duplicates=solved.copies,
            stale=solved.decided.stale,
            leaves=solved.decided.leaves,
            store=self._stored(solved.kept, len(plan.retained)),
        )

    def _stored(self, kept: BoundState | None, n: int) -> str:
        """The row store and its size, in words; "" if there is none."""
        path = self.context.callback.options.prepared_path
        if path is None or kept is None:
            return ""
        with progress.told(f"the request is done, but {path} cannot be looked at"):
            return f"{path} ({n:,} samples, {path.stat().st_size / 2**20:,.1f} MiB)"
        return str(path)

    def _duplicates(self, plan: Plan) -> tuple[int, ...] | None:
        if not self.request.find_duplicates:
            return None
        dataset = self.context.loader.dataset
        found = self.context.processes.first(
            lambda: duplicates.find(dataset, plan.chosen, plan.retained)
        )
        if found:
            rank_zero_warn(
                f"exact copies of forgotten samples are retained, and will still be in "
                f"the model: {len(found)} (result.duplicates has their positions)"
            )
        return found

    def _decide(self, plan: Plan, step: Step) -> Decided:
        """Noise, certificate, ledger entry and record: made once, known to all."""
        processes = self.context.processes
        if isinstance(plan, ShardedPlan):  # every process adds noise to its own
            own = self._release(plan, step)
            few = replace(own, weights=own.weights[:0])
            decided = processes.first(lambda: self._recorded(plan, few))
            return replace(decided, weights=own.weights)
        decided = processes.first(
            lambda: self._recorded(plan, self._release(plan, step))
        )
        return replace(decided, weights=decided.weights.to(step.weights.device))

    def _release(self, plan: Plan, step: Step) -> _Released:
        context = self.context
        before = state_digest(context.module.state_dict())
        old = stale_checkpoints.find(
            context.trainer,
            context.ckpt_path,
            context.callback.record,
            self.request.save_to,
        )
        buffers: dict[str, Tensor] = {}
        leaves = self.request.leaves(context, plan.chosen)

        def digest(weights: Vector) -> str:
            buffers.update(plan.rebuilt_statistics(weights))
            return plan.scope.state_digest(weights, buffers)

        weights, certificate = release(
            step,
            plan.terms,
            Surroundings(
                scope=plan.scope.entries,
                rebuilt=plan.rebuilt_entries(),
                n_forget=len(plan.chosen),
                n_retain=len(plan.retained),
                release=len(plan.ledger.entries) + 1,
                earlier_mus=plan.ledger.mus,
                earlier_grades=plan.ledger.grades,
                public_parts=plan.outside.public_parts,
                unscrubbed=plan.outside.unscrubbed,
                not_covered=(
                    *self.request.not_covered,
                    *run_caveats.not_covered(
                        context, plan, old, self.request.delete_stale
                    ),
                ),
                warnings=run_caveats.warnings(context, plan, before),
                digest=digest,
                n_parameters=plan.scope.n_parameters,
                dot=plan.scope.dot(context.processes),
                request_id=uuid.uuid4().hex,
                commitment=receipts.root(leaves),
                max_norm=plan.options.max_norm,
                noise_seed=plan.noise_seed,
                ways_checked=plan.ways_checked,
            ),
        )
        return _Released(weights, buffers, leaves, certificate, before, old)

    def _recorded(self, plan: Plan, own: _Released) -> Decided:
        certificate, record = own.certificate, self.context.callback.record
        line = ledger_entry.entry(plan, certificate, own.before, record.ledger_key)
        longer = plan.ledger.append(line)
        after = ledger_entry.after(
            record, plan, certificate, longer, own.old, self.request.save_to
        )
        weights, buffers = own.weights, own.buffers
        if plan.processes.world > 1:  # every process has a CPU to unpack it on
            weights = weights.cpu()
            buffers = {name: value.cpu() for name, value in buffers.items()}
        return Decided(
            weights, certificate, longer, after, buffers, own.old, own.leaves
        )


# An object, for the same reasons as `stage._InEachProcess`.
class Unlearn:
    """The stage that carries out a request."""

    def __init__(self, request: Request) -> None:
        self.request = request

    def __call__(self, context: StageContext) -> UnlearningResult:
        """Run it."""
        return Execution(context, self.request).run()


def _step(plan: Plan, state: BoundState | None) -> tuple[Step, PreparedHead | None]:
    """The step, and what of the prepared state may be kept after it."""
    if state is not None:
        return plan.step_from(state.state)
    if isinstance(plan, HeadPlan):  # its rows are kept for the next one
        return plan.step_from(plan.nothing())
    return plan.step(plan.retained), None
