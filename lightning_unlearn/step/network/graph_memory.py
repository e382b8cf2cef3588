"""How many samples fit in one graph, and how many graphs fit in memory."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from lightning_unlearn.step.network.empirical_objective import EmpiricalObjective
from lightning_unlearn.step.network.graphs import HessianGraph, saved_bytes
from lightning_unlearn.step.network.products import GRAPHS
from lightning_unlearn.step.network.spectrum import LANCZOS_STEPS
from lightning_unlearn.weights.large_arrays import free_bytes

_PROBE = (8, 16)
_SHARE = 0.25  # of the free memory, for all kept graphs
_SHARE_OF_VECTORS = 0.5  # of it, for the vectors of the usual way
_VECTORS = LANCZOS_STEPS + 14  # float64: Lanczos' basis, two nested solves, the rest
_LEAN_VECTORS = 5  # a copy of the weights, the gradient, x, r and p; A p in the graph
_SMALLEST, _LARGEST = 32, 4096  # samples in a batch of the passes
# One graph at most: beyond these a larger batch is no faster, only larger.
_GRAPH_BYTES = {"cpu": 16 << 20}  # fits a cache: 1.3 times faster than 64 MiB
_GRAPH_BYTES_ELSEWHERE = 2 << 30


@dataclass(frozen=True)
class Sizes:
    """Batches of the passes over the data.

    Args:
        batch_size: Samples in a batch.
        kept: Samples whose graphs are kept between curvature products.
        graph_bytes: Predicted bytes of the kept graphs, or of one if none are kept.
        vector_bytes: Of the weights' copy and of the solver's vectors.
        lean: Whether these are few, in the dtype of the weights.
    """

    batch_size: int
    kept: int
    graph_bytes: int
    vector_bytes: int
    lean: bool


def agreed(found: list[Sizes]) -> Sizes:
    """What all processes can do: batches are dealt out, vectors are summed."""
    smallest = min(found, key=lambda fit: fit.batch_size)
    lean = next((fit for fit in found if fit.lean), smallest)
    kept = min(fit.kept for fit in found)
    return replace(lean, batch_size=smallest.batch_size, kept=kept)


def sizes(
    objective: EmpiricalObjective,
    batch_size: int | None,
    budget: int | Literal["auto"],
    lean: bool | Literal["auto"],
) -> Sizes:
    """Choose the sizes from two small graphs and the free memory.

    Args:
        objective: F; only a few samples of it are read.
        batch_size: The user's choice, or None to choose.
        budget: Bytes for kept graphs, or "auto" for a quarter of the free memory.
        lean: Whether to save memory, or "auto" if it is short.

    Returns:
        The sizes. They change no result but its rounding.
    """
    device = objective.device
    copies = objective.size * objective.scope.parameters[0].element_size()
    usual, few = copies + 8 * _VECTORS * objective.size, _LEAN_VECTORS * copies
    if lean == "auto":
        lean = usual > _SHARE_OF_VECTORS * free_bytes(device)
    keeps = objective.product in GRAPHS and not lean
    fixed, each = _graph_bytes(objective, keeps)
    if budget == "auto":
        budget = int(_SHARE * free_bytes(device))
    if batch_size is None:
        room = _GRAPH_BYTES.get(device.type, _GRAPH_BYTES_ELSEWHERE)
        fits = min(room, max(budget, room // 8)) // max(each, 1)
        batch_size = min(max(fits, _SMALLEST), _LARGEST, objective.n)
        # As many batches as can be dealt out evenly, of one size.
        world = objective.processes.world
        rounds = -(-objective.n // (batch_size * world))
        batch_size = -(-objective.n // (rounds * world))
    one = fixed + each * batch_size
    batches = min(budget // max(one, 1), -(-objective.n // batch_size)) if keeps else 0
    kept = int(batches)
    return Sizes(
        batch_size=batch_size,
        kept=kept * batch_size,
        graph_bytes=one * max(1, kept),
        vector_bytes=few if lean else usual,
        lean=lean,
    )


def _graph_bytes(objective: EmpiricalObjective, twice: bool) -> tuple[int, int]:
    """Bytes of a graph: those of any batch, and those each sample adds."""
    measured = []
    for count in _PROBE:
        weight, batch = objective.batches.take(range(min(count, objective.n)))
        loss = objective.batch_loss(batch, 0, weight)
        build = partial(HessianGraph, loss, objective.scope) if twice else loss
        measured.append((weight, saved_bytes(build, objective.scope)))
    (few, small), (more, large) = measured
    each = (large - small) // max(more - few, 1) if more > few else large // few
    each = max(each, 1)
    gradient = objective.size * objective.scope.parameters[0].element_size()
    return max(small - few * each, 0) + gradient, each
