"""Files that appear whole, and new ones that follow no link."""

import os
from pathlib import Path


def part_of(path: Path, token: str = "") -> Path:
    """The name a file is written under; with a token, one nobody else has."""
    middle = f".{token}" if token else ""
    return path.with_name(f".{path.name}{middle}.part")


def new_file(path: Path, mode: int) -> int:
    """A descriptor of a new file in place of one that was left; no link is followed."""
    path.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    return os.open(path, flags, mode)


def write_new(path: Path, text: str) -> None:
    """Write a text to a `new_file`."""
    with os.fdopen(new_file(path, 0o666), "w", encoding="utf-8") as file:
        file.write(text)


def replace_file(path: Path, text: str) -> None:
    """Replace a file by a text in one step: no half shows, whatever crashes."""
    temporary = part_of(path)
    try:
        write_new(temporary, text)
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Have the system write a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
