"""A Merkle tree (RFC 6962, section 2.1): one hash that commits to many.

Leaf and inner hashes are kept apart, and the way from a leaf to the root is fixed by
its place and the number of leaves: so no more leaves can be opened than there are.
"""

import hashlib
from collections.abc import Sequence


def leaf(content: bytes) -> bytes:
    """The hash of a leaf."""
    return hashlib.sha256(b"\0" + content).digest()


def root(leaves: Sequence[bytes]) -> bytes:
    """The hash that commits to all leaves, of which there is at least one."""
    if len(leaves) == 1:
        return leaves[0]
    k = _left(len(leaves))
    return _inner(root(leaves[:k]), root(leaves[k:]))


def path(leaves: Sequence[bytes], place: int) -> list[bytes]:
    """The hashes beside the way from the leaf at a place to the root."""
    if len(leaves) == 1:
        return []
    k = _left(len(leaves))
    if place < k:
        return [*path(leaves[:k], place), root(leaves[k:])]
    return [*path(leaves[k:], place - k), root(leaves[:k])]


def paths(leaves: Sequence[bytes]) -> list[list[bytes]]:
    """The `path` of every leaf; each hash is computed once."""
    return _root_and_paths(leaves)[1]


def _root_and_paths(leaves: Sequence[bytes]) -> tuple[bytes, list[list[bytes]]]:
    if len(leaves) == 1:
        return leaves[0], [[]]
    k = _left(len(leaves))
    left, on_the_left = _root_and_paths(leaves[:k])
    right, on_the_right = _root_and_paths(leaves[k:])
    for way in on_the_left:
        way.append(right)
    for way in on_the_right:
        way.append(left)
    return _inner(left, right), [*on_the_left, *on_the_right]


def climb(leaf: bytes, place: int, n: int, path: Sequence[bytes]) -> bytes | None:
    """The root that a leaf and its path lead to.

    Args:
        leaf: Its hash.
        place: From 0 on.
        n: Number of leaves.
        path: Of `path`.

    Returns:
        The root, or None if no leaf of n has such a place or path.
    """
    if not 0 <= place < n or bool(path) != (n > 1):
        return None
    if n == 1:
        return leaf
    k = _left(n)
    on_the_left = place < k
    below = (place, k) if on_the_left else (place - k, n - k)
    found = climb(leaf, *below, path[:-1])
    if found is None:
        return None
    return _inner(found, path[-1]) if on_the_left else _inner(path[-1], found)


def _left(n: int) -> int:
    """How many of n leaves are on the left: the largest power of two below n."""
    return 1 << ((n - 1).bit_length() - 1)


def _inner(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\1" + left + right).digest()
