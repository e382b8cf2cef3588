"""Files as secret as the data: named tensors and some text, nothing is unpickled."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from lightning_unlearn._base.files import new_file, part_of, replacing
from lightning_unlearn.errors import DataError
from lightning_unlearn.weights import large_arrays
from lightning_unlearn.weights.digests import tensors_digest


@dataclass(frozen=True)
class SecretFile:
    """One kind of such files (safetensors), told apart by what its head says.

    Args:
        format: In the head of every file of this kind.
        what: What it holds, for messages.
        option: Where the user names it, for messages.
    """

    format: str
    what: str
    option: str

    def write(
        self, path: Path, text: Mapping[str, str], tensors: Mapping[str, Tensor]
    ) -> None:
        """Write a file that only its owner can read, in place of an older one.

        Raises:
            DataError: If something else stands there.
        """
        self.check_free(path)
        plain = {name: t.cpu().contiguous() for name, t in tensors.items()}
        digest = tensors_digest(sorted(plain.items()))
        head = {"format": self.format, "digest": digest, **text}
        # Not by `save_file`, which may write to a name of its own: nobody would delete
        # what a killed write left there. Nor by `save`, which holds all twice.
        with (
            replacing(path) as temporary,
            os.fdopen(new_file(temporary, 0o600), "wb") as file,
        ):
            _write(file, plain, head)

    def read(self, path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
        """Text and tensors of a file, on the CPU.

        Raises:
            DataError: With what is wrong with it, in short.
        """
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                text = self._text(file)
                tensors = {name: _held(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
        except DataError:
            raise
        except Exception as problem:  # whatever a damaged or foreign file provokes
            raise DataError(f"{problem!s:.200}") from None
        if tensors_digest(sorted(tensors.items())) != text.pop("digest", None):
            raise DataError("its tensors are damaged")
        return text, tensors

    def text(self, path: Path) -> dict[str, str] | None:
        """What a file says at its head; None if it cannot be read."""
        try:
            with safe_open(path, framework="pt") as file:
                return self._text(file)
        except Exception:  # whatever a damaged or foreign file provokes
            return None

    def check_free(self, path: Path) -> None:
        """Raise `DataError` if something else than a file of this kind stands there."""
        if not os.path.lexists(path):
            return
        try:
            with safe_open(path, framework="pt") as file:
                self._text(file)
        except Exception as problem:
            raise DataError(
                f"expected a new file, or one that holds {self.what}, for "
                f"{self.option}, got {path}, which holds something else "
                f"({problem!s:.200}): name another; it was not touched"
            ) from None

    def delete(self, path: Path) -> None:
        """Delete a file, and what a killed write has left of one.

        Anything else that stands there is left alone, with a warning.
        """
        try:
            part_of(path).unlink(missing_ok=True)
            if path.exists():
                self.check_free(path)
                path.resolve().unlink()
                path.unlink(missing_ok=True)
        except (OSError, DataError) as problem:
            rank_zero_warn(
                f"could not delete {path} ({problem!s:.300}), where {self.what} should "
                "be, which is as secret as the forgotten samples: delete it"
            )

    def _text(self, file: Any) -> dict[str, str]:
        text = dict(file.metadata() or {})
        found = text.pop("format", None)
        if found != self.format:
            raise DataError(f"its format is {found!r:.60}, not {self.format!r}")
        return text


def _held(mapped: Tensor) -> Tensor:
    """A tensor of a file that is mapped: a copy, unless it would not fit in memory.

    A copy is aligned as any tensor is, and reads nothing from a disk later.
    """
    held = large_arrays.fits(mapped.nbytes, mapped.device)
    return mapped.clone() if held else mapped


_WRITTEN = 1 << 24  # bytes at once


def _write(
    file: IO[bytes], tensors: Mapping[str, Tensor], text: Mapping[str, str]
) -> None:
    """Write tensors on the CPU as safetensors does, a part of them at a time.

    The form: https://github.com/huggingface/safetensors#format
    """
    order = sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0]))
    head: dict[str, Any] = {"__metadata__": dict(text)}
    at = 0
    for name, tensor in order:
        end = at + tensor.nbytes
        head[name] = {
            "dtype": _name_of(tensor.dtype),
            "shape": list(tensor.shape),
            "data_offsets": [at, end],
        }
        at = end
    plain = json.dumps(head).encode()
    plain += b" " * (-len(plain) % 8)  # the first tensor is aligned
    file.write(len(plain).to_bytes(8, "little") + plain)
    for _, tensor in order:
        for part in tensor.reshape(-1).view(torch.uint8).split(_WRITTEN):
            file.write(part.numpy().data)


def _name_of(dtype: torch.dtype) -> str:
    """As safetensors calls it."""
    plain = save({"": torch.empty(0, dtype=dtype)})
    size = int.from_bytes(plain[:8], "little")
    return json.loads(plain[8 : 8 + size])[""]["dtype"]
