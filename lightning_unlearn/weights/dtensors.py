"""Tensors in shards of several processes (FSDP2's DTensor)."""

import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate


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


def gathered(tensor: Tensor) -> Tensor:
    """A tensor in one piece; one that is sharded is gathered from all processes."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def sharded_as(like: Tensor, tensor: Tensor) -> Tensor:
    """This process's part of a whole tensor, sharded as another one is, if it is."""
    if not isinstance(like, DTensor):
        return tensor
    mesh = like.device_mesh
    everywhere = DTensor.from_local(tensor, mesh, [Replicate()] * mesh.ndim)
    return everywhere.redistribute(placements=like.placements)
