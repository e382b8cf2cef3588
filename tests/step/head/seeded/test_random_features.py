"""Random features: their kernels, their draws, and what is refused."""

import hashlib
import math
import struct

import numpy as np
import pytest
import torch
from sklearn.kernel_approximation import RBFSampler
from sklearn.metrics.pairwise import rbf_kernel
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_unlearn import PublicBackbone, RandomFeatures
from lightning_unlearn.errors import (
    ArgumentError,
    DataError,
    GuaranteeError,
    ModelError,
)
from lightning_unlearn.step.head.seeded.draws import normals

ROWS = torch.randn(60, 5, generator=torch.Generator().manual_seed(3))
PUBLIC = 3 + 2 * torch.randn(80, 5, generator=torch.Generator().manual_seed(4))


def kernel_error(kind, count, exact, seed=0, **options):
    made = RandomFeatures(
        count, kind, shape=5, seed=seed, unit_norm=False, scale=1.0, **options
    )
    rows = made(ROWS).double().numpy()
    return np.sqrt(np.mean((rows @ rows.T - exact) ** 2))


def arc_cosine(rows, length):
    """Degree 1 of Cho & Saul 2009, of rows with a 1 beside them."""
    u = np.hstack([rows / length, np.ones((len(rows), 1))])
    norms = np.linalg.norm(u, axis=1)
    t = np.arccos(np.clip(u @ u.T / np.outer(norms, norms), -1, 1))
    return np.outer(norms, norms) * (np.sin(t) + (np.pi - t) * np.cos(t)) / np.pi


EXACT = {
    "fourier": rbf_kernel(ROWS.numpy(), gamma=1 / (2 * 1.7**2)),
    "relu": arc_cosine(ROWS.double().numpy(), 1.7),
}


@pytest.mark.parametrize("kind", EXACT)
def test_inner_products_are_the_kernel_s_up_to_an_error_that_shrinks(kind):
    def error(count):
        found = [
            kernel_error(kind, count, EXACT[kind], seed, length_scale=1.7)
            for seed in range(4)
        ]
        return np.mean(found)

    few, many = error(200), error(3200)
    size = np.sqrt(np.mean(EXACT[kind] ** 2))
    assert many < 0.05 * size
    assert few / many == pytest.approx(4, rel=0.5)  # 1/sqrt(D)


def test_fourier_features_are_as_near_as_those_of_scikit_learn():
    ours, theirs = [], []
    for seed in range(5):
        ours.append(
            kernel_error("fourier", 1000, EXACT["fourier"], seed, length_scale=1.7)
        )
        sampler = RBFSampler(
            gamma=1 / (2 * 1.7**2), n_components=1000, random_state=seed
        )
        z = sampler.fit_transform(ROWS.numpy())
        theirs.append(np.sqrt(np.mean((z @ z.T - EXACT["fourier"]) ** 2)))
    assert np.mean(ours) < np.mean(theirs)
    rows = RandomFeatures(100, shape=5)(ROWS)
    torch.testing.assert_close(rows.norm(dim=1), torch.full((60,), 8.0))


def test_draws_are_those_that_the_page_describes():
    """Made again with the standard library, and Gaussian."""
    data = hashlib.shake_256(b"lightning_unlearn fourier 7").digest(16 * 3)
    uniform = [x / 2**53 for x in (w >> 11 for w in struct.unpack("<6Q", data))]
    u, v = uniform[:3], uniform[3:]
    radius = [math.sqrt(-2 * math.log1p(-x)) for x in u]
    cosines = [r * math.cos(2 * math.pi * x) for r, x in zip(radius, v, strict=True)]
    sines = [r * math.sin(2 * math.pi * x) for r, x in zip(radius, v, strict=True)]
    wanted = [round(x * 2**20) / 2**20 for x in cosines + sines][:5]
    assert normals(7, "fourier", 5).tolist() == wanted
    many = normals(0, "x", 200_000).double()
    moments = [float((many**k).mean()) for k in (1, 2, 3, 4)]
    assert moments == pytest.approx([0, 1, 0, 3], abs=0.05)
    assert float((many.abs() > 3).double().mean()) == pytest.approx(0.0027, rel=0.2)
    assert not torch.equal(normals(0, "x", 9), normals(1, "x", 9))


GOLDEN = {
    "fourier": "4ad6d2d956ec97af",
    "relu": "283a7c35267fc26f",
    "patches": "3fef28215e87465b",
    "identity": "7a25b24f6e0f34d8",
}


def of_kind(kind, **options):
    shape = (1, 8, 8) if kind == "patches" else 5
    count = None if kind == "identity" else 64
    given = {"patch": 3} if kind == "patches" else {}
    return RandomFeatures(count, kind, shape=shape, **given, **options)


@pytest.mark.parametrize("kind", GOLDEN)
def test_the_same_numbers_come_on_every_machine(kind):
    """Digests of this version: whoever changes a draw breaks certificates."""
    assert of_kind(kind, seed=11).digest[:16] == GOLDEN[kind]
    assert of_kind(kind, seed=12).digest != of_kind(kind, seed=11).digest


def test_the_global_generator_decides_nothing_and_is_left_alone():
    torch.manual_seed(1)
    state, one = torch.get_rng_state(), of_kind("relu")
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(2)
    assert of_kind("relu").digest == one.digest


def test_patches_are_what_plain_loops_give():
    made = of_kind("patches", low=0.0, high=16.0, unit_norm=False, scale=1.0)
    image = 16 * torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    filters = made.model.drawn.filters.double()
    scaled = (image.double() - 8) / 8
    patches = F.unfold(scaled, 3)  # (2, 9, 36)
    flat = patches - patches.mean(1, keepdim=True)
    flat = flat / (flat.square().mean(1, keepdim=True) + 0.05).sqrt()
    maps = (torch.einsum("fp,npl->nfl", filters.flatten(1), flat) - 1).clamp_min(0)
    grid = F.adaptive_avg_pool2d(maps.view(2, 4, 6, 6), (4, 4)).flatten(1)
    torch.testing.assert_close(made(image).double(), grid, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(made(image.flatten(1)), made(image))
    assert filters.shape == (4, 1, 3, 3)
    assert float(filters.sum((1, 2, 3)).abs().max()) < 1e-6
    torch.testing.assert_close(made(image.to(torch.uint8)), made(image.floor()))


# -- columns -------------------------------------------------------------------


def test_columns_are_scaled_by_what_is_stated():
    plain = RandomFeatures(kind="identity", shape=5)
    torch.testing.assert_close(plain(ROWS), ROWS)
    mean, std = torch.arange(5.0), torch.arange(1.0, 6.0)
    made = RandomFeatures(kind="identity", shape=5, mean=mean, std=std.tolist())
    torch.testing.assert_close(made(ROWS), (ROWS - mean) / std)
    ranged = RandomFeatures(kind="identity", shape=5, low=-4, high=[4, 4, 4, 4, 12])
    ends = ranged(torch.tensor([[-4.0] * 5, [4, 4, 4, 4, 12]]))
    assert ends.tolist() == [[-1] * 5, [1] * 5]
    normed = RandomFeatures(kind="identity", shape=5, unit_norm=True)
    torch.testing.assert_close(normed(ROWS).norm(dim=1), torch.full((60,), 8.0))


def test_large_numbers_keep_their_digits():
    """A time stamp in float64 would lose its seconds in single precision."""
    made = RandomFeatures(kind="identity", shape=1, mean=1.7e9, std=1.0)
    stamps = torch.tensor([[1.7e9 + 3], [1.7e9 + 4]], dtype=torch.float64)
    assert made(stamps).tolist() == [[3], [4]]


def test_categories_become_columns_of_their_own():
    made = RandomFeatures(kind="identity", shape=3, categories={1: 4}, low=0, high=2)
    rows = made(torch.tensor([[0, 3, 1], [2, 0, 2]]))
    assert rows.tolist() == [[-1, 0, 0, 0, 0, 1], [1, 1, 1, 0, 0, 0]]
    assert made.n_features == 6
    drawn = RandomFeatures(64, shape=3, categories={1: 4, 0: 2})
    assert drawn.model.drawn.frequencies.shape == (32, 7)
    with pytest.raises(DataError, match="codes 0 to 3 in column 1, got 4: state"):
        made(torch.tensor([[0, 4, 1]]))
    with pytest.raises(DataError, match=r"codes 0 to 3 in column 1, got 0\.5"):
        made(torch.tensor([[0, 0.5, 1]]))


def test_public_samples_scale_the_columns_and_their_distance_is_the_length_scale():
    made = RandomFeatures(64, shape=5, public_data=PUBLIC)
    mean, std = PUBLIC.double().mean(0), PUBLIC.double().std(0, correction=0)
    scaled = ((PUBLIC.double() - mean) / std).numpy()
    apart = np.linalg.norm(scaled[:, None] - scaled[None], axis=2)
    assert made.recipe.length_scale == pytest.approx(np.median(apart[apart > 0]), 0.01)
    torch.testing.assert_close(made.model.columns(PUBLIC), torch.tensor(scaled).float())
    assert "80 public samples" in made.description
    stated = RandomFeatures(64, shape=5, public_data=PUBLIC, mean=0.0, std=1.0)
    torch.testing.assert_close(stated.model.columns(PUBLIC), PUBLIC)


def test_a_loader_that_shuffles_gives_what_its_samples_in_order_give():
    many = torch.cat([PUBLIC + i for i in range(20)])  # more than are paired
    data = TensorDataset(many, torch.zeros(len(many)))
    one = RandomFeatures(64, shape=5, public_data=data)
    two = RandomFeatures(64, shape=5, public_data=DataLoader(data, 7, shuffle=True))
    assert one.digest == two.digest
    assert one.n_public == two.n_public == 1600


def test_the_length_scale_without_public_samples_is_of_the_columns_number_alone():
    assert RandomFeatures(shape=50).recipe.length_scale == pytest.approx(5)
    assert RandomFeatures(kind="relu", shape=49).recipe.length_scale == pytest.approx(7)


def test_training_samples_among_the_public_ones_are_refused():
    made = RandomFeatures(64, shape=5, public_data=PUBLIC)
    with made.reading_private():
        made(ROWS)
        with pytest.raises(GuaranteeError, match="no training samples, got 2 in one"):
            made(torch.cat([ROWS, PUBLIC[3:5]]))


# -- as a backbone -------------------------------------------------------------


def test_it_is_a_public_backbone_that_says_where_its_weights_come_from():
    made = of_kind("fourier", seed=5)
    assert isinstance(made, PublicBackbone)
    assert "RandomFeatures(seed=5, kind='fourier', n_features=64" in made.description
    assert "anyone can draw them" in made.description
    assert "that its maker stated" not in made.description
    assert "that its maker stated" in of_kind("relu", mean=1.0, std=2.0).description


@pytest.mark.parametrize("kind", ["fourier", "relu", "patches"])
def test_weights_that_the_seed_does_not_give_are_refused_even_with_their_digest(kind):
    made = of_kind(kind)
    made.check()
    name, held = next(iter(made.model.drawn.named_buffers()))
    held.view(-1)[0] += 2**-20
    with pytest.raises(ModelError, match=f"got others in drawn.{name}"):
        made.check()
    made._made = made._digests()  # as a forged checkpoint has it
    with pytest.raises(ModelError, match=f"from seed=0, got others in drawn.{name}"):
        made.check()


def test_state_comes_back_and_that_of_another_recipe_does_not():
    made = of_kind("fourier", public_data=PUBLIC)
    again = of_kind("fourier", public_data=PUBLIC)
    again.load_state_dict(made.state_dict())
    again.check()
    other = of_kind("fourier", public_data=PUBLIC, seed=1)
    other.load_state_dict(made.state_dict())
    with pytest.raises(ModelError, match="recipe"):
        other.check()


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"kind": "rbf"}, ArgumentError, "kind to be one of"),
        ({"shape": 0}, ArgumentError, "shape to be an integer >= 1"),
        ({"shape": ()}, ArgumentError, "expected shape=columns of one sample"),
        ({"kind": "patches"}, ArgumentError, r"shape=\(channels, rows, columns\)"),
        ({"n_features": 7}, ArgumentError, "an even n_features"),
        ({"n_features": 0}, ArgumentError, "n_features to be an integer >= 1"),
        (
            {"n_features": 7, "kind": "identity"},
            ArgumentError,
            "no n_features for kind='identity', got 7: its features are its 5 columns",
        ),
        ({"seed": -1}, ArgumentError, "seed to be an integer >= 0"),
        ({"length_scale": 0.0}, ArgumentError, "length_scale to be a finite number"),
        ({"mean": [1.0, 2.0]}, ArgumentError, "one for each of the 5 columns"),
        ({"mean": float("nan")}, ArgumentError, "mean to be a finite number"),
        ({"mean": "public"}, ArgumentError, "a constant that is public"),
        ({"mean": 0.0, "high": 1.0}, ArgumentError, "give one pair"),
        ({"low": 0.0}, ArgumentError, "give one pair"),
        ({"low": 1.0, "high": 1.0}, ArgumentError, "low < high for every column"),
        ({"std": 0.0}, ArgumentError, "std > 0 of every column, got 0"),
        ({"categories": [3]}, ArgumentError, "categories={column: number of values}"),
        ({"categories": {5: 2}}, ArgumentError, "columns 0 to 4, got column 5"),
        ({"categories": {0: 1}}, ArgumentError, "values_of_column_0"),
        ({"standardize": "public"}, ArgumentError, "public_data= for standardize="),
        ({"public_data": PUBLIC[:1]}, DataError, "at least 2 public samples"),
        ({"public_data": PUBLIC[:, :4]}, DataError, r"shape \(n, 5\), got \(80, 4\)"),
        (
            {"public_data": PUBLIC[:1].repeat(9, 1)},
            ArgumentError,
            "two public samples that differ",
        ),
    ],
)
def test_bad_arguments_are_refused(options, error, match):
    with pytest.raises(error, match=match):
        RandomFeatures(**{"shape": 5, **options})


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"n_features": 65}, "multiple of the 4 x 4 cells"),
        ({"patch": 6}, "patches that fit an image of 8 x 8 in 4 x 4 places or more"),
        ({"patch": 1}, "patch to be an integer >= 2"),
        ({"pool": 4}, "pool to be a pair"),
        ({"categories": {0: 2}}, "expected pixels for kind='patches'"),
    ],
)
def test_bad_arguments_of_patches_are_refused(options, match):
    given = {"n_features": 64, "patch": 3, **options}
    with pytest.raises(ArgumentError, match=match):
        RandomFeatures(kind="patches", shape=(1, 8, 8), **given)


@pytest.mark.parametrize(
    ("inputs", "match"),
    [
        (torch.zeros(3, 6), r"inputs of shape \(n, 5\), got \(3, 6\)"),
        (torch.tensor([[0.0, 1, torch.nan, 2, 3]]), "infinite ones in column 2: fill"),
        (torch.tensor([[torch.inf, 1, 0, 2, 3]]), "in column 0"),
    ],
)
def test_inputs_that_are_no_such_rows_are_refused_by_column(inputs, match):
    with pytest.raises(DataError, match=match):
        RandomFeatures(shape=5)(inputs)


@pytest.mark.skipif(
    not hasattr(torch.compiler, "is_exporting"), reason="needs torch >= 2.7"
)
@pytest.mark.parametrize("kind", ["fourier", "relu", "identity", "patches"])
def test_it_is_exported_for_any_number_of_rows(kind):
    options = {"shape": 5, "categories": {3: 4}, "n_features": 16}
    x = torch.randint(0, 4, (9, 5)).float()
    if kind == "identity":
        options["n_features"] = None
    elif kind == "patches":
        options = {"shape": (1, 8, 8), "patch": 3, "n_features": 16}
        x = torch.rand(9, 1, 8, 8)
    made, rows = RandomFeatures(kind=kind, **options), torch.export.Dim("n", min=2)
    graph = torch.export.export(made, (x[:4],), dynamic_shapes=({0: rows},))
    torch.testing.assert_close(graph.module()(x), made(x))
    x.flatten(1)[2, 1] = torch.nan
    with pytest.raises(DataError, match="infinite ones in column 1"):
        torch.compile(made, backend="eager")(x)  # a compiled one refuses as ever
