r"""The one objective: ``F(w) = (1/n) sum_i loss(w; x_i) + (l2/2) |w|^2``.

n counts the retained samples, each exactly once; the regulariser is counted once
and not scaled by the data. Gradient, Hessian-vector products, solvers and the
certificate all read this definition.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from lightning_unlearn.weights.scope import Vector

LossFunction = Callable[[Any, int], Tensor]


@runtime_checkable
class Batches(Protocol):
    """The retained samples in batches, the same at every iteration."""

    @property
    def n(self) -> int:
        """Samples over all processes."""
        ...

    @property
    def places(self) -> Tensor:
        """Which of the n samples this process iterates over, in that order, int64."""
        ...

    @property
    def parts(self) -> Sequence[Sequence[int]]:
        """Places of what each batch of an iteration holds, in its order.

        Those that count come first; others may follow, only to fill it up.
        """
        ...

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        """Yield (number of samples that count, batch); 0 for a filler batch.

        Every process takes the same number of steps.
        """
        ...

    def take(self, places: Sequence[int]) -> tuple[int, Any]:
        """(number, batch) of some of the n samples, read afresh in this process."""
        ...


@runtime_checkable
class Objective(Protocol):
    """What newton.py and the solvers may ask of F at the module's weights.

    Attributes:
        l2: Coefficient of the regulariser.
        lean: Whether memory is short: few vectors, in the dtype of the weights.
    """

    l2: float
    lean: bool

    @property
    def size(self) -> int:
        """Length of its vectors, p: the weights in scope, or this process's part."""
        ...

    @property
    def n(self) -> int:
        """Number of samples."""
        ...

    @property
    def n_parameters(self) -> int:
        """Weights in scope over all processes: p, unless vectors are parts."""
        ...

    def dot(self, a: Vector, b: Vector) -> float:
        """Inner product of two vectors, over all processes if each holds a part."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Of its vectors."""
        ...

    def weights(self) -> Vector:
        """A copy of the weights F is taken at (p,), in `dtype`."""
        ...

    def value_and_gradient(self) -> tuple[float, Vector]:
        """F and its gradient (p,), in `dtype`, in one pass."""
        ...

    @property
    def device(self) -> torch.device:
        """Where its vectors live."""
        ...

    def hvp(self, v: Vector) -> Vector:
        """Curvature of F (Hessian or Gauss-Newton) times v, both (p,), one pass."""
        ...

    def sampled_hvp(
        self, v: Vector, batch_size: int, generator: torch.Generator
    ) -> Vector:
        """Curvature of one random mini-batch (regulariser included) times v."""
        ...

    def hessian(self, v: Vector) -> Vector:
        """Hessian of F times v, whatever curvature the solver sees."""
        ...

    def sampled_hessian(
        self, samples: int, generator: torch.Generator
    ) -> Callable[[Vector], Vector]:
        """Products with the Hessian of one random draw, the same for every v."""
        ...

    def proxy(
        self, samples: int, generator: torch.Generator
    ) -> Callable[[Vector], Vector] | None:
        """Products with a positive semidefinite matrix near the curvature of F.

        It is made of `samples` samples drawn by how much they curve F; None if how
        much is not known.
        """
        ...

    def moved_to(self, w: Vector) -> AbstractContextManager[None]:
        """Evaluate at other weights for the length of a block."""
        ...
