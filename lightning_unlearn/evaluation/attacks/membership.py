"""Membership inference against an unlearned and a retrained model, side by side."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_unlearn._base import validate
from lightning_unlearn.errors import ArgumentError
from lightning_unlearn.evaluation.attacks.roc import (
    Attack,
    Interval,
    attack,
    auc_difference,
)
from lightning_unlearn.evaluation.metrics import arguments


class MembershipResult(NamedTuple):
    """The same attack on both models.

    Attributes:
        unlearned: What it finds in the unlearned model.
        retrained: What it finds in the retrained one, which never saw the samples:
            what any model gives away, because forgotten and held-out samples differ.
        auc_gap: ``unlearned.auc - retrained.auc``, in [-1, 1], with DeLong's paired
            interval (asymptotic: some 30 of each at least). Positive: forgotten
            samples still look trained on. Negative: they stand out by having been
            forgotten, which is a leak too. The interval is over samples, for these two
            models: retrainings differ among themselves as well, so compare with the
            gap between two of them.
        tpr_gaps: The same for the true positive rates, in the order of the rates.
    """

    unlearned: Attack
    retrained: Attack
    auc_gap: Interval
    tpr_gaps: tuple[float, ...]


class MembershipInference(Metric):
    """A population attack by threshold, and what it finds beyond the retrained model.

    Members are the forgotten samples, non-members samples that no model was trained
    on. Yeom et al. 2018 (arXiv 1709.01604) and after, reported as Carlini et al. 2022
    (arXiv 2112.03570) ask: true positive rates at low false positive rates. A
    population attack says little of single samples (Hayes et al. 2024, arXiv
    2403.01218): see `ULiRA`.

    A rate at 0.1% needs 1,000 non-members; with fewer, `RateAt.resolved` is False and
    the rate is that at no false positive. Ties never help the attacker: all samples
    at a threshold are called non-members.

    Args:
        fprs: False positive rates to report at, each in (0, 1).
        confidence: Of every interval, in (0, 1).
        **kwargs: Of `torchmetrics.Metric`.

    Raises:
        ArgumentError: If a rate or the confidence is outside its range.

    Example:
        >>> from lightning_unlearn.evaluation import MembershipInference
        >>> metric = MembershipInference(fprs=(0.25,))
        >>> metric.update(
        ...     torch.tensor([3.0, 1.0, 0.0, 2.0]),
        ...     torch.tensor([True, True, False, False]),
        ...     retrained=torch.tensor([0.0, 1.0, 0.0, 1.0]),
        ... )
        >>> result = metric.compute()
        >>> result.unlearned.auc, result.retrained.auc
        (0.75, 0.5)
        >>> result.unlearned.rates[0].resolved  # one in four, of two
        False
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    scores: list[Tensor]
    retrained: list[Tensor]
    is_member: list[Tensor]

    def __init__(
        self,
        fprs: Sequence[float] = (0.001, 0.01),
        confidence: float = 0.95,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        # All states of one dtype, the metric's: a process without samples has it too.
        self.set_dtype(torch.float64)
        for fpr in fprs:
            validate.probability(fpr=fpr)
        validate.probability(confidence=confidence)
        self.fprs = tuple(fprs)
        self.confidence = confidence
        for name in ("scores", "retrained", "is_member"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(
        self, scores: Tensor, is_member: Tensor, retrained: Tensor | None = None
    ) -> None:
        """Add samples.

        Args:
            scores: Of the unlearned model, floating, (n,), higher for members: see
                `membership_score`.
            is_member: bool, (n,): True for forgotten samples, False for held-out ones.
            retrained: The same score of the same samples from the retrained model.

        Raises:
            ArgumentError: If `retrained` is None, shapes or dtypes differ from these,
                or a score is NaN or infinite.
        """
        right = arguments.reference("retrained, the scores", retrained, 1)
        left = arguments.values("scores", scores, 1)
        if not (isinstance(is_member, Tensor) and is_member.dtype == torch.bool):
            got = getattr(is_member, "dtype", type(is_member).__name__)
            raise ArgumentError(
                f"expected is_member to be a bool tensor, got {got}: compare with what "
                "marks a member"
            )
        if is_member.ndim != 1:
            raise ArgumentError(
                f"expected is_member of shape (n,), got {tuple(is_member.shape)}"
            )
        arguments.same_length(scores=left, is_member=is_member, retrained=right)
        self.scores.append(left.double())
        self.retrained.append(right.double())
        self.is_member.append(is_member.double())

    def compute(self) -> MembershipResult:
        """The attack on both models, over all samples of all processes.

        Raises:
            ArgumentError: If there are no members, or no non-members.
        """
        member = arguments.joined(self.is_member).bool()
        if bool(member.all()) or not bool(member.any()):
            raise ArgumentError(
                "expected both forgotten (is_member) and held-out samples, got "
                f"{int(member.sum())} and {int((~member).sum())}: without one of them "
                "there is nothing to tell apart"
            )
        sides = []
        for state in (self.scores, self.retrained):
            values = arguments.joined(state)
            sides.append((values[member], values[~member]))
        unlearned, retrained = (
            attack(members, others, self.fprs, self.confidence)
            for members, others in sides
        )
        return MembershipResult(
            unlearned,
            retrained,
            auc_difference(sides[0], sides[1], self.confidence),
            tuple(
                left.tpr.value - right.tpr.value
                for left, right in zip(unlearned.rates, retrained.rates, strict=True)
            ),
        )
