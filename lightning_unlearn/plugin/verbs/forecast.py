"""Measurements behind a preflight: what noise does, how long, how much memory."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader

from lightning_unlearn.errors import GuaranteeError
from lightning_unlearn.plugin.data.exact_batches import CACHE_BYTES
from lightning_unlearn.plugin.plan.head_plan import HeadPlan
from lightning_unlearn.plugin.plan.measure import measure as measured
from lightning_unlearn.plugin.plan.network_plan import NetworkPlan, objective_over
from lightning_unlearn.plugin.plan.plan import Plan
from lightning_unlearn.solvers.base import Damped
from lightning_unlearn.solvers.cg import CG
from lightning_unlearn.solvers.flexible import FlexibleCG
from lightning_unlearn.step.head.convex_objective import DOUBLE_BYTES
from lightning_unlearn.step.head.prepared_head import PreparedHead
from lightning_unlearn.step.network import derivative_checks
from lightning_unlearn.step.network.graphs import saved_bytes
from lightning_unlearn.step.network.prepared_network import PreparedNetwork
from lightning_unlearn.step.network.spectrum import (
    LANCZOS_STEPS,
    hessian_change,
    lanczos_lambda_min_lower,
    spectrum_ends,
)
from lightning_unlearn.step.noise import gaussian_noise
from lightning_unlearn.step.step import project
from lightning_unlearn.weights.passes import passes

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


def outlook(plan: Plan, loader: DataLoader, indices: list[int]) -> Outlook:
    """Prepare the evaluation of noisy copies of the current weights.

    The metric is the accuracy where a batch is (inputs, class indices) and the module
    maps inputs to logits, else the unlearning loss. At most 2,000 samples are used.

    Args:
        plan: The request.
        loader: Over the validation data.
        indices: Positions in its dataset.

    Returns:
        The evaluation; the module is not changed by it.
    """
    kept = list(plan.batches(loader, indices[:_SAMPLES]))
    w0 = plan.scope.flatten()
    ball = None if isinstance(plan, HeadPlan) else plan.options.max_norm

    def measure(noise_std: float) -> tuple[str, float]:
        w = w0
        if noise_std > 0:
            w = w0 + gaussian_noise(len(w0), noise_std).to(w0.device)
        w = w if ball is None else project(w, ball)
        with passes(plan.module, plan.scope, plan.dtype):
            plan.scope.assign(w)
            return measured(plan, kept)

    name, before = measure(0.0)

    def at(noise_std: float) -> float:
        draws = [measure(noise_std)[1] for _ in range(_DRAWS)]
        return sum(draws) / len(draws)

    return Outlook(name, before, at)


def logit_noise(
    plan: Plan, loader: DataLoader, indices: list[int], noise_std: float
) -> float | None:
    """noise_std times the largest feature row at the head, or None without one."""
    if not isinstance(plan, HeadPlan):
        return None
    batches = plan.batches(loader, indices[:_SAMPLES])
    largest = 0.0
    with passes(plan.module, plan.scope, plan.dtype):
        for index, (_, batch) in enumerate(batches):
            with plan.head.recording() as calls:
                plan.loss(batch, index)
            for call in calls:
                largest = max(largest, float(call.features.norm(dim=1).max()))
    return noise_std * (largest**2 + (plan.head.bias is not None)) ** 0.5


def seconds(plan: Plan, prepared: PreparedHead | PreparedNetwork | None) -> float:
    """Wall time of the request, from two runs of it on a part of the retain set.

    The number of passes is learnt from the runs; what does not grow with the samples
    (the spectrum is estimated on a fixed number) is told apart by their difference.
    A prepared head is cheap enough to be tried in full.
    """
    if isinstance(prepared, PreparedHead) and prepared.factor is not None:
        start = time.perf_counter()
        plan.step_from(prepared)
        return time.perf_counter() - start
    n = len(plan.retained)
    small, large = _TIMED
    _timed(plan, min(n, 64))  # warm up
    t_large = _timed(plan, min(n, large))
    if n <= large:
        return t_large
    slope = (t_large - _timed(plan, small)) / (large - small)
    return t_large + max(slope, 0.1 * t_large / large) * (n - large)


def _timed(plan: Plan, n: int) -> float:
    stride = max(1, len(plan.retained) // n)  # spread over the data, not its start
    start = time.perf_counter()
    default = FlexibleCG()
    proxy = min(default.samples, max(1, len(plan.retained) // default.share))
    plan.step(plan.retained[::stride][:n], proxy_samples=proxy)
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


def newton_constants(plan: NetworkPlan) -> NewtonConstants | None:
    """Estimate the constants of Theorem A, or None where no Lipschitz Hessian is."""
    stride = max(1, len(plan.retained) // _SAMPLES)
    batches = plan.batches(plan.loader, plan.retained[::stride][:_SAMPLES])
    with passes(plan.module, plan.scope, plan.dtype):
        objective = objective_over(plan, batches)
        if derivative_checks.kinks(derivative_checks.first_batch_loss(objective)):
            return None
        low, high, *_ = spectrum_ends(objective)
        _, gradient = objective.value_and_gradient()
        damping = 2 * max(-low, 0.0) + 1e-3 * max(high, 0.0)
        x = CG(rtol=0.1).solve(Damped(objective, damping), gradient).x
        change = hessian_change(objective, plan.scope.flatten(), x)
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


def memory_bytes(plan: Plan) -> int:
    """Peak memory the request adds: copies, vectors, kept batches, graphs."""
    with passes(plan.module, plan.scope, plan.dtype):
        if isinstance(plan, HeadPlan):
            return int(_head_bytes(plan))
        if isinstance(plan, NetworkPlan):
            return int(_network_bytes(plan))
    raise NotImplementedError(type(plan))


def _head_bytes(plan: HeadPlan) -> float:
    """The rows, copies of the weights, and what a pass over some of the rows needs."""
    head, scope, n = plan.head, plan.scope, len(plan.retained)
    probe = plan.batches(plan.loader, plan.retained[: plan.batch_size()])
    weight, batch = next(iter(probe))
    with head.recording() as calls:
        graph = saved_bytes(lambda: plan.loss(batch, 0), scope)
    rows = n * (calls[0].features.nbytes / weight if calls else 0)
    double = 8 * head.in_features * n
    data = max(2 * rows, rows + (double if double <= DOUBLE_BYTES else 0))
    graph += 4 * 4096 * scope.size // head.out_features * 8
    copies = sum(p.nbytes for p in plan.module.parameters())
    return data + graph + 2 * copies + 10 * 8 * scope.size


def _network_bytes(plan: NetworkPlan) -> float:
    fit = plan.sizes(plan.retained)
    weight, batch = plan.batches(plan.loader, plan.retained).take(range(1))
    data = min(_tensor_bytes(batch) / weight * len(plan.retained), CACHE_BYTES)
    return data + fit.graph_bytes + fit.vector_bytes


def _tensor_bytes(batch: Any) -> int:
    return sum(x.nbytes for x in tree_leaves(batch) if isinstance(x, Tensor))
