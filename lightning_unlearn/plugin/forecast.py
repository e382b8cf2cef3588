"""Measurements behind a preflight: what noise does, how long, how much memory."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader

from lightning_unlearn.certificate.bounds import lanczos_lambda_min_lower
from lightning_unlearn.convex import DOUBLE_BYTES
from lightning_unlearn.curvature import checks
from lightning_unlearn.curvature.graphs import saved_bytes
from lightning_unlearn.curvature.spectrum import (
    LANCZOS_STEPS,
    hessian_change,
    spectrum_ends,
)
from lightning_unlearn.errors import GuaranteeError
from lightning_unlearn.heads import ConvexHead
from lightning_unlearn.newton import project
from lightning_unlearn.noise import gaussian_noise
from lightning_unlearn.plugin import quality
from lightning_unlearn.plugin.data import CACHE_BYTES
from lightning_unlearn.plugin.resolved import Resolved
from lightning_unlearn.prepared import PreparedHead, PreparedNetwork
from lightning_unlearn.scope import passes
from lightning_unlearn.solvers import CG, Damped, FlexibleCG

_SAMPLES = 2000
_DRAWS = 3
_TIMED = (1500, 4500)  # samples of the two timed runs


@dataclass(frozen=True)
class Outlook:
    """How good the weights are on some data, as a function of the noise on them.

    Args:
        name: "accuracy" or "loss".
        before: Without noise.
        at: noise_std -> the mean over a few draws of noise.
    """

    name: str
    before: float
    at: Callable[[float], float]


def outlook(ready: Resolved, loader: DataLoader, indices: list[int]) -> Outlook:
    """Prepare the evaluation of noisy copies of the current weights.

    The metric is the accuracy where a batch is (inputs, class indices) and the module
    maps inputs to logits, else the unlearning loss. At most 2,000 samples are used.

    Args:
        ready: The request.
        loader: Over the validation data.
        indices: Positions in its dataset.

    Returns:
        The evaluation; the module is not changed by it.
    """
    kept = list(ready.batches(loader, indices[:_SAMPLES]))
    w0 = ready.scope.flatten()
    ball = None if ready.convex else ready.options.max_norm

    def measure(noise_std: float) -> tuple[str, float]:
        w = w0
        if noise_std > 0:
            w = w0 + gaussian_noise(len(w0), noise_std).to(w0.device)
        w = w if ball is None else project(w, ball)
        with passes(ready.module, ready.scope, ready.dtype):
            ready.scope.assign(w)
            return quality.measure(ready, kept)

    name, before = measure(0.0)

    def at(noise_std: float) -> float:
        draws = [measure(noise_std)[1] for _ in range(_DRAWS)]
        return sum(draws) / len(draws)

    return Outlook(name, before, at)


def logit_noise(
    ready: Resolved, loader: DataLoader, indices: list[int], noise_std: float
) -> float | None:
    """noise_std times the largest feature row at the head, or None without one."""
    if ready.head is None or not ready.convex:
        return None
    batches = ready.batches(loader, indices[:_SAMPLES])
    largest = 0.0
    with passes(ready.module, ready.scope, ready.dtype):
        for index, (_, batch) in enumerate(batches):
            with ready.head.recording() as calls:
                ready.loss(batch, index)
            for call in calls:
                largest = max(largest, float(call.features.norm(dim=1).max()))
    return noise_std * (largest**2 + (ready.head.bias is not None)) ** 0.5


def seconds(ready: Resolved, prepared: PreparedHead | PreparedNetwork | None) -> float:
    """Wall time of the request, from two runs of it on a part of the retain set.

    The number of passes is learnt from the runs; what does not grow with the samples
    (the spectrum is estimated on a fixed number) is told apart by their difference.
    A prepared head is cheap enough to be tried in full.
    """
    if isinstance(prepared, PreparedHead) and prepared.factor is not None:
        start = time.perf_counter()
        ready.step_from(prepared)
        return time.perf_counter() - start
    n = len(ready.retained)
    small, large = _TIMED
    _timed(ready, min(n, 64))  # warm up
    t_large = _timed(ready, min(n, large))
    if n <= large:
        return t_large
    slope = (t_large - _timed(ready, small)) / (large - small)
    return t_large + max(slope, 0.1 * t_large / large) * (n - large)


def _timed(ready: Resolved, n: int) -> float:
    stride = max(1, len(ready.retained) // n)  # spread over the data, not its start
    start = time.perf_counter()
    whole = FlexibleCG()
    proxy = min(whole.samples, max(1, len(ready.retained) // whole.share))
    ready.step(ready.retained[::stride][:n], proxy_samples=proxy)
    return time.perf_counter() - start


@dataclass(frozen=True)
class NewtonConstants:
    """What Theorem A would rest on, estimated on at most 2,000 samples.

    Args:
        lambda_min: Smallest Ritz value: at or above the true one on those samples.
        lambda_min_lower: A lower bound there, true with probability 1 - 1e-6 over the
            start vector; None if Lanczos took too few steps to say.
        hessian_change: Sampled change of the Hessian: at or below the true M.
    """

    lambda_min: float
    lambda_min_lower: float | None
    hessian_change: float


def newton_constants(ready: Resolved) -> NewtonConstants | None:
    """Estimate the constants of Theorem A, or None where no Lipschitz Hessian is."""
    stride = max(1, len(ready.retained) // _SAMPLES)
    batches = ready.batches(ready.loader, ready.retained[::stride][:_SAMPLES])
    with passes(ready.module, ready.scope, ready.dtype):
        objective = ready.objective(batches)
        if checks.kinks(checks.first_batch_loss(objective)):
            return None
        low, high, *_ = spectrum_ends(objective)
        _, gradient = objective.value_and_gradient()
        damping = 2 * max(-low, 0.0) + 1e-3 * max(high, 0.0)
        x = CG(rtol=0.1).solve(Damped(objective, damping), gradient).x
        change = hessian_change(objective, ready.scope.flatten(), x)
    try:
        lower = lanczos_lambda_min_lower(
            ritz_min=low,
            ritz_max=high,
            steps=LANCZOS_STEPS,
            size=objective.size,
            failure=1e-6,
        )
    except GuaranteeError:
        lower = None
    return NewtonConstants(low, lower, change)


def memory_bytes(ready: Resolved) -> int:
    """Peak memory the request adds: copies, vectors, kept batches, graphs."""
    scope, n = ready.scope, len(ready.retained)
    with passes(ready.module, scope, ready.dtype):
        if ready.head is not None and ready.convex:
            data, graph = _captured_bytes(ready, ready.head)
            copies = sum(p.nbytes for p in ready.module.parameters())
            vectors = 2 * copies + 10 * 8 * scope.size
        else:
            fit = ready.sizes(ready.retained)
            graph, vectors = fit.graph_bytes, fit.vector_bytes
            weight, batch = ready.batches(ready.loader, ready.retained).take(range(1))
            data = min(_tensor_bytes(batch) / weight * n, CACHE_BYTES)
    return int(data + graph + vectors)


def _captured_bytes(ready: Resolved, head: ConvexHead) -> tuple[float, float]:
    """Bytes of a head's rows, and of what a pass over a chunk of them needs."""
    size = ready.options.batch_size or ready.loader.batch_size or 128
    probe = ready.batches(ready.loader, ready.retained[:size])
    weight, batch = next(iter(probe))
    n = len(ready.retained)
    with head.recording() as calls:
        saved = saved_bytes(lambda: ready.loss(batch, 0), ready.scope)
    per_sample = calls[0].features.nbytes / weight if calls else 0
    double = 8 * head.in_features * n
    rows = per_sample * n
    data = max(2 * rows, rows + (double if double <= DOUBLE_BYTES else 0))
    return data, saved + 4 * 4096 * ready.scope.size // head.out_features * 8


def _tensor_bytes(batch: Any) -> int:
    return sum(x.nbytes for x in tree_leaves(batch) if isinstance(x, Tensor))
