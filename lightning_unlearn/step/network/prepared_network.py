"""What of a network's step can be computed before a request is known."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_unlearn.solvers.observer import NOBODY, Observer
from lightning_unlearn.step.network.damped_step import GradientAndSpectrum, look
from lightning_unlearn.step.network.empirical_objective import EmpiricalObjective
from lightning_unlearn.step.network.spectrum import Ends
from lightning_unlearn.step.step import places, retained_gradient
from lightning_unlearn.step.stored import check, check_finite, check_positions
from lightning_unlearn.weights.scope import Vector


@dataclass(frozen=True, kw_only=True)
class PreparedNetwork:
    """The gradient of an ordinary network over all samples, and what curves it.

    Args:
        positions: Where the samples stand in the training dataset (n,), int64.
        gradient: Of F over all of them, at the weights it was made at (p,), float64.
        importance: How much each sample curves F (n,), float64; None if not known.
        ends: Ritz values at both ends of the Hessian.
        passes: Over the samples that were spent.
    """

    positions: Tensor
    gradient: Vector
    importance: Tensor | None
    ends: Ends
    passes: float = 0.0

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All of it, by name; `network_from` makes it of them again."""
        found = {
            "positions": self.positions,
            "gradient": self.gradient,
            "ends": torch.tensor(self.ends, dtype=torch.float64),
        }
        if self.importance is not None:
            found["importance"] = self.importance
        return found

    def known(self, forgotten: Vector | None, n_forget: int) -> GradientAndSpectrum:
        """What `damped_step` need not compute again.

        Args:
            forgotten: Gradient of F over the forgotten samples (p,); None if all that
                were prepared are retained.
            n_forget: How many they are.

        Returns:
            The gradient over the others, and the spectrum.
        """
        n = len(self.positions)
        if forgotten is None:
            return GradientAndSpectrum(
                gradient=self.gradient, ends=self.ends, passes=0.0
            )
        passes = n_forget / (n - n_forget)
        gradient = retained_gradient(
            self.gradient.to(forgotten.device), n, forgotten, n_forget
        )
        return GradientAndSpectrum(gradient=gradient, ends=self.ends, passes=passes)

    def importance_of(self, positions: list[int]) -> Tensor | None:
        """The importance of some samples, in their order."""
        if self.importance is None:
            return None
        at = places(self.positions, positions)
        return self.importance[at.to(self.importance.device)]


def prepare_network(
    objective: EmpiricalObjective, positions: list[int], observer: Observer = NOBODY
) -> PreparedNetwork:
    """Find the gradient, the importance of every sample and the spectrum.

    Args:
        objective: F over all samples, at the trained weights.
        positions: Where they stand in the training dataset, increasing.
        observer: Looks on.

    Returns:
        What a request at the same weights can use.
    """
    found = look(objective, spectrum=True, observer=observer)
    assert found.ends is not None
    return PreparedNetwork(
        positions=torch.tensor(positions),
        gradient=found.gradient,
        importance=objective.importance,
        ends=found.ends,
        passes=found.passes,
    )


def network_from(tensors: Mapping[str, Tensor]) -> PreparedNetwork:
    """What `PreparedNetwork.tensors` were made of.

    Raises:
        DataError: If a type, a shape or a number is not one of a prepared network.
        KeyError: If a tensor is missing.
    """
    positions, gradient, ends = (tensors[k] for k in ("positions", "gradient", "ends"))
    importance = tensors.get("importance")
    check_positions(positions)
    check_finite(tensors)
    check("gradient", gradient, torch.float64, (gradient.numel(),))
    if importance is not None:
        check("importance", importance, torch.float64, (len(positions),))
    check("ends", ends, torch.float64, (4,))
    return PreparedNetwork(
        positions=positions,
        gradient=gradient,
        importance=importance,
        ends=Ends(float(ends[0]), float(ends[1]), int(ends[2]), int(ends[3])),
    )
