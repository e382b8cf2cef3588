"""The state every pass runs in, put back whatever happens."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_unlearn._base.modes import modes_put_back
from lightning_unlearn.weights.dtensors import sharded_as
from lightning_unlearn.weights.precision import full_float32
from lightning_unlearn.weights.scope import Scope


def _held(module: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer by name, whatever ``state_dict`` leaves out."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def copies(module: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters and buffers, for `put_back`."""
    return {name: t.detach().clone() for name, t in _held(module).items()}


@torch.no_grad()
def put_back(module: nn.Module, before: Mapping[str, Tensor]) -> None:
    """Write copies into a module, which may hold shards where they were whole.

    A buffer may have another length since: a list that a checkpoint brought.
    """
    for name, tensor in _held(module).items():
        if name in before and not before[name].is_meta:
            old = before[name]
            if not isinstance(tensor, DTensor) and tensor.shape != old.shape:
                tensor.data = torch.empty_like(old, device=tensor.device)
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
    grads = {p: p.requires_grad for p in module.parameters()}
    held = [*module.parameters(), *module.buffers()]
    tensors = [t for t in held if not isinstance(t, DTensor)]
    originals = [t.data for t in tensors]
    with ExitStack() as stack:
        stack.enter_context(modes_put_back(module))
        stack.callback(_restore, grads, tensors, originals)
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
    grads: dict[nn.Parameter, bool],
    tensors: list[Tensor],
    originals: list[Tensor],
) -> None:
    for t, original in zip(tensors, originals, strict=True):
        t.data = original
    for p, requires_grad in grads.items():
        p.requires_grad_(requires_grad)
