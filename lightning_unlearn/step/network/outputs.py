"""The model outputs that enter a convex loss, and how much each sample curves it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

BatchLoss = Callable[[], Tensor]


def _softmax_trace(z: Tensor) -> Tensor:
    p = z.softmax(1 if z.dim() > 1 else 0)
    return p * (1 - p)


# Convex in their first argument. The value: z -> entries whose sum over a sample is
# the trace of its Hessian in z, up to a constant factor.
_CONVEX_LOSSES: dict[Callable[..., Tensor], Callable[[Tensor], Tensor]] = {
    F.cross_entropy: _softmax_trace,
    F.mse_loss: torch.ones_like,
    F.binary_cross_entropy_with_logits: lambda z: z.sigmoid() * (-z).sigmoid(),
    F.poisson_nll_loss: torch.exp,
}


class Output(NamedTuple):
    """The first argument of one call of a convex torch loss."""

    loss: Callable[..., Tensor]
    z: Tensor

    def traces(self, count: int) -> Tensor | None:
        """How much each of `count` samples curves the loss, up to a constant factor.

        Returns:
            (count,) float64, or None if the outputs are not grouped by sample.
        """
        if len(self.z) == 0 or self.z.dim() == 0 or len(self.z) % count:
            return None
        entries = _CONVEX_LOSSES[self.loss](self.z.detach())
        return entries.reshape(count, -1).sum(1).double()


class Outputs(TorchFunctionMode):
    """Records the model outputs that enter a known convex loss function."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Output] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run the function, and note what enters a known loss."""
        kwargs = dict(kwargs or {})
        if func in _CONVEX_LOSSES:
            outputs = args[0] if args else kwargs["input"]
            if isinstance(outputs, Tensor) and outputs.requires_grad:
                self.found.append(Output(func, outputs))
        return func(*args, **kwargs)

    @property
    def only(self) -> Output | None:
        """The one output found; None if there are none, or several."""
        return self.found[0] if len(self.found) == 1 else None
