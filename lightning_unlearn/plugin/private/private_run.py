"""One private training: samples drawn by coins, gradients clipped, noise added.

All of it happens as the last thing before the optimizer moves the weights, so that no
callback or hook comes between; and nothing else may move them.
"""

import functools
import secrets
import sys
import types
from collections.abc import Callable
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
from lightning_unlearn.guarantee.accounting.private_training import (
    Mechanism,
    capacity,
    least_noise,
    privacy,
)
from lightning_unlearn.guarantee.kinds import PrivateTraining
from lightning_unlearn.plugin.data.drawn import PoissonBatches
from lightning_unlearn.plugin.lightning import LightningModule, Trainer
from lightning_unlearn.plugin.private import decision_checks, fit_checks
from lightning_unlearn.plugin.private.company_checks import (
    Leaves,
    LossProbe,
    StateWatch,
    check_company,
)
from lightning_unlearn.plugin.private.per_sample import clipped_sum, rows_of
from lightning_unlearn.plugin.run import compat
from lightning_unlearn.plugin.run.coins import FreshWorker, fresh_coins
from lightning_unlearn.plugin.training.training_record import (
    PrivateSteps,
    TrainingRecord,
)
from lightning_unlearn.step.noise import add_noise

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
        optimizer: Whose steps are taken over.
    """

    trainer: Trainer
    module: LightningModule
    loader: DataLoader
    sampler: PoissonBatches
    before: Any
    record: TrainingRecord
    optimizer: Optimizer
    _batch: Any = None
    _positions: list[int] | None = None
    _stepped: bool = False
    _leaves: Leaves | None = None
    _probe: LossProbe | None = None
    _state: StateWatch | None = None
    _settings: list[dict[str, Any]] = field(default_factory=list)
    _memory: list[Any] = field(default_factory=list)
    _weights: dict[str, Tensor] = field(default_factory=dict)

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
        fit_checks.check(trainer, module, loader)
        n, size = record.n_train or 0, loader.batch_size or 1
        drawn = list(range(n)) if record.drawn is None else record.drawn
        if record.drawn_problem is not None:
            raise DataError(record.drawn_problem)
        decision_checks.check_validation(trainer, loader, record)
        rate = min(1.0, size / len(drawn))
        left = int(trainer.estimated_stepping_batches) - trainer.global_step
        if left < 1:
            raise DataError("expected steps to take, got none")
        names = [name for name, p in module.named_parameters() if p.requires_grad]
        steps = cls._steps(settings, record, rate, left, names, terms)
        record.private = steps
        before = loader.batch_sampler
        sampler = PoissonBatches(drawn, rate, len(loader), fresh_coins)
        optimizer = trainer.optimizers[0]
        run = cls(trainer, module, loader, sampler, before, record, optimizer)
        object.__setattr__(loader, "batch_sampler", sampler)
        loader.worker_init_fn = FreshWorker(loader.worker_init_fn)
        compat.restart_loader(trainer)
        run._own_step, run._patched = optimizer.step, vars(optimizer).get("step")

        # With the marks by which a schedule knows the step that it has wrapped.
        def step(_: Optimizer, closure: Callable[[], Any] | None = None) -> Any:
            return run._step(closure)

        step = functools.update_wrapper(step, run._own_step)
        optimizer.step = types.MethodType(step, optimizer)  # type: ignore[method-assign]
        run._remember()
        return run

    @staticmethod
    def _steps(
        settings: PrivateTraining,
        record: TrainingRecord,
        rate: float,
        left: int,
        names: list[str],
        terms: tuple[float, float],
    ) -> PrivateSteps:
        """The steps of a training, those that were taken before among them."""
        earlier, (epsilon, delta) = record.private, terms
        total = left if earlier is None else earlier.done + left
        if earlier is not None:
            total = max(total, earlier.steps)
        z = settings.noise_multiplier
        if z is None and earlier is not None:
            z = earlier.noise_multiplier
        if z is None:
            assert settings.epsilon is not None  # or it has a noise multiplier
            z = least_noise(settings.epsilon, settings.delta or delta, rate, total)
        clip = settings.max_grad_norm
        known = (clip, z, rate, names)
        if earlier is not None and known != (
            *(earlier.clip, earlier.noise_multiplier, earlier.sampling_rate),
            earlier.names,
        ):
            raise GuaranteeError(
                "expected a private training to go on as it began (clip, noise, "
                "sampling rate, weights), got others: the accountant composes equal "
                "steps; train a new model"
            )
        training = Mechanism(z, rate, total)
        return PrivateSteps(
            clip=clip,
            noise_multiplier=z,
            sampling_rate=rate,
            steps=total,
            done=0 if earlier is None else earlier.done,
            names=names,
            capacity=capacity(training, epsilon, delta),
        )

    @property
    def epsilon_one(self) -> Callable[[float], float]:
        """Epsilon of one sample, by delta."""
        s = self._private
        training = Mechanism(s.noise_multiplier, s.sampling_rate, s.steps)
        return lambda delta: privacy(training, 1, delta).epsilon

    def batch_started(self, batch: Any) -> None:
        """A batch is about to be trained on: it must be the next that was drawn.

        Raises:
            DataError: If it is not.
        """
        if self.loader.batch_sampler is not self.sampler or not self.sampler.ahead:
            raise DataError(
                "expected batches drawn by the coins of PrivateTraining, got others: "
                "something has replaced the training loader's sampler"
            )
        positions = self.sampler.ahead.popleft()
        rows = len(rows_of(batch)[0][0])
        if rows != max(1, len(positions)):
            raise DataError(
                f"expected the {len(positions)} drawn samples in a batch, a row for "
                f"each, got {rows} rows: collate_fn or a hook drops or repeats some"
            )
        self._batch, self._positions, self._stepped = batch, positions, False
        self._leaves = Leaves(batch)
        self._state = self._state or StateWatch(self.module)

    def batch_done(self) -> None:
        """It has been: with one step, and nothing moved the weights but that.

        Raises:
            ModelError: If it was not so.
        """
        if not self._stepped:
            raise ModelError(
                "expected one step of the optimizer for every batch of a private "
                "training, got none: training_step returned None, or an "
                "optimizer_step hook left it out"
            )
        decision_checks.check_monitors(self.trainer)
        self._batch = self._positions = self._leaves = self._probe = None

    def _step(self, closure: Callable[[], Any] | None = None) -> Any:
        """In place of the optimizer's: the gradient it sees is private."""
        loss, looks = None, self._looks_closer()
        if looks and self._batch is not None:
            self._probe = LossProbe(self.module, self._batch)
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self._positions is None or self._stepped:
            raise ModelError(
                "expected one step of the optimizer for every batch of a private "
                "training, got another: each step must draw samples of its own"
            )
        self._check_untouched()
        assert self._leaves is not None  # since `batch_started`
        self._leaves.check()
        if looks:
            self._look(self._positions)
        self._make_private(self._positions)
        if looks and self._state is not None:
            self._state.check()
        if self._private.done >= self._private.steps:
            raise GuaranteeError(
                f"expected at most {self._private.steps} steps, as the training began "
                "with, got another: max_epochs or max_steps was raised meanwhile"
            )
        self._private.done += 1
        self._stepped = True
        self._own_step()
        self._remember()
        return loss

    def _looks_closer(self) -> bool:
        """Whether this step is looked at closely: the first, and some by chance."""
        first = self.trainer.fit_loop.epoch_loop.batch_idx < _FIRST
        return first or secrets.randbelow(_ONE_IN) == 0

    def _look(self, positions: list[int]) -> None:
        """Refuse what mixes samples, in rows or in what the loss reads."""
        if positions:
            check_company(self.trainer, self.loader, self._batch, positions)
        if self._probe is not None:
            self._probe.check()

    def _make_private(self, positions: list[int]) -> None:
        private, named = self._private, dict(self.module.named_parameters())
        if positions:
            total = clipped_sum(self.module, self._batch, private.names, private.clip)
        else:  # nobody was drawn
            total = {
                name: torch.zeros_like(named[name], dtype=torch.float64)
                for name in private.names
            }
        expected = private.sampling_rate * len(self.sampler.positions)
        flat = torch.cat([g.reshape(-1) for g in total.values()])
        add_noise(flat, private.noise_multiplier * private.clip)
        parts = flat.split([g.numel() for g in total.values()])
        for name, part in zip(total, parts, strict=True):
            p = named[name]
            p.grad = (part / expected).view_as(p).to(p.dtype)

    def _check_untouched(self) -> None:
        """The weights are those of the last step, and the optimizer has no others."""
        named = dict(self.module.named_parameters())
        own = {id(named[name]) for name in self._private.names}
        free = [name for name, p in named.items() if p.requires_grad]
        held = [p for group in self.optimizer.param_groups for p in group["params"]]
        others = any(id(p) not in own and p.grad is not None for p in held)
        if free != self._private.names or others:
            raise ModelError(
                "expected the same trainable weights in every step of a private "
                "training, got others: freeze and unfreeze before it, not in it"
            )
        decision_checks.check_settings(self.trainer, self.optimizer, self._settings)
        moved = self._moved()
        if moved:
            raise ModelError(
                "expected weights that nothing moves but the private steps, got "
                f"{', '.join(moved[:3])}, which a callback or a hook has changed"
            )
        if decision_checks.memory_of(self.optimizer) != self._memory:
            raise ModelError(
                "expected an optimizer whose state (momentum) only its private steps "
                "change, got another: a callback or a hook has written to it"
            )
        module_of = sys.modules[Optimizer.__module__]
        pre = [
            hook
            for when in ("pre", "post")
            for hook in (
                *getattr(self.optimizer, f"_optimizer_step_{when}_hooks", ()),
                *getattr(module_of, f"_global_optimizer_{when}_hooks", ()),
            )
        ]
        if pre:
            raise ModelError(
                "expected no hook before the optimizer's step in a private training, "
                f"nor after it, got {len(pre)}: it could change the private gradient, "
                "or the weights"
            )

    def _moved(self) -> list[str]:
        """Weights that are not those of the last step, by name."""
        named = dict(self.module.named_parameters())
        return [
            name
            for name, before in self._weights.items()
            if name not in named or not torch.equal(named[name].detach(), before)
        ]

    def note_moved(self) -> None:
        """Note in the record what is not private and was seen too late to refuse."""
        try:  # what an epoch's end logs
            decision_checks.check_monitors(self.trainer)
        except SetupError as problem:
            self._private.problem = f"a decision by it: {problem}"
        moved = self._moved()
        if moved:
            self._private.problem = (
                f"something but its steps has changed {', '.join(moved[:3])}"
            )

    def _remember(self) -> None:
        self._settings = decision_checks.settings_of(self.optimizer)
        self._memory = decision_checks.memory_of(self.optimizer)
        named = dict(self.module.named_parameters())
        self._weights = {
            name: named[name].detach().clone() for name in self._private.names
        }

    @property
    def _private(self) -> PrivateSteps:
        assert self.record.private is not None  # since `begin`
        return self.record.private

    def end(self) -> None:
        """The training is over: loader and optimizer are as before."""
        self.note_moved()
        early = decision_checks.stopped_early(
            self.trainer, self._private.done, self._private.steps
        )
        self._private.problem = self._private.problem or early
        object.__setattr__(self.loader, "batch_sampler", self.before)
        if isinstance(self.loader.worker_init_fn, FreshWorker):
            self.loader.worker_init_fn = self.loader.worker_init_fn.own
        del self.optimizer.step  # type: ignore[attr-defined]
        if self._patched is not None:  # a schedule counts the steps
            self.optimizer.step = self._patched  # type: ignore[method-assign]
        self._batch = self._leaves = self._probe = self._state = None
        self._weights = {}

    _own_step: Callable[..., Any] = field(init=False, repr=False, default=bool)
    _patched: Any = field(init=False, repr=False, default=None)
