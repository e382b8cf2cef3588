"""A lock beside a file, so that no two processes work on it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def held(
    path: Path,
    wait: float,
    busy: Callable[[OSError], Exception],
    closed: Callable[[OSError], Exception],
) -> Iterator[None]:
    """Nobody else who asks for it has the lock of a file for the length of a block.

    Args:
        path: Of the file; the lock stands beside it.
        wait: Seconds.
        busy: What is raised if another has it.
        closed: What is raised if nothing can be written there.
    """
    name = path.with_name(f".{path.name}.lock")
    lock = FileLock(name)
    try:
        name.touch()  # FileLock takes a folder it cannot write for a lock of others
        lock.acquire(timeout=wait)
    except Timeout as problem:
        raise busy(problem) from None
    except OSError as problem:
        raise closed(problem) from None
    try:
        yield
    finally:
        lock.release()
