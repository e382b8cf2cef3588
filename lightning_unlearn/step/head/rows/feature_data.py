"""Captured rows."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_unlearn.weights import large_arrays

_CHUNK = 4096


@dataclass(frozen=True)
class FeatureData:
    """Captured rows, as the head received them.

    Args:
        features: (n, d).
        targets: (n,) or (n, K).
        weights: Of each sample's loss (n, 1), or of each output's (n, K); None is 1.
    """

    features: Tensor = field(repr=False)
    targets: Tensor = field(repr=False)
    weights: Tensor | None = field(repr=False, default=None)

    @property
    def n(self) -> int:
        """Number of rows."""
        return len(self.features)

    @property
    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """Features, targets, and weights: 1 where there are none."""
        weights = self.weights
        if weights is None:
            weights = self.features.new_ones(self.n, 1)
        return self.features, self.targets, weights

    def different(self, other: "FeatureData") -> int:
        """How many rows are not those of `other`, to the last bit."""
        pairs = zip(self.parts, other.parts, strict=True)
        if any(own.shape != its.shape for own, its in pairs):
            return max(self.n, other.n)
        return int(self.changed(other).sum())

    def changed(self, other: "FeatureData") -> Tensor:
        """Which rows are not those of `other`, (n,) bool on the CPU; shapes are one."""
        pairs = list(zip(self.parts, other.parts, strict=True))
        masks = [torch.zeros(0, dtype=torch.bool)]
        for start in range(0, self.n, _CHUNK):
            found = torch.zeros((), dtype=torch.bool)
            for own, its in pairs:
                mine = own[start : start + _CHUNK]
                theirs = its[start : start + _CHUNK].to(mine.device)
                found = found | (mine != theirs).reshape(len(mine), -1).any(1).cpu()
            masks.append(found)
        return torch.cat(masks)

    def select(self, places: Tensor, device: torch.device) -> "FeatureData":
        """A copy of some rows (m,), on a device if they fit there."""
        shape = len(places), *self.features.shape[1:]
        features = large_arrays.empty(shape, self.features.dtype, device)
        places = places.to(self.features.device)
        for start in range(0, len(places), _CHUNK):
            part = slice(start, start + _CHUNK)
            features[part] = self.features[places[part]].to(features.device)
        targets = self.targets[places.to(self.targets.device)].to(device)
        weights = self.weights
        if weights is not None:
            weights = weights[places.to(weights.device)].to(device)
        return FeatureData(features, targets, weights)

    @staticmethod
    def of_parts(
        n: int, *parts: tuple["FeatureData", Tensor, Tensor], device: torch.device
    ) -> "FeatureData":
        """Rows put together from some of others.

        Args:
            n: Rows of the result; the parts must fill all of them.
            parts: Rows, places among them (m,), and places they take in the result.
            device: Where the result goes, if it fits there.
        """
        first = parts[0][0]
        shape = n, *first.features.shape[1:]
        features = large_arrays.empty(shape, first.features.dtype, device)
        targets = first.targets.new_empty(n, *first.targets.shape[1:], device=device)
        weights = first.weights
        if weights is not None:
            weights = weights.new_empty(n, *weights.shape[1:], device=device)
        for rows, source, to in parts:
            for start in range(0, len(to), _CHUNK):
                some, at = source[start : start + _CHUNK], to[start : start + _CHUNK]
                taken = rows[some]
                features[at.to(features.device)] = taken.features.to(features.device)
                targets[at.to(device)] = taken.targets.to(device)
                if weights is not None and taken.weights is not None:
                    weights[at.to(device)] = taken.weights.to(device)
        return FeatureData(features, targets, weights)

    def split(self, size: int) -> Iterator["FeatureData"]:
        """The rows, at most `size` at a time; one empty part if there are none."""
        for start in range(0, max(self.n, 1), size):
            yield self[start : start + size]

    def __getitem__(self, rows: slice | Tensor) -> "FeatureData":
        """Some of the rows, where they are."""

        def of(held: Tensor) -> Tensor:
            return held[rows.to(held.device) if isinstance(rows, Tensor) else rows]

        weights = None if self.weights is None else of(self.weights)
        return FeatureData(of(self.features), of(self.targets), weights)
