"""Where large arrays live, and files that appear whole or not at all."""

import os
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from lightning_unlearn.errors import DataError

_SHARE = 0.5  # of the free memory, for one array
_UNKNOWN = 4 << 30  # taken as free where the system does not say


def empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """An uninitialised tensor on the device if it fits, else in memory or on disk.

    A tensor that takes more than half of what is free lies in a temporary file that
    has no name any more: it is gone when the process ends, however it ends.

    Args:
        shape: Of the tensor.
        dtype: Of the tensor.
        device: Where it is wanted.

    Returns:
        The tensor, on the device or on the CPU.

    Raises:
        DataError: If it fits neither in memory nor on the disk.
    """
    count = torch.Size(shape).numel()
    needed = count * torch.empty(0, dtype=dtype).element_size()
    for place in dict.fromkeys((device, torch.device("cpu"))):
        if fits(needed, place):
            return torch.empty(shape, dtype=dtype, device=place)
    return _mapped(count, dtype, needed).view(shape)


def fits(needed: int, device: torch.device) -> bool:
    """Whether so many bytes are at most half of what is free on a device."""
    return needed <= _SHARE * free_bytes(device)


def _mapped(count: int, dtype: torch.dtype, needed: int) -> Tensor:
    handle, name = tempfile.mkstemp(prefix="lightning_unlearn")
    try:
        if hasattr(os, "posix_fallocate"):  # a full disk now, not a crash later
            os.posix_fallocate(handle, 0, needed)
        # The mapping outlives the name; where it cannot, the system refuses to unlink.
        return torch.from_file(name, shared=True, size=count, dtype=dtype)
    except OSError as problem:
        raise DataError(
            f"expected {needed / 2**30:.3g} GiB of free memory or of room in "
            f"{tempfile.gettempdir()} for the features, got neither ({problem}): free "
            "some, or point TMPDIR at a larger disk"
        ) from None
    finally:
        os.close(handle)
        os.unlink(name)


def set_aside(vector: Tensor) -> Callable[[], Tensor]:
    """Put a vector where it takes no memory of its device until it is wanted again.

    That of a CPU is written to a temporary file that has no name.

    Args:
        vector: float32 or float64, (p,).

    Returns:
        Reads it back.

    Raises:
        DataError: If the disk is full.
    """
    device, dtype, size = vector.device, vector.dtype, len(vector)
    if device.type != "cpu":
        kept = vector.cpu()
        return lambda: kept.to(device)
    file = tempfile.TemporaryFile(prefix="lightning_unlearn")  # noqa: SIM115
    try:
        file.write(vector.numpy().data)
        file.flush()
    except OSError as problem:
        file.close()
        raise DataError(
            f"expected {vector.nbytes / 2**30:.3g} GiB of room in "
            f"{tempfile.gettempdir()}, got none ({problem}): free some, point TMPDIR "
            "at a larger disk, or set low_memory=False"
        ) from None

    def again() -> Tensor:
        file.seek(0)
        read = torch.empty(size, dtype=dtype)
        file.readinto(read.numpy().data.cast("B"))
        return read

    weakref.finalize(again, file.close)
    return again


def free_bytes(device: torch.device) -> int:
    """Memory not in use on a device, as far as the system says."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu":
        return _UNKNOWN
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not a POSIX system
        return _UNKNOWN
    return int(min(free, _container_bytes()))


def _container_bytes() -> float:
    """What the control group of this process has left (Linux, version 2)."""
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text())
        return max(limit - int((group / "memory.current").read_text()), 0)
    except (OSError, ValueError):  # no such group, or "max"
        return float("inf")
