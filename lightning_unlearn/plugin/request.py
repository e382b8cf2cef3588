"""One request, inside the Trainer's run: resolve, validate, solve, release, write."""

import time
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader

from lightning_unlearn import ledger as ledgers
from lightning_unlearn.certificate import Certificate, claims
from lightning_unlearn.certificate.guarantees import NormBall
from lightning_unlearn.errors import ModelError
from lightning_unlearn.heads import ConvexHead
from lightning_unlearn.newton import Step
from lightning_unlearn.objective import LossFunction
from lightning_unlearn.plugin import (
    data,
    duplicates,
    entries,
    inventory,
    journal,
    progress,
    public,
    quality,
    sharded,
    solve_state,
    stale,
    statements,
    statistics,
    store,
    strategies,
)
from lightning_unlearn.plugin.asked import Asked
from lightning_unlearn.plugin.callback import UnlearningCallback
from lightning_unlearn.plugin.commit import Done, commit
from lightning_unlearn.plugin.guarantee import chosen_guarantee, convex_head
from lightning_unlearn.plugin.mixin import hooks, quiet
from lightning_unlearn.plugin.record import (
    TrainingRecord,
    check_same_data,
    merge_changes,
    numbers,
    outside_of,
)
from lightning_unlearn.plugin.resolved import Resolved
from lightning_unlearn.plugin.result import UnlearningResult
from lightning_unlearn.plugin.store import Stored
from lightning_unlearn.plugin.weight_decay import (
    configured_optimizers,
    l2_of,
    stated_l2,
)
from lightning_unlearn.processes import Processes
from lightning_unlearn.release import Surroundings, release
from lightning_unlearn.scope import Scope, Shards, Vector, state_digest, tensors_digest


@dataclass(frozen=True)
class _Released:
    """Weights and buffers after the noise, and how things stood before."""

    weights: Vector
    buffers: dict[str, torch.Tensor]
    certificate: Certificate
    before: str
    old: stale.Stale


@dataclass(frozen=True, kw_only=True)
class Request:
    """Everything one request reads; it changes nothing until `run` succeeds."""

    trainer: Trainer
    module: LightningModule
    callback: UnlearningCallback
    loader: DataLoader
    ckpt_path: str | None
    asked: Asked = field(default_factory=Asked)

    def resolve(self) -> tuple[Resolved, Stored | None]:
        """Resolve and validate everything; nothing is computed yet.

        Returns:
            The request, and the prepared state it can use.

        Raises:
            UnlearningError: If the request will be refused.
        """
        removed, dataset = self.callback.record.removed, self.loader.dataset
        return self._resolve(
            lambda: self.asked.positions(dataset, removed, self.trainer, self.module)
        )

    def resolve_none(self) -> tuple[Resolved, Stored | None]:
        """As `resolve`, for a request that forgets nothing more."""
        return self._resolve(list)

    def _resolve(
        self, forgets: Callable[[], list[int]]
    ) -> tuple[Resolved, Stored | None]:
        record, options = self.callback.record, self.callback.options
        dataset: Any = self.loader.dataset
        with self.processes.together():  # no process may wait for one that refuses
            asked = self.asked
            options.check_paths(asked.save_to, self.ckpt_path, asked.resume_from)
            loss, scope, head, module_l2 = self._scope()
            check_same_data(dataset, record)
            chosen = forgets()
            gone = {*chosen, *record.removed}
            inventory.check_averages(self.trainer)
        with self._failing_together(scope):
            public.check(self.module)
            l2 = self._l2(scope, module_l2)
            guarantee = chosen_guarantee(options, head, l2, scope)
            free = guarantee is None or isinstance(guarantee, NormBall)
            outside = outside_of(self.module, scope, record, rebuilds=free)
        ledger = self.processes.first(self._ledger)
        ready = Resolved(
            trainer=self.trainer,
            module=self.module,
            options=options,
            loader=self.loader,
            loss=loss,
            scope=scope,
            head=head,
            chosen=chosen,
            removed=sorted(gone),
            retained=[i for i in range(len(dataset)) if i not in gone],
            outside=outside,
            ledger=ledger,
            l2=l2,
            guarantee=guarantee,
        )
        sharded.check_possible(ready, self.asked.resume_from)
        return ready, self._usable(ready)

    def _failing_together(self, scope: Scope) -> AbstractContextManager[object]:
        """A block that all processes fail in; with shards all do, since all gather."""
        return nullcontext() if isinstance(scope, Shards) else self.processes.together()

    @property
    def processes(self) -> Processes:
        """Those that share the request."""
        return self.strategy.processes

    @property
    def strategy(self) -> strategies.Replicated:
        """What the Trainer's strategy means for this request."""
        return strategies.adapter(self.trainer, self.callback.options.curvature)

    def _share_record(self) -> None:
        """Every process goes by the first one's record: names and keys are random."""
        processes, record = self.processes, self.callback.record
        merge_changes(record, processes)
        shared = processes.first(record.to_dict)
        if processes.rank > 0:
            self.callback.record = TrainingRecord.from_dict(shared)

    def _check_agreement(self, ready: Resolved) -> None:
        """All processes must compute the same function of the same samples."""
        if self.processes.world == 1:
            return
        with self._failing_together(ready.scope):
            state = state_digest(self.module.state_dict())
        with self.processes.together():
            some = data.spread(len(ready.retained))
            _, batch = ready.batches(self.loader, ready.retained).take(some)
            leaves = [x for x in tree_leaves(batch) if isinstance(x, torch.Tensor)]
            sample = tensors_digest((str(i), x) for i, x in enumerate(leaves))
            plain = numbers(self.module, self.callback.record)
        self.processes.agree(
            forget_set=ready.chosen,
            training_data=(len(self.loader.dataset), sample),  # type: ignore[arg-type]
            batch_size=self.loader.batch_size,
            weights=state,
            public_parts=ready.outside.public_parts,
            plain_numbers=plain,
            options=repr(self.callback.options),
            l2=ready.l2,
        )

    def _usable(self, ready: Resolved) -> Stored | None:
        """The prepared state, if there is any and it is of this model."""
        kept, file = self.callback.kept, self.callback.options.prepared
        if self.processes.world > 1:
            if kept is not None or (file is not None and file.exists()):
                rank_zero_warn(
                    "what was prepared is used on one device only: this request goes "
                    "without it"
                )
            return None
        if kept is None and file is not None and file.exists():
            kept = store.read(file)
        if kept is None or kept.fits(ready):
            return kept
        rank_zero_warn(
            "what was prepared is of another model, l2, scope or set of samples than "
            "this request's: it is not used; call lightning_unlearn.prepare again"
        )
        return None

    def run(self) -> UnlearningResult:
        """Solve, release, move the weights once, write; roll back if writing fails."""
        start = time.perf_counter()
        file = self.callback.options.ledger
        with (
            journal.locked_for_all(file, self.processes),
            progress.shown(self.trainer, self.module, self.processes) as display,
        ):
            return self._run(start, display)

    def _run(self, start: float, display: progress.Display) -> UnlearningResult:
        display.stage("reading")
        self._share_record()
        with self.strategy.whole(self.module):
            ready, kept = self.resolve()
            self._check_agreement(ready)
            copies = self._duplicates(ready)
            key = self.callback.record.ledger_key
            ready = solve_state.watched(ready, key, self.asked.resume_from)
            ready = replace(ready, display=display)
            self.module.zero_grad(set_to_none=True)  # room, and nothing worth keeping
            with isolate_rng(), quiet(self.module):
                where = quality.samples(ready) if self.asked.evaluate else None
                before = quality.everywhere(ready, where) if where else None
                if kept is None:
                    step, rest = ready.step(ready.retained), None
                else:
                    kept.check_data(ready)
                    step, rest = ready.step_from(kept.state)
            solution = step.solution
            display.residual(solution.residual)
            display.stage("certificate")
            done = self._decide(ready, step)
            metric, lines = "accuracy", ()
            if where and before is not None:
                with isolate_rng(), quiet(self.module):
                    after = quality.everywhere(ready, where, done.weights, done.buffers)
                metric, lines = quality.compared(before, after)
            if done.certificate.noise_std > 0:  # or it would give away the step
                here = ready.scope.flatten(done.weights.dtype)
                solution = replace(solution, x=here.sub_(done.weights))
        seconds = time.perf_counter() - start
        kept = None if rest is None else store.stored(ready, rest)
        began, clean = self.callback.record, self.asked.save_to
        file = self.callback.options.ledger
        display.stage("writing")
        commit(ready, done, self.callback, clean, kept)
        deleted = ()  # from here on the model has moved: nothing may raise
        if self.asked.delete_stale and clean is not None:
            with progress.told("the request is done, but old checkpoints were left"):
                deleted, _ = self.processes.first(
                    lambda: stale.delete(done.stale, began, ready.chosen, clean)
                )
        display.finish(done.certificate, solution.matvecs, seconds)
        return UnlearningResult(
            certificate=done.certificate,
            solution=solution,
            n_forget=len(ready.chosen),
            n_retain=len(ready.retained),
            seconds=seconds,
            checkpoint_path=clean,
            deleted=deleted,
            residuals=tuple(display.residuals),
            quality=lines,
            metric=metric,
            ledger=None if file is None else done.ledger.to_text(),
            ledger_path=file,
            duplicates=copies,
        )

    def _duplicates(self, ready: Resolved) -> tuple[int, ...] | None:
        if not self.asked.find_duplicates:
            return None
        dataset = self.loader.dataset
        found = self.processes.first(
            lambda: duplicates.find(dataset, ready.chosen, ready.retained)
        )
        if found:
            rank_zero_warn(
                f"exact copies of forgotten samples are retained, and will still be in "
                f"the model: {len(found)} (result.duplicates has their positions)"
            )
        return found

    def _decide(self, ready: Resolved, step: Step) -> Done:
        """Noise, certificate, ledger entry and record: made once, known to all."""
        if ready.sharded:  # every process adds noise to its own
            own = self._release(ready, step)
            few = replace(own, weights=own.weights[:0])
            done = self.processes.first(lambda: self._recorded(ready, few))
            return replace(done, weights=own.weights)
        done = self.processes.first(
            lambda: self._recorded(ready, self._release(ready, step))
        )
        return replace(done, weights=done.weights.to(step.weights.device))

    def _release(self, ready: Resolved, step: Step) -> _Released:
        before = state_digest(self.module.state_dict())
        old = stale.find(self.trainer, self.ckpt_path, self.callback.record)
        buffers: dict[str, torch.Tensor] = {}

        def digest(weights: Vector) -> str:
            buffers.update(statistics.recomputed(ready, weights))
            return ready.scope.state_digest(weights, buffers)

        weights, certificate = release(
            step,
            sharded.terms(ready),
            Surroundings(
                n_forget=len(ready.chosen),
                n_retain=len(ready.retained),
                release=len(ready.ledger.entries) + 1,
                earlier_mus=ready.ledger.mus,
                earlier_grades=ready.ledger.grades,
                public_parts=ready.outside.public_parts,
                unscrubbed=ready.outside.unscrubbed,
                not_covered=statements.not_covered(
                    self.trainer,
                    self.callback,
                    old,
                    self.asked.delete_stale,
                    ready.watch,
                ),
                warnings=statements.warnings(
                    self.callback.record, self.loader, ready, before
                ),
                digest=digest,
                n_parameters=ready.scope.n_parameters,
                dot=ready.scope.dot(self.processes),
                request_id=uuid.uuid4().hex,
            ),
        )
        return _Released(weights, buffers, certificate, before, old)

    def _recorded(self, ready: Resolved, own: _Released) -> Done:
        certificate = own.certificate
        record = self.callback.record
        line = entries.entry(ready, certificate, own.before, record.ledger_key)
        longer = ready.ledger.append(line)
        after = entries.after(
            record, ready, certificate, longer, own.old, self.asked.save_to
        )
        weights, buffers = own.weights, own.buffers
        if self.processes.world > 1:  # every process has a CPU to unpack it on
            weights = weights.cpu()
            buffers = {name: value.cpu() for name, value in buffers.items()}
        return Done(weights, certificate, longer, after, buffers, own.old)

    def _scope(self) -> tuple[LossFunction, Scope, ConvexHead | None, float | None]:
        loss, in_scope, module_l2 = hooks(self.module)
        scope = self.strategy.scope(self.module, in_scope)
        head = convex_head(self.module, scope)
        if head is not None:  # in the head's own order, whatever the hook returned
            scope = self.strategy.scope(self.module, head.parameters())
        scope.check_finite()
        return loss, scope, head, module_l2

    def _ledger(self) -> ledgers.Ledger:
        """The ledger so far: the checkpoint's, which the file must agree with."""
        options = self.callback.options
        ledger = ledgers.Ledger.from_text(self.callback.record.ledger)
        if options.ledger is not None:
            ledgers.agree(ledger, ledgers.read(options.ledger))
        if options.noise_std is None:
            mu = None
            if options.releases is not None:
                mu = claims.announced_mu(
                    options.epsilon, options.delta, options.releases
                )
            ledger.check_budget(options.releases, mu)
        return ledger

    def _l2(self, scope: Scope, module_l2: float | None) -> float:
        options, record = self.callback.options, self.callback.record
        chosen = stated_l2(options.l2, module_l2)
        if chosen is not None:
            return chosen
        if record.l2 is not None:
            return record.l2
        if record.l2_problem is not None:
            raise ModelError(record.l2_problem)
        return l2_of(configured_optimizers(self.module), scope.parameters)
