"""Which part a person's samples are in: a keyed hash of the id says, nothing else."""

import hashlib
import itertools
from typing import Any

from lightning_unlearn._base import validate
from lightning_unlearn._base.text import some
from lightning_unlearn.errors import ArgumentError, DataError
from lightning_unlearn.plugin.data.forget_set import people

#: Public. Another one deals the persons out anew.
KEY = b"lightning_unlearn shards"
_LONGEST = hashlib.blake2b.MAX_KEY_SIZE


def check_key(key: object) -> None:
    """Raise `ArgumentError` unless it can be the key of the hash."""
    if not (isinstance(key, bytes) and 0 < len(key) <= _LONGEST):
        got = f"{len(key)} bytes" if isinstance(key, bytes) else type(key).__name__
        raise ArgumentError(
            f"expected key= to be 1 to {_LONGEST} bytes, got {got}: keep the one that "
            "the shards were trained with"
        )


def shard_of(person: object, shards: int, key: bytes = KEY) -> int:
    """The shard of a person, 0 to shards - 1.

    It follows from the id, the key and the number of shards: not from what the samples
    are, who else is there, or who is to be forgotten.

    Args:
        person: An id; 7 and "7" are one, as in a request.
        shards: S.
        key: Public or secret, but fixed.

    Raises:
        ArgumentError: If an argument is outside its range.

    Example:
        >>> shard_of("alice", 4) == shard_of("alice", 4)
        True
    """
    validate.count(shards=shards)
    check_key(key)
    digest = hashlib.blake2b(str(person).encode(), key=key, digest_size=16).digest()
    return int.from_bytes(digest, "big") % shards


def dealt_out(dataset: Any, by: str, shards: int, key: bytes) -> list[list[int]]:
    """Positions of the samples of each shard, all of a person in one.

    Args:
        dataset: With one id for each sample.
        by: Attribute or column that holds the ids.
        shards: S.
        key: Of the hash.

    Raises:
        ForgetSetError: If the dataset has no such ids.
        DataError: If a shard would be empty.
    """
    found: list[list[int]] = [[] for _ in range(shards)]
    for position, person in enumerate(people(dataset, by)):
        found[shard_of(person, shards, key)].append(position)
    check_nobody_missing(found, f"ids by={by!r} of more people")
    return found


def check_nobody_missing(parts: list[list[int]], more: str) -> None:
    """Raise `DataError` if a part is empty.

    Args:
        parts: Positions of each.
        more: What would fill them, in words.
    """
    empty = [j for j, positions in enumerate(parts) if not positions]
    if empty:
        raise DataError(
            f"expected somebody in each of {len(parts)} parts, got nobody in "
            f"{some(empty)}: take fewer, or {more}"
        )


def stages_of(
    dataset: Any, stages: int, by: str | None = None, key: bytes = KEY
) -> list[list[int]]:
    """Split a dataset into stages, one training after the other on more of it.

    Each stage draws what those before it drew and a part of its own. Parts follow the
    order of the samples (the order in which they came). With `by` they follow a keyed
    hash of the person, all of whose samples are in one part. Both are fixed by public
    facts, whoever will be forgotten (section 10 of the theory).

    Args:
        dataset: The training dataset.
        stages: R.
        by: Attribute or column with the person of each sample; None for the order.
        key: Of the hash, up to 64 bytes: public or secret, but fixed.

    Returns:
        For each stage the positions it draws, for ``SubsetRandomSampler`` or `Subset`;
        those of the last are all.

    Raises:
        ArgumentError: If an argument is outside its range.
        ForgetSetError: If the dataset has no such ids.
        DataError: If a part would be empty.

    Example:
        >>> stages_of([0.1, 0.2, 0.3, 0.4], 2)
        [[0, 1], [0, 1, 2, 3]]
    """
    validate.count(stages=stages)
    check_key(key)
    if by is not None:
        parts = dealt_out(dataset, by, stages, key)
    else:
        n = len(dataset)
        ends = [n * k // stages for k in range(stages + 1)]
        parts = [[*range(a, b)] for a, b in itertools.pairwise(ends)]
        check_nobody_missing(parts, "a longer dataset")
    return [sorted(itertools.chain(*parts[: k + 1])) for k in range(stages)]
