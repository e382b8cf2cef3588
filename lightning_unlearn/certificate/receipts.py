"""Receipts: that a certificate speaks of a certain sample, shown to one person alone.

A certificate carries one number, the root of a hash tree over its forgotten samples
(`certificate.merkle`). A receipt opens one leaf of it. At most ``n_forget`` receipts
can fit a certificate, and without a leaf's salt nobody can test guesses of it.
"""

import json
import re
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from lightning_unlearn._base.strict_json import from_plain, strict_object
from lightning_unlearn.certificate import merkle
from lightning_unlearn.errors import CertificateError

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Leaf:
    """One forgotten sample, and the salt that hides it.

    Args:
        position: In the training dataset.
        person: The id it was asked for by, or None.
        sample: SHA-256 of what the dataset returns there (`sample_digest`), or None
            if it cannot be hashed or differs between two reads.
        salt: 64 random hexadecimal digits.
    """

    position: int
    person: str | None
    sample: str | None
    salt: str

    @property
    def digest(self) -> bytes:
        """What stands in the tree."""
        told = [self.position, self.person, self.sample]
        salt = bytes.fromhex(self.salt)
        return merkle.leaf(salt + json.dumps(told).encode())


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """For the person a sample is of: opens one leaf of a certificate's commitment.

    Args:
        request_id: Of the certificate.
        place: Of the leaf among all of them, from 0 on; random.
        leaf: The sample.
        path: Hashes beside the way from the leaf to the root, hexadecimal.
        schema: Number of this format.
    """

    request_id: str
    place: int
    leaf: Leaf
    path: tuple[str, ...]
    schema: int = SCHEMA

    def to_json(self) -> str:
        """The receipt as one line of JSON."""
        return json.dumps(asdict(self)) + "\n"

    def check(self, request_id: str, commitment: str | None, n_forget: int) -> None:
        """Raise unless a certificate commits to this sample.

        Args:
            request_id: Of the certificate.
            commitment: Its root.
            n_forget: Its number of forgotten samples.

        Raises:
            CertificateError: If it does not.
        """
        if commitment is None:
            raise CertificateError(
                "expected a certificate that commits to its samples, got one from "
                "before there were receipts"
            )
        if self.request_id != request_id:
            raise CertificateError(
                f"expected a receipt of request {request_id}, got one of "
                f"{self.request_id}: it belongs to another certificate"
            )
        path = [bytes.fromhex(step) for step in self.path]
        found = merkle.climb(self.leaf.digest, self.place, n_forget, path)
        if found is None or found.hex() != commitment:
            raise CertificateError(
                "expected a receipt that opens the certificate's commitment, got one "
                "that does not: it was altered, or the sample is not among those "
                "forgotten"
            )


def leaves(samples: Iterable[tuple[int, str | None, str | None]]) -> tuple[Leaf, ...]:
    """Leaves with new salts, in random order: a place tells nothing.

    Args:
        samples: (position, person, digest) of every forgotten sample.
    """
    made = [
        Leaf(position=at, person=person, sample=digest, salt=secrets.token_hex(32))
        for at, person, digest in samples
    ]
    secrets.SystemRandom().shuffle(made)
    return tuple(made)


def root(made: Sequence[Leaf]) -> str:
    """The commitment to all leaves, hexadecimal."""
    return merkle.root([leaf.digest for leaf in made]).hex()


def receipt(made: Sequence[Leaf], place: int, request_id: str) -> Receipt:
    """The receipt for the leaf at a place."""
    path = merkle.path([leaf.digest for leaf in made], place)
    return Receipt(
        request_id=request_id,
        place=place,
        leaf=made[place],
        path=tuple(step.hex() for step in path),
    )


def all_receipts(made: Sequence[Leaf], request_id: str) -> tuple[Receipt, ...]:
    """The receipts for all leaves, by their places."""
    ways = merkle.paths([leaf.digest for leaf in made])
    return tuple(
        Receipt(
            request_id=request_id,
            place=place,
            leaf=leaf,
            path=tuple(step.hex() for step in way),
        )
        for place, (leaf, way) in enumerate(zip(made, ways, strict=True))
    )


def to_text(made: Sequence[Leaf], request_id: str) -> str:
    """All leaves as JSON lines, for who hands out receipts. As secret as the data."""
    head = {"schema": SCHEMA, "request_id": request_id, "leaves": len(made)}
    lines = [head, *(asdict(leaf) for leaf in made)]
    return "".join(json.dumps(line) + "\n" for line in lines)


def from_text(text: str) -> tuple[tuple[Leaf, ...], str]:
    """(leaves, request_id) of `to_text`.

    Raises:
        CertificateError: If it is not such a text, or was cut off.
    """
    what = "a file of receipts"
    first, *lines = text.splitlines() or [""]
    head = strict_object(first, CertificateError, what)
    known = {"schema": SCHEMA, "leaves": len(lines)}
    request_id = head.pop("request_id", None)
    if head != known or not isinstance(request_id, str):
        raise CertificateError(
            f"expected {what} with {known} in its first line, got {head!s:.100}: it "
            "was cut off, or is another file"
        )
    return tuple(_leaf(line, what) for line in lines), request_id


def read_receipts(text: str) -> tuple[Receipt, ...]:
    """Receipts, one a line.

    Raises:
        CertificateError: If there is none, or one is malformed.
    """
    what = "a receipt"
    found = []
    for line in text.splitlines():
        plain = strict_object(line, CertificateError, what)
        made = from_plain(Receipt, plain, CertificateError, what)
        _check_hex([made.leaf.salt, *made.path], what)
        found.append(made)
    if not found or any(r.schema != SCHEMA for r in found):
        raise CertificateError(
            f"expected receipts of schema {SCHEMA}, got {len(found)} lines of others"
        )
    return tuple(found)


def chosen(
    made: Sequence[Leaf], persons: Sequence[str], positions: Sequence[int]
) -> list[int]:
    """Places of the leaves that are a person's, or at certain positions.

    Raises:
        CertificateError: If one that is named has none.
    """
    known = {leaf.person for leaf in made}, {leaf.position for leaf in made}
    missing = [p for p in persons if p not in known[0]]
    missing += [str(p) for p in positions if p not in known[1]]
    if missing:
        raise CertificateError(
            f"expected people or positions of this request, got {missing[0]!r:.60}: it "
            "has no receipt here (people are known by name only if the request named "
            "them with by=)"
        )
    return [
        place
        for place, leaf in enumerate(made)
        if leaf.person in persons or leaf.position in positions
    ]


def receipts_path(checkpoint: Path) -> Path:
    """Where the receipts of a clean checkpoint stand: ``clean.receipts.jsonl``."""
    return checkpoint.with_name(f"{checkpoint.stem}.receipts.jsonl")


def _leaf(line: str, what: str) -> Leaf:
    plain = strict_object(line, CertificateError, what)
    leaf = from_plain(Leaf, plain, CertificateError, what)
    _check_hex([leaf.salt], what)
    return leaf


def _check_hex(numbers: Iterable[str], what: str) -> None:
    for number in numbers:
        if not re.fullmatch("[0-9a-f]{64}", number):
            raise CertificateError(
                f"expected 64 hexadecimal digits in {what}, got {number!r:.80}: it was "
                "altered"
            )
