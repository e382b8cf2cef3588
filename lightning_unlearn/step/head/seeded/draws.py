"""Gaussian numbers that follow from a seed, the same on every machine."""

import hashlib
import math

import torch
from torch import Tensor

_GRID = 2.0**20  # what is left of a last bit that differs between machines


def normals(seed: int, what: str, *shape: int) -> Tensor:
    """Standard normal numbers of this shape, float32, from a public seed.

    SHAKE-256 of ``lightning_unlearn {what} {seed}`` gives 8 bytes a number, little
    endian, whose upper 53 bits are a uniform one; the first half of them (u) and the
    second (v) give ``sqrt(-2 log(1 - u))`` times cos and then sin of ``2 pi v``
    (Box-Muller, float64), rounded to multiples of 2^-20. No generator of torch is
    involved: its streams are not promised to stay the same between versions.

    Args:
        seed: Any integer.
        what: Name of what is drawn, so that two draws differ.
        shape: Of the tensor.
    """
    count = math.prod(shape)
    half = -(-count // 2)
    text = f"lightning_unlearn {what} {seed}".encode()
    data = bytearray(hashlib.shake_256(text).digest(16 * half))
    bits = torch.frombuffer(data, dtype=torch.int64) if half else torch.zeros(0)
    u, v = ((bits >> 11) & (2**53 - 1)).double().mul(2.0**-53).split(half)
    radius, angle = (-2 * torch.log1p(-u)).sqrt(), 2 * math.pi * v
    found = torch.cat([radius * angle.cos(), radius * angle.sin()])[:count]
    return ((found * _GRID).round() / _GRID).float().reshape(shape)
