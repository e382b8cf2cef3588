"""Never again: keyed digests of what was forgotten, which later data is held to.

JSON lines, one a release. Without the organisation's key nobody can test a guess, nor
write a line; a line that was altered, or written with another key, is refused. Lines
that were taken away are not noticed: keep the file as you keep the ledger.
"""

import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from lightning_unlearn._base.files import create_file, replace_file
from lightning_unlearn._base.strict_json import from_plain, strict_object
from lightning_unlearn.certificate import file_lock
from lightning_unlearn.certificate.receipts import Leaf
from lightning_unlearn.errors import DataError, SetupError

SCHEMA = 1
_HEX = re.compile("[0-9a-f]{64}")
_MOST = 1 << 30  # characters of a line: 15 million samples
_WAIT = 60.0  # seconds for another request's line


@dataclass(frozen=True, kw_only=True)
class Excluded:
    """One release.

    Args:
        request_id: Of its certificate.
        people: Keyed digests of the ids that were asked for, sorted.
        samples: Keyed digests of the contents of its samples, sorted.
        mac: Keyed digest of all the other fields.
        schema: Number of this format.
    """

    request_id: str
    people: tuple[str, ...]
    samples: tuple[str, ...]
    mac: str = ""
    schema: int = SCHEMA

    def to_text(self) -> str:
        """The release as one line."""
        return json.dumps(asdict(self)) + "\n"


class Key:
    """The organisation's secret: who has it and a list can test guesses.

    Args:
        secret: 32 random bytes.
    """

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    @classmethod
    def read(cls, path: Path) -> "Key":
        """The key in a file.

        Raises:
            SetupError: If there is none.
        """
        asked = f"expected the key of the exclusion list in {path}"
        try:
            text = path.read_text(encoding="ascii").strip()
        except FileNotFoundError:
            raise SetupError(
                f"{asked}, found no file there: put the list's own key there; a new "
                "list gets one by lightning-unlearn exclusions new LIST --key-file KEY"
            ) from None
        except (OSError, ValueError) as problem:
            raise SetupError(
                f"{asked}, got {type(problem).__name__}: {problem!s:.200}; name the "
                "file that lightning-unlearn exclusions new has written"
            ) from None
        if _HEX.fullmatch(text) is None:
            raise SetupError(
                f"{asked}, got {len(text)} characters that are not 64 hexadecimal "
                "digits: name the file that lightning-unlearn exclusions new has "
                "written"
            )
        return cls(bytes.fromhex(text))

    def person(self, name: str) -> str:
        """Of an id, as text."""
        return self._digest(b"person", name.encode("utf-8", "surrogatepass"))

    def sample(self, digest: str) -> str:
        """Of a sample, by its `sample_digest`."""
        return self._digest(b"sample", digest.encode())

    def line(self, leaves: Iterable[Leaf], request_id: str) -> Excluded:
        """The line of a release.

        Args:
            leaves: What its certificate commits to.
            request_id: Of its certificate.
        """
        leaves = tuple(leaves)
        people = {self.person(x.person) for x in leaves if x.person is not None}
        samples = {self.sample(x.sample) for x in leaves if x.sample is not None}
        found = Excluded(
            request_id=request_id,
            people=tuple(sorted(people)),
            samples=tuple(sorted(samples)),
        )
        return replace(found, mac=self.mac(found))

    def mac(self, line: Excluded) -> str:
        """Of a line, but for its own `mac`."""
        plain = asdict(line)
        del plain["mac"]
        text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
        return self._digest(b"line", text.encode())

    def _digest(self, kind: bytes, content: bytes) -> str:
        return hmac.digest(self._secret, kind + b"\0" + content, hashlib.sha256).hex()


class Exclusions:
    """A list, and the key to look into it.

    Args:
        lines: One a release.
        key: The list's.
    """

    def __init__(self, lines: Iterable[Excluded], key: Key) -> None:
        self.lines, self.key = tuple(lines), key
        self.people = frozenset[str]().union(*(x.people for x in self.lines))
        self.samples = frozenset[str]().union(*(x.samples for x in self.lines))

    @classmethod
    def read(cls, path: Path, key_file: Path) -> "Exclusions":
        """The list in a file, every line proved by the key.

        Raises:
            SetupError: If there is no such list or key.
            DataError: If the list is damaged, or of another key.
        """
        key, lines = Key.read(key_file), lines_of(path)
        for number, line in enumerate(lines, start=1):
            if not hmac.compare_digest(line.mac, key.mac(line)):
                raise DataError(
                    f"expected lines that were written with the key in {key_file}, got "
                    f"line {number} of {path}: it was written with another key, or "
                    "altered; with the wrong key nobody would be found"
                )
        return cls(lines, key)

    def has_person(self, name: str) -> bool:
        """Whether an id, as text, was asked to be forgotten."""
        return self.key.person(name) in self.people

    def has_sample(self, digest: str) -> bool:
        """Whether a sample was forgotten, by its `sample_digest`."""
        return self.key.sample(digest) in self.samples


def make(path: Path, key_file: Path) -> bool:
    """Make an empty list, and a key unless there is one.

    Args:
        path: Of the list: a new file.
        key_file: Of the key.

    Returns:
        Whether the key is new.

    Raises:
        SetupError: If the list is there, or something else is in the key's place.
    """
    fresh = not key_file.exists()
    if not fresh:
        Key.read(key_file)
    create_file(path, "", 0o600)
    if fresh:
        create_file(key_file, secrets.token_hex(32) + "\n", 0o600)
    return fresh


def lines_of(path: Path) -> list[Excluded]:
    """The lines in a file, of whatever key.

    Raises:
        SetupError: If there is no such file.
        DataError: If it is damaged.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SetupError(
            f"expected an exclusion list at {path}, found none there: without it "
            "nobody would be found; if nobody has been forgotten yet, make one by "
            f"lightning-unlearn exclusions new {path} --key-file KEY"
        ) from None
    except (OSError, ValueError) as problem:
        raise DataError(
            f"expected an exclusion list at {path}, got {type(problem).__name__}: "
            f"{problem!s:.200}"
        ) from None
    *lines, rest = text.split("\n")
    if rest:
        raise DataError(
            f"expected whole lines in the exclusion list {path}, got a last one "
            "without an end: it was cut off; restore it from a copy"
        )
    return [
        parse(line, f"line {number} of the exclusion list {path}")
        for number, line in enumerate(lines, start=1)
    ]


def parse(line: str, what: str) -> Excluded:
    """One line.

    Args:
        line: Its text.
        what: Named in the message.

    Raises:
        DataError: If it is damaged, or of another version.
    """
    plain = strict_object(line, DataError, what, _MOST)
    if plain.get("schema") != SCHEMA:
        raise DataError(
            f"expected schema {SCHEMA} in {what}, got {plain.get('schema')!r:.40}: it "
            "was written by another version; read it with that one, or a newer one"
        )
    made = from_plain(Excluded, plain, DataError, what)
    for number in (*made.people, *made.samples, made.mac):
        if _HEX.fullmatch(number) is None:
            raise DataError(
                f"expected 64 hexadecimal digits in {what}, got {number!r:.80}: it was "
                "altered; restore it from a copy"
            )
    return made


def append(path: Path, line: Excluded) -> bool:
    """Add a release to a list, in one step; nothing if it is there.

    Returns:
        Whether it was added.

    Raises:
        UnlearningError: If there is no list there, it is damaged, or busy.
    """
    with _locked(path):
        before = lines_of(path)
        if any(one.request_id == line.request_id for one in before):
            return False
        _write(path, [*before, line])
        return True


def withdraw(path: Path, request_id: str) -> None:
    """Take a release out of a list again: its request was not done."""
    with _locked(path):
        before = lines_of(path)
        left = [one for one in before if one.request_id != request_id]
        if len(left) < len(before):
            _write(path, left)


def _write(path: Path, lines: Iterable[Excluded]) -> None:
    replace_file(path, "".join(line.to_text() for line in lines))


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Nobody else writes a list for the length of a block: many models share it."""

    def refused(problem: OSError) -> SetupError:
        return SetupError(
            f"expected to write the exclusion list {path}, got "
            f"{type(problem).__name__}: {problem!s:.200}; another request "
            "writes it, or its folder cannot be written"
        )

    with file_lock.held(path, _WAIT, busy=refused, closed=refused):
        yield
