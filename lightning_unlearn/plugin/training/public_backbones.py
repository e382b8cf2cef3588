"""The `PublicBackbone` parts of a module: checked, guarded, named."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial

from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_unlearn._base.text import positions_text
from lightning_unlearn.errors import GuaranteeError, ModelError
from lightning_unlearn.plugin.options import Options
from lightning_unlearn.step.head.backbone import PublicBackbone
from lightning_unlearn.step.head.convex_head import ConvexHead
from lightning_unlearn.step.head.inputs import in_order, inputs_of
from lightning_unlearn.step.head.reading import private_readers
from lightning_unlearn.step.known_samples import Where, public_ones
from lightning_unlearn.weights.processes import Processes

#: Its noise costs nothing, and adds next to nothing to the backbone's.
_OWN_PART = 0.1


def backbones(module: nn.Module) -> dict[str, PublicBackbone]:
    """Those inside a module, by name."""
    found = dict(module.named_modules())
    return {name: m for name, m in found.items() if isinstance(m, PublicBackbone)}


def check(module: nn.Module) -> None:
    """Raise `ModelError` unless each is as it was made."""
    for backbone in backbones(module).values():
        backbone.check()


def private_steps(module: nn.Module) -> dict[str, float] | None:
    """The steps of the private training that made a backbone; None if it is public.

    Raises:
        ModelError: If several were trained privately.
    """
    found = [b for b in backbones(module).values() if b.private_steps is not None]
    if len(found) > 1:
        raise ModelError(
            f"expected one PrivatelyTrained backbone, got {len(found)}: what several "
            "private trainings tell together is not counted; train one"
        )
    return found[0].private_steps if found else None


def private_weights(module: nn.Module) -> dict[str, str]:
    """Parameters and buffers that were trained privately: any name -> the backbone's.

    A module may hold the network beside its backbone too, by names of its own.
    """
    found = {
        id(t): f"{name}.model.{inner}"
        for name, backbone in backbones(module).items()
        if backbone.private_steps is not None
        for held in (backbone.model.named_parameters(), backbone.model.named_buffers())
        for inner, t in held
    }
    named = (
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    )
    return {name: found[id(t)] for name, t in named if id(t) in found}


def own_part(options: Options, module: nn.Module) -> Options:
    """A head's own part of epsilon: a tenth, where its backbone needs the rest.

    Raises:
        GuaranteeError: If noise is given by hand, which claims nothing, or delta would
            allow that a sample of the backbone's training is published.
    """
    if private_steps(module) is None:
        return options
    n = max(backbone.n_trained or 0 for backbone in backbones(module).values())
    if not options.delta * n < 1:
        raise GuaranteeError(
            f"expected delta below 1/{n:,} of a backbone that was trained on {n:,} "
            f"samples, got {options.delta:g}: it would allow publishing one of them "
            "outright; set a smaller delta"
        )
    if options.noise_std is not None:
        raise GuaranteeError(
            f"expected epsilon= and delta= for a head on a PrivatelyTrained backbone, "
            f"got noise_std={options.noise_std:g}: noise by hand says nothing of both "
            "together"
        )
    return replace(options, epsilon=options.epsilon * _OWN_PART)


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
def reading_private(module: nn.Module, where: Where | None = None) -> Iterator[None]:
    """A block in which no input may be one that a backbone's statistics are of.

    Args:
        module: With the backbones.
        where: Gives the positions of the samples that are read now, to name them.

    Raises:
        ModelError: If what is read goes through a privately trained backbone that is
            no part of the module: no claim would speak of it.
    """
    own = list(backbones(module).values())
    with ExitStack() as stack:
        for backbone in own:
            stack.enter_context(backbone.reading_private(where))
        met = stack.enter_context(private_readers.noted())
        yield
    if any(all(one is not b for b in own) for one in met):
        raise ModelError(
            "expected a PrivatelyTrained backbone that is a part of the module, got "
            "one that the module reads and keeps elsewhere (in a list, a dictionary, a "
            "global name): the certificate would not speak of it; assign it to an "
            "attribute of its own, self.backbone = ..."
        )


def check_not_private(rows: Tensor) -> None:
    """Raise `GuaranteeError` if a head's rows are a private backbone's features.

    Args:
        rows: (n, d), of a module without such a backbone.
    """
    found = private_readers.remembered(rows)
    if found:
        raise GuaranteeError(
            f"expected a PrivatelyTrained backbone in the module, got {found:,} "
            "features that one has computed before, as the samples: the certificate "
            "would not speak of it; train on the samples, with the backbone inside "
            "(CertifiedClassifier(PrivatelyTrained(...), K) reads them once)"
        )


def watch_training(
    module: nn.Module, training: Callable[[], bool] | None, loader: DataLoader | None
) -> None:
    """Refuse public samples as training samples; None ends the watch.

    A request reads retained samples only: it would not see one that is forgotten.

    Args:
        module: With the backbones.
        training: Whether samples are training samples now.
        loader: Of all of them, to name the positions of what is refused.
    """
    for backbone in backbones(module).values():
        find = None if loader is None else partial(_positions, loader, backbone.known)
        backbone.refuse_while(training, find)


def _positions(loader: DataLoader, known: Tensor) -> list[int]:
    """Where public samples stand in the training data, as far as its inputs show it."""
    size, found = loader.batch_size or 1, list[int]()
    for index, batch in enumerate(in_order(loader, size)):
        met = public_ones(inputs_of(batch), known)
        found += [index * size + i for i, is_met in enumerate(met) if is_met]
    return found


def alike(module: nn.Module, kind: str) -> list[int]:
    """Training samples that were met and are like public ones: "near" or "blank"."""
    found = (b.alike.items() for b in backbones(module).values())
    return sorted({p for items in found for p, how in items if how == kind})


def tell_near(module: nn.Module, processes: Processes) -> None:
    """Tell, and let every process know, what near copies all of them have met."""
    parts = backbones(module)
    if not parts:
        return
    for others in processes.gather({name: dict(b.alike) for name, b in parts.items()}):
        for name, backbone in parts.items():
            backbone.alike.update(others[name])
    near = alike(module, "near")
    if near:
        rank_zero_warn(
            f"near copies of public_data, by their features, are at "
            f"{positions_text(near)} of the training data: is it made from private "
            "samples?"
        )


def part_of(name: str, among: dict[str, PublicBackbone]) -> str:
    """The public part that an entry of the module belongs to: its backbone, if any."""
    inside = (backbone for backbone in among if name.startswith(f"{backbone}."))
    return next(inside, name.split(".")[0])
