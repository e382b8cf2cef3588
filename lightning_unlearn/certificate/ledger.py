"""The deletion ledger: append-only, hash-chained, one JSON line a request.

Each entry names the one before it by hash, so that a changed, removed or reordered
entry breaks the chain; the model's checkpoint keeps the whole chain too, so that a
file cut off at the end, or that of another model, is found by comparison.
"""

import hashlib
import hmac
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lightning_unlearn._base.files import replace_file
from lightning_unlearn._base.strict_json import (
    canonical_digest,
    from_plain,
    strict_object,
)
from lightning_unlearn.errors import BudgetError, LedgerError
from lightning_unlearn.guarantee.claims import Grade

SCHEMA = 1
GENESIS = "0" * 64


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One finished request.

    Args:
        ledger_id: Random name of the chain, the same in every entry.
        index: 1, 2, ... in order.
        previous: Hash of the entry before, `GENESIS` for the first.
        request_id: As in the certificate.
        time: UTC, ISO 8601.
        n_forget: Samples forgotten.
        n_retain: Samples retained.
        forget_digest: Keyed digest of the forgotten positions (`forget_digest`).
        forget_indices: The positions themselves, only if asked for.
        weights_before: SHA-256 of the state before, where that was a release too.
        weights_after: SHA-256 of the released state.
        certificate_digest: Of the certificate.
        grade: Its grade.
        mu: sensitivity / noise_std of this release, 0 of a retraining, None without a
            guarantee.
        releases: T announced, or None.
        schema: Number of this format.
        group: Where a training was private, or that of a head's backbone: all samples
            of it (or people, if it drew people) forgotten so far, this request's among
            them. Else it is not written. `mu` is then of the head alone, or None where
            nothing was released.
        covered: Of the trained head that was served with noise before any request: how
            many may be forgotten in all. It forgot nobody. Else it is not written.
        hash: SHA-256 of all the fields above; filled in by `Ledger.append`.
    """

    ledger_id: str
    index: int
    previous: str
    request_id: str
    time: str
    n_forget: int
    n_retain: int
    forget_digest: str
    forget_indices: list[int] | None
    weights_before: str
    weights_after: str
    certificate_digest: str
    grade: str
    mu: float | None
    releases: int | None
    schema: int = SCHEMA
    group: int | None = None
    covered: int | None = None
    hash: str = ""

    def sealed(self) -> "Entry":
        """The entry with its hash."""
        plain = self.written()
        plain.pop("hash")
        return replace(self, hash=canonical_digest(plain))

    def written(self) -> dict[str, Any]:
        """As a line of the file has it."""
        plain = asdict(self)
        return {k: v for k, v in plain.items() if k not in _MAY_LACK or v is not None}


@dataclass(frozen=True)
class Ledger:
    """A chain of entries, checked when it is made.

    Args:
        entries: In order.

    Raises:
        LedgerError: If the chain does not hold.
    """

    entries: tuple[Entry, ...] = ()

    def __post_init__(self) -> None:
        previous, noisy = GENESIS, 0
        for position, entry in enumerate(self.entries, start=1):
            noisy += _is_noisy(entry)
            _check_entry(entry, position, noisy, previous, self.entries[0].ledger_id)
            previous = entry.hash

    @property
    def head(self) -> str:
        """Hash of the last entry, `GENESIS` when empty."""
        return self.entries[-1].hash if self.entries else GENESIS

    @property
    def mus(self) -> tuple[float, ...]:
        """Mu of every release that had a guarantee."""
        return tuple(e.mu for e in self.entries if e.mu is not None)

    @property
    def grades(self) -> tuple[Grade, ...]:
        """Grade of every release."""
        return tuple(Grade(e.grade) for e in self.entries)

    @property
    def noisy(self) -> tuple[Entry, ...]:
        """All that count against an announced number: a retraining uses up nothing."""
        return tuple(e for e in self.entries if _is_noisy(e))

    def append(self, entry: Entry) -> "Ledger":
        """A longer ledger; the entry's place in the chain is filled in.

        Raises:
            LedgerError: If the entry is malformed.
        """
        name = self.entries[0].ledger_id if self.entries else entry.ledger_id
        placed = replace(
            entry, ledger_id=name, index=len(self.entries) + 1, previous=self.head
        )
        plain = asdict(placed.sealed())
        entry = from_plain(Entry, plain, LedgerError, "a ledger entry")
        return Ledger((*self.entries, entry))

    def check_budget(self, releases: int | None, mu: float | None = None) -> None:
        """Refuse a request beyond what was announced.

        Args:
            releases: T announced by the callback, or None.
            mu: Of the release that is asked for, where it is known before.

        Raises:
            BudgetError: If T releases were made, another T was announced before, or
                the earlier ones were announced with a smaller mu.
        """
        announced = {e.releases for e in self.entries if e.mu}
        if announced - {releases}:
            earlier = ", ".join(str(t) for t in announced - {releases})
            raise BudgetError(
                f"expected the announced releases={earlier} of the earlier requests, "
                f"got releases={releases}: their noise was scaled for that number; set "
                "it again, or retrain and start a new ledger"
            )
        if releases is not None and len(self.noisy) >= releases:
            instead = "how='retrain' needs none; or retrain"
            if self.entries[0].covered is not None:  # the trained head is one of them
                instead = "train a new model"
            raise BudgetError(
                f"expected at most {releases} announced releases, all {releases} have "
                f"been made, 0 are left: {instead} "
                "without the forgotten samples and start a new ledger, with a larger "
                "releases= if more requests will come"
            )
        counted = min(filter(None, self.mus), default=math.inf)
        if releases is not None and mu is not None and mu > counted * (1 + 1e-6):
            raise BudgetError(
                f"expected at most the mu = {counted:.4g} with which the earlier of "
                f"{releases} announced releases were made, got {mu:.4g}: their total "
                "would be exceeded; set the epsilon and delta of the first request"
            )

    def to_text(self) -> str:
        """One JSON line an entry."""
        return "".join(
            json.dumps(e.written(), sort_keys=True) + "\n" for e in self.entries
        )

    @classmethod
    def from_text(cls, text: str) -> "Ledger":
        """Read a ledger and check its chain.

        Raises:
            LedgerError: If a line is malformed or the chain does not hold.
        """
        if text and not text.endswith("\n"):
            raise LedgerError(
                "expected every entry to end its line, got a ledger cut off in the "
                "middle of one: restore the file from a backup or the checkpoint"
            )
        return cls(tuple(_entry(line) for line in text.splitlines()))


def forget_digest(key: str, indices: Iterable[int]) -> str:
    """Keyed digest (HMAC-SHA256) of forgotten positions.

    Without the key nobody can test guesses of who was forgotten.

    Args:
        key: Hexadecimal secret, kept in the checkpoint.
        indices: Positions in the training dataset.

    Returns:
        Hexadecimal digest, independent of the order.
    """
    message = json.dumps(sorted(indices)).encode()
    return hmac.new(bytes.fromhex(key), message, hashlib.sha256).hexdigest()


def read(path: Path) -> Ledger:
    """The ledger in a file; empty if there is none.

    Raises:
        LedgerError: If the file cannot be read as a ledger.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return Ledger()
    except (OSError, UnicodeDecodeError) as error:
        raise LedgerError(f"expected a ledger at {path}: {error}") from None
    return Ledger.from_text(text)


def write(path: Path, ledger: Ledger) -> None:
    """Replace the file by a longer ledger in one step: no half entry ever shows.

    One that names positions is its owner's alone.
    """
    named = any(entry.forget_indices is not None for entry in ledger.entries)
    replace_file(path, ledger.to_text(), 0o600 if named else 0o666)


def rewind(path: Path, ledger: Ledger) -> None:
    """Put a file back to what it was before a request that failed."""
    if ledger.entries:
        write(path, ledger)
    else:
        path.unlink(missing_ok=True)


def agree(in_checkpoint: Ledger, in_file: Ledger) -> None:
    """The chain in the checkpoint and the one in the file must be the same.

    A file that does not exist yet (an empty chain) agrees with any checkpoint.

    Raises:
        LedgerError: If the file is of another model, was cut, or has gone on since.
    """
    ours, theirs = in_checkpoint.entries, in_file.entries
    if not theirs or ours == theirs:
        return
    if not ours or ours[0].ledger_id != theirs[0].ledger_id:
        raise LedgerError(
            "expected the ledger of this model, got the ledger of another one, or of "
            f"requests this checkpoint is older than ({theirs[0].ledger_id[:8]}): load "
            "the checkpoint of the last request, or what was forgotten is back (only a "
            "model trained anew, without those samples, begins a ledger of its own)"
        )
    if _is_prefix(theirs, ours):
        raise LedgerError(
            f"expected {len(ours)} entries in the ledger file, as in the "
            f"checkpoint, got {len(theirs)}: the file was cut off; restore it from a "
            "backup, or move it away: the checkpoint's whole chain is written anew"
        )
    if _is_prefix(ours, theirs):
        raise LedgerError(
            f"expected the newest checkpoint, got one with {len(ours)} of the ledger's "
            f"{len(theirs)} requests: load the checkpoint of the last request, or its "
            "forgotten samples would come back"
        )
    raise LedgerError(
        "expected the ledger of this checkpoint, got one that differs from entry "
        f"{_common(ours, theirs) + 1} on: requests were made on two copies of the model"
    )


def _is_prefix(short: Sequence[Entry], long: Sequence[Entry]) -> bool:
    return tuple(long[: len(short)]) == tuple(short)


def _common(one: Sequence[Entry], two: Sequence[Entry]) -> int:
    same = 0
    while same < min(len(one), len(two)) and one[same] == two[same]:
        same += 1
    return same


def _entry(line: str) -> Entry:
    plain = strict_object(line, LedgerError, "a ledger entry")
    return from_plain(Entry, plain, LedgerError, "a ledger entry", _MAY_LACK)


_MAY_LACK = frozenset({"group", "covered"})


def _is_noisy(entry: Entry) -> bool:
    return entry.mu != 0 and (entry.group is None or entry.mu is not None)


def _check_entry(
    entry: Entry, position: int, noisy: int, previous: str, ledger_id: str
) -> None:
    forgot = entry.n_forget
    if entry.covered is not None:  # the trained head: before anybody was forgotten
        first = position == 1 and forgot == 0 and entry.mu is not None
        forgot = entry.covered if first else 0
    counts = (forgot, entry.n_retain, entry.index)
    budget = entry.releases
    if min(counts) < 1 or (budget is not None and not noisy <= budget):
        raise LedgerError(
            f"expected counts >= 1 and at most {budget} releases in ledger entry "
            f"{position}, got {counts}"
        )
    if entry.group is not None:
        claimed = entry.grade in ("certified", "conditional", "vacuous")
        head = entry.mu is None or 0 < entry.mu < 1e12
        mu_fits = claimed and head and entry.group >= 1
    elif entry.mu is None:
        mu_fits = entry.grade == "none"
    elif entry.mu == 0:
        mu_fits = entry.grade in ("exact", "conditional") and entry.releases is None
    else:
        claimed = entry.grade in ("certified", "conditional", "vacuous")
        mu_fits = claimed and 0 < entry.mu < 1e12
    if not mu_fits:
        raise LedgerError(
            f"expected mu > 0 exactly with a guarantee in ledger entry {position}, or "
            "mu = 0 of a retraining, or none of a private training, got "
            f"grade={entry.grade!r:.20}, mu={entry.mu!r:.20}"
        )
    if entry.schema != SCHEMA:
        raise LedgerError(f"expected ledger schema {SCHEMA}, got {entry.schema}")
    if entry.sealed().hash != entry.hash:
        raise LedgerError(
            f"ledger entry {position} was changed after it was written: its hash does "
            "not match its fields"
        )
    if (entry.index, entry.previous) != (position, previous):
        raise LedgerError(
            f"expected ledger entry {position} to follow the one before it, got index "
            f"{entry.index}: entries were removed, inserted or reordered"
        )
    if entry.ledger_id != ledger_id:
        raise LedgerError(f"ledger entry {position} belongs to another ledger")
