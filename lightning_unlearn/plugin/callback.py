"""The callback: enforces the norm ball in training and remembers what it saw."""

import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch.utils.data import DataLoader
from typing_extensions import override

from lightning_unlearn.errors import UnlearningError
from lightning_unlearn.plugin.attachment import Attachment
from lightning_unlearn.plugin.data import training_data
from lightning_unlearn.plugin.files import private_file, replacement
from lightning_unlearn.plugin.files.known_checkpoints import check_not_released
from lightning_unlearn.plugin.files.prepared_file import BoundState
from lightning_unlearn.plugin.files.served import Served
from lightning_unlearn.plugin.lightning import (
    Callback,
    LightningDataModule,
    LightningModule,
    Trainer,
    TrainerFn,
    check_package,
)
from lightning_unlearn.plugin.mixin import scope_of
from lightning_unlearn.plugin.options import Options, with_parameters_of
from lightning_unlearn.plugin.plan.gradient_norm import gradient_norm
from lightning_unlearn.plugin.plan.made_at_start import AtSetup
from lightning_unlearn.plugin.plan.which_guarantee import warn_early
from lightning_unlearn.plugin.run import child_processes, compat, guests, strategies
from lightning_unlearn.plugin.run.compat import STAGE, is_spawning
from lightning_unlearn.plugin.training.ball import kept_in_ball
from lightning_unlearn.plugin.training.hyper_parameters import written
from lightning_unlearn.plugin.training.outside import merge_changes
from lightning_unlearn.plugin.training.outside_digests import outside_digests
from lightning_unlearn.plugin.training.public_backbones import watch_training
from lightning_unlearn.plugin.training.trained_marks import (
    mark_all_trained,
    mark_trained,
)
from lightning_unlearn.plugin.training.training_record import (
    NOT_TO_BE_SERVED,
    STATE_KEY,
    TrainingRecord,
    adopt_record,
)
from lightning_unlearn.plugin.training.weight_decay import note_l2
from lightning_unlearn.weights.digests import state_digest
from lightning_unlearn.weights.passes import check_ordinary


class UnlearningCallback(Callback):
    r"""Makes a Trainer's model unlearnable: ``trainer.unlearn(forget)``.

    In training it projects the weights in scope (those a request may move) onto the
    ball ``|w| <= max_norm`` after every optimizer step, if ``max_norm`` is set. It
    records what a later request needs: number of samples, a salted fingerprint of them,
    weight decay, a digest of all outside the scope. Checkpoints hold the record.

    Args:
        epsilon: Privacy parameter, > 0, less is stronger: of one or all ``releases``.
        delta: Failure probability, in (0, 1). It means nothing unless below 1/n.
        max_norm: C: training keeps the norm of the weights in scope at most C.
        damping: lambda in (H + lambda I) x = g; "auto" takes twice the negative part
            of the smallest eigenvalue. Not used by a `ConvexHead`.
        guarantee: "auto": `StronglyConvex` for `ConvexHead`, `NormBall` with max_norm.
        solver: "auto", or `FlexibleCG`, `NystromCG`, `CG`, `LiSSA` or `Dense`.
        curvature: "hessian", "hessian_forward" (forward over reverse), "gauss_newton",
            or "central_difference" (smooth networks only; sharded under FSDP2).
        l2: Coefficient of (l2/2)\|w\|^2 in the objective; "auto" reads the coupled
            weight decay of the optimizer.
        tolerance: tau, the gradient norm a strongly convex scope is solved to. Noise is
            proportional to it. "auto": such that the noise moves a logit by .03, if a
            `PublicBackbone` fixes the norm of the rows; else 1e-6.
        releases: T, how many releases (requests that change weights) stay within
            epsilon together; None: each release alone does.
        noise_std: Noise chosen by hand: grade ``none``. 0.0 is the bare Newton step.
        accept_noise: Let noise replace the model, which is refused otherwise.
        solve_precision: Dtype of the passes of an ordinary network; "auto" keeps that
            of the weights. A `ConvexHead` is always solved in float64.
        batch_size: Samples in a batch of the passes; None sizes it from the memory.
        graph_memory: Bytes in which an ordinary network keeps graphs of its gradient:
            "auto" takes a quarter of what is free; 0 keeps none, in twice the time.
        low_memory: Solve an ordinary network with few vectors in its weights' dtype and
            without a preconditioner, in about six times their memory. "auto": if the
            usual way would take more than half of what is free. Not for `NewtonStep`.
        ledger: File of this model's deletion ledger (JSON lines), kept in checkpoints
            too. Pass ``save_to`` with it: the release of a lost model stays recorded.
        ledger_indices: Write forgotten positions into the ledger, not a digest alone.
        log_gradient: Measure |grad F| over the training data when training ends.
        prepared: File that keeps what was read and solved for later requests, as secret
            as the data. For a head it is the row store, which each request updates.
        state_file: For one request: how far its solve is, every ``state_every`` steps
            (a head: each Newton step), for ``unlearn(resume_from=)``. Secret.
        state_every: Solver steps between two writes.
        noise_seed: For tests only: reproducible noise, grade ``none``.
        retrain: ``make_training(data) -> (Trainer, module, DataLoader or DataModule)``,
            for ``unlearn(how="retrain")``: each made anew, over the samples in `data`.
        stages: Folder that keeps the model at the end of each `fit` if the next one has
            more samples. Then ``how="retrain"`` starts from the last of them that never
            saw the samples, not from the beginning. As secret as the data.
        exclusions: File of keyed digests of what was forgotten, for all models. A
            request adds a line, and `fit` refuses data that hold what is on the list.
        exclusions_key: File of its key, as secret as the data.
        exclude_by: Attribute of the data with each sample's id.
        private: `PrivateTraining`: `fit` trains privately. Requests then change no
            weight while epsilon of all who were forgotten stays below `epsilon`.
        cover_served: How many samples may be forgotten in all, if models served before
            a request are to be covered too: `fit` then ends with noise on the head.

    Raises:
        ArgumentError: If an option is outside its range.

    Example:
        >>> import lightning as L
        >>> trainer = L.Trainer(
        ...     callbacks=[UnlearningCallback(epsilon=1.0, delta=1e-5)],
        ...     logger=False,
        ...     enable_progress_bar=False,
        ...     accelerator="cpu",
        ... )
    """

    @with_parameters_of(Options)
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__()
        self.options = Options(*args, **options)
        self.attached = Attachment()
        # Trainings that ended; processes launched from this one count in it too.
        self._fits = torch.zeros(1).share_memory_()
        self.serves: Served | None = None  # what is being saved, to be served
        self._steps = -1

    @property
    def record(self) -> TrainingRecord:
        """What is known of the training."""
        return self.attached.record

    @record.setter
    def record(self, record: TrainingRecord) -> None:
        self.attached.record = record

    @property
    def bound_state(self) -> BoundState | None:
        """What was prepared for the next request."""
        return self.attached.bound_state

    @property
    def requests(self) -> int:
        """How many requests have succeeded."""
        return self.attached.requests

    def committed(
        self,
        pl_module: LightningModule,
        loader: DataLoader | None,
        state: BoundState | None,
    ) -> None:
        """A request has succeeded: this is our model now, and this its data."""
        self.attached.requests += 1
        self.attached.forgotten_since = frozenset()
        self.adopt(pl_module, loader, state)

    def adopt(
        self,
        pl_module: LightningModule,
        loader: DataLoader | None,
        state: BoundState | None,
    ) -> None:
        """This is our model now, this its data, and this what was prepared of them."""
        self.attached.loader = loader
        self.attached.module = weakref.ref(pl_module)
        self.attached.bound_state = state

    def snapshot(self) -> Attachment:
        """All that a run may change, to be put back by `rewind`."""
        return replace(self.attached)

    def rewind(self, snapshot: Attachment) -> None:
        """Put back what `snapshot` returned."""
        self.attached = snapshot

    # -- state -----------------------------------------------------------------

    @property
    @override
    def state_key(self) -> str:
        """One name in checkpoints, whatever a subclass is called."""
        return STATE_KEY

    @override
    def state_dict(self) -> dict[str, Any]:
        return self.record.to_dict()

    @override
    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Find the record of a training that a subclass watched, or of a request."""
        adopt_record(checkpoint["callbacks"])
        if trainer.ckpt_path is not None:
            replacement.finish(Path(trainer.ckpt_path))
        private_file.complete(checkpoint["callbacks"], trainer.ckpt_path)

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.attached.restore(TrainingRecord.from_dict(state_dict))

    def take_result(
        self,
        record: dict[str, Any],
        pl_module: LightningModule,
        loader: DataLoader | None,
        datamodule: LightningDataModule | None,
    ) -> None:
        """A request has succeeded in processes that are gone now."""
        self.attached.datamodule = datamodule
        self._take(record, pl_module)
        self.committed(pl_module, loader, None)

    def take_sent_record(self, trainer: Trainer) -> None:
        """Take the record of a training that ran in processes that are gone now."""
        record = child_processes.received_record(trainer)
        if record is not None and trainer.lightning_module is not None:
            self._take(record, trainer.lightning_module)
            self.adopt(trainer.lightning_module, self.attached.loader, None)

    def _take(self, record: dict[str, Any], pl_module: LightningModule) -> None:
        self.attached.record = TrainingRecord.from_dict(record)
        self.attached.fits_seen = int(self._fits)
        named = dict(pl_module.named_parameters())
        mark_trained(named[name] for name in self.record.trained if name in named)
        self.attached.remember_rows(pl_module)

    def __getstate__(self) -> dict[str, Any]:
        """Without what cannot travel to a spawned process."""
        own = replace(self.options, retrain=None)
        return {**vars(self), "attached": self.attached.travelling(), "options": own}

    # -- training --------------------------------------------------------------

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give a request the data and layers that ``setup("fit")`` makes."""
        datamodule, attached = getattr(trainer, "datamodule", None), self.attached
        check_package(trainer, pl_module, datamodule, *trainer.callbacks)  # type: ignore[attr-defined]
        known = attached.set_up() if attached.set_up is not None else None
        if stage == "fit":
            attached.restored = False  # a checkpoint is loaded after this, if at all
            training_data.check_passed(compat.passed_loader(trainer))
            attached.at_setup = AtSetup(pl_module)
        if stage == STAGE:
            if datamodule is not None and datamodule is not known:
                guests.set_up(datamodule)
            if not attached.is_of(pl_module):
                guests.set_up(pl_module)
        if stage in (STAGE, "fit") and datamodule is not None:
            attached.set_up = weakref.ref(datamodule)

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Digest everything outside the scope before the first step moves anything."""
        check_ordinary(pl_module)
        attached = self.attached
        attached.before_fit(self.options)
        private_file.check_whole(self.record, trainer.ckpt_path)
        same = attached.is_of(pl_module)
        if not (same or attached.restored or attached.travelled):
            attached.record, attached.forgotten_since = TrainingRecord(), frozenset()
        self.take_sent_record(trainer)
        loads, path = trainer.ckpt_path is not None, trainer.ckpt_path
        digest = state_digest(pl_module.state_dict())
        check_not_released(pl_module, digest, trainer, path, self.record)
        stages = self.options.stages_path
        resumed = attached.begin_fit(pl_module, int(self._fits), loads, stages)
        # Resumed from a run this callback did not watch: nothing is known before it.
        if self.record.outside is None and not resumed:
            self.record.outside = outside_digests(pl_module, scope_of(pl_module))
            datamodule = getattr(trainer, "datamodule", None)
            self.record.hyper_parameters = written(pl_module, datamodule)
        attached.check_private(trainer, pl_module, self.options, resumed)
        self._mark(trainer, pl_module)
        self.record.max_norm = self.options.max_norm
        self._project(trainer, pl_module)  # the start lies in the ball too

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the training data and the weight decay."""
        loader = self.attached.begin_reading(trainer, pl_module, self.options)
        watch_training(pl_module, lambda: trainer.training, loader)
        note_l2(self.record, trainer.optimizers, scope_of(pl_module))
        warn_early(trainer, pl_module, self.options, self.record)

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hold the validation data to the exclusion list; `fit` may read them first."""
        self.attached.begin_validation(trainer)

    @property
    def retained_indices(self) -> list[int]:
        """Positions of the training dataset that no request has removed.

        Raises:
            UnlearningError: If no training data was seen yet.
        """
        if self.record.n_train is None:
            raise UnlearningError(
                "expected a trained model, got none: call trainer.fit or load one first"
            )
        return self.record.retained

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Know the batch, for a private training."""
        self.attached.batch_started(batch)

    @override
    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Project after every optimizer step (not between accumulated batches)."""
        self.attached.batch_done(trainer, batch_idx)
        if trainer.global_step != self._steps:
            self._steps = trainer.global_step
            self._project(trainer, pl_module)

    @override
    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Bring the record up to date, or leave out what is not to be served."""
        if self.serves is not None:
            self.serves.take(checkpoint, self.record)
            return
        if self.record.removed:
            rank_zero_warn(NOT_TO_BE_SERVED)
        if trainer.state.fn != STAGE:
            self.take_sent_record(trainer)
            self.attached.note_drawn()
            self._note_changes(trainer, pl_module)
            checkpoint["callbacks"][self.state_key] = self.state_dict()

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record which weights the training ended with, and their gradient."""
        watch_training(pl_module, None, None)
        self.attached.end_drawing(trainer, failed=False)
        self._mark(trainer, pl_module)
        self._note_changes(trainer, pl_module)
        self.attached.remember(pl_module)
        self.record.weights_digest = state_digest(pl_module.state_dict())
        self.record.gradient_norm = None
        loader = self.attached.loader
        if self.options.log_gradient and loader is not None:
            self.record.gradient_norm = gradient_norm(
                trainer, pl_module, self.options, loader, self.record.l2
            )
        self._count_fit()
        if is_spawning(trainer):
            child_processes.send_record(trainer, self.state_dict())

    @override
    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Remember what was trained, also when the training was cut short."""
        if trainer.state.fn == TrainerFn.FITTING:
            watch_training(pl_module, None, None)
            self.attached.end_drawing(trainer, failed=True)
            self._mark(trainer, pl_module)
            self.attached.cut_short(trainer, pl_module, self.options)
            self._count_fit()

    def _count_fit(self) -> None:
        self._fits += 1
        self.attached.end_fit(int(self._fits))

    def _note_changes(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.attached.note_changes(trainer, pl_module, self.options, alone=False)
        merge_changes(self.record, strategies.processes_of(trainer))

    def _mark(self, trainer: Trainer, pl_module: LightningModule) -> None:
        values = self.attached.values
        marked = mark_all_trained(pl_module, trainer.optimizers, values)
        self.record.trained = sorted({*self.record.trained, *marked})

    def _project(self, trainer: Trainer, pl_module: LightningModule) -> None:
        most, processes = self.options.max_norm, strategies.processes_of(trainer)
        if most is not None and kept_in_ball(pl_module, processes, most):
            self.record.projections += 1
