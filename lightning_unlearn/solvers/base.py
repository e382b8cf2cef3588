"""What a solver may ask and what it must answer."""

import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_unlearn.solvers.observer import NOBODY, Observer
from lightning_unlearn.weights.scope import Vector


@runtime_checkable
class Operator(Protocol):
    """A symmetric matrix A seen only through products."""

    @property
    def size(self) -> int:
        """Number of rows, p."""
        ...

    def matvec(self, v: Vector) -> Vector:
        """A v: one full pass over the data."""
        ...

    def sampled_matvec(
        self, v: Vector, batch_size: int, generator: torch.Generator
    ) -> Vector:
        """A_t v for the matrix A_t of one random mini-batch; its mean is A v."""
        ...

    @property
    def n(self) -> int:
        """Samples in one full pass."""
        ...


@runtime_checkable
class Proxied(Protocol):
    """An operator that knows a cheaper positive definite matrix near itself."""

    def proxy(
        self, samples: int, generator: torch.Generator
    ) -> Callable[[Vector], Vector] | None:
        """Products with that matrix, made of some samples; None if it cannot be had."""
        ...


@runtime_checkable
class Preconditioned(Protocol):
    """A proxy that knows a rough inverse of itself, and what either costs.

    Attributes:
        built: Passes that were spent on making it.
        cost: Passes that a product and an inverse take together.
    """

    built: float
    cost: float

    def __call__(self, v: Vector) -> Vector:
        """The proxy times v."""
        ...

    def inverse(self, v: Vector) -> Vector:
        """A positive definite matrix near the proxy's inverse, times v."""
        ...


_FEWEST = 50  # samples; fewer make no useful proxy


def proxy_of(
    A: "Operator", samples: int, generator: torch.Generator
) -> Callable[[Vector], Vector] | None:
    """The proxy of an operator, if it has one and enough samples for it."""
    if not isinstance(A, Proxied) or samples < _FEWEST:
        return None
    return A.proxy(samples, generator)


class Status(enum.Enum):
    """How a solve ended; the value is what the user reads, remedy included."""

    CONVERGED = "converged"
    MAX_STEPS = "stopped at max_steps above tolerance: raise max_steps or damping"
    INDEFINITE = (
        "met v'Av that is not > 0, so A is not positive definite: raise damping "
        "above -lambda_min"
    )
    DIVERGED = (
        "the iterates overflowed: raise scale above the largest eigenvalue of any "
        "mini-batch, or raise batch_size"
    )


@dataclass(frozen=True, kw_only=True)
class Solution:
    """An approximate solution of A x = b and how good it is.

    Args:
        x: The solution, shape (p,), float64.
        residual: |A x - b|, recomputed from x with a full product.
        status: How the solve ended.
        steps: Iterations made.
        matvecs: Passes over the retain set; a fraction where only a part of it was
            used. A solver counts its products; a whole step also counts its gradients.
        method: What was done, in words.
    """

    x: Float[Tensor, " p"] = field(repr=False)
    residual: float
    status: Status
    steps: int
    matvecs: float
    method: str = ""


@runtime_checkable
class Solver(Protocol):
    """Anything that turns an operator and a right-hand side into a `Solution`."""

    def solve(self, A: Operator, b: Vector, observer: Observer = NOBODY) -> Solution:
        """Solve A x = b; the observer may look on, and say where to begin."""
        ...


@dataclass(frozen=True)
class Damped:
    """``H + damping I`` of an objective, as an `Operator`."""

    objective: "_Curvature"
    damping: float

    @property
    def size(self) -> int:
        """Number of weights in scope."""
        return self.objective.size

    @property
    def n(self) -> int:
        """Samples in one full pass."""
        return self.objective.n

    def matvec(self, v: Vector) -> Vector:
        """(H + damping I) v."""
        return torch.add(self.objective.hvp(v), v, alpha=self.damping)

    def sampled_matvec(
        self, v: Vector, batch_size: int, generator: torch.Generator
    ) -> Vector:
        """(H_t + damping I) v for one random mini-batch."""
        Hv = self.objective.sampled_hvp(v, batch_size, generator)
        return Hv + self.damping * v

    def proxy(
        self, samples: int, generator: torch.Generator
    ) -> Callable[[Vector], Vector] | None:
        """Products with a positive definite matrix near H + damping I, if known."""
        near = self.objective.proxy(samples, generator)
        if near is None or self.damping == 0:
            return near
        return lambda v: near(v) + self.damping * v


@runtime_checkable
class _Curvature(Protocol):
    @property
    def size(self) -> int: ...
    @property
    def n(self) -> int: ...
    def hvp(self, v: Vector) -> Vector: ...
    def sampled_hvp(
        self, v: Vector, batch_size: int, generator: torch.Generator
    ) -> Vector: ...
    def proxy(
        self, samples: int, generator: torch.Generator
    ) -> Callable[[Vector], Vector] | None: ...


def residual_norm(A: Operator, x: Vector, b: Vector) -> float:
    """|A x - b| by one full product."""
    return float((A.matvec(x) - b).norm())
