"""Which backbone, loss and l2: compared on validation data before anything is bound."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from lightning_unlearn import _validate, reading
from lightning_unlearn._text import number, printable
from lightning_unlearn.backbone import PublicBackbone
from lightning_unlearn.certificate import claims
from lightning_unlearn.convex import ConvexObjective
from lightning_unlearn.errors import (
    ArgumentError,
    DataError,
    GuaranteeError,
    SolverError,
)
from lightning_unlearn.factor import cheap_factor
from lightning_unlearn.features import FeatureData
from lightning_unlearn.heads import ConvexHead, LossName
from lightning_unlearn.minimise import minimise
from lightning_unlearn.noise import gaussian_noise
from lightning_unlearn.scope import Vector

Data = Dataset | DataLoader
_TOO_LOUD = 0.1  # of logit noise: from here on it costs accuracy
_OUTSIDE = (
    "Chosen on private data, a backbone, loss or l2 remembers them a little: that is "
    "outside the certificate. Choose on public data, or by yourself, to close that gap."
)


@dataclass(frozen=True, kw_only=True)
class HeadChoice:
    """One way to make a certified head, and what it is worth.

    Args:
        backbone: Its name.
        loss: Of the head.
        l2: Coefficient of (l2/2)|w|^2.
        n_parameters: Weights of the head.
        score: Mean over the validation samples without noise: accuracy, or minus the
            squared error for targets that are numbers. NaN if it cannot be solved.
        score_with_noise: The same, over several draws of the noise of a request.
        standard_error: Of that, over the validation samples.
        noise_std: Standard deviation on each weight of the head.
        logit_noise: ``noise_std`` times the largest norm of a feature row and 1.
        seconds: Of the solve.
        problem: Why it cannot be solved to the tolerance; "" if it can.
    """

    backbone: str
    loss: str
    l2: float
    n_parameters: int
    score: float
    score_with_noise: float
    standard_error: float
    noise_std: float
    logit_noise: float
    seconds: float
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class HeadComparison:
    """What `compare_heads` found; printing it shows the table.

    Args:
        choices: All that were tried.
        recommended: Among those within one standard error of the best score with
            noise, the one with the least logit noise.
        metric: "accuracy" or "minus squared error".
        epsilon: Of a request, or of all announced releases.
        delta: Likewise.
        releases: How many are announced, or None.
    """

    choices: tuple[HeadChoice, ...]
    recommended: HeadChoice
    metric: str
    epsilon: float
    delta: float
    releases: int | None

    def __str__(self) -> str:
        names = [printable(c.backbone) for c in self.choices]
        width = max(8, *map(len, names))
        each = f"all {self.releases} releases" if self.releases else "each release"
        lines = [
            f"HEADS by {self.metric} on the validation data, certified at epsilon = "
            f"{number(self.epsilon)}, delta = {number(self.delta)} for {each}",
            "",
            f"    {'backbone':<{width}}  {'loss':<13}  {'l2':<7}  {'weights':>8}  "
            f"{'no noise':>8}  {'certified':>9}  {'logit noise':>11}  {'solve':>7}",
        ]
        for choice, name in zip(self.choices, names, strict=True):
            mark = "*" if choice is self.recommended else " "
            head = (
                f"  {mark} {name:<{width}}  {choice.loss:<13}  {choice.l2:<7.2g}  "
                f"{choice.n_parameters:>8,}  "
            )
            if choice.problem:
                lines.append(f"{head}not solved: {choice.problem}")
                continue
            loud = "!" if choice.logit_noise > _TOO_LOUD else " "
            lines.append(
                f"{head}{choice.score:>8.4f}  {choice.score_with_noise:>9.4f}  "
                f"{choice.logit_noise:>10.2g}{loud}  {choice.seconds:>5.2g} s"
            )
        best = self.recommended
        lines += [
            "",
            f"* recommended: {printable(best.backbone)}, loss {best.loss}, l2 = "
            f"{best.l2:g} ({best.score_with_noise:.4f} +- {best.standard_error:.4f}): "
            "within a standard error of the best, with the least noise.",
        ]
        if any(c.logit_noise > _TOO_LOUD for c in self.choices):
            lines.append(
                f"! the noise moves logits by more than {_TOO_LOUD:g}, which costs "
                "accuracy: lower the tolerance or raise l2."
            )
        return "\n".join([*lines, _OUTSIDE])


def compare_heads(
    backbones: Mapping[str, PublicBackbone] | PublicBackbone,
    train: Data,
    val: Data,
    *,
    loss: LossName | Sequence[LossName] = "cross_entropy",
    l2: float | Sequence[float] = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2),
    epsilon: float = 1.0,
    delta: float = 1e-5,
    tolerance: float = 1e-6,
    releases: int | None = None,
    draws: int = 5,
) -> HeadComparison:
    """Compare what certified heads are worth on validation data.

    Each is solved as `CertifiedClassifier` would be, and scored with the noise that a
    request would add. No Trainer, ledger or model is touched.

    Args:
        backbones: By name, such as ``{"last layer": ..., "four depths": ...}``.
        train: Pairs (inputs, targets), or mappings with "labels", read in order.
            Targets are classes, or numbers for a regression.
        val: The same, for the scores.
        loss: One or several of a `ConvexHead`.
        l2: One or several.
        epsilon: As for the `UnlearningCallback`.
        delta: As for the `UnlearningCallback`.
        tolerance: As for the `UnlearningCallback`.
        releases: As for the `UnlearningCallback`.
        draws: Of the noise, for each score.

    Returns:
        The comparison.

    Raises:
        ArgumentError: If an argument is outside its range.
        DataError: If a batch has another form.
        GuaranteeError: If a training sample is one of a backbone's public samples.
        SolverError: If none of the heads can be solved to the tolerance.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh())
        >>> backbone = PublicBackbone(net, public_data=torch.randn(50, 8))
        >>> x, y = torch.randn(60, 8), torch.arange(60) % 3
        >>> data = torch.utils.data.TensorDataset(x, y)
        >>> found = compare_heads(backbone, data, data, l2=[1e-3, 1e-2])
        >>> len(found.choices)
        2
    """
    named = backbones if isinstance(backbones, Mapping) else {"backbone": backbones}
    losses: list[LossName] = [loss] if isinstance(loss, str) else list(loss)
    strengths: list[float] = [l2] if isinstance(l2, (int, float)) else list(l2)
    _check(named, losses, strengths, draws)
    _validate.positive(tolerance=tolerance)
    # The noise at l2 = 1: a request's sensitivity is 2 tolerance / l2.
    unit = claims.noise_std_upper(epsilon, delta, 2 * tolerance, releases)
    choices, numbers = list[HeadChoice](), False
    for name, backbone in named.items():
        with backbone.reading_private():
            own = _read(backbone, train)
        split = _Split(name, *own, *_read(backbone, val))
        numbers = split.numbers
        for kind in losses:
            choices += split.choices(kind, strengths, tolerance, unit, draws)
    return HeadComparison(
        choices=tuple(choices),
        recommended=_recommended(choices, tolerance),
        metric="minus squared error" if numbers else "accuracy",
        epsilon=epsilon,
        delta=delta,
        releases=releases,
    )


def _check(
    named: Mapping[str, object],
    losses: Sequence[str],
    strengths: list[float],
    draws: int,
) -> None:
    wrong = [n for n, b in named.items() if not isinstance(b, PublicBackbone)]
    if not named or wrong:
        got = f"{type(named[wrong[0]]).__name__} as {wrong[0]!r}" if wrong else "none"
        raise ArgumentError(
            f"expected one PublicBackbone, or several by name, got {got}"
        )
    if not losses or not strengths:
        raise ArgumentError(
            f"expected at least one loss and one l2, got loss={losses}, l2={strengths}"
        )
    for strength in strengths:
        _validate.positive(l2=strength)
    _validate.count(draws=draws)


def _read(backbone: PublicBackbone, data: Data) -> tuple[Tensor, Tensor]:
    """Features (n, d) and targets of a dataset in its order, on the CPU."""
    rows, targets = [], []
    for batch in reading.in_order(data, backbone.batch_size):
        inputs, wanted = reading.split_batch(batch)
        inputs = reading.to_device(inputs, backbone.mean.device)
        rows.append(backbone(inputs).cpu())
        targets.append(wanted.cpu())
    if not rows:
        raise DataError("expected samples to compare heads on, got an empty dataset")
    return torch.cat(rows), torch.cat(targets)


def _recommended(choices: list[HeadChoice], tolerance: float) -> HeadChoice:
    """By the one-standard-error rule (Hastie et al., Elements, section 7.10)."""
    solved = [c for c in choices if not c.problem]
    if not solved:
        raise SolverError(
            f"expected a head that can be solved to tolerance={tolerance:g}, got none: "
            f"{choices[0].problem}"
        )
    best = max(solved, key=lambda c: c.score_with_noise)
    enough = best.score_with_noise - best.standard_error
    near = [c for c in solved if c.score_with_noise >= enough]
    return min(near, key=lambda c: c.logit_noise)


@dataclass(frozen=True)
class _Split:
    """Features of one backbone: rows (n, d) and targets, to solve and to score."""

    name: str
    rows: Tensor
    targets: Tensor
    val_rows: Tensor
    val_targets: Tensor

    @property
    def numbers(self) -> bool:
        """Whether targets are numbers, not classes."""
        return self.targets.is_floating_point()

    def choices(
        self,
        loss: LossName,
        strengths: list[float],
        tolerance: float,
        unit: float,
        draws: int,
    ) -> list[HeadChoice]:
        """One for each l2, each solved from the last solution."""
        _validate.one_of(
            ("mse", "poisson") if self.numbers else ("cross_entropy", "mse"), loss=loss
        )
        head, data = self._problem(loss)
        w, found = _start(head), []
        for l2 in strengths:
            objective, begin = ConvexObjective(head, data, l2), time.perf_counter()
            problem = ""
            try:
                refactor = cheap_factor(objective)
                step = minimise(objective, w, tolerance=tolerance, refactor=refactor)
                w = step.weights
            except (GuaranteeError, SolverError) as error:
                problem = str(error)
            seconds = time.perf_counter() - begin
            scores = math.nan, math.nan, math.nan
            if not problem:
                scores = self._scores(loss, w, unit / l2, draws)
            found.append(
                HeadChoice(
                    backbone=self.name,
                    loss=loss,
                    l2=l2,
                    n_parameters=len(w),
                    score=scores[0],
                    score_with_noise=scores[1],
                    standard_error=scores[2],
                    noise_std=unit / l2,
                    logit_noise=unit / l2 * self._largest_row,
                    seconds=seconds,
                    problem=problem,
                )
            )
        return found

    @property
    def _largest_row(self) -> float:
        rows = torch.cat([self.rows, self.val_rows])
        return math.sqrt(float(rows.norm(dim=1).max()) ** 2 + 1)  # 1: the bias

    def _problem(self, loss: LossName) -> tuple[ConvexHead, FeatureData]:
        targets, d = self.targets, self.rows.shape[1]
        if self.numbers:
            targets = targets.reshape(len(targets), -1).float()
            return ConvexHead(d, targets.shape[1], loss), FeatureData(
                self.rows, targets
            )
        K = int(torch.cat([targets, self.val_targets]).max()) + 1
        if loss == "mse":
            targets = F.one_hot(targets, K).float()
        return ConvexHead(d, K, loss), FeatureData(self.rows, targets)

    def _scores(
        self, loss: LossName, w: Vector, noise_std: float, draws: int
    ) -> tuple[float, float, float]:
        """Mean score without and with noise, and the standard error of the latter."""
        noisy = [
            self._score(loss, w + gaussian_noise(len(w), noise_std))
            for _ in range(draws)
        ]
        each = torch.stack(noisy).mean(0)
        error = float(each.std()) / math.sqrt(len(each))
        return float(self._score(loss, w).mean()), float(each.mean()), error

    def _score(self, loss: LossName, w: Vector) -> Tensor:
        """Of each validation sample (n,): 1 if it is right, or minus its error."""
        d = self.rows.shape[1]
        K = len(w) // (d + 1)
        outputs = self.val_rows.double() @ w[: K * d].view(K, d).T + w[K * d :]
        if not self.numbers:
            return (outputs.argmax(1) == self.val_targets).double()
        outputs = outputs.exp() if loss == "poisson" else outputs
        wanted = self.val_targets.reshape(len(outputs), K)
        return -(outputs - wanted).square().mean(1)


def _start(head: ConvexHead) -> Vector:
    return torch.zeros(sum(p.numel() for p in head.parameters()), dtype=torch.float64)
