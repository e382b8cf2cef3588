"""One request, inside the Trainer's run: resolve, validate, solve, release, write."""

import secrets
import time
import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.seed import isolate_rng
from lightning_utilities.core.apply_func import apply_to_collection
from torch import nn
from torch.utils.data import DataLoader

from lightning_unlearn import convex
from lightning_unlearn import ledger as ledgers
from lightning_unlearn.certificate import Certificate
from lightning_unlearn.certificate.guarantees import (
    NewtonStep,
    NormBall,
    StronglyConvex,
)
from lightning_unlearn.curvature import checks
from lightning_unlearn.curvature.products import PRODUCTS
from lightning_unlearn.errors import DataError, GuaranteeError, ModelError
from lightning_unlearn.heads import ConvexHead
from lightning_unlearn.minimise import minimise
from lightning_unlearn.newton import Step, damped_step
from lightning_unlearn.objective import EmpiricalObjective, LossFunction
from lightning_unlearn.plugin import checkpoint, data, forget, strategies
from lightning_unlearn.plugin.callback import UnlearningCallback
from lightning_unlearn.plugin.mixin import hooks, quiet
from lightning_unlearn.plugin.options import Options
from lightning_unlearn.plugin.record import TrainingRecord, outside_of
from lightning_unlearn.plugin.result import UnlearningResult
from lightning_unlearn.plugin.weight_decay import configured_optimizers, l2_of
from lightning_unlearn.release import NO_SENSITIVITY, Surroundings, release
from lightning_unlearn.scope import Scope, passes, state_digest
from lightning_unlearn.solvers import CG

_DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True, kw_only=True)
class Request:
    """Everything one request reads; it changes nothing until `run` succeeds."""

    trainer: Trainer
    module: LightningModule
    callback: UnlearningCallback
    forget: Any
    loader: DataLoader
    save_to: Path | None
    ckpt_path: str | None

    def run(self) -> UnlearningResult:
        """Solve, release, move the weights once, write; roll back if writing fails."""
        start = time.perf_counter()
        record, options = self.callback.record, self.callback.options
        loss, in_scope, module_l2 = hooks(self.module)
        scope = Scope(self.module, in_scope)
        head = convex_head(self.module, scope)
        if head is not None:  # in the head's own order, whatever the hook returned
            scope = Scope(self.module, head.parameters())
        scope.check_finite()
        dataset: Any = self.loader.dataset
        _check_same_data(dataset, record)
        chosen = forget.resolve(self.forget, dataset, record.removed)
        gone = {*chosen, *record.removed}
        retained = [i for i in range(len(dataset)) if i not in gone]
        outside = outside_of(self.module, scope, record)
        ledger = self._ledger()
        request_id = uuid.uuid4().hex
        l2 = self._l2(scope, module_l2)
        with isolate_rng(), quiet(self.module):
            step = self._step(loss, scope, head, retained, l2)
        released, certificate = release(
            step,
            self.callback.options.terms,
            Surroundings(
                n_forget=len(chosen),
                n_retain=len(retained),
                release=len(ledger.entries) + 1,
                earlier_mus=ledger.mus,
                public_parts=outside.public_parts,
                unscrubbed=outside.unscrubbed,
                not_covered=self._old_checkpoints(),
                warnings=(),
                digest=scope.state_digest,
                request_id=request_id,
            ),
        )
        seconds = time.perf_counter() - start
        before = [p.detach().clone() for p in scope.parameters]
        longer = ledger.append(self._entry(certificate, chosen))
        after = replace(
            record,
            n_train=len(dataset),
            removed=sorted(gone),
            ledger=longer.to_text(),
            certificate=certificate.to_json(),
        )
        try:
            scope.assign(released)
            self.callback.record = after
            if self.save_to is not None:
                checkpoint.write(
                    self.trainer, self.callback, self.save_to, certificate.to_json()
                )
            if options.ledger is not None:
                ledgers.write(options.ledger, longer)
        except BaseException:
            self.callback.record = record
            if self.save_to is not None:  # it did not exist before: check_target
                checkpoint.discard(self.save_to)
            with torch.no_grad():
                for p, old in zip(scope.parameters, before, strict=True):
                    p.copy_(old)
            raise
        self.module.zero_grad(set_to_none=True)
        self.trainer.optimizers = []  # their moments remember the forgotten samples
        return UnlearningResult(
            certificate=certificate,
            solution=step.solution,
            n_forget=len(chosen),
            n_retain=len(retained),
            seconds=seconds,
            checkpoint_path=self.save_to,
        )

    def _ledger(self) -> ledgers.Ledger:
        """The ledger so far: the checkpoint's, which the file must agree with."""
        options = self.callback.options
        ledger = ledgers.Ledger.from_text(self.callback.record.ledger)
        if options.ledger is not None:
            ledgers.agree(ledger, ledgers.read(options.ledger))
        if options.noise_std is None:
            ledger.check_budget(options.releases)
        return ledger

    def _entry(self, certificate: Certificate, chosen: list[int]) -> ledgers.Entry:
        options = self.callback.options
        return ledgers.Entry(
            ledger_id=secrets.token_hex(16),
            index=0,
            previous=ledgers.GENESIS,
            request_id=certificate.request_id,
            time=certificate.created,
            n_forget=certificate.n_forget,
            n_retain=certificate.n_retain,
            forget_digest=ledgers.forget_digest(self.callback.record.salt, chosen),
            forget_indices=chosen if options.ledger_indices else None,
            weights_before=state_digest(self.module.state_dict()),
            weights_after=certificate.weights_digest,
            certificate_digest=certificate.digest,
            grade=certificate.grade.value,
            mu=certificate.release_mus[-1] if certificate.release_mus else None,
            releases=options.releases,
        )

    def _l2(self, scope: Scope, module_l2: float | None) -> float:
        options, record = self.callback.options, self.callback.record
        if options.l2 != "auto":
            return float(options.l2)
        if module_l2 is not None:
            return float(module_l2)
        if record.l2 is not None:
            return record.l2
        if record.l2_problem is not None:
            raise ModelError(record.l2_problem)
        return l2_of(configured_optimizers(self.module), scope.parameters)

    def _step(
        self,
        loss: LossFunction,
        scope: Scope,
        head: ConvexHead | None,
        retained: list[int],
        l2: float,
    ) -> Step:
        options = self.callback.options
        guarantee = chosen_guarantee(options, head, l2)
        own = scope.parameters[0].dtype
        dtype = own if head is not None else _DTYPES.get(options.solve_precision, own)
        if dtype not in (torch.float32, torch.float64):
            dtype = torch.float32
        strategy = strategies.adapter(self.trainer)

        def transfer(batch: Any) -> Any:
            return _cast(strategy.transfer(batch), dtype)

        size = self.callback.options.batch_size or self.loader.batch_size or 128
        batches = data.ExactBatches(self.loader, retained, size, transfer)
        w0 = scope.flatten()
        with passes(self.module, scope, dtype):
            objective = EmpiricalObjective(
                loss, scope, batches, l2, PRODUCTS[options.curvature]
            )
            checks.check_repeatable(batches)
            if isinstance(guarantee, StronglyConvex) and head is not None:
                rows = convex.capture(loss, head, batches)
                return minimise(
                    convex.ConvexObjective(head, rows, l2),
                    w0,
                    tolerance=options.tolerance,
                    max_steps=guarantee.max_steps,
                    solver=None if options.solver == "auto" else options.solver,
                )
            assert not isinstance(guarantee, StronglyConvex)  # it needs a head
            checks.check_loss(objective)
            first = checks.first_batch_loss(objective)
            if options.curvature == "central_difference":
                checks.check_smooth(first)
            checks.check_symmetric(first, scope, options.curvature)
            return damped_step(
                objective,
                w0,
                damping=None if options.damping == "auto" else options.damping,
                solver=CG() if options.solver == "auto" else options.solver,
                guarantee=guarantee,
                max_norm=options.max_norm,
                kinks=checks.kinks(first),
            )

    def _old_checkpoints(self) -> tuple[str, ...]:
        paths = {self.ckpt_path} if self.ckpt_path else set()
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Checkpoint):
                paths |= {
                    str(getattr(callback, name, "") or "")
                    for name in ("best_model_path", "last_model_path")
                }
        existing = sorted(p for p in paths if p and Path(p).exists())
        return tuple(f"the older checkpoint {path}: delete it" for path in existing)


def convex_head(module: nn.Module, scope: Scope) -> ConvexHead | None:
    """The ConvexHead whose weights are exactly those in scope, if there is one."""
    wanted = {id(p) for p in scope.parameters}
    for layer in module.modules():
        if isinstance(layer, ConvexHead) and wanted == {
            id(p) for p in layer.parameters()
        }:
            return layer
    return None


def chosen_guarantee(
    options: Options, head: ConvexHead | None, l2: float
) -> StronglyConvex | NormBall | NewtonStep | None:
    """What the request will claim; None when the noise is chosen by hand.

    Raises:
        GuaranteeError: If what is asked for cannot be had.
    """
    guarantee = options.guarantee
    if guarantee == "auto" and head is not None:
        guarantee = StronglyConvex()
    if isinstance(guarantee, StronglyConvex):
        if head is None:
            raise GuaranteeError(
                "expected the weights in scope to be exactly those of one ConvexHead "
                "for guarantee=StronglyConvex, got others: freeze the rest of the "
                "model with requires_grad_(False), or return head.parameters() from "
                "unlearning_parameters"
            )
        if not l2 > 0:
            raise GuaranteeError(
                f"expected l2 > 0 for a strongly convex objective, got l2={l2}: pass "
                "l2=1e-3 to the UnlearningCallback and train with the same weight "
                "decay on every weight of the head, bias included"
            )
        return guarantee
    if guarantee != "auto":
        return guarantee
    if options.max_norm is not None:
        return NormBall()
    if options.noise_std is None:
        raise GuaranteeError(NO_SENSITIVITY)
    return None


def _check_same_data(dataset: Any, record: TrainingRecord) -> None:
    n = len(dataset)
    if record.n_train is not None and n != record.n_train:
        raise DataError(
            f"expected the training data of {record.n_train} samples the model was "
            f"trained on, got {n} samples: pass the same dataset, forgotten samples "
            "included; the callback leaves them out by itself"
        )
    if record.fingerprint is None:
        return
    now = data.fingerprint(dataset, record.salt)
    if now is not None and now != record.fingerprint:
        raise DataError(
            "expected the training data the model was trained on, got other samples: "
            "indices would point at the wrong ones (an unseeded random_split?)"
        )


def _cast(batch: Any, dtype: torch.dtype) -> Any:
    def cast(x: torch.Tensor) -> torch.Tensor:
        return x.to(dtype) if x.is_floating_point() else x

    return apply_to_collection(batch, torch.Tensor, cast)
