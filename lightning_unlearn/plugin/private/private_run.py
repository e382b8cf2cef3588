"""One private training: who is drawn by coins, gradients clipped, noise added.

All of it happens as the last thing before the optimizer moves the weights, so that no
callback or hook comes between; and nothing else may move them.

Of several processes each draws from a part of its own and adds up what it has drawn.
The first adds all of the noise to its part, before the parts are added up: so there is
one source of it, of the very size that is claimed, as in one process, and no sum
without it exists anywhere.
"""

import functools
import secrets
import types
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from lightning_unlearn.errors import (
    DataError,
    GuaranteeError,
    ModelError,
    SetupError,
)
from lightning_unlearn.guarantee.kinds import PrivateTraining
from lightning_unlearn.plugin.data.drawn import Piece, PoissonBatches
from lightning_unlearn.plugin.lightning import LightningModule, Trainer
from lightning_unlearn.plugin.private import (
    decision_checks,
    fit_checks,
    same_everywhere,
    whole_people,
)
from lightning_unlearn.plugin.private.company_checks import (
    Leaves,
    LossProbe,
    StateWatch,
    check_company,
)
from lightning_unlearn.plugin.private.per_sample import clipped_sum, rows_of
from lightning_unlearn.plugin.private.private_steps import planned
from lightning_unlearn.plugin.private.shown import Shown
from lightning_unlearn.plugin.private.untouched import Untouched
from lightning_unlearn.plugin.run import compat, strategies
from lightning_unlearn.plugin.run.coins import FreshWorker, fresh_coins
from lightning_unlearn.plugin.training.training_record import (
    PrivateSteps,
    TrainingRecord,
)
from lightning_unlearn.step.noise import add_noise
from lightning_unlearn.weights.processes import Processes

#: Steps that are looked at closely: the first of every epoch, and of the others some.
_FIRST, _ONE_IN = 3, 16


@dataclass
class PrivateRun:
    """What is to be put back when a private training ends, and where it stands.

    Args:
        trainer: Of the training.
        module: That is trained.
        loader: Its loader, whose sampler is replaced meanwhile.
        sampler: That replaces it.
        before: The loader's own.
        record: Of the training; it has `PrivateSteps`.
        processes: That share the samples.
        watch: Over weights and optimizer.
        shown: What it shows of itself.
        until: Steps of the record when it is over.
    """

    trainer: Trainer
    module: LightningModule
    loader: DataLoader
    sampler: PoissonBatches
    before: Any
    record: TrainingRecord
    processes: Processes
    watch: Untouched
    shown: Shown
    until: int
    _batch: Any = None
    _piece: Piece | None = None
    _stepped: bool = False
    _sum: Tensor | None = None
    _leaves: Leaves | None = None
    _probe: LossProbe | None = None
    _state: StateWatch | None = None
    _quiet: ExitStack = field(default_factory=ExitStack)
    _left: int = 0  # batches of this epoch

    @classmethod
    def begin(
        cls,
        trainer: Trainer,
        module: LightningModule,
        loader: DataLoader,
        settings: PrivateTraining,
        record: TrainingRecord,
        terms: tuple[float, float],
    ) -> "PrivateRun":
        """Check everything, and take over the loader's sampler and the steps.

        Args:
            trainer: In ``on_train_start``.
            module: To be trained.
            loader: Its training data.
            settings: What the user asked for.
            record: Of the training, its data recorded.
            terms: Epsilon and delta of the callback.

        Raises:
            UnlearningError: If the training could not be private.
        """
        processes = strategies.processes_of(trainer)
        key = processes.first(lambda: record.lineage)
        with processes.together():
            fit_checks.check(trainer, module, loader)
            if record.drawn_problem is not None:
                raise DataError(record.drawn_problem)
            decision_checks.check_validation(trainer, loader, record)
            left = int(trainer.estimated_stepping_batches) - trainer.global_step
            if left < 1:
                raise DataError("expected steps to take, got none")
            drawn = whole_people.drawable(loader.dataset, record, settings.by)
            whole_people.check_enough(drawn, processes.world)
            pieces = trainer.accumulate_grad_batches
            size = (loader.batch_size or 1) * pieces * processes.world
            rate = min(1.0, size / len(drawn.positions))
            names = [n for n, p in module.named_parameters() if p.requires_grad]
            people = whole_people.digest(drawn, key)
            steps = planned(settings, record.private, rate, left, names, people, terms)
            earlier = record.private.decided_by if record.private else []
            decided = {*earlier, *decision_checks.decisions(trainer)}
            steps.decided_by = sorted(decided)
        same_everywhere.check_same(processes, loader.dataset, steps)
        record.private, record.weights_digest = steps, None  # they move again
        before, optimizer = loader.batch_sampler, trainer.optimizers[0]
        sampler = PoissonBatches(
            *(drawn, rate, len(loader), fresh_coins),
            pieces=pieces,
            rank=processes.rank,
            world=processes.world,
        )
        run = cls(
            *(trainer, module, loader, sampler, before, record, processes),
            watch=Untouched(trainer, module, optimizer, names),
            shown=Shown(trainer, module, steps, *terms),
            until=steps.done + left,
        )
        run._take_over(optimizer)
        return run

    def _take_over(self, optimizer: Optimizer) -> None:
        # No sum of ordinary gradients is of use, and what one process leaves out, or
        # does twice, would meet sums of another kind in the others.
        self._quiet.enter_context(strategies.without_sums(self.trainer))
        object.__setattr__(self.loader, "batch_sampler", self.sampler)
        self.loader.worker_init_fn = FreshWorker(self.loader.worker_init_fn)
        compat.drop_workers(self.loader)
        compat.restart_loader(self.trainer)
        self._stops = decision_checks.Stops(self.trainer, self._is_cut)
        self._quiet.callback(self._stops.close)
        named = dict(self.module.named_parameters())
        self._size = sum(named[name].numel() for name in self._private.names)
        self._own_step, self._patched = optimizer.step, vars(optimizer).get("step")

        # With the marks by which a schedule knows the step that it has wrapped.
        def step(_: Optimizer, closure: Callable[[], Any] | None = None) -> Any:
            return self._step(closure)

        step = functools.update_wrapper(step, self._own_step)
        optimizer.step = types.MethodType(step, optimizer)  # type: ignore[method-assign]

    def batch_started(self, batch: Any) -> None:
        """A batch is about to be trained on: it must be the next that was drawn.

        Raises:
            UnlearningError: If it is not.
        """
        self._stops.goes_on()
        if self._batch_idx == 0 and self._left:
            self._note_cut()
        self._left = int(self.trainer.num_training_batches) - self._batch_idx
        with self.processes.together():
            self._take(batch)
        if self.processes.world > 1 and self._batch_idx == 0:
            found = same_everywhere.digest_of(self.module, self._private.names)
            self.processes.agree(weights=found)

    @property
    def _batch_idx(self) -> int:
        return self.trainer.fit_loop.epoch_loop.batch_idx

    def _take(self, batch: Any) -> None:
        if self.loader.batch_sampler is not self.sampler or not self.sampler.ahead:
            raise DataError(
                "expected batches drawn by the coins of PrivateTraining, got others: "
                "something has replaced the training loader's sampler"
            )
        if self.trainer.accumulate_grad_batches != self.sampler.pieces:
            raise SetupError(
                f"expected accumulate_grad_batches={self.sampler.pieces} to the end of "
                f"a private training, got {self.trainer.accumulate_grad_batches}: the "
                "accountant composes equal steps; leave GradientAccumulationScheduler "
                "out"
            )
        piece = self.sampler.ahead.popleft()
        rows, positions = len(rows_of(batch)[0][0]), piece.positions
        if rows != max(1, len(positions)):
            raise DataError(
                f"expected the {len(positions)} drawn samples in a batch, a row for "
                f"each, got {rows} rows: collate_fn or a hook drops or repeats some"
            )
        self._batch, self._piece, self._stepped = batch, piece, False
        self._leaves, self._probe = Leaves(batch), None
        self._state = self._state or StateWatch(self.module)
        if self._batch_idx < _FIRST or secrets.randbelow(_ONE_IN) == 0:
            self._probe = LossProbe(self.module, batch)

    def batch_done(self) -> None:
        """It has been: with one step, and nothing moved the weights but that.

        Raises:
            UnlearningError: If it was not so.
        """
        piece = self._piece
        assert piece is not None  # since `batch_started`
        if piece.last and not self._stepped:
            with self.processes.summed(self._size):  # where others take the step
                raise ModelError(
                    "expected one step of the optimizer for every batch of a private "
                    "training, got none: training_step returned None, or an "
                    "optimizer_step hook left it out"
                )
        with self.processes.together():
            if not piece.last:
                self._sum = self._with(self._sum, self._checked_sum(piece))
                self._check_state()
            decision_checks.check_monitors(self.trainer)
        self._batch = self._piece = self._leaves = self._probe = None
        self._left -= 1
        if self.trainer.is_last_batch:
            self.shown.epoch_done()

    def _step(self, closure: Callable[[], Any] | None = None) -> Any:
        """In place of the optimizer's: the gradient it sees is private."""
        loss, private, piece = None, self._private, self._piece
        if piece is None or self._stepped or not piece.last:
            with self.processes.together():  # where others are done with their batch
                raise ModelError(
                    "expected one step of the optimizer for every batch of a private "
                    "training (every accumulate_grad_batches of them), got another: "
                    "each step must draw samples of its own"
                )
        with self.processes.summed(self._size) as (total,):
            if closure is not None:
                with torch.enable_grad():
                    loss = closure()
            total += self._with(self._sum, self._checked_sum(piece)).to(total)
            if self.processes.rank == 0:
                add_noise(total, private.noise_multiplier * private.clip)
            self._check_state()
            if private.done >= private.steps:
                raise GuaranteeError(
                    f"expected at most {private.steps} steps, as the training began "
                    "with, got another: max_epochs or max_steps was raised meanwhile, "
                    "or an older Lightning read the batch again after which a "
                    "checkpoint was saved: resume from the end of an epoch"
                )
        self._sum = None
        self._set_gradient(total)
        private.done += 1
        self._stepped = True
        self._own_step()
        self.watch.remember()
        return loss

    def _checked_sum(self, piece: Piece) -> Tensor:
        """Of the clipped gradients of a batch, which must be as it came."""
        self.watch.check()
        assert self._leaves is not None  # since `batch_started`
        self._leaves.check()
        if self._probe is not None:
            if piece.positions:
                check_company(self.trainer, self.loader, self._batch, piece.positions)
            self._probe.check()
        private = self._private
        if not piece.positions:  # nobody was drawn
            return torch.zeros(self._size, dtype=torch.float64)
        sizes = [len(p) for p in piece.drawn] if private.by is not None else None
        found = clipped_sum(
            self.module, self._batch, private.names, private.clip, sizes
        )
        return torch.cat([found[name].reshape(-1) for name in private.names])

    @staticmethod
    def _with(before: Tensor | None, more: Tensor) -> Tensor:
        return more if before is None else before.to(more) + more

    def _check_state(self) -> None:
        if self._probe is not None and self._state is not None:
            self._state.check()

    def _set_gradient(self, total: Tensor) -> None:
        """The mean, by the number that is drawn on average, for the optimizer."""
        named, private = dict(self.module.named_parameters()), self._private
        weights = [named[name] for name in private.names]
        expected = private.sampling_rate * len(self.sampler.drawable)
        parts = total.split([p.numel() for p in weights])
        for p, part in zip(weights, parts, strict=True):
            p.grad = (part / expected).view_as(p).to(p.device, p.dtype)

    def note_moved(self) -> None:
        """Note in the record what is not private and was seen too late to refuse.

        When the training ends, and before each checkpoint: one that is saved after the
        decision to stop must know of it.
        """
        if self.trainer.should_stop:
            self._note_early()
        elif self._is_cut():
            self._note_cut()
        try:  # what an epoch's end logs
            decision_checks.check_monitors(self.trainer)
        except SetupError as problem:
            self._private.problem = f"a decision by it: {problem}"
        moved = self.watch.moved()
        if moved:
            self._private.problem = (
                f"something but its steps has changed {', '.join(moved[:3])}"
            )

    def _note_early(self) -> None:
        private = self._private
        early = self._stops.early(private.done, self.until)
        private.problem = private.problem or early

    def _is_cut(self) -> bool:
        """Whether an epoch has ended before its batches."""
        epochs: Any = self.trainer.fit_loop.epoch_progress.current
        return self._left > 0 and epochs.ready == epochs.processed

    def _note_cut(self) -> None:
        """It has, though nobody had said that the training shall stop."""
        private = self._private
        if private.done < self.until:
            said = decision_checks.unknown_stop(private.done, self.until)
            private.problem = private.problem or said

    @property
    def _private(self) -> PrivateSteps:
        assert self.record.private is not None  # since `begin`
        return self.record.private

    def end(self, *, failed: bool) -> None:
        """The training is over: loader and optimizer are as before."""
        private, optimizer = self._private, self.watch.optimizer
        self._quiet.close()
        object.__setattr__(self.loader, "batch_sampler", self.before)
        if isinstance(self.loader.worker_init_fn, FreshWorker):
            self.loader.worker_init_fn = self.loader.worker_init_fn.own
        compat.drop_workers(self.loader)
        del optimizer.step  # type: ignore[attr-defined]
        if self._patched is not None:  # a schedule counts the steps
            optimizer.step = self._patched  # type: ignore[method-assign]
        self._batch = self._piece = self._leaves = self._probe = self._state = None
        if failed:  # others may have come to another end
            return
        self._note_early()  # by max_epochs, or a batch hook that skips the rest
        weights = same_everywhere.digest_of(self.module, private.names)
        ended = self.processes.gather((weights, private.problem))
        told = [private.problem, *(problem for _, problem in ended)]
        if len({digest for digest, _ in ended}) > 1:
            told.append("one whose processes ended with different weights")
        private.problem = next(filter(None, told), None)
        if self.processes.rank == 0:
            self.shown.tell()

    _stops: decision_checks.Stops = field(init=False, repr=False)
    _size: int = field(init=False, repr=False, default=0)
    _own_step: Callable[..., Any] = field(init=False, repr=False, default=bool)
    _patched: Any = field(init=False, repr=False, default=None)
