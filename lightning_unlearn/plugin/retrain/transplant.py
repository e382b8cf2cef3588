"""The user's module becomes the retrained one: what it keeps besides its tensors.

A running mean or a vocabulary in a plain attribute saw the forgotten samples. It is
replaced by that of the new module, and what refers to the new module's layers (a bound
method, a list of them) refers to the user's own.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from types import FunctionType, ModuleType
from typing import Any

import torchmetrics
from torch import nn
from torch.utils.data import DataLoader, Dataset

from lightning_unlearn.plugin.lightning import Callback, LightningDataModule, Trainer
from lightning_unlearn.plugin.plain_state import PlainState, own_attributes

# The user's own way to his data and his run; none of it is learnt.
_KEPT = (
    *(Dataset, DataLoader, LightningDataModule, Trainer, Callback),
    *(type, ModuleType),
)
# What torch and Lightning put into a layer that is compiled.
_COMPILED = {
    *("_compiled_call_impl", "_compiler_ctx", "forward", "training_step"),
    *("validation_step", "test_step", "predict_step"),
}
_ATOMS = (str, bytes, int, float, complex, bool, type(None))


@dataclass
class Transplant:
    """What will be put into a module, once a request is done.

    Args:
        attributes: Layers, and the plain attributes that they get.
        extra: Layers, and their extra state.
        left: Names of attributes that stay, though the old training may have made them.
    """

    attributes: list[tuple[nn.Module, dict[str, Any]]] = field(default_factory=list)
    extra: list[tuple[Any, object]] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    @staticmethod
    def between(old: nn.Module, new: nn.Module) -> "Transplant":
        """Take from a module that was made by the same code; nothing is moved yet.

        Args:
            old: The user's.
            new: The retrained one.
        """
        found, memo = Transplant(), _counterparts(old, new)
        foreign = {id(layer) for layer in new.modules()}
        others = dict(new.named_modules())
        for prefix, layer in old.named_modules():
            other = others.get(prefix)
            if other is None or isinstance(layer, torchmetrics.Metric):
                continue  # metrics are emptied after every request
            held = dict[str, Any]()
            theirs = dict(own_attributes(other))
            for name, value in own_attributes(layer):
                if _stays(name, value):
                    held[name] = value
            for name, value in theirs.items():
                if name in held or _stays(name, value):
                    continue
                mine = vars(layer).get(name)
                try:
                    held[name] = _copied(value, mine, memo, foreign)
                except Exception:  # whatever cannot be copied raises
                    found.left.append(f"{prefix}.{name}".lstrip("."))
                    held |= {name: mine} if name in vars(layer) else {}
            found.attributes.append((layer, held))
            if type(layer).get_extra_state is not nn.Module.get_extra_state:
                state = copy.deepcopy(other.get_extra_state(), memo)
                found.extra.append((layer, state))
        return found

    def apply(self) -> Callable[[], None]:
        """Put it in place; what puts the old things back is returned."""
        before = [(layer, dict(own_attributes(layer))) for layer, _ in self.attributes]
        extra = list[tuple[Any, object]]()

        def undo() -> None:
            for layer, state in reversed(extra):
                layer.set_extra_state(state)
            for layer, own in before:  # last: it is what `set_extra_state` has set, too
                _replace(layer, own)

        try:
            for layer, own in self.attributes:
                _replace(layer, own)
            for layer, state in self.extra:
                old = layer.get_extra_state()
                layer.set_extra_state(state)
                extra.append((layer, old))
        except BaseException:
            undo()
            raise
        return undo


def _stays(name: str, value: object) -> bool:
    sharding = name.startswith("__composable_api")  # torch's, of fully_shard
    return sharding or name in _COMPILED or isinstance(value, _KEPT)


def _counterparts(old: nn.Module, new: nn.Module) -> dict[int, object]:
    """For `copy.deepcopy`: the new module's layers and tensors are the old one's."""
    memo = dict[int, object]()
    for of in ("named_modules", "named_parameters", "named_buffers"):
        ours = dict(getattr(old, of)())
        memo |= {id(x): ours[n] for n, x in getattr(new, of)() if n in ours}
    return memo


def _copied(value: Any, mine: Any, memo: dict[int, object], foreign: set[int]) -> Any:
    """A copy that refers to nothing of the new module.

    Raises:
        TypeError: If it still does.
    """
    if isinstance(value, FunctionType) and _same_function(value, mine, memo):
        return mine
    made = copy.deepcopy(value, memo)
    reached = PlainState(value=made).reached
    if foreign & reached.keys():
        raise TypeError("it holds a layer of another module")
    return made


def _same_function(new: FunctionType, old: Any, memo: dict[int, object]) -> bool:
    """Whether two functions differ in nothing but the module they are of."""
    if not isinstance(old, FunctionType) or old.__code__ is not new.__code__:
        return False
    pairs = zip(old.__closure__ or (), new.__closure__ or (), strict=True)
    held = [(a.cell_contents, b.cell_contents) for a, b in pairs]
    held += zip(old.__defaults__ or (), new.__defaults__ or (), strict=True)
    return all(
        memo.get(id(b)) is a
        or (isinstance(b, _ATOMS) and type(a) is type(b) and a == b)
        for a, b in held
    )


def _replace(layer: nn.Module, attributes: dict[str, Any]) -> None:
    for key, _ in [*own_attributes(layer)]:
        del vars(layer)[key]
    vars(layer).update(attributes)
