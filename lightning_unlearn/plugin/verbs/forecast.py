"""Measurements behind a preflight: what noise does, how long, how much memory."""

import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from torch.utils.data import DataLoader

from lightning_unlearn._base.modes import borrowed
from lightning_unlearn.errors import GuaranteeError, UnlearningError
from lightning_unlearn.plugin.data.exact_batches import CACHE_BYTES
from lightning_unlearn.plugin.plan.head_plan import HeadPlan
from lightning_unlearn.plugin.plan.head_rows import HeadRows
from lightning_unlearn.plugin.plan.measure import loader_of, measure as measured
from lightning_unlearn.plugin.plan.network_plan import NetworkPlan, objective_over
from lightning_unlearn.plugin.plan.plan import Plan
from lightning_unlearn.plugin.request.request import Request
from lightning_unlearn.plugin.request.resolution import resolve
from lightning_unlearn.plugin.request.retrain_request import known_request
from lightning_unlearn.plugin.request.stage import StageContext
from lightning_unlearn.plugin.retrain.retrained import Job
from lightning_unlearn.solvers.base import Damped
from lightning_unlearn.solvers.cg import CG
from lightning_unlearn.step.head.convex_objective import DOUBLE_BYTES
from lightning_unlearn.step.head.descent import proxy_rows
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
from lightning_unlearn.weights.opaque import tensors_in
from lightning_unlearn.weights.passes import passes

_SAMPLES = 2000
_DRAWS = 3
_WARM = 64
_TIMED = (1500, 4500)  # samples of the two timed runs
_READ = (_WARM, 1500)  # where reading a sample is most of its time
_SHORT = 0.5  # seconds: a run that is over before says little of one 10 times as long


@dataclass(frozen=True)
class Outlook:
    """How good the weights are on some data, as a function of the noise on them.

    Args:
        name: "accuracy" or "loss".
        before: Without noise.
        at: noise_std -> the mean over a few draws of noise.
        largest_row: At the head, the constant of its bias with it; None without one.
    """

    name: str
    before: float
    at: Callable[[float], float]
    largest_row: float | None = None


def outlook(plan: Plan, loader: DataLoader, indices: list[int]) -> Outlook:
    """Prepare the evaluation of noisy copies of the current weights.

    The metric is that of `measure`. At most 2,000 samples are used; what reaches a head
    is read once, for all draws.

    Args:
        plan: The request.
        loader: Over the validation data.
        indices: Positions in its dataset.

    Returns:
        The evaluation; the module is not changed by it.
    """
    batches, largest = plan.batches(loader, indices[:_SAMPLES]), None
    rows = HeadRows.read(plan, batches) if isinstance(plan, HeadPlan) else None
    kept = list(batches) if rows is None else []
    w0 = plan.scope.flatten()
    ball = None if isinstance(plan, HeadPlan) else plan.options.max_norm
    if isinstance(plan, HeadPlan) and rows is not None:
        largest = (rows.largest**2 + (plan.head.bias is not None)) ** 0.5

    def measure(noise_std: float) -> tuple[str, float]:
        w = w0
        if noise_std > 0:
            w = w0 + gaussian_noise(len(w0), noise_std).to(w0.device)
        w = w if ball is None else project(w, ball)
        if isinstance(plan, HeadPlan) and rows is not None:
            return rows.metric(plan, w)
        with passes(plan.module, plan.scope, plan.dtype):
            plan.scope.assign(w)
            return measured(plan, kept)

    name, before = measure(0.0)

    def at(noise_std: float) -> float:
        draws = [measure(noise_std)[1] for _ in range(_DRAWS)]
        return sum(draws) / len(draws)

    return Outlook(name, before, at, largest)


def seconds(
    plan: Plan,
    prepared: PreparedHead | PreparedNetwork | None,
    enough: float = math.inf,
) -> float:
    """Wall time of the request, from runs of it on parts of the retain set.

    A part that is over in no time is made three times as large. The number of passes
    is learnt from the runs; what does not grow with the samples (the spectrum is
    estimated on a fixed number) is told apart by their difference.
    Where the rows of a head are known already it is tried in full: most of a request's
    time goes into reading them.

    Args:
        plan: The request.
        prepared: What it would begin with, or None.
        enough: Seconds after which nobody would wait for it: what the first run took is
            returned then, and the request takes longer.
    """
    if isinstance(prepared, PreparedHead):
        start = time.perf_counter()
        plan.step_from(prepared)
        return time.perf_counter() - start
    n = len(plan.retained)
    small, large = _READ if isinstance(plan, HeadPlan) else _TIMED
    t_small = _timed(plan, min(n, _WARM))  # also to warm up
    if n <= _WARM or t_small > enough:
        return t_small
    t_large = _timed(plan, min(n, large))
    while n > large and t_large < _SHORT:
        large = min(n, 3 * large)
        t_large = _timed(plan, large)
    if n <= large:
        return t_large
    t_small = t_small if small == _WARM else _timed(plan, small)
    slope = (t_large - t_small) / (large - small)
    return t_large + max(slope, 0.1 * t_large / large) * (n - large)


def _timed(plan: Plan, n: int) -> float:
    stride = max(1, len(plan.retained) // n)  # spread over the data, not its start
    start = time.perf_counter()
    outputs = plan.head.out_features if isinstance(plan, HeadPlan) else 1
    proxy = proxy_rows(len(plan.retained), outputs)
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
    return sum(x.nbytes for x in tensors_in(batch))


def data_of(
    plan: Plan, validation: DataLoader | None
) -> tuple[DataLoader, list[int], str]:
    """What to measure a model on: a loader, positions in its dataset, and its name.

    Args:
        plan: The request.
        validation: The user's choice, or None for the module's or datamodule's own
            validation data, or the retained samples.
    """
    loader = validation or loader_of(plan, "val")
    if loader is None:
        return plan.loader, plan.retained, "retained"
    n = len(loader.dataset)  # type: ignore[arg-type]
    return loader, list(range(n)), "validation"


def as_it_is(
    context: StageContext, job: Job, validation: DataLoader | None
) -> tuple[str, float, str] | None:
    """(metric, value, data) of a model that no step can be taken on.

    Args:
        context: The Trainer's run.
        job: What is to be forgotten, and what is retained.
        validation: As for `data_of`.

    Returns:
        None if the model has no loss.
    """
    callback = context.callback
    changes: dict[str, Any] = {"noise_std": 0.0, "guarantee": "auto", "l2": 0.0}
    bare = replace(callback.options, **changes, private=None)
    with borrowed(callback, options=bare), suppress(UnlearningError):
        plan = resolve(context, known_request(Request(), context, job))
        loader, indices, name = data_of(plan, validation)
        found = outlook(plan, loader, indices)
        return found.name, found.before, name
    return None
