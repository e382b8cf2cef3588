r"""Sums of products that float64 makes without any rounding.

A number t with |t| <= 1 is cut into three slices of 20 bits,
``t = s_1 2^-20 + s_2 2^-40 + s_3 2^-60 + rho``, where every s is an integer,
``|s_1| <= 2^20``, ``|s_2|, |s_3| <= 2^19`` and ``|rho| <= 2^-61``. Every operation of
that is exact in float64: scaling by powers of two, rounding to an integer, and the
rest that remains (a fraction of a float64 is a float64). A product of two slices is an
integer of at most 2^40, and the sum of 4,096 of them one of at most 2^52 < 2^53: a
matrix product gives it exactly, in whatever order it sums (Ozaki, Ogita, Oishi, Rump
2012, "Error-free transformations of matrix multiplication", section 3). From there on
sums are integers.

So a sum of rows does not depend on their order, and what is subtracted is gone to the
last bit: the rest is what the other rows give alone.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

#: Rows that may be summed in float64 before an integer takes the sum over.
ROWS = 4096
#: Places of 20 bits: that of the rows' number, four of products, and the last.
LIMBS = 6
#: |t - its three slices|, at most, for |t| <= 1.
CUT = 2.0**-61
_BITS, _SLICES = 20, 3


def exact_sum(parts: Iterable[Tensor], width: int, height: int) -> Tensor:
    """The sum of t t' over rows t, every entry of them less its rho.

    Args:
        parts: Rows (m, height), m <= `ROWS`, float64, entries in [-1, 1].
        width: First columns of the sum to make; its diagonal is one more.
        height: Entries of a row.

    Returns:
        (`LIMBS`, height, width + 1) int64, as `carried` leaves it: limb l counts
        ``2^(-20 (l + 1))``.
    """
    shape = LIMBS, height, width + 1
    total: Tensor | None = None
    for rows in parts:
        slices = _slices(rows)
        found = rows.new_zeros(shape, dtype=torch.int64)
        for j, left in enumerate(slices):
            for k, right in enumerate(slices[j:], j):
                products, squares = found[j + k + 1].split((width, 1), dim=1)
                part = _whole(left.T @ right[:, :width])
                products += part
                squares += _whole((left * right).sum(0))[:, None] * (1 + (k > j))
                if k > j:
                    products[:width] += part[:width].T
                    products[width:] += _whole(right[:, width:].T @ left[:, :width])
        total = carried(found if total is None else total + found)
    return torch.zeros(shape, dtype=torch.int64) if total is None else total


def carried(limbs: Tensor) -> Tensor:
    """The same numbers with every limb but the first in [-2^19, 2^19): only one way."""
    limbs = limbs.clone()
    for place in range(LIMBS - 1, 0, -1):
        high = (limbs[place] + (1 << (_BITS - 1))) >> _BITS
        limbs[place] -= high << _BITS
        limbs[place - 1] += high
    return limbs


def rounded(limbs: Tensor) -> Tensor:
    r"""The numbers as float64, each within ``gamma_16`` of itself.

    Limbs and powers of two are exact, and five additions err by ``gamma_5`` times the
    sum of the absolute terms. That is at most 3.01 times the number: beside the first
    limb that is not 0, c, all others count at most 0.500001, so that it is
    ``(|c| + 0.500001)/(|c| - 0.500001)`` at most.
    """
    total = torch.zeros_like(limbs[0], dtype=torch.float64)
    for place in range(LIMBS - 1, -1, -1):
        total += limbs[place].double() * 2.0 ** (-_BITS * (place + 1))
    return total


def _whole(numbers: Tensor) -> Tensor:
    """Integers that float64 holds, as such."""
    return numbers.to(torch.int64)


def _slices(rows: Tensor) -> list[Tensor]:
    """Integers, each as float64."""
    found = []
    for _ in range(_SLICES):
        rows = rows * 2.0**_BITS
        found.append(rows.round())
        rows = rows - found[-1]
    return found
