"""Files that appear whole, and new ones that follow no link."""

import os
import re
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lightning_unlearn.errors import SetupError

_URL = re.compile("[A-Za-z][A-Za-z0-9+.-]+:/")  # one letter is a drive


def is_remote(path: str | Path) -> bool:
    """Whether a path is the URL of some file system (s3://, memory://, file://)."""
    return _URL.match(str(path)) is not None


def check_writable(path: Path, what: str) -> None:
    """Try whether a new file can be made at a path, before any work; leave nothing.

    Args:
        path: Where a file is to appear.
        what: The option, as it was given, for a message.

    Raises:
        SetupError: If none can.
    """
    longest = part_of(path, secrets.token_hex(8))
    try:
        with tempfile.TemporaryFile(dir=path.parent), suppress(FileNotFoundError):
            longest.lstat()  # nothing is left, whatever stops the process here
    except (OSError, ValueError) as problem:  # no name that a file system takes
        raise SetupError(
            f"expected {what} to name a place that can be written, got "
            f"{type(problem).__name__}: {problem!s:.200}; choose another folder or "
            "name, or change its permissions"
        ) from None


def part_of(path: Path, token: str = "") -> Path:
    """The name a file is written under; with a token, one nobody else has."""
    middle = f".{token}" if token else ""
    return path.with_name(f".{path.name}{middle}.part")


def new_file(path: Path, mode: int) -> int:
    """A descriptor of a new file in place of one that was left; no link is followed."""
    path.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    return os.open(path, flags, mode)


def write_new(path: Path, text: str, mode: int = 0o666) -> None:
    """Write a text to a `new_file`."""
    with os.fdopen(new_file(path, mode), "w", encoding="utf-8") as file:
        file.write(text)


def replace_file(path: Path, text: str, mode: int = 0o666) -> None:
    """Replace a file by a text in one step: no half shows, whatever crashes.

    Args:
        path: Of the file.
        text: What it holds.
        mode: Of its permissions, less the umask; nobody may do more with it than with
            the file before.
    """
    temporary = part_of(path)
    with suppress(FileNotFoundError):
        mode &= path.stat().st_mode
    try:
        write_new(temporary, text, mode)
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def rewrite_file(path: Path, content: bytes, before: bytes) -> bool:
    """Replace a file of somebody else's in one step: its permissions and group stay.

    Args:
        path: Of the file.
        content: What it will hold.
        before: What it holds.

    Returns:
        Whether it was done: not, if it holds something else by now.
    """
    temporary, kept = part_of(path), path.stat()
    try:
        with os.fdopen(new_file(temporary, 0o600), "wb") as file:
            file.write(content)
        mode = kept.st_mode & 0o777
        if temporary.stat().st_gid != kept.st_gid:
            try:
                os.chown(temporary, -1, kept.st_gid)
            except OSError:  # not one of ours: nobody of another group may read it
                mode &= ~0o070
        temporary.chmod(mode)
        sync(temporary)
        if path.read_bytes() != before:
            return False
        temporary.replace(path)
        sync(path.parent)
        return True
    finally:
        temporary.unlink(missing_ok=True)


def create_file(path: Path, text: str, mode: int = 0o666) -> None:
    """Write a file that must not be there yet, in one step.

    Args:
        path: Of the file.
        text: What it holds.
        mode: Of its permissions, less the umask.

    Raises:
        SetupError: If the name is taken, or nothing can be written there.
    """
    temporary = part_of(path, secrets.token_hex(4))
    try:
        write_new(temporary, text, mode)
        sync(temporary)
        take_name(temporary, path)
        sync(path.parent)
    except FileExistsError:
        raise SetupError(
            f"expected a name that is not taken, got {path}: nothing is overwritten; "
            "choose another name, or remove that file"
        ) from None
    except OSError as error:
        raise SetupError(
            f"expected to write {path}, got {type(error).__name__} "
            f"({error.strerror}): choose a folder that exists and can be written"
        ) from None
    finally:
        temporary.unlink(missing_ok=True)


def take_name(temporary: Path, path: Path) -> None:
    """Rename a file; one that has the name already is never replaced.

    Raises:
        FileExistsError: If the name is taken.
    """
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        if os.path.lexists(path):
            raise FileExistsError(17, "File exists", str(path)) from None
        temporary.rename(path)
    else:
        temporary.unlink()


def close_output() -> None:
    """Nobody reads standard output any more: what else is printed goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def sync(path: Path) -> None:
    """Have the system write a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def identity(path: Path) -> tuple[int, int] | None:
    """What tells a file or folder from another that has its name later."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place if the block succeeds.

    It may be made a folder. It is synced to the disk first; whatever happens, no part
    of it stays.
    """
    temporary = part_of(path)
    try:
        yield temporary
        settle(temporary)
        temporary.rename(path)
        sync(path.parent)
    finally:
        remove(temporary)


def appear(temporary: Path, path: Path) -> None:
    """Have a file or folder take its name, once it is on the disk.

    Raises:
        FileExistsError: If something has that name already; it is left alone.
    """
    settle(temporary)
    if temporary.is_dir():
        if os.path.lexists(path):
            raise FileExistsError(17, "File exists", str(path))
        temporary.rename(path)  # fails if a file or a full folder comes between
    else:
        take_name(temporary, path)
    sync(path.parent)


def settle(path: Path) -> None:
    """Have a file, or a folder and all in it, written to the disk."""
    for inside in path.rglob("*"):
        sync(inside)
    sync(path)


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
