"""Samples that are known again: exactly by a digest, nearly by their features."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from lightning_unlearn._base.text import positions_text
from lightning_unlearn.errors import GuaranteeError

MASK = "attention_mask"
#: Cosine distance below which features are those of a near copy, at most: images of
#: CIFAR-10 and CIFAR-100 that are others are .06 apart at least, 896 features of a
#: ResNet; noise of 1/255 on a pixel makes .003, JPEG at quality 95 makes .05.
NEAR = 0.02
#: Of what public samples are apart among themselves; where all are alike it decides.
_SHARE, _QUANTILE, _SAME = 0.1, 0.01, 1e-6
_RESOLVED = 1e-5  # below it single precision cannot tell
_SKETCH, _SCALE_FROM, _ASKED, _CHUNK = 64, 64, 2000, 1024


def text_mask(inputs: Any) -> Tensor | None:
    """Which tokens count (n, t), of a mapping that says so."""
    mask = inputs.get(MASK) if isinstance(inputs, Mapping) else None
    return mask if isinstance(mask, Tensor) and mask.dim() == 2 else None


def sample_names(inputs: Any) -> list[int]:
    """The first 8 bytes of the digest of each sample, in single precision.

    Of a mapping with an ``attention_mask`` (n, t) only what it marks counts, so that a
    text has one name however it is padded. Token types that are all 0 are the default.
    """
    mask = text_mask(inputs)
    parts = _named_leaves(inputs, mask)
    marked = None if mask is None else mask.cpu().bool()
    found = []
    for i in range(min((len(t) for _, t, _ in parts), default=0)):
        sha = hashlib.sha256()
        for name, leaf, padded in parts:
            own = leaf[i][marked[i]] if padded and marked is not None else leaf[i]
            if padded and name != "input_ids" and not bool(own.any()):
                continue
            if name:
                sha.update(f"|{name}|{tuple(own.shape)}|".encode())
            sha.update(own.reshape(-1).view(torch.uint8).numpy().data)
        found.append(int.from_bytes(sha.digest()[:8], "big", signed=True))
    return found


def blank_samples(inputs: Any) -> list[bool]:
    """Which samples say nothing: all their numbers are one and the same."""
    parts = [t.reshape(len(t), -1) for _, t, _ in _named_leaves(inputs, None)]
    if isinstance(inputs, Mapping) or not parts:
        return [False] * min((len(t) for t in parts), default=0)
    same = [(t == t[:, :1]).all(1) for t in parts if t.shape[1] > 1]
    return torch.stack(same).all(0).tolist() if same else [False] * len(parts[0])


def _named_leaves(inputs: Any, mask: Tensor | None) -> list[tuple[str, Tensor, bool]]:
    """(name, tensor (n, ...), whether the mask covers it), in an order of their own."""
    if not isinstance(inputs, Mapping):
        return [
            ("", t, False) for t in map(_plain, tree_leaves(inputs)) if t is not None
        ]
    found = []
    for name in sorted(inputs, key=str):
        for t in map(_plain, tree_leaves(inputs[name])):
            if t is not None and not (mask is not None and name == MASK):
                padded = mask is not None and t.shape[:2] == mask.shape
                found.append((str(name), t, padded))
    return found


def _plain(leaf: object) -> Tensor | None:
    """On the CPU, as float32 or int64: one sample has one name in every dtype."""
    if not isinstance(leaf, Tensor):
        return None
    kind = torch.float32 if leaf.is_floating_point() else torch.int64
    return leaf.detach().to("cpu", kind).contiguous()


class Sketches:
    """Rows of public samples, 64 random projections each: near ones stay near.

    ``|Su - Sv|^2`` is ``|u - v|^2`` up to a factor of 1 +- .18 (Johnson and
    Lindenstrauss 1984; standard deviation sqrt(2/64)), for unit vectors u and v. Rows
    are centred and scaled by what the first of them say. It is kept in memory only.
    """

    def __init__(self) -> None:
        self._first: list[Tensor] = []
        self._known: list[Tensor] = []
        self._scale: tuple[Tensor, Tensor] | None = None
        self.threshold = -torch.inf

    def add(self, rows: Tensor) -> None:
        """Take in rows (m, d)."""
        if self._scale is not None:
            self._known.append(self._of(rows).half())
            return
        self._first.append(rows.float().cpu())
        if sum(map(len, self._first)) >= _SCALE_FROM:
            self._settle()

    def closed(self) -> "Sketches":
        """All rows are there: how near is near among them?"""
        if self._scale is None:
            self._settle()
        known = torch.cat(self._known)
        self._known = [known]
        some = torch.arange(len(known))[:: max(1, len(known) // _ASKED)]
        apart = torch.cat(
            [self._apart(known[part].float(), part) for part in some.split(_CHUNK)]
        )
        apart = apart[apart > _SAME]
        usual = float(apart.quantile(_QUANTILE)) if len(apart) else 0.0
        near = min(NEAR, _SHARE * usual)
        self.threshold = near if near > _RESOLVED else -torch.inf
        return self

    def near(self, rows: Tensor) -> Tensor:
        """Which of some rows (m, d) are near one of those taken in: (m,), bool."""
        parts = [self._apart(self._of(part)) for part in rows.split(_CHUNK)]
        return torch.cat(parts) <= self.threshold

    def _settle(self) -> None:
        first = torch.cat(self._first)
        std = first.std(0, correction=0)
        least = 0.01 * float(std.square().mean().sqrt())
        self._scale = first.mean(0), std.clamp_min(least or 1.0)
        self._first = []
        self.add(first)

    def _of(self, rows: Tensor) -> Tensor:
        assert self._scale is not None
        centre, std = self._scale
        unit = F.normalize((rows.float().cpu() - centre) / std, dim=1)
        generator = torch.Generator().manual_seed(0)
        random = torch.randn(len(centre), _SKETCH, generator=generator)
        return unit @ random / _SKETCH**0.5

    def _apart(self, sketches: Tensor, own: Tensor | None = None) -> Tensor:
        """Cosine distance of each to the nearest one taken in, itself left out."""
        (known,) = self._known
        nearest = torch.full((len(sketches),), torch.inf)
        for start in range(0, len(known), 16 * _CHUNK):
            part = known[start : start + 16 * _CHUNK].float()
            squares = sketches.square().sum(1)[:, None] + part.square().sum(1)
            found = (squares - 2 * sketches @ part.T) / 2
            if own is not None:
                found[own[:, None] == torch.arange(start, start + len(part))] = (
                    torch.inf
                )
            nearest = torch.minimum(nearest, found.min(1).values)
        return nearest


#: Positions of some samples in the training data.
Where = Callable[[], list[int]]


class Watch:
    """Meets the samples that are read: public ones among private ones are refused.

    Attributes:
        sketches: Of the public samples, or None if they are not known.
        alike: Positions of private samples that are "near" copies of public ones, or
            "blank" as one of them.
    """

    def __init__(self) -> None:
        self.sketches: Sketches | None = None
        self.alike: dict[int, str] = {}
        self._private: Callable[[], bool] = _never
        self._where: Where | None = None  # of the batch that is read
        self._find: Where | None = None  # of all that is refused

    def __getstate__(self) -> dict[str, Any]:
        """A copy watches nobody yet, and has met nobody."""
        nobody = {"_private": _never, "_where": None, "_find": None, "alike": {}}
        return {**vars(self), **nobody}

    def begin(self, private: Callable[[], bool] | None, find: Where | None) -> None:
        """From now on refuse whenever `private()` says so; None ends it."""
        if private is not None:
            self.alike = {}  # positions are those of this training's data
        self._private, self._find = private or _never, find

    @contextmanager
    def reading(self, where: Where | None) -> Iterator[None]:
        """A block in which everything that is read is private."""
        before = self._private, self._where
        self._private, self._where = _always, where
        try:
            yield
        finally:
            self._private, self._where = before

    def meet(self, inputs: Any, known: Tensor) -> list[bool] | None:
        """Raise if private inputs are public ones; else which of them are blank.

        Args:
            inputs: That are read now.
            known: Names of the public samples.

        Returns:
            None if the inputs are not private, or no public ones are known.

        Raises:
            GuaranteeError: If one is both.
        """
        if not (self._private() and len(known)):
            return None
        blank = blank_samples(inputs)
        met = public_ones(inputs, known)
        if any(met):
            raise GuaranteeError(
                "expected public_data that are no training samples, got "
                f"{sum(met)} in one batch that are both{self._told(met)}: the "
                "statistics of the PublicBackbone would remember the forgotten ones; "
                'give it other data, or standardize="none"'
            )
        return blank

    def look_at(self, rows: Tensor, blank: list[bool] | None) -> None:
        """Note which samples of the batch are like public ones.

        Args:
            rows: Features (n, d), before they are standardised.
            blank: What `meet` returned.
        """
        where = [] if self._where is None else self._where()
        if blank is None or self.sketches is None or len(where) != len(rows):
            return  # nothing is private, or rows are not one for each sample
        near = self.sketches.near(rows).tolist()
        for position, is_near, is_blank in zip(where, near, blank, strict=True):
            if is_near:
                self.alike[position] = "blank" if is_blank else "near"

    def _told(self, met: list[bool]) -> str:
        if self._where is None:
            found = [] if self._find is None else self._find()
        else:
            where = self._where()
            one_each = len(where) == len(met)
            found = (
                [p for p, m in zip(where, met, strict=True) if m] if one_each else []
            )
        return f" ({positions_text(found)} of the training data)" if found else ""


def public_ones(inputs: Any, known: Tensor) -> list[bool]:
    """Which inputs are public ones by name; blank ones say nothing and are none."""
    names = torch.tensor(sample_names(inputs), dtype=torch.int64)
    both = torch.isin(names, known.cpu()).tolist()
    if not any(both):
        return both
    blank = blank_samples(inputs)
    return [b and not empty for b, empty in zip(both, blank, strict=True)]


def _never() -> bool:
    return False


def _always() -> bool:
    return True
