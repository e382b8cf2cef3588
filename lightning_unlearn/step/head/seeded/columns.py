"""Rows of a table, or pixels, scaled by public constants; codes as one-hot columns."""

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_unlearn._base import validate
from lightning_unlearn.errors import ArgumentError, DataError

#: A number, or one for each column (those of categories are not used).
Numbers = float | Sequence[float] | Tensor


def _exporting() -> bool:
    """Whether torch.export or the ONNX exporter looks: a graph refuses no number."""
    return getattr(torch.compiler, "is_exporting", lambda: False)()


class Columns(nn.Module):
    """Scaled rows (n, width), float32: numbers first, then one-hot categories.

    Args:
        shape: Of one sample, as it is given.
        center: Subtracted from each number (d,), float64.
        spread: What it is then divided by (d,), float64.
        categories: Column -> number of values, coded 0, 1, 2, ...
        kept_shape: Give scaled samples of this shape in place of rows.
    """

    center: Tensor
    spread: Tensor

    def __init__(
        self,
        shape: tuple[int, ...],
        center: Tensor,
        spread: Tensor,
        categories: Mapping[int, int],
        kept_shape: bool = False,
    ) -> None:
        super().__init__()
        self.shape, self.categories = shape, dict(categories)
        d = math.prod(shape)
        self.numbers = [i for i in range(d) if i not in self.categories]
        self.width = len(self.numbers) + sum(self.categories.values())
        self.kept_shape = kept_shape
        self.register_buffer("center", center)
        self.register_buffer("spread", spread)

    def forward(self, inputs: Tensor) -> Tensor:
        """Of samples (n, *shape), or flat ones (n, d), of any dtype.

        Raises:
            DataError: If they have another shape, a number is not finite, or a category
                has a code that was not stated.
        """
        x = self.doubled(inputs)
        scaled = ((x - self.center) / self.spread).float()
        if self.kept_shape:
            return scaled.reshape(-1, *self.shape)
        if not self.categories:
            return scaled
        parts = [scaled[:, self.numbers]]
        parts += [self._one_hot(x[:, i], i, k) for i, k in self.categories.items()]
        return torch.cat(parts, dim=1)

    def doubled(self, inputs: Tensor) -> Tensor:
        """The samples as rows (n, d) in float64, not yet scaled.

        Raises:
            DataError: If they have another shape, or a number is not finite.
        """
        d = math.prod(self.shape)
        shapes = self.shape, (d,)
        if not (isinstance(inputs, Tensor) and tuple(inputs.shape[1:]) in shapes):
            got = getattr(inputs, "shape", type(inputs).__name__)
            raise DataError(
                f"expected inputs of shape (n, {', '.join(map(str, self.shape))}), got "
                f"{tuple(got) if isinstance(got, torch.Size) else got}: give "
                "RandomFeatures the shape of one sample in shape="
            )
        x = inputs.reshape(-1, d).double()
        finite = x.isfinite().all(0)
        if not (_exporting() or bool(finite.all())):
            column = int((~finite).nonzero()[0])
            raise DataError(
                f"expected finite numbers, got NaN or infinite ones in column {column}:"
                " fill gaps with a public constant, beside a column that says where "
                "they were"
            )
        return x

    def _one_hot(self, codes: Tensor, column: int, count: int) -> Tensor:
        wrong = (codes != codes.round()) | (codes < 0) | (codes >= count)
        if not _exporting() and bool(wrong.any()):
            raise DataError(
                f"expected codes 0 to {count - 1} in column {column}, got "
                f"{float(codes[wrong][0]):g}: state the number of values in "
                "categories=, with one for those you have not seen"
            )
        return F.one_hot(codes.long(), count).float()


def constants(
    d: int, named: Mapping[str, Numbers | None]
) -> tuple[Tensor, Tensor, float]:
    """Center and spread (d,) of the columns, and what deviation they then have.

    Args:
        d: Columns.
        named: mean, std, low and high, or None. Numbers from low to high come to lie
            from -1 to 1.

    Raises:
        ArgumentError: If they do not fit together, or are out of range.
    """
    given = {name: _column(name, x, d) for name, x in named.items() if x is not None}
    if not given:
        return torch.zeros(d).double(), torch.ones(d).double(), 1.0
    if set(given) <= {"mean", "std"}:
        mean = given.get("mean", torch.zeros(d).double())
        std = given.get("std", torch.ones(d).double())
        if not bool((std > 0).all()):
            raise ArgumentError(
                f"expected std > 0 of every column, got {float(std.min()):g}: a column "
                "that never changes says nothing; give it 1"
            )
        return mean, std, 1.0
    if set(given) != {"low", "high"}:
        raise ArgumentError(
            f"expected mean= and std=, or low= and high=, got {', '.join(given)}: give "
            "one pair"
        )
    low, high = given["low"], given["high"]
    if not bool((low < high).all()):
        raise ArgumentError("expected low < high for every column, got another order")
    return (low + high) / 2, (high - low) / 2, 1 / math.sqrt(3)  # if spread evenly


def public_constants(
    batches: Iterable[Tensor], together: bool
) -> tuple[Tensor, Tensor]:
    """Mean and deviation of the columns of public samples.

    Args:
        batches: Rows (n, d), float64.
        together: Whether all columns share one mean and one deviation.

    Raises:
        DataError: If there are fewer than two samples.
    """
    rows = torch.cat(list(batches))
    if len(rows) < 2:
        raise DataError(
            f"expected at least 2 public samples to scale columns by, got {len(rows)}: "
            "give more in public_data=, or state mean= and std="
        )
    mean, std = rows.mean(0), rows.std(0, correction=0)
    if together:
        mean, std = rows.mean().expand_as(mean), rows.std(correction=0).expand_as(std)
    return mean.clone(), torch.where(std > 0, std, 1.0)  # a constant column is 0


def _column(name: str, value: Numbers, d: int) -> Tensor:
    try:
        found = torch.as_tensor(value, dtype=torch.float64).detach().cpu()
    except (TypeError, ValueError, RuntimeError):
        found = torch.zeros(0)
    if found.numel() not in (1, d) or not bool(found.isfinite().all()):
        raise ArgumentError(
            f"expected {name} to be a finite number, or one for each of the {d} "
            f"columns, got {value!r:.60}: state a constant that is public, such as the "
            "range of a sensor; one computed from the training samples remembers them"
        )
    return found.reshape(-1).expand(d).clone()


def checked_categories(categories: object, d: int) -> dict[int, int]:
    """Column -> number of values, in the order of the columns.

    Raises:
        ArgumentError: If a column is not there, or a number is not >= 2.
    """
    if not isinstance(categories, Mapping):
        raise ArgumentError(
            "expected categories={column: number of values}, got "
            f"{categories!r:.60}: columns are counted from 0"
        )
    for column, count in categories.items():
        validate.count(0, column=column)
        validate.count(2, **{f"values_of_column_{column}": count})
        if not column < d:
            raise ArgumentError(
                f"expected categories of columns 0 to {d - 1}, got column {column}"
            )
    return {int(i): int(categories[i]) for i in sorted(categories)}
