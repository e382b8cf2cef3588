r"""The Gram matrix of a head's rows, from which rows are taken without a trace."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_unlearn.errors import DataError, ModelError
from lightning_unlearn.guarantee.rounding import gamma
from lightning_unlearn.step.head.convex_head import ConvexHead
from lightning_unlearn.step.head.quadratic.exact_sums import (
    CUT,
    LIMBS,
    ROWS,
    carried,
    exact_sum,
    rounded,
)
from lightning_unlearn.step.head.rows.feature_data import FeatureData

#: Rows are scaled by 2^10, 2^20, ... 2^300, by the largest entry of any: ordinary rows
#: by the first, so that the scale says nothing of them.
_RUNG, RUNGS = 10, 30
_ENTRIES = 1 << 22  # of the matrix at most: 200 MB
# Multiplications that making it may cost, as many as the factor it makes needless.
_MULTIPLICATIONS = 5e11


class Products(NamedTuple):
    """Sums over rows, in float64, and how far they may be from the exact ones.

    Args:
        A: ``sum a x x'`` (D, D).
        B: ``sum a y x'`` (K, D).
        A_error: Bound on the Frobenius norm of A less the exact one.
        B_error: The same of B.
    """

    A: Tensor
    B: Tensor
    A_error: float
    B_error: float


@dataclass(frozen=True, kw_only=True)
class Gram:
    """What a squared error needs to know of its rows: ``sum a x x'``, ``sum a y x'``.

    x has the 1 of the bias, a is the weight of the sample. Every row is brought to
    integers by itself, and integers are summed. So it depends on nothing but the rows
    that are in it: it is the same to the last bit in whatever order they came, and
    whoever was in it before.

    Args:
        limbs: See `exact_sum`; (6, D + K, D + 1) int64 on the CPU.
        counts: How many rows need which scale, (2, 30) int64: of x, of y.
        bias: Whether x has a 1.
    """

    limbs: Tensor = field(repr=False)
    counts: Tensor = field(repr=False)
    bias: bool

    @classmethod
    def of(cls, rows: FeatureData, bias: bool) -> "Gram | None":
        """That of some rows; None if a number is beyond 2^300.

        Args:
            rows: Targets (n, K), and no weights or one for each sample, (n, 1).
            bias: Whether the head has one.

        Raises:
            ModelError: If a row is not finite.
        """
        counts = _counts(rows, bias)
        if counts is None or not int(counts.sum()):
            return None
        return cls(limbs=_limbs(rows, bias, counts), counts=counts, bias=bias)

    @property
    def n(self) -> int:
        """Rows."""
        return int(self.counts[0].sum())

    @property
    def n_outputs(self) -> int:
        """K."""
        return 1 + self.limbs.shape[1] - self.limbs.shape[2]

    def without(self, rows: FeatureData) -> "Gram | None":
        """The same without some of its rows; None if it must be made anew.

        Raises:
            DataError: If it does not have so many such rows.
            ModelError: If a row is not finite.
        """
        return self._changed(rows, -1)

    def plus(self, rows: FeatureData) -> "Gram | None":
        """The same with further rows; None if it must be made anew.

        Raises:
            ModelError: If a row is not finite.
        """
        return self._changed(rows, 1)

    def _changed(self, rows: FeatureData, sign: int) -> "Gram | None":
        """None where the rows that are left have another scale than this."""
        part = _counts(rows, self.bias)
        if part is None:
            return None
        counts = self.counts + sign * part
        if bool((counts < 0).any()):
            raise DataError(
                "expected rows that are in the Gram matrix, got others: prepare again"
            )
        if _exponents(counts) != _exponents(self.counts):
            return None
        limbs = self.limbs + sign * _limbs(rows, self.bias, self.counts)
        return Gram(limbs=carried(limbs), counts=counts, bias=self.bias)

    def products(self) -> Products:
        r"""In float64, with bounds on all that rounding did to them.

        With exact sums A* and B* over the stored rows, computed rows t = fl(s x) and
        fl(s y), s = fl(sqrt a), those less rho T_, and M their exact sums (the limbs):

        * ``|A - M| <= gamma_16 |M|`` (`rounded`), so at most ``gamma_17 |A|``;
        * rho of an x is at most ``2^(e-61)``, e the scale: over all entries
          ``p_x = sqrt(n D) 2^(e-61)``, so that
          ``|M_xx - T_x' T_x| <= 2 p_x |T_x_| + p_x^2``, and
          ``|M_yx - T_y' T_x| <= p_y |T_x_| + p_x |T_y_| + p_x p_y``, where
          ``|T_x_|^2`` and ``|T_y_|^2`` are sums of squares, which M has too;
        * a square root and a product are within 2u and u (Higham 2002, section 2.2):
          an entry of ``t t'`` within ``gamma_8`` of ``a x x'``, so that
          ``|T_x' T_x - A*| <= gamma_8 sum a |x|^2``, and with the inequality of Cauchy
          ``|T_y' T_x - B*| <= gamma_8 sqrt(sum a |x|^2) sqrt(sum a |y|^2)``.

        One percent is added for products of these small terms.
        """
        n, K = self.n, self.n_outputs
        D = len(self.limbs[0]) - K
        x, y = _exponents(self.counts)
        M, squares = rounded(self.limbs).split((D, 1), dim=1)
        A, B = M[:D] * 2.0 ** (2 * x), M[D:] * 2.0 ** (x + y)
        X = float(squares[:D].sum()) ** 0.5 * 2.0**x
        Y = float(squares[D:].sum()) ** 0.5 * 2.0**y
        p_x, p_y = (n * D) ** 0.5 * 2.0**x * CUT, (n * K) ** 0.5 * 2.0**y * CUT
        A_error = gamma(17) * float(A.norm()) + 2 * p_x * X + p_x**2
        B_error = gamma(17) * float(B.norm()) + p_y * X + p_x * Y + p_x * p_y
        A_error += gamma(8) * (X + p_x) ** 2
        B_error += gamma(8) * (X + p_x) * (Y + p_y)
        return Products(A, B, 1.01 * A_error, 1.01 * B_error)


def gram_of(head: ConvexHead, rows: FeatureData) -> Gram | None:
    """The Gram matrix of a head's rows, or None where it would not serve.

    It serves a squared error whose outputs share their rows and weights. It is not made
    where it would be large, or cost more than it saves.

    Raises:
        ModelError: If a row is not finite.
    """
    if head.loss_name != "mse" or not rows.n:
        return None
    if rows.weights is not None and rows.weights.shape[1] != 1:
        return None  # every output has rows of its own
    bias = head.bias is not None
    D = head.in_features + bias
    entries = D * (D + head.out_features)
    if entries > _ENTRIES or 6 * rows.n * entries > _MULTIPLICATIONS:
        return None
    return Gram.of(rows, bias)


def _counts(rows: FeatureData, bias: bool) -> Tensor | None:
    """How many rows need which scale, of x and of y: (2, `RUNGS`) int64."""
    counts = torch.zeros((2, RUNGS), dtype=torch.int64)
    for part in _parts(rows, bias):
        D = rows.features.shape[1] + bias
        for kind, entries in enumerate((part[:, :D], part[:, D:])):
            largest = torch.frexp(entries.abs().amax(1)).exponent.long()
            rung = ((largest + _RUNG - 1) // _RUNG - 1).clamp_min(0)
            if bool((rung >= RUNGS).any()):
                return None
            counts[kind] += torch.bincount(rung, minlength=RUNGS)
    return counts


def _exponents(counts: Tensor) -> tuple[int, int]:
    """The scales e of x and of y: no entry is larger than 2^e."""
    x, y = (
        _RUNG * (1 + int(kind.nonzero().max())) if bool(kind.any()) else _RUNG
        for kind in counts
    )
    return x, y


def _limbs(rows: FeatureData, bias: bool, counts: Tensor) -> Tensor:
    """The exact sum over rows, scaled as rows of these counts are."""
    D, K = rows.features.shape[1] + bias, rows.targets.shape[1]
    x, y = _exponents(counts)
    scale = torch.tensor([2.0**-x] * D + [2.0**-y] * K, dtype=torch.float64)
    return exact_sum((T * scale for T in _parts(rows, bias)), D, D + K)


def _parts(rows: FeatureData, bias: bool) -> Iterator[Tensor]:
    """Rows sqrt(a) (x, y) in float64, some at a time, on the CPU.

    A kernel of an accelerator may make products of float64 out of others.
    """
    for part in rows.split(ROWS):
        if not part.n:
            continue
        X = part.features.cpu().double()
        one = [X.new_ones(part.n, 1)] if bias else []
        T = torch.cat([X, *one, part.targets.to(X)], dim=1)
        if part.weights is not None:
            T = T * part.weights.to(X).sqrt()
        if not bool(torch.isfinite(T).all()):
            raise ModelError(
                "expected finite features, targets and weights at the head, got NaN or "
                "infinite values: look for NaN in the data"
            )
        yield T


def check_limbs(limbs: Tensor, counts: Tensor, D: int, K: int, n: int) -> str:
    """What is wrong with the tensors of a `Gram` that was stored; "" if nothing is."""
    if limbs.dtype != torch.int64 or limbs.shape != (LIMBS, D + K, D + 1):
        return f"its Gram matrix is {limbs.dtype} of shape {tuple(limbs.shape)}"
    if counts.dtype != torch.int64 or counts.shape != (2, RUNGS):
        return f"its counts are {counts.dtype} of shape {tuple(counts.shape)}"
    if bool((counts < 0).any()) or counts.sum(1).tolist() != [n, n]:
        return f"its Gram matrix is not of {n} rows"
    return ""
