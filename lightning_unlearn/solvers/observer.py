"""Who looks on while a system is solved: to show it, to save where it stands."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from lightning_unlearn.errors import SolverError

#: Vectors and numbers by name, float64: enough to go on as if never stopped.
State = Mapping[str, Tensor]


class Observer:
    """Looks on at a solve; this one keeps nothing."""

    def of(self, label: float) -> "Observer":
        """The observer of one of several solves, told apart by its damping."""
        del label
        return self

    def start(self) -> State | None:
        """Where an earlier solve of the same system stood, or None."""
        return None

    def stage(self, name: str) -> None:
        """What begins now: "gradient" or "solving"."""

    def product(self, number: int, most: int) -> None:
        """A product has been made between two steps, or where there are none.

        Args:
            number: Products so far.
            most: Those that will be made at most.
        """

    def step(self, number: int, residual: float, state: Callable[[], State]) -> None:
        """A step of a linear solve has been made.

        Args:
            number: Steps so far.
            residual: |A x - b| by the solver's recurrence.
            state: Copies where it stands; to be asked for only if it is wanted.
        """

    def milestone(self, residual: float, state: Callable[[], State]) -> None:
        """As `step`, where each is worth keeping: before a Newton step.

        Args:
            residual: |grad F|.
            state: As for `step`.
        """


NOBODY = Observer()


def watched(
    matvec: Callable[[Tensor], Tensor], most: int, observer: Observer
) -> Callable[[Tensor], Tensor]:
    """Products, each of which the observer is told of.

    Args:
        matvec: v -> A v.
        most: Products that will be made at most.
        observer: Looks on; it may end all by raising between two products.
    """
    made = 0

    def product(v: Tensor) -> Tensor:
        nonlocal made
        Av = matvec(v)
        made += 1
        observer.product(made, most)
        return Av

    return product


def vector(state: State, name: str, like: Tensor) -> Tensor:
    """A vector of a state, as another one is.

    Raises:
        SolverError: If it is missing or of another length.
    """
    found = state.get(name)
    if found is None or found.shape != like.shape:
        raise SolverError(
            f"expected {name} of length {len(like)} in the state of a solve, got "
            f"{sorted(state)}: start without it"
        )
    return found.to(like)


def numbers(state: State, count: int) -> list[float]:
    """The numbers of a state.

    Raises:
        SolverError: If there are more or fewer.
    """
    found = state.get("numbers")
    if found is None or found.shape != (count,):
        raise SolverError(
            f"expected {count} numbers in the state of a solve, got those of another "
            "solver: start without it"
        )
    return found.tolist()


def count(value: float, most: int) -> int:
    """A number of a state that counts something, at most so much."""
    if not (0 <= value <= most and value == int(value)):
        raise SolverError(
            f"expected a count of at most {most} in the state of a solve, got {value}: "
            "start without it"
        )
    return int(value)


def snapshot(*values: float | int | bool, **vectors: Tensor) -> State:
    """A state: copies of vectors, and numbers."""
    return {
        **{name: v.detach().clone() for name, v in vectors.items()},
        "numbers": torch.tensor(values, dtype=torch.float64),
    }
