"""What every metric asks of its tensors; None for the retrained model is refused."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_unlearn.errors import ArgumentError


def values(name: str, value: object, ndim: int) -> Tensor:
    """A detached, finite, floating tensor of `ndim` dimensions, or `ArgumentError`."""
    if not (isinstance(value, Tensor) and value.is_floating_point()):
        got = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise ArgumentError(f"expected {name} to be a floating tensor, got {got}")
    if value.ndim != ndim:
        raise ArgumentError(
            f"expected {name} with {ndim} dimension(s), got shape {tuple(value.shape)}"
        )
    bad = int((~torch.isfinite(value)).sum())
    if bad:
        raise ArgumentError(
            f"expected {name} to be finite, got {bad} of {value.numel()} values NaN or "
            "infinite: look for the samples where the model diverged"
        )
    return value.detach()


def reference(name: str, value: object, ndim: int) -> Tensor:
    """As `values`, of a retrained model; None says that there is none, and fails."""
    if value is None:
        raise ArgumentError(
            f"expected {name}, of a model retrained without the forgotten samples, got "
            "None: retrain one and pass what it gives on the same samples; no constant "
            "such as 0.5 can stand for it"
        )
    return values(name, value, ndim)


def same_length(**named: Tensor) -> None:
    """Raise `ArgumentError` unless all tensors have as many rows."""
    if len({len(tensor) for tensor in named.values()}) > 1:
        got = ", ".join(f"{name}: {len(tensor)}" for name, tensor in named.items())
        raise ArgumentError(f"expected one row a sample in all of them, got {got}")


def classes(name: str, targets: object, n: int, n_classes: int) -> Tensor:
    """Class indices of shape (n,) below `n_classes`, as int64, or `ArgumentError`."""
    whole = isinstance(targets, Tensor) and not (
        targets.is_floating_point()
        or targets.is_complex()
        or targets.dtype == torch.bool
    )
    if not (whole and targets.shape == (n,)):  # type: ignore[union-attr]
        got = (
            f"{targets.dtype} of shape {tuple(targets.shape)}"
            if isinstance(targets, Tensor)
            else type(targets).__name__
        )
        raise ArgumentError(
            f"expected {name} to be {n} class indices, an integer tensor of shape "
            f"({n},), got {got}"
        )
    assert isinstance(targets, Tensor)
    if n and not (int(targets.min()) >= 0 and int(targets.max()) < n_classes):
        raise ArgumentError(
            f"expected {name} in 0..{n_classes - 1}, got values from "
            f"{int(targets.min())} to {int(targets.max())}"
        )
    return targets.detach().long()


def logits(name: str, value: object) -> Tensor:
    """Logits (n, classes >= 2) in float64, or `ArgumentError`."""
    checked = values(name, value, 2)
    if checked.shape[1] < 2:
        raise ArgumentError(
            f"expected {name} of shape (n, classes) with at least 2 classes, got "
            f"{tuple(checked.shape)}: give a single logit z as the two columns (0, z)"
        )
    return checked.double()


def populations(
    unlearned: object, retrained: object, minimum: int
) -> tuple[Tensor, Tensor]:
    """Margins (samples, models) of both kinds, at least `minimum` models of each."""
    right = reference("the margins of retrained models", retrained, 2)
    left = values("the margins of unlearned models", unlearned, 2)
    same_length(unlearned=left, retrained=right)
    for name, tensor in (("unlearned", left), ("retrained", right)):
        if tensor.shape[1] < minimum:
            raise ArgumentError(
                f"expected margins of shape (samples, models) of at least {minimum} "
                f"{name} models, got {tensor.shape[1]}: unlearn or retrain more"
            )
    return left, right


def joined(state: Tensor | Sequence[Tensor]) -> Tensor:
    """A metric's "cat" state, before or after a sync, in float64 on the CPU."""
    parts = [state] if isinstance(state, Tensor) else list(state)
    if not sum(len(part) for part in parts):
        raise ArgumentError("expected at least one sample, got none: call update first")
    return torch.cat([part.to("cpu", torch.float64) for part in parts])
