"""The weights in scope as one flat vector, and the state every pass runs in."""

from collections.abc import Callable, Iterable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lightning_unlearn.errors import ModelError
from lightning_unlearn.weights.digests import state_digest
from lightning_unlearn.weights.dtensors import (
    gathered,
    in_shards,
    local,
    of_shards,
    sharded_as,
)
from lightning_unlearn.weights.processes import Processes

Vector = Float[Tensor, " p"]
Dot = Callable[[Vector, Vector], float]


class Scope:
    """The weights an unlearning request may move, in one fixed order.

    Args:
        module: The module that owns the weights.
        parameters: The weights in scope; each must belong to `module`.

    Raises:
        ModelError: If there are none, or one does not belong to the module.
    """

    def __init__(self, module: nn.Module, parameters: Iterable[nn.Parameter]) -> None:
        self.module = module
        names = {id(p): name for name, p in module.named_parameters()}
        self.parameters: list[nn.Parameter] = []
        self.names: list[str] = []
        seen: set[int] = set()
        for p in parameters:
            if id(p) not in names:
                raise ModelError(
                    "expected unlearning_parameters() to return parameters of the "
                    f"module itself, got a tensor of shape {tuple(p.shape)} that is "
                    "not one of them"
                )
            if id(p) not in seen:  # tied weights count once
                seen.add(id(p))
                self.parameters.append(p)
                self.names.append(names[id(p)])
        if not self.parameters:
            raise ModelError(
                "expected at least one weight in scope, got none: leave some "
                "parameters with requires_grad=True, or override "
                "unlearning_parameters()"
            )
        self.sizes = [p.numel() for p in self.parameters]
        self.size = self.n_parameters = sum(self.sizes)

    @property
    def entries(self) -> tuple[str, ...]:
        """The module's state_dict entries that are these weights, each weight once."""
        wanted = {id(p) for p in self.parameters}
        state = self.module.state_dict(keep_vars=True)
        found = {id(v): k for k, v in reversed(state.items()) if id(v) in wanted}
        return tuple(sorted(found.values()))

    def flatten(self, dtype: torch.dtype = torch.float64) -> Vector:
        """A copy of the weights, shape (p,), on their device."""
        device = self.parameters[0].device
        flat = torch.empty(self.size, dtype=dtype, device=device)
        for p, part in zip(self.parameters, self.split(flat), strict=True):
            part.copy_(gathered(p.detach()))
        return flat

    @torch.no_grad()
    def assign(self, vector: Vector) -> None:
        """Write a flat vector of shape (p,) into the weights, cast to their dtype."""
        for p, part in zip(self.parameters, self.cast(vector), strict=True):
            p.copy_(sharded_as(p, part))

    def again(self) -> "Scope":
        """The same weights as the module holds them now (gathered, or sharded)."""
        now = dict(self.module.named_parameters())
        return type(self)(self.module, [now[name] for name in self.names])

    def split(self, vector: Vector) -> list[Tensor]:
        """Views of a flat vector (p,) in the shapes of the weights."""
        parts = torch.split(vector, self.sizes)
        return [
            part.view(p.shape) for p, part in zip(self.parameters, parts, strict=True)
        ]

    def cast(self, vector: Vector) -> list[Tensor]:
        """A flat vector in the shapes and dtypes of the weights."""
        parts = zip(self.parameters, self.split(vector), strict=True)
        return [part.to(p.dtype) for p, part in parts]

    def dot(self, processes: Processes) -> Dot:
        """Inner product of vectors of these weights."""
        del processes  # each has them whole
        return plain_dot

    def check_finite(self) -> None:
        """Raise `ModelError` if a weight in scope is NaN or infinite."""
        _check_finite(self.names, (gathered(p.detach()) for p in self.parameters))

    def state_digest(
        self, vector: Vector, buffers: Mapping[str, Tensor] | None = None
    ) -> str:
        """`state_digest` of the module as it will be once `vector` is assigned.

        Args:
            vector: The weights (p,).
            buffers: Others that will change, by name.
        """
        cast = zip(self.parameters, self.cast(vector), strict=True)
        moved = {id(p): part for p, part in cast}
        return _digest_with(self.module, moved, buffers or {})


class Shards(Scope):
    """The weights in scope where each process holds a shard of every one (FSDP2).

    Vectors are this process's shards in a row: `size` is their length, `n_parameters`
    that of the whole.

    Raises:
        ModelError: If a weight is not sharded.
    """

    def __init__(self, module: nn.Module, parameters: Iterable[nn.Parameter]) -> None:
        super().__init__(module, parameters)
        for name, p in zip(self.names, self.parameters, strict=True):
            if not in_shards(p):
                raise ModelError(
                    f"expected weights in scope that fully_shard cuts over all "
                    f"processes, got {name}, of which several hold the same: apply "
                    "fully_shard with the mesh of all processes to the module that has "
                    "it, or leave it out of unlearning_parameters()"
                )
        self.sizes = [local(p).numel() for p in self.parameters]
        self.size = sum(self.sizes)

    def flatten(self, dtype: torch.dtype = torch.float64) -> Vector:
        """A copy of this process's shards, shape (p,), on their device."""
        return torch.cat([local(p).reshape(-1).to(dtype) for p in self.parameters])

    @torch.no_grad()
    def assign(self, vector: Vector) -> None:
        """Write a vector of shards (p,) into the weights, cast to their dtype."""
        for p, part in zip(self.parameters, self.split(vector), strict=True):
            local(p).copy_(part)

    def split(self, vector: Vector) -> list[Tensor]:
        """Views of a vector (p,) in the shapes of the shards."""
        parts = zip(self.parameters, torch.split(vector, self.sizes), strict=True)
        return [part.view(local(p).shape) for p, part in parts]

    def dot(self, processes: Processes) -> Dot:
        """Inner product of vectors of which every process holds a part."""
        return processes.dot

    def check_finite(self) -> None:
        """Raise `ModelError` if a weight of a shard here is NaN or infinite."""
        _check_finite(self.names, [local(p) for p in self.parameters])

    def state_digest(
        self, vector: Vector, buffers: Mapping[str, Tensor] | None = None
    ) -> str:
        """See `Scope.state_digest`; all processes take part."""
        moved = {
            id(p): of_shards(p, part)
            for p, part in zip(self.parameters, self.cast(vector), strict=True)
        }
        return _digest_with(self.module, moved, buffers or {})


def _check_finite(names: list[str], tensors: Iterable[Tensor]) -> None:
    for name, tensor in zip(names, tensors, strict=True):
        bad = int((~torch.isfinite(tensor)).sum())
        if bad:
            raise ModelError(
                f"expected finite weights, got {bad} NaN or infinite values in "
                f"{name}: load a checkpoint from before the training diverged"
            )


def _digest_with(
    module: nn.Module, moved: dict[int, Tensor], buffers: Mapping[str, Tensor]
) -> str:
    state = module.state_dict(keep_vars=True)
    new = {k: v.to(state[k].dtype) for k, v in buffers.items() if k in state}
    return state_digest({k: moved.get(id(v), v) for k, v in state.items()} | new)


def plain_dot(a: Vector, b: Vector) -> float:
    """Inner product of vectors that are whole."""
    return float(a @ b)
