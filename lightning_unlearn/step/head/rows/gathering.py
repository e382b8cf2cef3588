"""Rows that several processes have read, put together in the first."""

import torch
from torch import Tensor

from lightning_unlearn.step.head.rows.feature_data import FeatureData
from lightning_unlearn.weights import large_arrays
from lightning_unlearn.weights.processes import Processes

_CHUNK = 4096  # rows that travel at once


def gathered(
    rows: FeatureData, at: Tensor, n: int, processes: Processes
) -> FeatureData | None:
    """All rows, in the first process; every process must call it.

    Args:
        rows: Of this process.
        at: Their places among all (m,), int64.
        n: All rows.
        processes: Those that share them.

    Returns:
        The rows on the CPU, or None in any other process.
    """
    features = _joined(rows.features, at, n, processes)
    targets = _joined(rows.targets, at, n, processes)
    weights = rows.weights
    if weights is not None:
        weights = _joined(weights, at, n, processes)
    if features is None or targets is None:
        return None
    return FeatureData(features, targets, weights)


def _joined(own: Tensor, at: Tensor, n: int, processes: Processes) -> Tensor | None:
    shape = own.shape[1:]
    width, dtype = shape.numel(), own.dtype
    travels = dtype if own.is_floating_point() else torch.int64
    found = None
    if processes.rank == 0:
        found = large_arrays.empty((n, *shape), dtype, torch.device("cpu"))
    for start in range(0, n, _CHUNK):
        m = min(_CHUNK, n - start)
        with processes.summed(m * width, dtype=travels) as (total,):
            mine = (at >= start) & (at < start + m)
            part = own[mine.to(own.device)].reshape(-1, width).to(total)
            total.view(m, width)[(at[mine] - start).to(total.device)] = part
        if found is not None:
            found[start : start + m] = total.view(m, *shape).cpu()
    return found
