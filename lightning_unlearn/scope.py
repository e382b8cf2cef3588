"""The weights in scope as one flat vector, and the state every pass runs in."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_unlearn.errors import ModelError
from lightning_unlearn.precision import full_float32
from lightning_unlearn.processes import Processes

Vector = Float[Tensor, " p"]
Dot = Callable[[Vector, Vector], float]
_HASHED = 1 << 24  # bytes copied at once


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

    def flatten(self, dtype: torch.dtype = torch.float64) -> Vector:
        """A copy of the weights, shape (p,), on their device."""
        device = self.parameters[0].device
        flat = torch.empty(self.size, dtype=dtype, device=device)
        for p, part in zip(self.parameters, self.split(flat), strict=True):
            part.copy_(whole(p.detach()))
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
        _check_finite(self.names, (whole(p.detach()) for p in self.parameters))

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


def in_shards(tensor: Tensor) -> bool:
    """Whether every element of a tensor lies in exactly one of all processes."""
    return (
        isinstance(tensor, DTensor)
        and all(placement.is_shard() for placement in tensor.placements)
        and tensor.device_mesh.size() == dist.get_world_size()
    )


def local(tensor: Tensor) -> Tensor:
    """This process's shard of a tensor, sharing its memory, without a gradient."""
    detached = tensor.detach()
    return detached.to_local() if isinstance(detached, DTensor) else detached


def of_shards(like: Tensor, part: Tensor) -> Tensor:
    """A tensor sharded as another one is, made of the shards of all processes."""
    assert isinstance(like, DTensor)  # Shards checks it
    return DTensor.from_local(
        part,
        like.device_mesh,
        like.placements,
        run_check=False,
        shape=like.shape,
        stride=like.stride(),
    )


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


def whole(tensor: Tensor) -> Tensor:
    """A tensor in one piece; one that is sharded is gathered from all processes."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def sharded_as(like: Tensor, tensor: Tensor) -> Tensor:
    """This process's part of a whole tensor, sharded as another one is, if it is."""
    if not isinstance(like, DTensor):
        return tensor
    mesh = like.device_mesh
    everywhere = DTensor.from_local(tensor, mesh, [Replicate()] * mesh.ndim)
    return everywhere.redistribute(placements=like.placements)


def tensors_digest(named: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of tensors, in order."""
    sha = hashlib.sha256()
    for name, tensor in named:
        data = whole(tensor.detach()).cpu().contiguous()
        sha.update(f"{name}|{data.dtype}|{tuple(data.shape)}|".encode())
        for part in data.reshape(-1).view(torch.uint8).split(_HASHED):
            # A copy: FSDP could not free what numpy has seen.
            sha.update(part.clone().numpy().data)
    return sha.hexdigest()


def state_digest(state: Mapping[str, object]) -> str:
    """SHA-256 of every tensor of a ``state_dict``, by name."""
    return tensors_digest(
        (name, value)
        for name, value in sorted(state.items())
        if isinstance(value, Tensor)
    )


def _held(module: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer by name, whatever ``state_dict`` leaves out."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def copies(module: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters and buffers, for `put_back`."""
    return {name: t.detach().clone() for name, t in _held(module).items()}


@torch.no_grad()
def put_back(module: nn.Module, before: Mapping[str, Tensor]) -> None:
    """Write copies into a module, which may hold shards where they were whole."""
    for name, tensor in _held(module).items():
        if name in before and not before[name].is_meta:
            old = before[name]
            tensor.copy_(old if isinstance(old, DTensor) else sharded_as(tensor, old))


@contextmanager
def passes(module: nn.Module, scope: Scope, dtype: torch.dtype) -> Iterator[None]:
    """Run passes over the data so that every one sees the same function of w.

    Eval mode, no autocast, no TensorFloat-32, the math attention kernel (flash kernels
    have no second derivative), eager execution, gradients on for the weights in scope
    and for them alone. Weights and buffers are copies in `dtype`: whatever a pass does
    to them, the module has its own tensors back at the end, whatever happens. Shards
    stay what they are (FSDP holds on to them): no pass can change them.
    """
    modes = {m: m.training for m in module.modules()}
    grads = {p: p.requires_grad for p in module.parameters()}
    held = [*module.parameters(), *module.buffers()]
    tensors = [t for t in held if not isinstance(t, DTensor)]
    originals = [t.data for t in tensors]
    with ExitStack() as stack:
        stack.callback(_restore, modes, grads, tensors, originals)
        in_scope = {id(p) for p in scope.parameters}
        module.eval()
        for p in grads:
            p.requires_grad_(id(p) in in_scope)
        for t in tensors:
            t.data = t.data.to(dtype if t.is_floating_point() else t.dtype, copy=True)
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for device in {t.device.type for t in held} | {"cpu"}:
            stack.enter_context(torch.autocast(device, enabled=False))
        stack.enter_context(full_float32())
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield


def _restore(
    modes: dict[nn.Module, bool],
    grads: dict[nn.Parameter, bool],
    tensors: list[Tensor],
    originals: list[Tensor],
) -> None:
    for t, original in zip(tensors, originals, strict=True):
        t.data = original
    for p, requires_grad in grads.items():
        p.requires_grad_(requires_grad)
    for m, training in modes.items():
        m.training = training
