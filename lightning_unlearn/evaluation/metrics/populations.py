"""The state of metrics of many unlearned and many retrained models."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_unlearn.errors import ArgumentError
from lightning_unlearn.evaluation.metrics import arguments


class PopulationsMetric(Metric):
    """Margins of samples in two populations of models, gathered over processes.

    Kept as flat float64 lists beside the numbers of models: torchmetrics gathers a
    process that has no sample only for states of one dimension and the metric's dtype.
    """

    is_differentiable = False
    full_state_update = False
    minimum = 3

    unlearned: list[Tensor]
    retrained: list[Tensor]
    most: Tensor
    fewest: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.set_dtype(torch.float64)
        self.add_state("unlearned", default=[], dist_reduce_fx="cat")
        self.add_state("retrained", default=[], dist_reduce_fx="cat")
        # (unlearned, retrained) models of an update: the same in all, if all is well.
        none = torch.zeros(2, dtype=torch.int64)
        self.add_state("most", default=none, dist_reduce_fx="max")
        self.add_state("fewest", default=none + 2**62, dist_reduce_fx="min")

    def update(self, unlearned: Tensor, retrained: Tensor | None = None) -> None:
        """Add samples.

        Args:
            unlearned: phi (`logit_scaled_confidence`) in each unlearned model,
                floating, (n, models); at least 3 models, 2 for `Klom`.
            retrained: phi in each retrained model, (n, models); at least as many.

        Raises:
            ArgumentError: If `retrained` is None, shapes or dtypes differ from these,
                or a value is NaN or infinite.
        """
        left, right = arguments.populations(unlearned, retrained, self.minimum)
        models = torch.tensor([left.shape[1], right.shape[1]]).to(self.most)
        self.unlearned.append(left.double().flatten())
        self.retrained.append(right.double().flatten())
        self.most = torch.maximum(self.most, models)
        self.fewest = torch.minimum(self.fewest, models)

    def populations(self) -> tuple[Tensor, Tensor]:
        """All margins, (samples, models) twice, float64 on the CPU."""
        u, r = arguments.joined(self.unlearned), arguments.joined(self.retrained)
        most, fewest = self.most.tolist(), self.fewest.tolist()
        if most != fewest:
            raise ArgumentError(
                "expected every update with the same numbers of models, got from "
                f"{fewest} to {most} (unlearned, retrained)"
            )
        return u.reshape(-1, most[0]), r.reshape(-1, most[1])
