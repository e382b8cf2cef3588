"""Run several ways to forget, and measure their models and the retrained one alike."""

import copy
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_unlearn._base import validate
from lightning_unlearn._base.modes import modes_put_back
from lightning_unlearn._base.text import number
from lightning_unlearn.errors import ArgumentError, ModelError
from lightning_unlearn.evaluation.attacks.membership import MembershipInference
from lightning_unlearn.evaluation.baselines.comparison_table import (
    SPLITS,
    Comparison,
    Row,
)
from lightning_unlearn.evaluation.baselines.simple import Baseline
from lightning_unlearn.evaluation.metrics.accuracy_gaps import AccuracyGaps
from lightning_unlearn.evaluation.metrics.distances import OutputDivergence
from lightning_unlearn.evaluation.metrics.scores import membership_score

Split = tuple[Tensor, Tensor]


def _logits(model: nn.Module, inputs: Tensor, batch_size: int) -> Tensor:
    """Outputs in evaluation mode, on the CPU; modes are as before afterwards."""
    device = next((p.device for p in model.parameters()), inputs.device)
    with modes_put_back(model), torch.no_grad():
        model.eval()
        parts = [model(part.to(device)).cpu() for part in inputs.split(batch_size)]
    return torch.cat(parts)


def _timed(
    name: str, method: Callable[[nn.Module], Any], model: nn.Module
) -> tuple[float, nn.Module, str]:
    """Seconds of a method, the model it leaves, and what it claims."""
    _synchronize()
    started = time.perf_counter()
    try:
        given = method(model)
        _synchronize()
    except Exception as error:
        raise ModelError(
            f"expected method {name!r} to train its copy of the original, got "
            f"{type(error).__name__}: {error}: mend it or leave it out"
        ) from error
    seconds = time.perf_counter() - started
    if isinstance(given, nn.Module):
        return seconds, given, "not stated"
    if isinstance(given, Baseline):
        return seconds, model, _claim(given)
    if given is not None:
        raise ArgumentError(
            f"expected method {name!r} to return a model, a Baseline or None, got "
            f"{type(given).__name__}"
        )
    return seconds, model, "not stated"


def _claim(done: Baseline) -> str:
    if done.epsilon is None or done.delta is None:
        return "none"
    return f"epsilon {number(done.epsilon)}, delta {number(done.delta)}"


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _measured(
    ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], data: Mapping[str, Split]
) -> dict[str, Any]:
    """All of a row that is measured, from logits by split."""
    accuracy, attack = AccuracyGaps(SPLITS), MembershipInference()
    for split in SPLITS:
        accuracy.update(ours[split], theirs[split], data[split][1], split=split)
    for split in ("forget", "test"):
        targets = data[split][1]
        attack.update(
            membership_score("loss", ours[split], targets),
            torch.full(targets.shape, split == "forget"),
            membership_score("loss", theirs[split], targets),
        )
    rates, found = accuracy.compute(), attack.compute()
    kl, js = OutputDivergence("kl"), OutputDivergence("js")
    return {
        "accuracy": {s: float(rates[f"{s}_unlearned"]) for s in SPLITS},
        "gaps": {s: float(rates[f"{s}_gap"]) for s in SPLITS},
        "auc": found.unlearned.auc,
        "auc_gap": found.auc_gap,
        "kl": float(kl(ours["forget"], theirs["forget"])),
        "js": float(js(ours["forget"], theirs["forget"])),
    }


def _split(name: str, given: object) -> Split:
    pair = list(given) if isinstance(given, (tuple, list)) else []
    rows = [len(t) if isinstance(t, Tensor) and t.ndim else 0 for t in pair]
    if len(rows) != 2 or not all(rows):
        raise ArgumentError(
            f"expected {name} to be (inputs, targets), two tensors with a row for each "
            f"of at least one sample, got {type(given).__name__}"
        )
    if rows[0] != rows[1]:
        raise ArgumentError(
            f"expected {name} with as many inputs as targets, got {rows[0]} and "
            f"{rows[1]}"
        )
    return pair[0], pair[1].cpu()


def compare(
    methods: Mapping[str, Callable[[nn.Module], Any]],
    *,
    original: nn.Module,
    retrained: nn.Module,
    forget: Split,
    retain: Split,
    test: Split,
    retrained_seconds: float | None = None,
    claims: Mapping[str, str] | None = None,
    batch_size: int = 1024,
) -> Comparison:
    """Run every method on a copy of the original and measure all models alike.

    What is measured is no guarantee: an attack that finds nothing is a failed attack,
    and a model near one retrained model may still be far from forgetting.

    Args:
        methods: From a name to a function of a deep copy of `original` that trains it
            in place, and returns None or a `Baseline`, or that returns another model.
        original: The model before the request; maps inputs to logits (n, classes). It
            is copied, never trained.
        retrained: A model trained without the forgotten samples, the reference.
        forget: (inputs, targets) of the forgotten samples; targets are class indices.
        retain: Of retained samples, to measure on.
        test: Of samples that no model was trained on.
        retrained_seconds: What the retrained model took, for the table.
        claims: From a method's name to what it claims, in place of what its `Baseline`
            says.
        batch_size: Samples at once when measuring, >= 1.

    Returns:
        A row each for original, retrained and every method.

    Raises:
        ArgumentError: If there is no method or one has a reserved name, a model is
            none, data are not pairs of tensors of equal length, outputs are no finite
            logits, or a method returns something else.
        ModelError: If a method fails; it is named.
    """
    validate.count(batch_size=batch_size)
    if retrained_seconds is not None:
        validate.non_negative(retrained_seconds=retrained_seconds)
    _refuse(methods, original, retrained, claims or {})
    data = {
        name: _split(name, given)
        for name, given in zip(SPLITS, (forget, retain, test), strict=True)
    }

    def outputs(model: nn.Module) -> dict[str, Tensor]:
        return {s: _logits(model, data[s][0], batch_size) for s in SPLITS}

    theirs = outputs(retrained)

    def row(name: str, seconds: float | None, model: nn.Module, claim: str) -> Row:
        told = (claims or {}).get(name, claim)
        measured = _measured(outputs(model), theirs, data)
        return Row(name=name, seconds=seconds, claim=told, **measured)

    rows = [
        row("original", None, original, "none"),
        row("retrained", retrained_seconds, retrained, "the reference"),
    ]
    for name, method in methods.items():
        seconds, model, claim = _timed(name, method, copy.deepcopy(original))
        rows.append(row(name, seconds, model, claim))
    return Comparison(tuple(rows))


def _refuse(
    methods: Mapping[str, Any], original: Any, retrained: Any, claims: Mapping[str, str]
) -> None:
    taken = {"original", "retrained"}
    if not methods or taken & set(methods):
        raise ArgumentError(
            "expected methods to be at least one, by names other than 'original' and "
            f"'retrained', which have rows of their own, got {list(methods)}"
        )
    if set(claims) - set(methods):
        raise ArgumentError(
            f"expected claims of methods, got {sorted(set(claims) - set(methods))}, "
            f"which are not among {list(methods)}"
        )
    for name, model in (("original", original), ("retrained", retrained)):
        if not isinstance(model, nn.Module):
            raise ArgumentError(
                f"expected {name} to be a module, got {type(model).__name__}: a "
                "comparison needs the model before the request and one retrained "
                "without the forgotten samples"
            )
