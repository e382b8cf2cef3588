"""Strict JSON records with a digest: what a certificate and a ledger are made of."""

import hashlib
import json
import math
from collections.abc import Callable
from typing import Any

from lightning_unlearn.errors import UnlearningError

MAX_CHARS = 10_000_000


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


def strict_object(text: str, error: type[UnlearningError], what: str) -> dict[str, Any]:
    """Parse one JSON object: no NaN, no repeated field, no unbounded size or depth.

    Args:
        text: The JSON text.
        error: Raised, with what was expected and got, if it is anything else.
        what: Named in the message, such as "a certificate".

    Returns:
        The object.
    """
    if len(text) > MAX_CHARS:
        raise error(f"expected {what} of at most {MAX_CHARS} characters: {len(text)}")

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
