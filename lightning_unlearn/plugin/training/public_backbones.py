"""The `PublicBackbone` parts of a module: checked, guarded, named."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from torch import nn

from lightning_unlearn.step.head.backbone import PublicBackbone
from lightning_unlearn.step.head.convex_head import ConvexHead


def backbones(module: nn.Module) -> dict[str, PublicBackbone]:
    """Those inside a module, by name."""
    found = dict(module.named_modules())
    return {name: m for name, m in found.items() if isinstance(m, PublicBackbone)}


def check(module: nn.Module) -> None:
    """Raise `ModelError` unless each is as it was made."""
    for backbone in backbones(module).values():
        backbone.check()


def fixed_row_norm(module: nn.Module, head: ConvexHead) -> float | None:
    """Norm of a head's rows as its backbone makes them, the 1 of a bias included.

    None if only data would tell: there is no `PublicBackbone`, or not one alone, or
    its rows have no norm in common.
    """
    found = list(backbones(module).values())
    if len(found) != 1 or found[0].n_features != head.in_features:
        return None
    return found[0].row_norm(bias=head.bias is not None)


@contextmanager
def reading_private(module: nn.Module) -> Iterator[None]:
    """A block in which no input may be one that a backbone's statistics are of."""
    with ExitStack() as stack:
        for backbone in backbones(module).values():
            stack.enter_context(backbone.reading_private())
        yield


def watch_training(module: nn.Module, training: Callable[[], bool] | None) -> None:
    """Refuse public samples as training samples; None ends the watch.

    A request reads retained samples only: it would not see one that is forgotten.
    """
    for backbone in backbones(module).values():
        backbone.refuse_while(training)


def part_of(name: str, among: dict[str, PublicBackbone]) -> str:
    """The public part that an entry of the module belongs to: its backbone, if any."""
    inside = (backbone for backbone in among if name.startswith(f"{backbone}."))
    return next(inside, name.split(".")[0])
