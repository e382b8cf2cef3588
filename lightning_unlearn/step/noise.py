r"""Gaussian noise from operating-system entropy, in float64.

No generator is seeded: every uniform comes straight from `os.urandom`, so there is
no state to store or to guess. (A `torch.Generator` on the CPU keeps only 32 bits of
its seed, which an attacker can enumerate.)
"""

import math
import os

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_unlearn._base import validate

_CHUNK = 1 << 17
_DRAWS = 4


def gaussian_noise(
    size: int, std: float, generator: torch.Generator | None = None
) -> Float[Tensor, " p"]:
    r"""Noise ``N(0, std^2 I)``, shape (size,), float64, on the CPU.

    Each value is the scaled sum of four independent Gaussians by Box-Muller from
    52-bit uniforms, against floating-point attacks on a single draw (Mironov 2012;
    Holohan & Braghin 2021, arXiv 2107.10138).

    Args:
        size: Number of values.
        std: Standard deviation of each, >= 0.
        generator: For tests only. Its noise can be drawn again, so a certificate
            with it has grade ``none``.

    Returns:
        The noise.

    Raises:
        ArgumentError: If std is negative or not finite, or size is not >= 1.
    """
    validate.count(size=size)
    validate.non_negative(std=std)
    return add_noise(torch.zeros(size, dtype=torch.float64), std, generator)


def add_noise(
    vector: Float[Tensor, " p"], std: float, generator: torch.Generator | None = None
) -> Float[Tensor, " p"]:
    """Add `gaussian_noise` to a vector in place, a part at a time.

    Args:
        vector: On any device; sums are made in float64 and cast to its dtype once.
        std: As for `gaussian_noise`.
        generator: As for `gaussian_noise`.

    Returns:
        The vector.
    """
    validate.non_negative(std=std)
    for part in vector.split(_CHUNK) if len(vector) else ():  # a shard may be empty
        draws = _standard_normal(_DRAWS * len(part), generator).view(_DRAWS, -1)
        noise = draws.sum(0) * (std / math.sqrt(_DRAWS))
        part.copy_(part.to("cpu", torch.float64) + noise)
    return vector


def _standard_normal(count: int, generator: torch.Generator | None) -> Tensor:
    half = (count + 1) // 2
    uniform = _uniform(2 * half, generator)
    radius = torch.sqrt(-2 * torch.log(uniform[:half]))
    angle = 2 * math.pi * uniform[half:]
    return torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)])[:count]


def _uniform(count: int, generator: torch.Generator | None) -> Tensor:
    """Uniforms strictly inside (0, 1): odd multiples of 2^-53, each exact."""
    if generator is None:
        raw = torch.frombuffer(bytearray(os.urandom(8 * count)), dtype=torch.int64)
        integers = raw.bitwise_and((1 << 52) - 1)
    else:
        integers = torch.randint(1 << 52, (count,), generator=generator)
    return (integers.to(torch.float64) + 0.5) * 2.0**-52
