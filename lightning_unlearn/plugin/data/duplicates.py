"""Exact copies of forgotten samples among those that are retained."""

from typing import Any

from lightning_unlearn.errors import DataError
from lightning_unlearn.plugin.data.training_data import sample_digest


def find(dataset: Any, chosen: list[int], retained: list[int]) -> tuple[int, ...]:
    """Positions of retained samples whose whole content is that of a forgotten one.

    Inputs, targets and whatever else a sample holds are compared, by SHA-256. Every
    sample is read once, a forgotten one twice. A request does not remove them: ask
    again with them in the forget set if they are to go too.

    Args:
        dataset: The training dataset.
        chosen: Positions to forget.
        retained: Positions that stay.

    Returns:
        Sorted positions.

    Raises:
        DataError: If samples cannot be compared.
    """
    wanted, again = ([_digest(dataset, i) for i in chosen] for _ in range(2))
    if wanted != again:
        raise DataError(
            "expected samples that are the same at every read with find_duplicates="
            "True, got random ones: leave it out, or compare the stored samples"
        )
    known = set(wanted)
    return tuple(i for i in retained if _digest(dataset, i) in known)


def _digest(dataset: Any, position: int) -> str:
    digest = sample_digest(dataset[position])
    if digest is None:
        raise DataError(
            f"expected samples of tensors, arrays, images, text and numbers with "
            f"find_duplicates=True, got something else at position {position}: leave "
            "it out"
        )
    return digest
