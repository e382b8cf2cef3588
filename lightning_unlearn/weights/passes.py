"""The state every pass runs in, put back whatever happens."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parameter import is_lazy

from lightning_unlearn._base.modes import modes_put_back
from lightning_unlearn.errors import ModelError
from lightning_unlearn.weights.dtensors import sharded_as
from lightning_unlearn.weights.precision import full_float32
from lightning_unlearn.weights.scope import Scope


def held(module: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer by name, whatever ``state_dict`` leaves out."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def copies(module: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters and buffers, for `put_back`."""
    return {name: t.detach().clone() for name, t in held(module).items()}


@torch.no_grad()
def put_back(module: nn.Module, before: Mapping[str, Tensor]) -> None:
    """Write copies into a module, which may hold shards where they were whole.

    A buffer may have another length since: a list that a checkpoint brought.
    """
    for name, tensor in held(module).items():
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
    to them, the module has its own tensors back at the end, whatever happens. Hooks on
    gradients are lifted and gradients of embeddings are dense: F is the loss. Shards
    stay what they are (FSDP holds on to them): no pass can change them.
    """
    grads = {p: p.requires_grad for p in module.parameters()}
    held = [*module.parameters(), *module.buffers()]
    tensors = [t for t in held if not isinstance(t, DTensor)]
    originals = [t.data for t in tensors]
    with ExitStack() as stack:
        stack.enter_context(modes_put_back(module))
        stack.enter_context(_plain_gradients(module, tensors))
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


@contextmanager
def _plain_gradients(module: nn.Module, tensors: list[Tensor]) -> Iterator[None]:
    """Without what changes gradients on their way, or makes them sparse."""
    hooked = [(t, t._backward_hooks) for t in tensors if t._backward_hooks]
    dicts: list[dict[int, Any]] = [
        hooks
        for part in module.modules()
        for hooks in (part._backward_hooks, part._backward_pre_hooks)
        if hooks
    ]
    kept = [dict(hooks) for hooks in dicts]
    sparse: list[Any] = [
        part for part in module.modules() if getattr(part, "sparse", None) is True
    ]
    try:
        for t, _ in hooked:
            t._backward_hooks = None
        for hooks in dicts:
            hooks.clear()
        for part in sparse:
            part.sparse = False
        yield
    finally:
        for t, hooks in hooked:
            t._backward_hooks = hooks
        for hooks, before in zip(dicts, kept, strict=True):
            hooks.update(before)
        for part in sparse:
            part.sparse = True


def hooked_weights(scope: Scope) -> list[str]:
    """Names of weights in scope whose gradients are changed by hooks."""
    pairs = zip(scope.names, scope.parameters, strict=True)
    return [name for name, p in pairs if p._backward_hooks]


def check_ordinary(module: nn.Module) -> None:
    """Raise `ModelError` for tensors of which no gradient or copy can be taken.

    Args:
        module: Before a training, or a request.
    """
    for name, tensor in held(module).items():
        if is_lazy(tensor):
            raise ModelError(
                f"expected weights that have a size, got {name!r} of a lazy layer that "
                "was never called: run the module once on a batch, such as model(x), "
                "before fit, and before a request in a fresh process"
            )
        if tensor.is_inference():
            raise ModelError(
                f"expected ordinary tensors, got {name!r}, made under "
                "torch.inference_mode(), which no gradient can be taken of: make the "
                "module outside of it, or module.load_state_dict into one that was"
            )


def _restore(
    grads: dict[nn.Parameter, bool],
    tensors: list[Tensor],
    originals: list[Tensor],
) -> None:
    for t, original in zip(tensors, originals, strict=True):
        t.data = original
    for p, requires_grad in grads.items():
        p.requires_grad_(requires_grad)
