"""Checks that a model's passes mean what the theory assumes, once per request."""

import math
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.overrides import TorchFunctionMode, resolve_name

from lightning_unlearn.errors import ModelError, UnlearningError
from lightning_unlearn.step.batch_checks import spread_places
from lightning_unlearn.step.network.empirical_objective import EmpiricalObjective
from lightning_unlearn.step.network.graphs import Parts
from lightning_unlearn.step.network.outputs import BatchLoss
from lightning_unlearn.step.network.products import PRODUCTS, shifted, step_of
from lightning_unlearn.weights.scope import Scope

# Functions whose second derivative jumps or does not exist somewhere, so that no
# Lipschitz constant of the Hessian exists (docs/theory.md section 3).
_KINKED = {
    *("relu", "relu_", "relu6", "leaky_relu", "leaky_relu_", "prelu", "rrelu"),
    *("elu", "elu_", "celu", "selu", "threshold", "hardtanh", "hardswish"),
    *("hardsigmoid", "hardshrink", "softshrink", "abs", "clamp", "clip"),
    *("clamp_min", "clamp_max", "max", "min", "amax", "amin", "maximum", "minimum"),
    *("max_pool1d", "max_pool2d", "max_pool3d", "adaptive_max_pool1d"),
    *("adaptive_max_pool2d", "adaptive_max_pool3d", "median", "sort", "topk"),
    *("l1_loss", "smooth_l1_loss", "huber_loss", "hinge_embedding_loss"),
    *("margin_ranking_loss", "triplet_margin_loss", "multi_margin_loss", "where"),
    *("sign", "round", "floor", "ceil", "softsign", "clamp_", "clamp_min_"),
    *("absolute", "cummax", "cummin", "fmax", "fmin", "threshold_", "hardtanh_"),
    *("sqrt", "heaviside", "norm", "vector_norm", "gt", "lt", "ge", "le"),
    *("rnn_relu", "rnn_relu_cell", "cosine_embedding_loss", "clamp_max_", "quantile"),
    *("nanquantile", "kthvalue", "aminmax", "argmax", "argmin", "fmod", "remainder"),
    *("__mod__", "__rmod__", "cdist", "pdist"),
    *("__gt__", "__lt__", "__ge__", "__le__", "__abs__", "sgn", "trunc", "frac"),
}


_Several = Sequence[Tensor | None]


class _Names(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.kinks: set[str] = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = (resolve_name(func) or getattr(func, "__name__", "")).split(".")[-1]
        if name in _KINKED:
            self.kinks.add(name)
        return func(*args, **(kwargs or {}))


def kinks(loss: BatchLoss) -> tuple[str, ...]:
    """Names of functions without a Lipschitz second derivative that a loss calls.

    A screen, not a proof: it knows torch's functions by name, not what custom kernels
    do.

    Args:
        loss: The loss of one batch.

    Returns:
        Sorted names such as ``relu``; empty for a smooth network. Calls made only
        for logging count too: an unjustified name costs a bound, never a guarantee.
    """
    with _Names() as names:
        loss()
    return tuple(sorted(names.kinks))


def check_smooth(loss: BatchLoss) -> None:
    """Raise `ModelError` if central differences would be wrong for this loss."""
    found = kinks(loss)
    if found:
        raise ModelError(
            "expected a smooth network for curvature='central_difference', got "
            f"{', '.join(found)}: differences are wrong by about 17% at kinks; use "
            "curvature='hessian', or smooth activations such as GELU or tanh"
        )


def custom_functions(loss: BatchLoss) -> tuple[str, ...]:
    """Names of autograd functions written in Python that a loss goes through."""
    found, seen, waiting = set(), set(), [loss().grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(node, BackwardCFunction):
            cls = node._forward_cls  # type: ignore[attr-defined]
            if not cls.__module__.startswith("torch.distributed"):  # FSDP's own
                found.add(cls.__name__)
        waiting += [parent for parent, _ in node.next_functions]
    return tuple(sorted(found))


class _Probe:
    """Products of one batch with random directions, for checks."""

    def __init__(self, loss: BatchLoss, scope: Scope, curvature: str) -> None:
        self.loss, self.scope, self.curvature = loss, scope, curvature
        self._generator = torch.Generator().manual_seed(0)

    @cached_property
    def custom(self) -> tuple[str, ...]:
        """See `custom_functions`."""
        return custom_functions(self.loss)

    def draw(self) -> list[Tensor]:
        """A random direction in the shapes of the weights."""
        return [
            torch.randn(p.shape, generator=self._generator).to(p)
            for p in self.scope.parameters
        ]

    def apply(self, v: list[Tensor]) -> Parts:
        """The product, in the shapes of the weights."""
        try:
            return PRODUCTS[self.curvature](self.loss, self.scope, v)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, UnlearningError) as told:
            # A loss of the user's names what fails in it; here it is the product.
            problem = told.__cause__ if isinstance(told, UnlearningError) else told
            if not isinstance(problem, RuntimeError):
                raise
            raise ModelError(
                f"expected products by curvature={self.curvature!r}, got "
                f"{type(problem).__name__}: {problem!s:.300}; {self.advice}"
            ) from problem

    def difference(self, v: list[Tensor], shorter: int) -> Parts:
        """The product by differences of gradients."""
        h, ends = step_of(self.scope, v) / shorter, []
        for step in (h, -h):
            with shifted(self.scope, v, step):
                ends.append(self._gradient())
        return _combined(ends[0], ends[1], 1 / (2 * h))

    def reached(self, v: list[Tensor]) -> list[Tensor]:
        """v, but zero for weights that receive no gradient."""
        grads = self._gradient()
        return [t * float(g is not None) for t, g in zip(v, grads, strict=True)]

    def _gradient(self) -> Parts:
        weights = self.scope.parameters
        return list(torch.autograd.grad(self.loss(), weights, allow_unused=True))

    @property
    def advice(self) -> str:
        """What to do about second derivatives that are not there, or wrong."""
        named = "an operation of the model (parametrizations.weight_norm is known)"
        if self.custom:
            named = f"the autograd function {', '.join(self.custom)}, most likely"
        return (
            f"{named}, has no right second derivative this way: replace it, or try "
            "solve_precision='float64', another curvature, or "
            "curvature='central_difference' for a smooth network"
        )


def check_exists(loss: BatchLoss, scope: Scope, curvature: str) -> None:
    """Raise `ModelError` unless products of a batch can be formed at all."""
    probe = _Probe(loss, scope, curvature)
    if "CheckpointFunction" in probe.custom:
        raise ModelError(
            "expected activation checkpointing with use_reentrant=False, got the "
            "reentrant kind, which has no second derivatives: pass use_reentrant=False"
        )
    probe.apply(probe.draw())


def check_symmetric(
    loss: BatchLoss, scope: Scope, curvature: str, rtol: float = 1e-3
) -> None:
    """Raise `ModelError` unless products are symmetric: u'Hv = v'Hu for random u, v.

    It catches double backwards that are silently wrong, such as that of
    `torch.nn.utils.parametrizations.weight_norm` (22% off, docs/theory.md 9).

    Args:
        loss: The loss of one batch.
        scope: The weights.
        curvature: Name of the product, a key of `PRODUCTS`.
        rtol: Tolerated asymmetry, as a part of the larger of |u'Hv|, |v'Hu| and of
            |u||Hv|/sqrt(p), their size when they cancel.
    """
    probe = _Probe(loss, scope, curvature)
    for _ in range(3):
        u, v = probe.draw(), probe.draw()
        Hv = probe.apply(v)
        a, size = _dot(u, Hv), (_dot(u, u) * _dot(Hv, Hv) / scope.size) ** 0.5
        del Hv  # one product at a time
        b = _dot(v, probe.apply(u))
        del u, v
        if not math.isfinite(a + b):
            raise ModelError(
                f"expected finite curvature products, got {a} and {b}: an operation of "
                "the model has an infinite derivative (a root or a distance at zero)"
            )
        if not abs(a - b) <= rtol * max(abs(a), abs(b), size):
            raise ModelError(
                f"expected a symmetric Hessian, got u'Hv = {a:.6g} and v'Hu = {b:.6g}"
                f": {probe.advice}"
            )


def check_second_derivative(
    loss: BatchLoss, scope: Scope, curvature: str, frugal: bool = False
) -> None:
    """Raise `ModelError` if products are not the derivative of the gradient.

    An autograd function with a detached backward has a symmetric and wrong one. It is
    compared with differences of gradients along three directions, one of which must
    agree: as far as these agree among themselves, for a smooth network. One with kinks
    is compared only if it has autograd functions of its own: there differences are
    wrong where a sample crosses a kink, which few do in float64.

    Args:
        loss: The loss of a few samples, in float64 if the model can.
        scope: The weights.
        curvature: Name of the product.
        frugal: Compare only if there are autograd functions of the model's own.
    """
    probe = _Probe(loss, scope, curvature)
    kinked = bool(kinks(loss))
    if curvature not in ("hessian", "hessian_forward") or not (
        probe.custom or not (kinked or frugal)
    ):
        return
    rtol = 1e-3 if scope.parameters[0].dtype is torch.float64 else 0.05
    found = [_apart(probe, rtol, smooth=not kinked) for _ in range(3)]
    if not min(found) <= 1:
        raise ModelError(
            "expected the second derivative of the loss, got one that is "
            f"{rtol * min(found):.1%} from differences of gradients: {probe.advice}"
        )


def _apart(probe: _Probe, rtol: float, smooth: bool) -> float:
    """|product - differences| along one direction, over what is allowed."""
    v = probe.reached(probe.draw())  # the others are named by the first pass
    Hv, short = probe.apply(v), probe.difference(v, 2)
    allowed = rtol * max(_dot(Hv, Hv), _dot(short, short)) ** 0.5
    if smooth:
        error = _combined(probe.difference(v, 1), short)
        allowed += 4 * _dot(error, error) ** 0.5
    gap = _combined(Hv, short)
    return _dot(gap, gap) ** 0.5 / max(allowed, 1e-300)


def _combined(a: _Several, b: _Several, scale: float = 1.0) -> Parts:
    """Scale (a - b); nothing where neither is."""

    def of(x: Tensor | None, y: Tensor | None) -> Tensor | None:
        if x is None or y is None:
            return None if x is y else scale * (x if y is None else -y)  # type: ignore[operator]
        return scale * (x - y)

    return [of(x, y) for x, y in zip(a, b, strict=True)]


def _dot(a: _Several, b: _Several) -> float:
    """The inner product in float64."""
    return sum(
        float((x * y).sum(dtype=torch.float64))
        for x, y in zip(a, b, strict=True)
        if x is not None and y is not None
    )


def check_loss(objective: EmpiricalObjective) -> None:
    """The loss must be repeatable, and the sum of what each sample adds alone.

    Raises:
        ModelError: If it differs at a second evaluation, or between one batch and its
            two halves.
    """

    def total(places: list[int]) -> Tensor:
        weight, batch = objective.batches.take(places)
        return objective.batch_loss(batch, 0, weight)().detach()

    places = spread_places(objective.n)
    together, again = total(places), total(places)
    if not bool(torch.isclose(together, again, rtol=1e-6, atol=1e-12)):
        raise ModelError(
            f"expected the same loss at every pass, got {float(together)} and then "
            f"{float(again)} on the same batch: something is random in eval mode "
            "(mixup, functional dropout without training=self.training, sampling, "
            "noise): do it only if self.training"
        )
    if len(places) < 2:
        return
    _check_parts(together, total(places[::2]) + total(places[1::2]))
    few = len(places) // 4
    if few > 1:  # another way: halves may have the same classes by chance
        _check_parts(together, total(places[:few]) + total(places[few:]))


def _check_parts(together: Tensor, halves: Tensor) -> None:
    if not bool(torch.isclose(together, halves, rtol=1e-4, atol=1e-6)):
        raise ModelError(
            f"expected a loss that is the mean over samples on their own, got "
            f"{float(together)} for a batch and {float(halves)} for its two parts: "
            f"{_cause(together, halves)}; override unlearning_loss to return one loss "
            "a sample, such as F.cross_entropy(..., reduction='none')"
        )


def _cause(together: Tensor, halves: Tensor) -> str:
    if bool(torch.isclose(together, 2 * halves, rtol=1e-4)):
        return "a sum in place of a mean"
    return (
        "a mean that is divided by class weights or by the samples that ignore_index "
        "leaves, batch normalisation, or a contrastive loss"
    )


def first_batch_loss(objective: EmpiricalObjective) -> BatchLoss:
    """The loss of the first batch, for the checks."""
    weight, batch = next(iter(objective.batches))
    return objective.batch_loss(batch, 0, weight)
