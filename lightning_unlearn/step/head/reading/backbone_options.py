"""What a `PublicBackbone` may be asked for."""

from torch import nn

from lightning_unlearn._base import validate
from lightning_unlearn.errors import ArgumentError, ModelError
from lightning_unlearn.step.head.reading.pooling import TOKENS

PLAIN = ("mean", "cls")  #: Of tokens that are no text.
_ALL = f'"auto" or some of {", ".join(TOKENS)}'


def checked_tokens(tokens: object, of_texts: bool) -> tuple[str, ...]:
    """What is taken of tokens, by name.

    Raises:
        ArgumentError: If it is nothing that can be taken.
    """
    if tokens == "auto":
        return ("mean", "max") if of_texts else PLAIN
    names = [tokens] if isinstance(tokens, str) else tokens
    if not isinstance(names, (list, tuple)) or not names:
        raise ArgumentError(f"expected tokens= to name {_ALL}, got {tokens!r}")
    for name in names:
        if name not in TOKENS:
            raise ArgumentError(f"expected tokens= to name {_ALL}, got {name!r}")
    if len(set(names)) != len(names):
        raise ArgumentError(f"expected each of tokens= once, got {list(names)}")
    return tuple(names)


def check_options(
    model: object, pool: object, standardize: object, unit_norm: object
) -> None:
    """Raise `ArgumentError` for the first that is none, `ModelError` for the model."""
    if not isinstance(model, nn.Module):
        raise ArgumentError(
            f"expected model to be a torch.nn.Module, got {type(model).__name__}"
        )
    if any(getattr(part, "private_steps", None) for part in model.modules()):
        raise ModelError(
            f"expected a model without a PrivatelyTrained backbone in it, got one in "
            f"{type(model).__name__}: its training saw samples, and a backbone around "
            "it would hide that; put the head on the PrivatelyTrained one itself"
        )
    sizes = tuple(pool) if isinstance(pool, (tuple, list)) else ()
    if len(sizes) != 2:
        raise ArgumentError(f"expected pool to be a pair such as (2, 2), got {pool!r}")
    validate.count(pool_rows=sizes[0], pool_columns=sizes[1])
    if standardize not in ("auto", "public", "none"):
        raise ArgumentError(
            f'expected standardize="auto", "public" or "none", got {standardize!r}: '
            "statistics, a PCA or a selection of features made from private data "
            "remember the samples to be forgotten; take them from public data"
        )
    if not isinstance(unit_norm, bool):
        raise ArgumentError(
            f"expected unit_norm to be True or False, got {unit_norm!r}: the norm "
            "itself is scale="
        )


def check_eval(model: nn.Module) -> None:
    """Raise `ModelError` if a part of a backbone's model is in train mode."""
    for name, module in model.named_modules():
        if module.training:
            kind = type(module).__name__
            raise ModelError(
                f"expected a PublicBackbone in eval mode, got {name or 'its model'}"
                f" ({kind}) in train mode: batch normalisation would take "
                "statistics of private samples, dropout would be random; do not "
                "call train() on its parts"
            )
