"""What the steps of a head and of a network share."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_unlearn.certificate.words.theorems import Claim
from lightning_unlearn.errors import DataError
from lightning_unlearn.guarantee.constants import Constant
from lightning_unlearn.solvers.base import Solution
from lightning_unlearn.weights.scope import Dot, Vector, plain_dot


@dataclass(frozen=True, kw_only=True)
class Step:
    """Weights before noise, and what is known about their distance to retraining.

    Args:
        weights: w~ (p,), float64. Secret: no noise has been added.
        solution: The solve; ``x`` is the whole displacement w0 - w~.
        claim: What is proved of the weights.
        measured: What else the reader of a certificate is told; no claim rests on it.
        warnings: Besides those of the claim.
        gradient: Of F at the weights (p,), if it is known. As secret as they are.
    """

    weights: Vector
    solution: Solution
    claim: Claim
    measured: tuple[Constant, ...] = ()
    warnings: tuple[str, ...] = ()
    gradient: Vector | None = None

    @property
    def constants(self) -> tuple[Constant, ...]:
        """All that a certificate lists, those of the claim first."""
        return (*self.claim.constants, *self.measured)


def project(w: Vector, max_norm: float, dot: Dot = plain_dot) -> Vector:
    """The point of the ball |w| <= max_norm nearest to w."""
    norm = math.sqrt(dot(w, w))
    return w if norm <= max_norm else w * (max_norm / norm)


def places(stored: Tensor, positions: list[int]) -> Tensor:
    """Where some positions stand among those stored; all must be there."""
    wanted = torch.tensor(positions, dtype=torch.int64)
    at = torch.searchsorted(stored, wanted).clamp_max(len(stored) - 1)
    if not torch.equal(stored[at], wanted):
        raise DataError(
            "expected samples that were prepared, got some that were not: prepare again"
        )
    return at


def retained_gradient(
    gradient: Vector, n: int, forgotten: Vector, n_forget: int
) -> Vector:
    r"""The gradient of F over the retained samples, from that over all of them.

    ``(n G - n_u G_u) / (n - n_u)`` with the same ``l2 w`` in every term
    (docs/theory.md section 4): exact at any weights, optimum or not.

    Args:
        gradient: G (p,), of F over all samples.
        n: All samples.
        forgotten: G_u (p,), of F over the forgotten ones, at the same weights.
        n_forget: Forgotten samples, n_u < n.

    Returns:
        The gradient (p,).
    """
    return (n * gradient - n_forget * forgotten) / (n - n_forget)
