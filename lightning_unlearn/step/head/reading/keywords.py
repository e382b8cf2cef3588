"""How a model is called: with one argument, or with the keywords it takes."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_unlearn.step.known_samples import MASK

TARGETS = ("labels", "label")  # as transformers and datasets name them: no inputs
_IDS = "input_ids"
#: What transformers call the inputs of encoders; two of them are two encoders.
_KINDS = ("pixel_values", "input_features", "input_values")


def is_text(inputs: Any) -> bool:
    """Whether these are tokens of texts: a mapping with ``input_ids`` (n, t)."""
    ids = inputs.get(_IDS) if isinstance(inputs, Mapping) else None
    return isinstance(ids, Tensor) and ids.dim() == 2 and not ids.is_floating_point()


def kinds(inputs: Any) -> list[str]:
    """The keywords that each are an input of their own: tokens, pixels, sound."""
    if not isinstance(inputs, Mapping):
        return []
    return [name for name in (_IDS, *_KINDS) if name in inputs]


def known_keywords(model: nn.Module, inputs: Any) -> Any:
    """What the model is given of some inputs: other columns are left out.

    A column of ids beside the tokens is no input. Of texts whatever the model does not
    name is left out, of other mappings only what it would refuse.

    Args:
        model: Any module; of one with adapters (peft) the model inside counts.
        inputs: Of any kind; all but mappings are returned as they are.
    """
    if not isinstance(inputs, Mapping):
        return inputs
    inputs = {k: v for k, v in inputs.items() if k not in TARGETS}
    named, takes_any, one = _signature(model)
    as_one = bool(one) and one not in inputs
    if as_one or not named or (takes_any and not is_text(inputs)):
        return inputs
    return {name: value for name, value in inputs.items() if name in named}


def call(model: nn.Module, inputs: Any) -> Any:
    """The model's output for inputs (n, ...), or a mapping of them.

    A mapping is its keywords, unless it takes one argument of another name, as
    sentence-transformers do.
    """
    if not isinstance(inputs, Mapping):
        return model(inputs)
    _, _, one = _signature(model)
    if one and one not in inputs:
        return model(dict(inputs))
    return model(**inputs)


def example_of(model: object) -> list[dict[str, Tensor]] | None:
    """The example a transformers model has of its own inputs, one sample, or None."""
    held = getattr(model, "dummy_inputs", None)
    if not (isinstance(held, Mapping) and isinstance(held.get(_IDS), Tensor)):
        return None
    assert isinstance(model, nn.Module)
    if not _signature(model)[0].isdisjoint(_KINDS):  # an input that is not there
        return None
    ids = held[_IDS]
    return [{_IDS: ids[0], MASK: torch.ones_like(ids[0])}]


def described(inputs: Any) -> str:
    """Names and shapes of inputs, for a message."""
    if isinstance(inputs, Tensor):
        return str(tuple(inputs.shape))
    if not isinstance(inputs, Mapping):
        return type(inputs).__name__
    shapes = {k: tuple(v.shape) for k, v in inputs.items() if isinstance(v, Tensor)}
    return str(shapes)


def _signature(model: nn.Module) -> tuple[set[str], bool, str]:
    """(named parameters, whether any other is taken, the one that must be given)."""
    inner: Any = model
    while callable(base := getattr(inner, "get_base_model", None)):
        inner = base()
    parameters = inspect.signature(inner.forward).parameters.values()
    usual = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    named = [p for p in parameters if p.kind in usual]
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
    needed = [p.name for p in named if p.default is inspect.Parameter.empty]
    return {p.name for p in named}, takes_any, needed[0] if len(needed) == 1 else ""
