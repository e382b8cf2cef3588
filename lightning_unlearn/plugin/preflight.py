"""``preflight``: what a request will prove and cost, before anything is changed."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.utilities.seed import isolate_rng
from torch.utils.data import DataLoader

from lightning_unlearn.certificate import (
    Bound,
    Constant,
    Grade,
    Origin,
    claims,
    gaussian_mu,
)
from lightning_unlearn.certificate.guarantees import NewtonStep, NormBall
from lightning_unlearn.plugin import duplicates, forecast, quality, strategies
from lightning_unlearn.plugin.asked import Asked
from lightning_unlearn.plugin.callback import UnlearningCallback
from lightning_unlearn.plugin.forget import Forget
from lightning_unlearn.plugin.inside import Run, run_inside
from lightning_unlearn.plugin.mixin import quiet
from lightning_unlearn.plugin.request import Request
from lightning_unlearn.plugin.resolved import Resolved
from lightning_unlearn.plugin.store import Stored

_EPSILONS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)


@dataclass(frozen=True, kw_only=True)
class Preflight:
    """What to expect of a request.

    Args:
        grade: The grade it will get.
        epsilon: Of the callback, or None for grade ``none``.
        delta: Likewise.
        sensitivity: Before noise, or None where there is none.
        noise_std: Standard deviation of the noise on each weight.
        noise_to_weight: noise_std sqrt(p) / |w|.
        logit_noise: noise_std times the largest norm of a feature row of the
            validation data, for a `ConvexHead`; else None.
        metric: "accuracy" or "loss", on `metric_data`.
        metric_data: "validation", or "retained" if there is no validation data.
        metric_before: Of the weights as they are.
        metric_after: Expected with the noise (mean of a few draws).
        curve: (epsilon, noise_std, expected metric) for other epsilons.
        seconds: Predicted wall time.
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
        composed_grade: What that is worth: the lowest grade of them.
    """

    grade: Grade
    epsilon: float | None
    delta: float | None
    sensitivity: float | None
    noise_std: float
    noise_to_weight: float
    logit_noise: float | None
    metric: str
    metric_data: str
    metric_before: float
    metric_after: float
    curve: tuple[tuple[float, float, float], ...]
    seconds: float
    memory_bytes: int
    n_forget: int
    n_retain: int
    advice: tuple[str, ...]
    duplicates: tuple[int, ...] | None = None
    release: int = 1
    releases: int | None = None
    composed_epsilon: float | None = None
    composed_grade: Grade | None = None

    def epsilon_at(self, loss: float) -> float | None:
        """The least epsilon of `curve` that costs at most this much of the metric.

        Args:
            loss: Of the metric: 0.01 is one point of accuracy, or 0.01 more loss.

        Returns:
            Epsilon, or None if no epsilon of the curve is cheap enough.
        """
        sign = 1 if self.metric == "accuracy" else -1
        cheap = [e for e, _, m in self.curve if sign * (self.metric_before - m) <= loss]
        return min(cheap, default=None)

    def __str__(self) -> str:
        qualifier = "" if self.grade is Grade.CERTIFIED else f" ({self.grade.value})"
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
            ("time", f"about {self.seconds:.2g} s"),
            ("memory", f"about {self.memory_bytes / 2**20:,.0f} MiB more"),
        ]
        rows.insert(1, ("release", self._release()))
        if self.duplicates is not None:
            found = f"{len(self.duplicates)} exact copies among the retained"
            rows.insert(3, ("duplicates", found))
        if self.logit_noise is not None:
            rows.append(("logit noise", f"{self.logit_noise:.3g}"))
        lines = ["PREFLIGHT: nothing was changed", ""]
        lines += [f"  {name:<22} {value}" for name, value in rows]
        lines += [f"  - {text}" for text in self.advice]
        return "\n".join(lines)

    def _release(self) -> str:
        text = f"{self.release}"
        if self.releases is not None:
            text += f" of {self.releases} announced"
        if self.composed_epsilon is None or self.composed_grade is None:
            return text
        together = f"so far together epsilon = {self.composed_epsilon:.4g}"
        return f"{text}; {together} ({self.composed_grade.value})"


def preflight(
    trainer: pl.Trainer,
    forget: Forget,
    model: LightningModule | None = None,
    train_dataloaders: DataLoader | None = None,
    datamodule: LightningDataModule | None = None,
    ckpt_path: str | Path | None = None,
    weights_only: bool | None = None,
    val_dataloaders: DataLoader | None = None,
    by: str | None = None,
    find_duplicates: bool = False,
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

    Returns:
        The forecast.

    Raises:
        StrategyError: If the Trainer has several processes.
        UnlearningError: If the request itself would be refused, with its reason.
    """
    strategies.check_alone(trainer, "preflight")

    def stage(run: Run) -> Preflight:
        request = Request(
            trainer=run.trainer,
            module=run.model,
            callback=run.callback,
            loader=run.loader,
            ckpt_path=run.ckpt_path,
            asked=Asked(forget=forget, by=by),
        )
        with isolate_rng(), quiet(run.model, restore=True):
            ready, kept = request.resolve()
            copies = None
            if find_duplicates:
                dataset = run.loader.dataset
                copies = duplicates.find(dataset, ready.chosen, ready.retained)
            validation = val_dataloaders or quality.loader_of(ready, "val")
            look = _look(ready, kept, run.callback, validation)
            return replace(look, duplicates=copies)

    return run_inside(
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
    ready: Resolved,
    kept: Stored | None,
    callback: UnlearningCallback,
    validation: DataLoader | None,
) -> Preflight:
    options = ready.options
    bound, sensitivity = _expected_bound(ready)
    claimed = bound is not Bound.NO_BOUND
    noise_std = options.noise_std
    if noise_std is None:
        noise_std = claims.noise_std_upper(
            options.epsilon, options.delta, sensitivity, options.releases
        )
    loader, indices, name = ready.loader, ready.retained, "retained"
    if validation is not None:
        loader, name = validation, "validation"
        indices = list(range(len(validation.dataset)))  # type: ignore[arg-type]
    outlook = forecast.outlook(ready, loader, indices)
    grade = _expected_grade(ready, bound)
    weights = float(ready.scope.flatten().norm())
    after = outlook.before if noise_std == 0 else outlook.at(noise_std)
    curve = []
    if claimed:
        for epsilon in _EPSILONS:
            std = claims.noise_std_upper(
                epsilon, options.delta, sensitivity, options.releases
            )
            curve.append((epsilon, std, outlook.at(std)))
    composed = _composed(ready, grade, sensitivity, noise_std)
    logit = forecast.logit_noise(ready, loader, indices, noise_std)
    return Preflight(
        grade=grade,
        epsilon=None if grade is Grade.NONE else options.epsilon,
        delta=None if grade is Grade.NONE else options.delta,
        sensitivity=sensitivity if claimed else None,
        noise_std=noise_std,
        noise_to_weight=noise_std * math.sqrt(ready.scope.size) / max(weights, 1e-300),
        logit_noise=logit,
        metric=outlook.name,
        metric_data=name,
        metric_before=outlook.before,
        metric_after=after,
        curve=tuple(curve),
        seconds=forecast.seconds(ready, None if kept is None else kept.state),
        memory_bytes=forecast.memory_bytes(ready),
        n_forget=len(ready.chosen),
        n_retain=len(ready.retained),
        advice=_advice(ready, grade, callback, logit),
        release=len(ready.ledger.entries) + 1,
        releases=options.releases,
        composed_epsilon=composed,
        composed_grade=None
        if composed is None
        else claims.lowest((grade, *ready.ledger.grades)),
    )


def _composed(
    ready: Resolved, grade: Grade, sensitivity: float, noise_std: float
) -> float | None:
    """Epsilon of all releases so far and this one; None if one has no guarantee."""
    mus = ()
    if grade is not Grade.NONE:
        mus = (*ready.ledger.mus, sensitivity / noise_std)
    release = len(ready.ledger.entries) + 1
    return claims.composed_epsilon(mus, release, ready.options.delta)


def _expected_bound(ready: Resolved) -> tuple[Bound, float]:
    """The theorem the request will use, and its sensitivity: both known beforehand."""
    options = ready.options
    if ready.convex:
        return Bound.STRONGLY_CONVEX, 2 * options.tolerance / ready.l2
    if ready.guarantee is None or options.max_norm is None:
        return Bound.NO_BOUND, math.inf
    if isinstance(ready.guarantee, NormBall) or options.damping == "auto":
        return Bound.NORM_BALL, 2 * options.max_norm
    return Bound.NEWTON_STEP, claims.sensitivity_upper(
        Bound.NEWTON_STEP, _vouched(ready.guarantee, options.max_norm, options.damping)
    )


def _vouched(
    guarantee: object, max_norm: float, damping: float
) -> tuple[Constant, ...]:
    assert isinstance(guarantee, NewtonStep)
    given = ("hessian_lipschitz", "lambda_min", "retrained_gradient_norm")
    values = [(name, getattr(guarantee, name), Origin.ASSUMED) for name in given]
    values += [
        ("max_norm", max_norm, Origin.ENFORCED),
        ("damping", damping, Origin.ENFORCED),
        ("residual", guarantee.residual, Origin.ENFORCED),
    ]
    return tuple(
        Constant(name=name, value=value, origin=origin, reason="from the callback")
        for name, value, origin in values
    )


def _expected_grade(ready: Resolved, bound: Bound) -> Grade:
    options = ready.options
    if options.noise_std is not None or options.noise_seed is not None:
        return Grade.NONE
    if ready.outside.unscrubbed or bound is Bound.NO_BOUND:
        return Grade.NONE
    if bound is Bound.NORM_BALL:
        return Grade.VACUOUS
    if bound is Bound.NEWTON_STEP:
        constants = _vouched(ready.guarantee, options.max_norm, options.damping)  # type: ignore[arg-type]
        trivial = claims.is_trivial(bound, constants)
        return Grade.VACUOUS if trivial else Grade.CONDITIONAL
    enforced = all(p.origin is Origin.ENFORCED for p in ready.outside.public_parts)
    return Grade.CERTIFIED if enforced else Grade.CONDITIONAL


def _theorem_a(ready: Resolved, max_norm: float) -> str:
    """Whether better constants could give this network more than the norm ball."""
    constants = forecast.newton_constants(ready)
    if constants is None:
        return (
            "Theorem A cannot help: a network with ReLU, max-pooling or the like has "
            "no Lipschitz Hessian; smooth activations (GELU, tanh) do"
        )
    lower = constants.lambda_min_lower
    known = "" if lower is None else f" (at least {lower:.3g}, Lanczos)"
    need = constants.hessian_change * max_norm
    text = (
        "Theorem A needs lambda_min > hessian_lipschitz x max_norm: lambda_min is "
        f"about {constants.lambda_min:.3g}{known}, hessian_lipschitz x max_norm at "
        f"least {need:.3g}"
    )
    if not constants.lambda_min > need:
        return f"{text}: no damping makes it say more than the norm ball"
    return f"{text}: guarantee=NewtonStep(...) with damping=0.0 may be conditional"


def _advice(
    ready: Resolved,
    grade: Grade,
    callback: UnlearningCallback,
    logit: float | None,
) -> tuple[str, ...]:
    options, found = ready.options, []
    if ready.outside.unscrubbed:
        found.append(
            f"{', '.join(ready.outside.unscrubbed[:3])} changed in training outside "
            "the scope: freeze it before training on private data, or bring it into "
            "scope"
        )
    if grade is Grade.VACUOUS or (grade is Grade.NONE and not ready.convex):
        l2 = ready.l2 if ready.l2 > 0 else 1e-3
        std = 2 * options.tolerance / l2 / gaussian_mu(options.epsilon, options.delta)
        found.append(
            "for a guarantee that is useful freeze the backbone and train a "
            f"ConvexHead: certified at noise_std {std:.2g} (l2 = {l2:g}, tolerance = "
            f"{options.tolerance:g})"
        )
    if grade is Grade.VACUOUS and options.max_norm is not None:
        found.append(_theorem_a(ready, options.max_norm))
    if grade is Grade.CONDITIONAL and callback.record.outside is None:
        found.append(
            "no training run was seen by the callback: train with it, or pass the "
            "ckpt_path= of a run that was, for grade certified"
        )
    if logit is not None and logit > 0.1:
        found.append(
            f"logit noise {logit:.2g} costs accuracy: tolerance = "
            f"{options.tolerance * 0.05 / logit:.1g} would bring it to 0.05"
        )
    return tuple(found)
