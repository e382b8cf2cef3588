"""The pending requests of a file -> positions in the training dataset, row by row."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_warn

from lightning_unlearn._base.text import printable, some
from lightning_unlearn.certificate.certificate import Certificate
from lightning_unlearn.certificate.inbox.answers import Answer, Answers
from lightning_unlearn.certificate.inbox.inbox import Inbox, Row, overdue_text
from lightning_unlearn.certificate.receipts import Leaf
from lightning_unlearn.errors import ForgetSetError, SetupError
from lightning_unlearn.plugin.data import forget_set
from lightning_unlearn.plugin.data.forget_set import Hook

_MOST = 300  # characters of a reason


class NothingPendingError(ForgetSetError):
    """No request in the file is pending: there is nothing to do."""


@dataclass(frozen=True, kw_only=True)
class Pending:
    """The pending requests of a file, looked up in the training data.

    Args:
        path: Of the file.
        rows: In the order in which they are due.
        found: Id of a request -> positions to forget.
        refused: Id of a request -> why it cannot be done.
        never: Samples of people in `found` that the training never drew.
        salt: Of the digests of what was asked for.
    """

    path: Path
    rows: tuple[Row, ...]
    found: dict[str, tuple[int, ...]]
    refused: dict[str, str]
    never: int = 0
    salt: str = field(default_factory=lambda: secrets.token_hex(16))

    @property
    def positions(self) -> list[int]:
        """All that is to be forgotten, sorted."""
        return sorted({i for own in self.found.values() for i in own})

    def refusals(self) -> Answers:
        """What becomes of those that cannot be done."""
        rows = [
            Answer(request=r.request, asked=r.asked(self.salt), why=why)
            for r in self.rows
            if (why := self.refused.get(r.request)) is not None
        ]
        return Answers(file=str(self.path), salt=self.salt, rows=tuple(rows))

    def answers(
        self, certificate: Certificate, clean: Path, leaves: Sequence[Leaf]
    ) -> Answers:
        """What becomes of the requests by a release.

        One that came after the release was begun, and is for others, stays pending.

        Args:
            certificate: Of the release.
            clean: Its checkpoint.
            leaves: What its certificate commits to.
        """
        place_of = {leaf.position: place for place, leaf in enumerate(leaves)}
        done = [
            Answer(
                request=row.request,
                asked=row.asked(self.salt),
                places=tuple(place_of[i] for i in self.found[row.request]),
            )
            for row in self.rows
            if row.request in self.found
            and place_of.keys() >= {*self.found[row.request]}
        ]
        return Answers(
            file=str(self.path),
            salt=self.salt,
            rows=(*done, *self.refusals().rows),
            checkpoint=str(clean.absolute()),
            certificate=certificate.request_id,
            release=certificate.release,
            done_at=certificate.created,
        )


def looked_up(
    path: Path,
    dataset: Any,
    drawn: Sequence[int],
    removed: Sequence[int],
    by: str | None,
    hook: Hook | None,
) -> Pending:
    """Read a file of requests, and look each up on its own.

    Args:
        path: Of the file.
        dataset: The training dataset.
        drawn: Positions that the training could draw.
        removed: Positions that earlier requests have removed.
        by: Attribute or column of the dataset that holds each sample's id.
        hook: Ids -> positions, the user's own ``forget_indices``.

    Raises:
        NothingPendingError: If none is pending.
        UnlearningError: If the file, or the ids of the data, cannot be read.
    """
    rows = Inbox(path).pending
    if not rows:
        raise NothingPendingError(f"nothing to do: no request in {path} is pending")
    named = [row.person for row in rows if row.person and not row.problem]
    places: dict[str, list[int]] = {}
    if hook is None and by is not None:
        places = forget_set.places_of(dataset, by)
    elif hook is None and named:
        raise SetupError(
            f"expected by= with the persons in {path}, got none: name the attribute or "
            "column of the training data that holds each sample's id, or write "
            "positions"
        )
    lookup = _Lookup(len(dataset), frozenset(drawn), frozenset(removed), places, hook)
    found, refused, never = dict[str, tuple[int, ...]](), dict[str, str](), 0
    for row in rows:
        try:
            left = lookup.still_in(row)
            found[row.request] = lookup.trained_on(left)
            never += len(left) - len(found[row.request])
        except ForgetSetError as problem:
            refused[row.request] = printable(str(problem))[:_MOST]
    forget_set.warn_of_twins({*named}, places)
    return Pending(
        path=path, rows=tuple(rows), found=found, refused=refused, never=never
    )


def tell(pending: Pending) -> None:
    """Name what is overdue, and what will be refused, before the work."""
    rows, today = pending.rows, date.today()
    late = overdue_text(list(rows), today)
    if late:
        n = sum(row.days_over(today) > 0 for row in rows)
        rank_zero_warn(
            f"overdue: {n} of {len(rows)} pending requests in {pending.path}: {late}"
        )
    if pending.never:
        rank_zero_warn(
            f"{pending.never} of the samples that are named were never drawn in "
            "training (validation samples?): the requests are for the others"
        )
    if pending.refused:
        rank_zero_warn(
            f"{len(pending.refused)} of {len(rows)} pending requests in {pending.path} "
            f"cannot be done: {_reasons(pending)}"
        )


def check_some(pending: Pending) -> None:
    """Raise `ForgetSetError` if none of the requests can be done."""
    if not pending.found:
        raise ForgetSetError(
            "expected at least one request that can be done, got "
            f"{len(pending.refused)} pending in {pending.path}, all refused: nothing "
            f"was forgotten; {_reasons(pending)}"
        )


def _reasons(pending: Pending) -> str:
    return some([f"{printable(k)}: {why}" for k, why in pending.refused.items()], 3)


@dataclass(frozen=True)
class _Lookup:
    n: int
    drawn: frozenset[int]
    removed: frozenset[int]
    places: dict[str, list[int]]
    hook: Hook | None

    def still_in(self, row: Row) -> set[int]:
        """What a row means, less what is forgotten already."""
        if row.problem:
            raise ForgetSetError(row.problem)
        found = self._of_person(row.person) if row.person.strip() else self._of(row)
        left = found - self.removed
        if not left:
            raise ForgetSetError(
                "expected samples that are still in, got none: all are forgotten "
                "already; the certificate of the earlier request remains valid"
            )
        return left

    def trained_on(self, left: set[int]) -> tuple[int, ...]:
        """Those of some positions that the training could draw."""
        drawn = left & self.drawn
        if not drawn:
            raise ForgetSetError(
                "expected samples that the model was trained on, got others "
                "(validation samples?): there is nothing of them to forget"
            )
        return tuple(sorted(drawn))

    def _of_person(self, person: str) -> set[int]:
        if self.hook is not None:
            found = set(_by_hook(person, self.hook, self.n))
        else:
            found = set(self.places.get(person, ()))
        if not found:
            raise ForgetSetError(
                "expected a person that occurs in the training data, got one that does "
                "not: never trained on, or written differently (case and spaces count)"
            )
        if outside := [i for i in found if not 0 <= i < self.n]:
            raise _outside(outside[0], self.n)
        return found

    def _of(self, row: Row) -> set[int]:
        for first, last in row.ranges:
            if not first <= last < self.n:
                raise _outside(last if first <= last else first, self.n)
        return {i for a, b in row.ranges for i in range(a, b + 1)}


def _by_hook(person: str, hook: Hook, n: int) -> list[int]:
    """As `forget_set.by_hook`, for a message that names nobody."""
    try:
        return forget_set.by_hook([person], hook, n)
    except ForgetSetError as problem:
        kind = type(problem.__cause__ or problem).__name__
        raise ForgetSetError(
            "expected forget_indices(request) to return positions of this person, got "
            f"{kind}: not trained on, or written differently"
        ) from None


def _outside(position: int, n: int) -> ForgetSetError:
    return ForgetSetError(
        f"expected positions from 0 to {n - 1} of the training dataset, the first of a "
        f"range before its last, got {position}"
    )
