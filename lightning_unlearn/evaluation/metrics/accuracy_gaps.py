"""Accuracy on forgotten, retained and test samples, less the retrained model's."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_unlearn._base import validate
from lightning_unlearn.errors import ArgumentError
from lightning_unlearn.evaluation.metrics import arguments


def _predicted(name: str, predictions: object, n: int) -> Tensor:
    """Class indices of logits (n, classes), or of class indices (n,) themselves."""
    if isinstance(predictions, Tensor) and predictions.is_floating_point():
        return arguments.logits(name, predictions).argmax(1)
    return arguments.classes(name, predictions, n, torch.iinfo(torch.int64).max)


class AccuracyGaps(Metric):
    """Gaps of accuracy between an unlearned and the retrained model, by split.

    ``compute()`` gives a dict of float64 scalars, fit for ``self.log_dict`` and
    `torchmetrics.MetricCollection`. For each split: ``<split>_unlearned`` and
    ``<split>_retrained`` in [0, 1], ``<split>_gap`` = the first less the second, in
    [-1, 1]; and ``average_gap``, the mean of the gaps' absolute values (Fan et al.
    2024, arXiv 2310.12508, table 1). A low accuracy on the forgotten samples is no aim:
    the retrained model's is.

    Args:
        splits: Names, all of which must have samples when it is computed.
        **kwargs: Of `torchmetrics.Metric`.

    Raises:
        ArgumentError: If there is no split, or a name twice.

    Example:
        >>> from lightning_unlearn.evaluation import AccuracyGaps
        >>> metric = AccuracyGaps(splits=("forget",))
        >>> labels = torch.tensor([0, 1, 2, 3])
        >>> metric.update(labels, torch.tensor([0, 1, 0, 0]), labels, split="forget")
        >>> metric.compute()["forget_gap"]
        tensor(0.5000, dtype=torch.float64)
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    right: Tensor
    n: Tensor

    def __init__(
        self, splits: Sequence[str] = ("forget", "retain", "test"), **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.splits = tuple(splits)
        if not self.splits or len(set(self.splits)) < len(self.splits):
            raise ArgumentError(
                f"expected splits to be different names, at least one, got {splits!r}"
            )
        k = len(self.splits)
        # (splits, models): how many the unlearned, the retrained one has right.
        zeros = torch.zeros(k, 2, dtype=torch.int64)
        self.add_state("right", default=zeros, dist_reduce_fx="sum")
        self.add_state(
            "n", default=torch.zeros(k, dtype=torch.int64), dist_reduce_fx="sum"
        )

    def update(
        self,
        unlearned: Tensor,
        retrained: Tensor | None,
        targets: Tensor,
        split: str = "forget",
    ) -> None:
        """Add samples of one split.

        Args:
            unlearned: Logits (n, classes), or predicted classes as integers (n,).
            retrained: The retrained model's, of the same samples.
            targets: Integer class indices, (n,).
            split: One of the names given at the start.

        Raises:
            ArgumentError: If `retrained` is None, the split is unknown, shapes or
                dtypes differ from these, or a logit is NaN or infinite.
        """
        validate.one_of(self.splits, split=split)
        if retrained is None:
            arguments.reference("retrained, the predictions", retrained, 1)
        n = len(targets) if isinstance(targets, Tensor) and targets.ndim else 0
        y = arguments.classes("targets", targets, n, torch.iinfo(torch.int64).max)
        row = self.splits.index(split)
        both = []
        for name, given in (("unlearned", unlearned), ("retrained", retrained)):
            predicted = _predicted(name, given, n)
            arguments.same_length(**{name: predicted, "targets": y})
            both.append((predicted == y).sum())
        self.right[row] += torch.stack(both)
        self.n[row] += n

    def compute(self) -> dict[str, Tensor]:
        """Accuracies and gaps over the samples of all processes.

        Raises:
            ArgumentError: If a split has no sample.
        """
        empty = [s for s, n in zip(self.splits, self.n.tolist(), strict=True) if not n]
        if empty:
            raise ArgumentError(
                f"expected samples of every split, got none of {', '.join(empty)}: "
                "update with them, or name fewer splits"
            )
        accuracy = self.right.double() / self.n[:, None]
        gap = accuracy[:, 0] - accuracy[:, 1]
        result = {}
        for row, split in enumerate(self.splits):
            result[f"{split}_unlearned"] = accuracy[row, 0]
            result[f"{split}_retrained"] = accuracy[row, 1]
            result[f"{split}_gap"] = gap[row]
        result["average_gap"] = gap.abs().mean()
        return result
