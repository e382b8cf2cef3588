"""One request, inside the Trainer's run: resolve, validate, solve, release, write."""

import secrets
import time
import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from lightning_utilities.core.apply_func import apply_to_collection
from torch.utils.data import DataLoader, WeightedRandomSampler

from lightning_unlearn import convex
from lightning_unlearn import ledger as ledgers
from lightning_unlearn.certificate import Certificate
from lightning_unlearn.certificate.guarantees import NewtonStep, StronglyConvex
from lightning_unlearn.curvature import checks
from lightning_unlearn.curvature.products import PRODUCTS
from lightning_unlearn.errors import DataError, ModelError
from lightning_unlearn.heads import ConvexHead
from lightning_unlearn.minimise import minimise
from lightning_unlearn.newton import Step, damped_step
from lightning_unlearn.objective import EmpiricalObjective, LossFunction
from lightning_unlearn.plugin import checkpoint, data, forget, inventory, strategies
from lightning_unlearn.plugin.callback import UnlearningCallback
from lightning_unlearn.plugin.guarantee import chosen_guarantee, convex_head
from lightning_unlearn.plugin.mixin import hooks, quiet
from lightning_unlearn.plugin.record import TrainingRecord, outside_of
from lightning_unlearn.plugin.result import UnlearningResult
from lightning_unlearn.plugin.weight_decay import configured_optimizers, l2_of
from lightning_unlearn.release import Surroundings, release
from lightning_unlearn.scope import Scope, Vector, passes, state_digest
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
        loss, scope, head, module_l2 = self._scope()
        dataset: Any = self.loader.dataset
        _check_same_data(dataset, record)
        chosen = forget.resolve(self.forget, dataset, record.removed)
        gone = {*chosen, *record.removed}
        retained = [i for i in range(len(dataset)) if i not in gone]
        inventory.check_averages(self.trainer)
        outside = outside_of(self.module, scope, record)
        ledger = self._ledger()
        l2 = self._l2(scope, module_l2)
        with isolate_rng(), quiet(self.module):
            step = self._step(loss, scope, head, retained, l2)
        released, certificate = release(
            step,
            options.terms,
            Surroundings(
                n_forget=len(chosen),
                n_retain=len(retained),
                release=len(ledger.entries) + 1,
                earlier_mus=ledger.mus,
                public_parts=outside.public_parts,
                unscrubbed=outside.unscrubbed,
                not_covered=self._not_covered(),
                warnings=self._warnings(l2),
                digest=scope.state_digest,
                request_id=uuid.uuid4().hex,
            ),
        )
        seconds = time.perf_counter() - start
        longer = ledger.append(self._entry(certificate, chosen))
        salt = secrets.token_hex(16)
        after = replace(
            record,
            n_train=len(dataset),
            salt=salt,
            fingerprint=data.fingerprint(dataset, salt, removed=sorted(gone)),
            removed=sorted(gone),
            saved=[*record.saved, *([str(self.save_to)] if self.save_to else [])],
            ledger=longer.to_text(),
            certificate=certificate.to_json(),
        )
        solution = step.solution
        if certificate.noise_std > 0:  # w0 - x would be the weights without the noise
            solution = replace(solution, x=scope.flatten() - released)
        self._commit(scope, released, after, certificate, longer)
        return UnlearningResult(
            certificate=certificate,
            solution=solution,
            n_forget=len(chosen),
            n_retain=len(retained),
            seconds=seconds,
            checkpoint_path=self.save_to,
        )

    def _scope(self) -> tuple[LossFunction, Scope, ConvexHead | None, float | None]:
        loss, in_scope, module_l2 = hooks(self.module)
        scope = Scope(self.module, in_scope)
        head = convex_head(self.module, scope)
        if head is not None:  # in the head's own order, whatever the hook returned
            scope = Scope(self.module, head.parameters())
        scope.check_finite()
        return loss, scope, head, module_l2

    def _commit(
        self,
        scope: Scope,
        released: Vector,
        after: TrainingRecord,
        certificate: Certificate,
        ledger: ledgers.Ledger,
    ) -> None:
        """Move the weights, the record and the files together, or none of them."""
        record, file = self.callback.record, self.callback.options.ledger
        before = [p.detach().clone() for p in scope.parameters]
        try:
            scope.assign(released)
            self.callback.record = after
            if self.save_to is not None:
                checkpoint.write(
                    self.trainer, self.callback, self.save_to, certificate.to_json()
                )
            if file is not None:
                ledgers.write(file, ledger)
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
        inventory.forget_scores(self.trainer, self.save_to)

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
        options, record = self.callback.options, self.callback.record
        return ledgers.Entry(
            ledger_id=secrets.token_hex(16),
            index=0,
            previous=ledgers.GENESIS,
            request_id=certificate.request_id,
            time=certificate.created,
            n_forget=certificate.n_forget,
            n_retain=certificate.n_retain,
            forget_digest=ledgers.forget_digest(record.ledger_key, chosen),
            forget_indices=chosen if options.ledger_indices else None,
            weights_before=state_digest(self.module.state_dict()),
            weights_after=certificate.weights_digest,
            certificate_digest=certificate.digest,
            grade=certificate.grade.value,
            mu=certificate.release_mus[-1] if certificate.release_mus else None,
            releases=options.releases,
        )

    def _not_covered(self) -> tuple[str, ...]:
        known = inventory.not_covered(
            self.trainer, self.ckpt_path, self.callback.record.saved
        )
        if self.callback.options.ledger is None:
            known += (
                "releases made from other copies of this model: without ledger= this "
                "checkpoint does not know of them",
            )
        return known

    def _warnings(self, l2: float) -> tuple[str, ...]:
        record, found = self.callback.record, []
        if record.n_train is None:
            found.append(
                "no record of a training run: is this the trained model? Pass "
                "ckpt_path= if it was trained in another process"
            )
        elif record.l2 is not None and l2 != record.l2:
            found.append(
                f"the objective has l2 = {l2:g}, the model was trained with "
                f"{record.l2:g}: the request moves it to another optimum"
            )
        if isinstance(self.loader.sampler, WeightedRandomSampler):
            found.append(
                "the training loader draws samples with weights; the objective, and "
                "the retrained model it is compared with, count every sample once"
            )
        return tuple(found)

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
        dtype = self._dtype(scope, head, guarantee)
        strategy = strategies.adapter(self.trainer)

        def transfer(batch: Any) -> Any:
            return _cast(strategy.transfer(batch), dtype)

        size = options.batch_size or self.loader.batch_size or 128
        batches = data.ExactBatches(self.loader, retained, size, transfer)
        solver = None if options.solver == "auto" else options.solver
        w0 = scope.flatten()
        with passes(self.module, scope, dtype):
            checks.check_repeatable(batches)
            if isinstance(guarantee, StronglyConvex):
                assert head is not None  # chosen_guarantee checks it
                rows = convex.capture(loss, head, batches)
                return minimise(
                    convex.ConvexObjective(head, rows, l2),
                    w0,
                    tolerance=options.tolerance,
                    max_steps=guarantee.max_steps,
                    solver=solver,
                )
            objective = EmpiricalObjective(
                loss, scope, batches, l2, PRODUCTS[options.curvature]
            )
            checks.check_loss(objective)
            first = checks.first_batch_loss(objective)
            if options.curvature == "central_difference":
                checks.check_smooth(first)
            checks.check_symmetric(first, scope, options.curvature)
            return damped_step(
                objective,
                w0,
                damping=None if options.damping == "auto" else options.damping,
                solver=solver or CG(),
                guarantee=guarantee,
                max_norm=options.max_norm,
                kinks=checks.kinks(first),
            )

    def _dtype(
        self, scope: Scope, head: ConvexHead | None, guarantee: object
    ) -> torch.dtype:
        """Of the passes: features of a head as trained, float64 where it is claimed."""
        own = scope.parameters[0].dtype
        if own not in (torch.float32, torch.float64):
            own = torch.float32
        if head is not None and isinstance(guarantee, StronglyConvex):
            return own
        precision = self.callback.options.solve_precision
        if precision == "auto" and isinstance(guarantee, NewtonStep):
            return torch.float64
        return _DTYPES.get(precision, own)


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
    now = data.fingerprint(dataset, record.salt, record.removed)
    if now is not None and now != record.fingerprint:
        raise DataError(
            "expected the training data the model was trained on, got other samples: "
            "indices would point at the wrong ones (an unseeded random_split?)"
        )


def _cast(batch: Any, dtype: torch.dtype) -> Any:
    def cast(x: torch.Tensor) -> torch.Tensor:
        return x.to(dtype) if x.is_floating_point() else x

    return apply_to_collection(batch, torch.Tensor, cast)
