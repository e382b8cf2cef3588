"""Validation of numbers, written so that NaN always fails."""

import math
from collections.abc import Collection
from numbers import Integral, Real

from lightning_unlearn.errors import ArgumentError


def _is_real(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def positive(**named: object) -> None:
    """Raise `ArgumentError` unless every value is a finite number > 0."""
    for name, value in named.items():
        if not (_is_real(value) and 0 < value < math.inf):  # type: ignore[operator]
            raise ArgumentError(
                f"expected {name} to be a finite number > 0, got {name}={value!r}"
            )


def non_negative(**named: object) -> None:
    """Raise `ArgumentError` unless every value is a finite number >= 0."""
    for name, value in named.items():
        if not (_is_real(value) and 0 <= value < math.inf):  # type: ignore[operator]
            raise ArgumentError(
                f"expected {name} to be a finite number >= 0, got {name}={value!r}"
            )


def finite(**named: object) -> None:
    """Raise `ArgumentError` unless every value is a finite number."""
    for name, value in named.items():
        if not (_is_real(value) and math.isfinite(value)):  # type: ignore[arg-type]
            raise ArgumentError(
                f"expected {name} to be a finite number, got {name}={value!r}"
            )


def probability(**named: object) -> None:
    """Raise `ArgumentError` unless every value lies strictly in (0, 1)."""
    for name, value in named.items():
        if not (_is_real(value) and 0 < value < 1):  # type: ignore[operator]
            raise ArgumentError(
                f"expected {name} strictly between 0 and 1, got {name}={value!r}"
            )


def probability_or_zero(**named: object) -> None:
    """Raise `ArgumentError` unless every value lies in [0, 1)."""
    for name, value in named.items():
        if not (_is_real(value) and 0 <= value < 1):  # type: ignore[operator]
            raise ArgumentError(
                f"expected {name} to be 0 or strictly between 0 and 1, got "
                f"{name}={value!r}"
            )


def count(minimum: int = 1, **named: object) -> None:
    """Raise `ArgumentError` unless every value is an integer >= minimum."""
    for name, value in named.items():
        ok = isinstance(value, Integral) and not isinstance(value, bool)
        if not (ok and value >= minimum):  # type: ignore[operator]
            raise ArgumentError(
                f"expected {name} to be an integer >= {minimum}, got {name}={value!r}"
            )


def one_of(allowed: Collection[object], **named: object) -> None:
    """Raise `ArgumentError` unless every value is in `allowed`."""
    for name, value in named.items():
        if value not in allowed:
            names = ", ".join(repr(a) for a in allowed)
            raise ArgumentError(f"expected {name} to be one of {names}, got {value!r}")
