"""All that random features follow from, beside the constants of the columns."""

import json
import math
from dataclasses import asdict, dataclass
from typing import Literal, get_args

from torch import nn

from lightning_unlearn._base import validate
from lightning_unlearn.errors import ArgumentError
from lightning_unlearn.step.head.seeded.random_maps import Fourier, Patches, Relu

Kind = Literal["fourier", "relu", "patches", "identity"]
_FEATURES = 1024


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Public numbers and names, checked; anyone can draw the same from them.

    Args:
        kind: See `RandomFeatures`.
        seed: Of the draws.
        n_features: D, of the map; of "identity" as many as the columns give.
        shape: Of one sample.
        width: Of a scaled row.
        length_scale: Of "fourier" and "relu", else 0.
        patch: Of "patches", else 0.
        pool: Grid of "patches".
    """

    kind: Kind
    seed: int
    n_features: int
    shape: tuple[int, ...]
    width: int
    length_scale: float
    patch: int
    pool: tuple[int, int]

    def drawn(self) -> nn.Module | None:
        """The random map, drawn now; None for "identity"."""
        scaled = self.width, self.n_features, self.length_scale, self.seed
        if self.kind == "fourier":
            return Fourier(*scaled)
        if self.kind == "relu":
            return Relu(*scaled)
        if self.kind == "patches":
            cells = self.pool[0] * self.pool[1]
            filters = self.n_features // cells
            return Patches(self.shape[0], filters, self.patch, self.seed)
        return None

    @property
    def text(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self))

    def __str__(self) -> str:
        used = {"seed": self.seed, "kind": self.kind, "n_features": self.n_features}
        used |= {"shape": self.shape}
        used |= {"length_scale": self.length_scale} if self.length_scale else {}
        used |= {"patch": self.patch, "pool": self.pool} if self.patch else {}
        return ", ".join(f"{name}={value!r}" for name, value in used.items())


def checked_recipe(
    *,
    kind: Kind,
    seed: int,
    n_features: int | None,
    shape: tuple[int, ...],
    width: int,
    length_scale: float,
    patch: int,
    pool: tuple[int, int],
) -> Recipe:
    """A recipe that can be carried out.

    Raises:
        ArgumentError: If an argument is outside its range, or does not fit the others.
    """
    validate.count(0, seed=seed)
    if kind == "identity":
        if n_features not in (None, width):
            raise ArgumentError(
                f"expected no n_features for kind='identity', got {n_features}: its "
                f"features are its {width} columns"
            )
        n_features = width
    n_features = _FEATURES if n_features is None else n_features
    validate.count(n_features=n_features)
    if kind == "fourier" and n_features % 2:
        raise ArgumentError(
            f"expected an even n_features for kind='fourier', got {n_features}: "
            "cosines and sines come in pairs"
        )
    if kind == "patches":
        _check_patches(n_features, shape, patch, pool)
    return Recipe(
        kind=kind,
        seed=int(seed),
        n_features=int(n_features),
        shape=shape,
        width=width,
        length_scale=float(length_scale) if kind in ("fourier", "relu") else 0.0,
        patch=int(patch) if kind == "patches" else 0,
        pool=(int(pool[0]), int(pool[1])) if kind == "patches" else (1, 1),
    )


def _check_patches(
    n_features: int, shape: tuple[int, ...], patch: int, pool: tuple[int, int]
) -> None:
    if not (isinstance(pool, (tuple, list)) and len(pool) == 2):
        raise ArgumentError(f"expected pool to be a pair such as (4, 4), got {pool!r}")
    validate.count(pool_rows=pool[0], pool_columns=pool[1])
    validate.count(2, patch=patch)
    if n_features % (pool[0] * pool[1]):
        raise ArgumentError(
            f"expected n_features to be a multiple of the {pool[0]} x {pool[1]} cells "
            f"of pool=, got {n_features}: each filter gives one feature a cell"
        )
    places = shape[1] - patch + 1, shape[2] - patch + 1
    if places[0] < pool[0] or places[1] < pool[1]:
        raise ArgumentError(
            f"expected patches that fit an image of {shape[1]} x {shape[2]} in "
            f"{pool[0]} x {pool[1]} places or more, got patch={patch}: lower patch= or "
            "pool="
        )


def checked_shape(shape: object, kind: str) -> tuple[int, ...]:
    """The shape of one sample.

    Raises:
        ArgumentError: If it is none, or no image where one is needed.
    """
    validate.one_of(get_args(Kind), kind=kind)
    sizes = tuple(shape) if isinstance(shape, (tuple, list)) else (shape,)
    for size in sizes:
        validate.count(shape=size)
    if not sizes or (kind == "patches" and len(sizes) != 3):
        wanted = "(channels, rows, columns)" if kind == "patches" else "columns"
        raise ArgumentError(
            f"expected shape={wanted} of one sample for kind={kind!r}, got {shape!r}"
        )
    return tuple(int(size) for size in sizes)  # type: ignore[call-overload]


def usual_length(kind: str, width: int, deviation: float) -> float:
    """The length scale of "auto" where there is no public sample.

    Samples whose columns have this deviation are about ``deviation sqrt(2 width)``
    apart; half of that is a Gaussian kernel of gamma = 1/width where it is 1.
    """
    return deviation * math.sqrt(width if kind == "relu" else width / 2)
