"""Rows at a head that are read once, and what other weights are worth on them."""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_unlearn.plugin.data.exact_batches import ExactBatches
from lightning_unlearn.plugin.plan.head_plan import HeadPlan
from lightning_unlearn.step.head.convex_head import ConvexHead, HeadCall
from lightning_unlearn.step.head.rows.calls import call_of
from lightning_unlearn.weights.passes import passes
from lightning_unlearn.weights.scope import Vector


def logits_of(head: ConvexHead, call: HeadCall) -> Tensor:
    """The head's outputs (n, K) for the rows of a batch."""
    return F.linear(call.features, head.weight, head.bias)


def right_in(head: ConvexHead, call: HeadCall, logits: Tensor) -> int | None:
    """How many of a batch are classified correctly; None if nothing is classified.

    One logit for each of two classes, or a count, is no class, and neither is a
    probability of each.
    """
    if head.loss_name != "cross_entropy" or call.targets.dim() != 1:
        return None
    return int((logits.argmax(1) == call.targets).sum())


@dataclass(frozen=True)
class HeadRows:
    """What reaches a head in some batches, in the dtype of the passes.

    Args:
        calls: One a batch.
    """

    calls: list[HeadCall] = field(repr=False)

    @staticmethod
    def read(plan: HeadPlan, batches: ExactBatches) -> "HeadRows":
        """Read every batch once.

        Raises:
            GuaranteeError: If the loss of one is not that of the head.
        """
        with passes(plan.module, plan.scope, plan.dtype):
            return HeadRows(
                [
                    call_of(plan.loss, plan.head, batch, index, weight)
                    for index, (weight, batch) in enumerate(batches)
                ]
            )

    @property
    def largest(self) -> float:
        """The largest norm of a row."""
        norms = (float(call.features.norm(dim=1).max()) for call in self.calls)
        return max(norms, default=0.0)

    def metric(self, plan: HeadPlan, weights: Vector) -> tuple[str, float]:
        """Accuracy, or the loss where nothing is classified, with weights (p,)."""
        right: int | None = 0
        loss, n = 0.0, 0
        with passes(plan.module, plan.scope, plan.dtype), torch.no_grad():
            plan.scope.assign(weights)
            for call in self.calls:
                logits = logits_of(plan.head, call)
                found = right_in(plan.head, call, logits)
                right = None if right is None or found is None else right + found
                losses = plan.head.link.loss(logits, call.targets, call.weights)
                loss += float(losses.sum())
                n += len(call.targets)
        return ("loss", loss / n) if right is None else ("accuracy", right / n)
