"""A frozen part that is drawn from a public seed: kernel machines, certified."""

import hashlib
import math
from collections import OrderedDict
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from typing_extensions import override

from lightning_unlearn._base import validate
from lightning_unlearn.errors import ArgumentError, ModelError
from lightning_unlearn.step.head.backbone import PublicBackbone
from lightning_unlearn.step.head.inputs import batches, in_order
from lightning_unlearn.step.head.seeded.columns import (
    Columns,
    Numbers,
    checked_categories,
    constants,
    public_constants,
)
from lightning_unlearn.step.head.seeded.recipe import (
    Kind,
    Recipe,
    checked_recipe,
    checked_shape,
    usual_length,
)
from lightning_unlearn.step.known_samples import sample_names

_PAIRED = 1000  # public samples whose distances are taken


class RandomFeatures(PublicBackbone):
    """Features (n, D) of rows of numbers, or small images, from a public seed.

    A frozen part for the certified modules, in place of a network: a head on it is a
    kernel machine, or a wide network whose hidden layer is not trained, and every
    deletion is certified. All weights follow from `seed` and the options: `check`, and
    so every request, draws them anew and compares, and anyone can compute `digest`
    again (`step.head.seeded.draws.normals` says how, without torch).

    What you state must be public: the constants that columns are scaled by, the length
    scale, the categories. Those computed from training samples remember them.

    Args:
        n_features: D. None: 1,024, or for "identity" as many as the columns give.
        kind: "fourier": random Fourier features, of a Gaussian kernel. "relu": random
            rectified sums, of an arc-cosine kernel. "patches": random filters on the
            patches of an image, averaged over a grid; D is a multiple of its cells.
            "identity": the scaled columns as they are.
        shape: Of one sample: columns, or (channels, rows, columns) of an image.
        seed: Of the draws; a public number.
        mean: Subtracted from the columns: a number, or one for each column.
        std: What they are then divided by, likewise.
        low: With `high`, instead of `mean` and `std`: this range is mapped to [-1, 1].
            Without any of the four, mean and deviation of `public_data` are used (of
            all pixels together for "patches"); without these, columns are not scaled.
        high: See `low`.
        categories: ``{column: number of values}`` of columns that hold codes 0, 1, 2,
            ...: each becomes so many columns of zeros and a one.
        length_scale: For "fourier", the distance at which samples no longer look alike;
            for "relu", what rows are divided by, but not the constant of the bias.
            "auto": the median distance in `public_data` if there is any; else, from the
            number d of columns alone, ``sqrt(d/2)`` (``sqrt(d)`` for "relu"), which
            suits columns scaled to deviations of about 1.
        patch: Rows and columns of a patch.
        pool: Grid that maps of patches are averaged over.
        standardize: Of the features, as for `PublicBackbone`.
        unit_norm: Divide each row by its norm. None: yes, except for "identity".
        public_data: Inputs that are no training samples, if there are any.
        scale: As for `PublicBackbone`. None: 8 with `unit_norm`, else 1.
        batch_size: Samples that are read at once.

    Attributes:
        recipe: Everything that the draws follow from.

    Raises:
        ArgumentError: If an argument is outside its range, or needs another.
        DataError: If `public_data` do not fit.

    Example:
        >>> made = RandomFeatures(256, "fourier", shape=4, low=0.0, high=10.0)
        >>> made(10 * torch.rand(5, 4)).shape
        torch.Size([5, 256])
    """

    def __init__(
        self,
        n_features: int | None = None,
        kind: Kind = "fourier",
        *,
        shape: int | tuple[int, ...],
        seed: int = 0,
        mean: Numbers | None = None,
        std: Numbers | None = None,
        low: Numbers | None = None,
        high: Numbers | None = None,
        categories: Mapping[int, int] | None = None,
        length_scale: float | Literal["auto"] = "auto",
        patch: int = 6,
        pool: tuple[int, int] = (4, 4),
        standardize: Literal["public", "none"] = "none",
        unit_norm: bool | None = None,
        public_data: Tensor | Dataset | DataLoader | None = None,
        scale: float | None = None,
        batch_size: int = 256,
    ) -> None:
        sizes = checked_shape(shape, kind)
        validate.count(batch_size=batch_size)
        if isinstance(public_data, DataLoader):  # the same whether it shuffles or not
            public_data = in_order(public_data, batch_size)
        stated = {"mean": mean, "std": std, "low": low, "high": high}
        columns, deviation = _columns(
            sizes, kind, stated, categories or {}, public_data, batch_size
        )
        if length_scale == "auto":
            length_scale = usual_length(kind, columns.width, deviation)
            if public_data is not None and kind in ("fourier", "relu"):
                length_scale = _median_distance(columns, public_data, batch_size)
        validate.positive(length_scale=length_scale)
        recipe = checked_recipe(
            kind=kind,
            seed=seed,
            n_features=n_features,
            shape=sizes,
            width=columns.width,
            length_scale=length_scale,
            patch=patch,
            pool=pool,
        )
        if standardize == "public" and public_data is None:
            raise ArgumentError(
                "expected public_data= for standardize='public', got none: statistics "
                "of the training samples remember the ones to be forgotten"
            )
        unit_norm = kind != "identity" if unit_norm is None else unit_norm
        super().__init__(
            _Layers(columns, recipe),
            ["drawn" if kind != "identity" else "columns"],
            recipe.pool,
            standardize,
            unit_norm,
            public_data=torch.zeros(1, *sizes) if public_data is None else public_data,
            scale=(8.0 if unit_norm else 1.0) if scale is None else scale,
            batch_size=batch_size,
        )
        if public_data is not None:  # whatever it was looked at for
            self._remember(public_data)

    @property
    def recipe(self) -> Recipe:
        """All that the draws follow from."""
        return self.model.recipe  # type: ignore[return-value]

    @property
    @override
    def description(self) -> str:
        """What a certificate says of it."""
        text = f"RandomFeatures({self.recipe}): "
        if self.recipe.kind == "identity":
            text += "the columns of a sample, no weights"
        else:
            text += (
                "its weights follow from these numbers, were drawn from them anew for "
                "this request and compared; anyone can draw them"
            )
        columns = self.model.columns
        if self.n_public:
            text += f"; what was taken from {self.n_public:,} public samples"
        elif bool((columns.center != 0).any() or (columns.spread != 1).any()):  # type: ignore[union-attr]
            text += "; columns are scaled by constants that its maker stated"
        return text

    @override
    def check(self) -> None:
        """Raise unless everything is as it was made, and the weights as drawn.

        Raises:
            ModelError: As `PublicBackbone.check`, or if the weights are not those that
                the seed gives.
        """
        super().check()
        fresh = self.recipe.drawn()
        wanted = {} if fresh is None else fresh.state_dict(prefix="drawn.")
        held = dict(self.model.named_buffers())
        for name, tensor in wanted.items():
            if not torch.equal(held[name].cpu(), tensor):
                raise ModelError(
                    f"expected RandomFeatures whose weights follow from seed="
                    f"{self.recipe.seed}, got others in {name}: make it anew"
                )

    def _remember(self, public_data: Tensor | Dataset | DataLoader) -> None:
        """These samples are refused as training samples, and counted."""
        names = [
            name
            for batch in batches(public_data, self.batch_size)
            for name in sample_names(batch)
        ]
        self.known, self.n_public = torch.tensor(sorted(set(names))), len(names)

    @override
    def _prepared(self, inputs: Tensor) -> Tensor:
        return inputs  # columns are scaled in float64

    @override
    def _digests(self) -> dict[str, str]:
        text = self.recipe.text.encode()
        return {**super()._digests(), "recipe": hashlib.sha256(text).hexdigest()}


class _Layers(nn.Sequential):
    """Columns, then the map that a recipe gives."""

    def __init__(self, columns: Columns, recipe: Recipe) -> None:
        drawn = recipe.drawn()
        layers = OrderedDict[str, nn.Module](columns=columns)
        super().__init__(layers if drawn is None else layers | {"drawn": drawn})
        self.recipe = recipe


def _columns(
    sizes: tuple[int, ...],
    kind: Kind,
    stated: Mapping[str, Numbers | None],
    categories: Mapping[int, int],
    public_data: Tensor | Dataset | DataLoader | None,
    batch_size: int,
) -> tuple[Columns, float]:
    """The columns, and the deviation they have once scaled, as far as is known."""
    d, images = math.prod(sizes), kind == "patches"
    found = checked_categories(categories, d)
    if found and images:
        raise ArgumentError(
            "expected pixels for kind='patches', got categories=: leave it out"
        )
    center, spread, deviation = constants(d, stated)
    if public_data is not None and all(x is None for x in stated.values()):
        raw = Columns(sizes, center, spread, {})
        center, spread = public_constants(
            map(raw.doubled, batches(public_data, batch_size)), together=images
        )
    return Columns(sizes, center, spread, found, kept_shape=images), deviation


def _median_distance(
    columns: Columns, public_data: Tensor | Dataset | DataLoader, batch_size: int
) -> float:
    """Between the first public samples, once scaled."""
    rows = list[Tensor]()
    for batch in batches(public_data, batch_size):
        rows.append(columns(batch))
        if sum(map(len, rows)) >= _PAIRED:
            break
    some = torch.cat(rows)[:_PAIRED] if rows else torch.zeros(0, 1)
    distances = torch.pdist(some.double())
    apart = distances[distances > 0]
    if not len(apart):
        raise ArgumentError(
            "expected two public samples that differ, to take their distance for "
            "length_scale='auto', got none: give more in public_data=, or a number"
        )
    return float(apart.median())
