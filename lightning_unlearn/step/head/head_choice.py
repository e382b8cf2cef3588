"""Which backbone, loss and l2: compared on validation data before anything is bound."""

import math
import textwrap
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from lightning_unlearn._base import validate
from lightning_unlearn._base.text import number, printable
from lightning_unlearn.errors import (
    ArgumentError,
    DataError,
    GuaranteeError,
    SolverError,
)
from lightning_unlearn.guarantee import claims
from lightning_unlearn.guarantee.tolerance import usual_tolerance
from lightning_unlearn.step.head.backbone import PublicBackbone
from lightning_unlearn.step.head.convex_head import ConvexHead
from lightning_unlearn.step.head.convex_objective import ConvexObjective
from lightning_unlearn.step.head.factor import cheap_factor
from lightning_unlearn.step.head.inputs import in_order, split_batch, to_device
from lightning_unlearn.step.head.links import LossName
from lightning_unlearn.step.head.minimise import minimise
from lightning_unlearn.step.head.rows.feature_data import FeatureData
from lightning_unlearn.step.noise import gaussian_noise
from lightning_unlearn.weights.scope import Vector

Data = Dataset | DataLoader
_Tried = tuple["HeadChoice", Tensor]  # and its score with noise of each sample (n,)
_WIDTH = 78
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

    def row(self) -> str:
        """Its line of the table, from l2 on."""
        head = f"{self.l2:<6.2g}  {self.n_parameters:>7,}  "
        if self.problem:
            return f"{head}not solved: {self.problem}"
        loud = "!" if self.logit_noise > _TOO_LOUD else " "
        return (
            f"{head}{self.score:>8.4f}  {self.score_with_noise:>9.4f}  "
            f"{self.logit_noise:>10.2g}{loud}  {self.seconds:.2g} s"
        )


@dataclass(frozen=True, kw_only=True)
class HeadComparison:
    """What `compare_heads` found; printing it shows the table.

    Args:
        choices: All that were tried.
        recommended: The one with the least logit noise among those whose score with
            noise is within a standard error (of the difference) of the best.
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
        losses = len({c.loss for c in self.choices}) > 1
        each = f"all {self.releases} releases" if self.releases else "each release"
        lines = [
            *textwrap.wrap(
                f"HEADS by {self.metric} on the validation data, certified at epsilon "
                f"= {number(self.epsilon)}, delta = {number(self.delta)} for {each}",
                _WIDTH,
            ),
            "",
            f"    {'backbone':<{width}}  " + (f"{'loss':<13}  " if losses else "")
            + f"{'l2':<6}  weights  no noise  certified  logit noise  solve",
        ]  # fmt: skip
        for choice, name in zip(self.choices, names, strict=True):
            head = f"  {'*' if choice is self.recommended else ' '} {name:<{width}}  "
            head += f"{choice.loss:<13}  " if losses else ""
            lines.append(head + choice.row())
        return "\n".join([*lines, "", *self._remarks()])

    def _remarks(self) -> list[str]:
        best = self.recommended
        remarks = [
            f"* recommended: {printable(best.backbone)}, loss {best.loss}, l2 = "
            f"{best.l2:g} ({best.score_with_noise:.4f} +- {best.standard_error:.4f}): "
            "the least noise among what cannot be told from the best."
        ]
        lost = best.score - best.score_with_noise
        if lost > 2 * best.standard_error:
            remarks.append(
                f"! the noise costs even this one {lost:.3g}, more than its error: no "
                "head here is worth certifying so; lower the tolerance, which the "
                "noise is proportional to, before any request."
            )
        if any(c.logit_noise > _TOO_LOUD for c in self.choices):
            remarks.append(
                f"! the noise moves logits by more than {_TOO_LOUD:g}, which costs "
                "accuracy: lower the tolerance or raise l2."
            )
        return [line for r in (*remarks, _OUTSIDE) for line in textwrap.wrap(r, _WIDTH)]


def compare_heads(
    backbones: Mapping[str, PublicBackbone] | PublicBackbone,
    train: Data,
    val: Data,
    *,
    loss: LossName | Sequence[LossName] = "cross_entropy",
    l2: float | Sequence[float] = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2),
    epsilon: float = 1.0,
    delta: float = 1e-5,
    tolerance: float | Literal["auto"] = "auto",
    releases: int | None = None,
    draws: int = 5,
) -> HeadComparison:
    """Compare what certified heads are worth on validation data.

    Each is solved as `CertifiedClassifier` would be, and scored with the noise that a
    request would add. No Trainer, ledger or model is touched.

    Args:
        backbones: By name, such as ``{"last layer": ..., "four depths": ...}``.
        train: Pairs (inputs, targets), or mappings with "labels", read in order.
            Targets are classes, or numbers for a regression; for "bce" yes or no,
            (n,) or (n, K) of any dtype.
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
    if tolerance != "auto":
        validate.positive(tolerance=tolerance)
    terms = claims.Terms(epsilon=epsilon, delta=delta, releases=releases)
    tried, numbers = list[_Tried](), False
    for name, backbone in named.items():
        with backbone.reading_private():
            own = _read(backbone, train)
        each = {
            strength: usual_tolerance(terms, strength, backbone.row_norm()).value
            if tolerance == "auto"
            else tolerance
            for strength in strengths
        }
        split = _Split(name, *own, *_read(backbone, val))
        numbers = split.numbers and "bce" not in losses
        for kind in losses:
            tried += split.tried(kind, each, terms, draws)
    return HeadComparison(
        choices=tuple(choice for choice, _ in tried),
        recommended=_recommended(tried),
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
    if "bce" in losses and set(losses) != {"bce"}:
        raise ArgumentError(
            f"expected loss='bce' alone, got loss={losses}: its targets, yes or no for "
            "each label, are those of no other loss"
        )
    for strength in strengths:
        validate.positive(l2=strength)
    validate.count(draws=draws)


def _read(backbone: PublicBackbone, data: Data) -> tuple[Tensor, Tensor]:
    """Features (n, d) and targets of a dataset in its order, on the CPU."""
    rows, targets = [], []
    for batch in in_order(data, backbone.batch_size):
        inputs, wanted = split_batch(batch)
        inputs = to_device(inputs, backbone.mean.device)
        rows.append(backbone(inputs).cpu())
        targets.append(wanted.cpu())
    if not rows:
        raise DataError("expected samples to compare heads on, got an empty dataset")
    return torch.cat(rows), torch.cat(targets)


def _recommended(tried: list[_Tried]) -> HeadChoice:
    """The one-standard-error rule (Hastie et al., Elements, section 7.10), paired."""
    solved = [pair for pair in tried if not pair[0].problem]
    if not solved:
        raise SolverError(
            f"expected a head that can be solved to its tolerance, got none: "
            f"{tried[0][0].problem}"
        )
    _, best = max(solved, key=lambda pair: pair[0].score_with_noise)
    near = [
        choice
        for choice, each in solved
        if float((best - each).mean()) <= _standard_error(best - each)
    ]
    return min(near, key=lambda choice: choice.logit_noise)


def _standard_error(each: Tensor) -> float:
    """Of a mean over samples (n,)."""
    return float(each.std(correction=0)) / math.sqrt(len(each))


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

    def tried(
        self,
        loss: LossName,
        tolerances: Mapping[float, float],
        terms: claims.Terms,
        draws: int,
    ) -> list[_Tried]:
        """One for each l2 (-> its tolerance), each solved from the last solution."""
        if loss != "bce":
            allowed = ("mse", "poisson") if self.numbers else ("cross_entropy", "mse")
            validate.one_of((*allowed, "bce"), loss=loss)
        head, data = self._problem(loss)
        w, found = _start(head), []
        for l2, tolerance in tolerances.items():
            noise_std = claims.noise_std_upper(terms, 2 * tolerance / l2)
            objective, begin = ConvexObjective(head, data, l2), time.perf_counter()
            problem = ""
            try:
                refactor = cheap_factor(objective)
                step = minimise(objective, w, tolerance=tolerance, refactor=refactor)
                w = step.weights
            except (GuaranteeError, SolverError) as error:
                problem = str(error)
            seconds = time.perf_counter() - begin
            bare = noisy = torch.full((len(self.val_targets),), math.nan)
            if not problem:
                bare = self._score(loss, w)
                noisy = self._noisy_score(loss, w, noise_std, draws)
            choice = HeadChoice(
                backbone=self.name,
                loss=loss,
                l2=l2,
                n_parameters=len(w),
                score=float(bare.mean()),
                score_with_noise=float(noisy.mean()),
                standard_error=_standard_error(noisy),
                noise_std=noise_std,
                logit_noise=noise_std * self._largest_row,
                seconds=seconds,
                problem=problem,
            )
            found.append((choice, noisy))
        return found

    @property
    def _largest_row(self) -> float:
        rows = torch.cat([self.rows, self.val_rows])
        return math.sqrt(float(rows.norm(dim=1).max()) ** 2 + 1)  # 1: the bias

    def _problem(self, loss: LossName) -> tuple[ConvexHead, FeatureData]:
        targets, d = self.targets, self.rows.shape[1]
        if self.numbers or loss == "bce":
            targets = targets.reshape(len(targets), -1).float()
            return ConvexHead(d, targets.shape[1], loss), FeatureData(
                self.rows, targets
            )
        K = int(torch.cat([targets, self.val_targets]).max()) + 1
        if loss == "mse":
            targets = F.one_hot(targets, K).float()
        return ConvexHead(d, K, loss), FeatureData(self.rows, targets)

    def _noisy_score(
        self, loss: LossName, w: Vector, noise_std: float, draws: int
    ) -> Tensor:
        """The mean of `_score` over draws of the noise, (n,)."""
        drawn = [
            self._score(loss, w + gaussian_noise(len(w), noise_std))
            for _ in range(draws)
        ]
        return torch.stack(drawn).mean(0)

    def _score(self, loss: LossName, w: Vector) -> Tensor:
        """Of each validation sample (n,): 1 if it is right, or minus its error."""
        d = self.rows.shape[1]
        K = len(w) // (d + 1)
        outputs = self.val_rows.double() @ w[: K * d].view(K, d).T + w[K * d :]
        if loss == "bce":
            yes = self.val_targets.reshape(len(outputs), K) > 0.5
            return ((outputs > 0) == yes).double().mean(1)
        if not self.numbers:
            return (outputs.argmax(1) == self.val_targets).double()
        outputs = outputs.exp() if loss == "poisson" else outputs
        wanted = self.val_targets.reshape(len(outputs), K)
        return -(outputs - wanted).square().mean(1)


def _start(head: ConvexHead) -> Vector:
    return torch.zeros(sum(p.numel() for p in head.parameters()), dtype=torch.float64)
