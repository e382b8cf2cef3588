"""Strict JSON: dataclasses to plain values and back, every type checked by its hint."""

import dataclasses
import enum
import functools
import hashlib
import json
import math
import reprlib
import types
import typing
from collections.abc import Callable
from typing import Any, TypeVar

from lightning_unlearn._base.text import is_unicode
from lightning_unlearn.errors import UnlearningError

MAX_CHARS = 10_000_000
_T = TypeVar("_T")
_ALTERED = (
    "it was altered, or written by another version; use it as it was first written"
)
_SIMPLE = {int: (int,), float: (int, float), str: (str,), bool: (bool,)}


def canonical_digest(plain: dict[str, Any]) -> str:
    """SHA-256 of the canonical JSON of a plain dictionary."""
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def unique(
    twice: Callable[[list[str]], UnlearningError],
) -> Callable[[list[tuple[str, Any]]], dict[str, Any]]:
    """A hook for `json.loads` that refuses an object with a key written twice.

    Args:
        twice: Keys of such an object -> the error.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise twice([key for key, _ in pairs])
        return found

    return once


def strict_object(
    text: str, error: type[UnlearningError], what: str, most: int = MAX_CHARS
) -> dict[str, Any]:
    """Parse one JSON object: no NaN, no repeated field, no unbounded size or depth.

    Args:
        text: The JSON text.
        error: Raised, with what was expected and got, if it is anything else.
        what: Named in the message, such as "a certificate".
        most: Characters.

    Returns:
        The object.
    """
    if len(text) > most:
        raise error(f"expected {what} of at most {most} characters: {len(text)}")

    def refuse(constant: str) -> float:
        raise error(f"expected finite numbers in {what}, got {constant}")

    def twice(keys: list[str]) -> UnlearningError:
        return error(f"a field is written twice in {what}, among {sorted(keys)}")

    def number(digits: str) -> float:
        value = float(digits)
        return value if math.isfinite(value) else refuse(digits[:20])

    def integer(digits: str) -> int:
        if len(digits) > 18:
            raise error(f"expected ordinary numbers in {what}, got {digits[:20]}...")
        return int(digits)

    try:
        plain = json.loads(
            text,
            parse_constant=refuse,
            parse_float=number,
            parse_int=integer,
            object_pairs_hook=unique(twice),
        )
    except (ValueError, RecursionError) as problem:
        if isinstance(problem, error):
            raise
        raise error(f"expected {what} as JSON: {problem}") from None
    if not isinstance(plain, dict):
        raise error(f"expected {what} as a JSON object, got {type(plain).__name__}")
    return plain


def to_plain(value: Any) -> Any:
    """A dataclass as JSON has it: dictionaries, lists, and the values of enums."""
    if dataclasses.is_dataclass(value):
        fields = dataclasses.fields(value)
        return {f.name: to_plain(getattr(value, f.name)) for f in fields}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, (list, tuple)):
        return [to_plain(v) for v in value]
    return value


def from_plain(
    cls: type[_T],
    plain: Any,
    error: type[UnlearningError],
    what: str,
    may_lack: frozenset[str] = frozenset(),
) -> _T:
    """Make a dataclass of what `to_plain` gives; anyone may have written it.

    Fields must be those of the class, and each of the type its hint says: int, float,
    str, bool, an enum, another dataclass, or lists, tuples, dictionaries and
    ``| None`` of them. A float may be written as an int; text must be valid Unicode.

    Args:
        cls: The dataclass.
        plain: A dictionary.
        error: Raised, with what was expected and got.
        what: Named in the message, such as "a certificate".
        may_lack: Fields, also of dataclasses inside, that older files do not have:
            they get their defaults.

    Returns:
        The instance; what its own ``__post_init__`` raises is raised.
    """
    hints = _hints(cls)
    if not isinstance(plain, dict) or not {*hints} - may_lack <= {*plain} <= {*hints}:
        got = sorted(map(str, plain)) if isinstance(plain, dict) else type(plain)
        raise error(
            f"expected the fields {sorted(hints)} in {what}, got {got!s:.400}: "
            f"{_ALTERED}"
        )
    return cls(
        **{
            name: _typed(hints[name], value, error, f"{name} in {what}", may_lack)
            for name, value in plain.items()
        }
    )


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _typed(
    kind: Any,
    value: Any,
    error: type[UnlearningError],
    where: str,
    may_lack: frozenset[str],
) -> Any:
    """A value as its type hint says, or the error."""

    def typed(kind: Any, value: Any) -> Any:
        return _typed(kind, value, error, where, may_lack)

    origin, inside = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in inside:
            return None
        (kind,) = [option for option in inside if option is not type(None)]
        return typed(kind, value)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return from_plain(kind, value, error, where, may_lack)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        if value in [member.value for member in kind]:
            return kind(value)
    elif kind in _SIMPLE:
        known = isinstance(value, _SIMPLE[kind])
        written = not isinstance(value, str) or is_unicode(value)
        if known and isinstance(value, bool) == (kind is bool) and written:
            return value
    elif origin is dict and isinstance(value, dict):
        return {typed(inside[0], k): typed(inside[1], v) for k, v in value.items()}
    elif origin in (list, tuple) and isinstance(value, (list, tuple)):
        each = inside
        if origin is list or inside[1:] == (...,):
            each = inside[:1] * len(value)
        if len(each) == len(value):
            pairs = zip(each, value, strict=True)
            return origin(typed(k, v) for k, v in pairs)
    name = getattr(kind, "__name__", "") if origin is None else str(kind)
    raise error(f"expected {where} to be {name}, got {reprlib.repr(value)}: {_ALTERED}")
