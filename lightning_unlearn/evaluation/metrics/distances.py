"""How far an unlearned model is from the retrained one, in outputs and in weights."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_unlearn._base import validate
from lightning_unlearn.errors import ArgumentError
from lightning_unlearn.evaluation.metrics import arguments


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p.exp() * (log_p - log_q)).sum(1)


def _js(log_p: Tensor, log_q: Tensor) -> Tensor:
    middle = torch.logaddexp(log_p, log_q) - math.log(2)
    return (_kl(log_p, middle) + _kl(log_q, middle)) / 2


class OutputDivergence(Metric):
    """Mean divergence of the two models' predicted distributions, in nats.

    With p the unlearned model's softmax and q the retrained one's: "kl" is
    ``KL(p || q)``, the direction of `Klom` (mass the unlearned model puts where the
    retrained one has none counts), in [0, inf); "js" is the Jensen-Shannon divergence
    (Lin 1991), symmetric, in [0, log 2].

    Args:
        kind: "kl" or "js".
        **kwargs: Of `torchmetrics.Metric`.

    Raises:
        ArgumentError: If `kind` is neither.

    Example:
        >>> from lightning_unlearn.evaluation import OutputDivergence
        >>> metric = OutputDivergence("js")
        >>> metric(torch.tensor([[0.0, 900.0]]), torch.tensor([[900.0, 0.0]]))
        tensor(0.6931, dtype=torch.float64)
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False

    total: Tensor
    n: Tensor

    def __init__(self, kind: str = "kl", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        validate.one_of(("kl", "js"), kind=kind)
        self.kind = kind
        zero = torch.tensor(0.0, dtype=torch.float64)
        self.add_state("total", default=zero, dist_reduce_fx="sum")
        self.add_state("n", default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, unlearned: Tensor, retrained: Tensor | None = None) -> None:
        """Add samples.

        Args:
            unlearned: Logits, floating, (n, classes), at least two classes.
            retrained: The retrained model's logits of the same samples, same shape.

        Raises:
            ArgumentError: If `retrained` is None, shapes or dtypes differ from these,
                or a logit is NaN or infinite.
        """
        right = arguments.reference("retrained, the logits", retrained, 2)
        left = arguments.logits("unlearned", unlearned)
        if left.shape != right.shape:
            raise ArgumentError(
                "expected logits of the same samples and classes, got "
                f"{tuple(left.shape)} and {tuple(right.shape)}"
            )
        divergence = _kl if self.kind == "kl" else _js
        each = divergence(left.log_softmax(1), right.double().log_softmax(1))
        self.total += each.clamp(min=0).sum()
        self.n += len(left)

    def compute(self) -> Tensor:
        """Mean over the samples of all processes, float64, a scalar.

        Raises:
            ArgumentError: If there was no sample.
        """
        if not int(self.n):
            raise ArgumentError(
                "expected at least one sample, got none: call update first"
            )
        return self.total / self.n


class WeightDistance(NamedTuple):
    """Euclidean distance of all weights, as one vector, in float64.

    Attributes:
        absolute: ``||w_unlearned - w_retrained||``.
        relative: The same over ``||w_retrained||``; inf where that is 0.
        of_original: The same over ``||w_original - w_retrained||``: below 1, the
            request moved towards the retrained model. None if no original was given.
    """

    absolute: float
    relative: float
    of_original: float | None


_Weights = nn.Module | Mapping[str, Tensor]


def _weights(name: str, model: object) -> dict[str, Tensor]:
    if isinstance(model, nn.Module):
        model = dict(model.named_parameters())
    if not (isinstance(model, Mapping) and model):
        raise ArgumentError(
            f"expected {name} to be a module with parameters, or a mapping of names to "
            f"tensors, got {type(model).__name__}: retrain one without the forgotten "
            "samples if there is none"
        )
    return {
        key: arguments.values(f"{name}[{key!r}]", value, getattr(value, "ndim", 0))
        for key, value in model.items()
    }


def _distance(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    of_each = [
        float((a[key].double().cpu() - b[key].double().cpu()).norm()) for key in a
    ]
    return math.hypot(*of_each)


def weight_distance(
    unlearned: _Weights, retrained: _Weights, original: _Weights | None = None
) -> WeightDistance:
    """Distance of an unlearned model's weights to a retrained one's.

    Two retrainings with different seeds are far apart too: read it beside that.

    Args:
        unlearned: A module, whose parameters (not buffers) are taken, or a mapping of
            names to floating tensors.
        retrained: The same names and shapes.
        original: The model before the request, to compare with; same names and shapes.

    Returns:
        The distance, absolute, relative, and as a share of the original's.

    Raises:
        ArgumentError: If there is no retrained model, names or shapes differ, or a
            weight is NaN or infinite.

    Example:
        >>> a, b = {"w": torch.tensor([3.0, 0.0])}, {"w": torch.tensor([0.0, 4.0])}
        >>> weight_distance(a, b)
        WeightDistance(absolute=5.0, relative=1.25, of_original=None)
    """
    right = _weights("retrained", retrained)
    sides = {"unlearned": _weights("unlearned", unlearned)}
    if original is not None:
        sides["original"] = _weights("original", original)
    shapes = {key: tuple(value.shape) for key, value in right.items()}
    for name, side in sides.items():
        got = {key: tuple(value.shape) for key, value in side.items()}
        if got != shapes:
            differ = sorted(k for k in got | shapes if got.get(k) != shapes.get(k))
            raise ArgumentError(
                f"expected {name} with the names and shapes of retrained, got a "
                f"difference in {', '.join(differ[:3])} ({len(differ)} in all)"
            )
    absolute = _distance(sides["unlearned"], right)
    norm = math.hypot(*(float(value.double().norm()) for value in right.values()))
    before = _distance(sides["original"], right) if "original" in sides else None
    return WeightDistance(
        absolute=absolute,
        relative=absolute / norm if norm else math.inf,
        of_original=None if before is None else _share(absolute, before),
    )


def _share(absolute: float, before: float) -> float:
    if before:
        return absolute / before
    return math.inf if absolute else 1.0
