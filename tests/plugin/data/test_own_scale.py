"""Data that were scaled by their own mean and deviation, and data that were not."""

import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

from lightning_unlearn import CertifiedRegressor, PublicBackbone, UnlearningCallback
from lightning_unlearn.plugin.data.own_scale import columns, columns_of
from tests.helpers.nets import HeadNet, digits, trainer

LOOKS = r"columns of the training data have mean 0 and standard deviation 1"


def table():
    X, y = load_breast_cancer(return_X_y=True)
    return torch.tensor(StandardScaler().fit_transform(X), dtype=torch.float32), y


def test_every_column_of_a_fitted_scaler_is_seen():
    X, y = table()
    assert columns(X) == (30, 30)
    own = (digits().tensors[0] - digits().tensors[0].mean(0)).double()
    own = own / own.std(0).clamp_min(1e-9)  # three pixels are always 0
    assert columns(own.float()) == (61, 61)
    mixed = torch.cat([X, torch.eye(len(X))[:, :20]], 1)
    assert columns(mixed) == (30, 50)


def test_of_images_and_targets_too():
    images = torch.rand(500, 3, 8, 8) ** 2
    assert columns(images)[0] == 0
    mean, std = images.mean((0, 2, 3)), images.std((0, 2, 3))
    assert columns((images - mean[:, None, None]) / std[:, None, None]) == (3, 3)
    assert columns((images - images.mean()) / images.std()) == (1, 1)
    _, y = load_diabetes(return_X_y=True)
    y = torch.tensor((y - y.mean()) / y.std(), dtype=torch.float32)
    assert columns_of(TensorDataset(torch.rand(442, 5), y), list(range(442))) == (1, 1)


def test_a_split_of_data_that_were_scaled_before_it_is_seen():
    X, y = table()
    data = Subset(TensorDataset(X, torch.tensor(y)), range(0, 569, 2))
    assert columns(X, torch.arange(0, 569, 2)) == (0, 0)
    assert columns_of(data, list(range(len(data)))) == (30, 30)
    assert columns_of(data, []) == (0, 0)


@pytest.mark.parametrize(
    "make",
    [
        lambda g: torch.randn(1000, 300, generator=g),
        lambda g: torch.randn(200_000, 20, generator=g),
        lambda g: nn.BatchNorm1d(40)(torch.randn(999, 40, generator=g)).detach()[:900],
        lambda g: (torch.rand(400, 3, 16, 16, generator=g) - 0.45) / 0.225,
        lambda g: torch.tensor([-1.0, 1.0]).repeat(300, 5),  # balanced signs
        lambda g: torch.ones(100, 7),
        lambda g: torch.zeros(0, 4),
        lambda g: torch.full((50, 3), torch.nan),
    ],
)
def test_ordinary_data_are_not(make):
    for seed in range(5):
        assert columns(make(torch.Generator().manual_seed(seed))) == (0, 0)


def test_the_chance_of_a_false_alarm_is_small():
    """20,000 columns of noise, each looked at on its own."""
    X = torch.randn(500, 20_000, generator=torch.Generator().manual_seed(0))
    near = (X.mean(0).abs() < 1e-5) & ((X.std(0) - 1).abs() < 1e-5)
    assert int(near.sum()) == 0
    assert columns(X) == (0, 0)


def test_a_training_says_it_once():
    X, y = table()
    net = HeadNet()
    net.backbone = nn.Linear(30, 32).requires_grad_(False)
    data = DataLoader(TensorDataset(X, torch.tensor(y)), 64)
    callback = UnlearningCallback()

    def fits(times):
        for _ in range(times):
            trainer(callback).fit(net, data)

    with pytest.warns(UserWarning, match=f"30 of 30 {LOOKS}") as said:
        fits(2)
    assert sum("standard deviation 1" in str(w.message) for w in said) == 1


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
def test_a_solved_head_says_it_of_its_features_once():
    class Read(torch.utils.data.Dataset):
        def __init__(self, X, y):
            self.X, self.y = X, torch.tensor(y, dtype=torch.float32)

        def __len__(self):
            return len(self.X)

        def __getitem__(self, i):
            return self.X[i], self.y[i]

    X, y = table()
    for kind in (Read, lambda X, y: TensorDataset(X, torch.tensor(y).float())):
        backbone = PublicBackbone(
            nn.Sequential(nn.Identity()), public_data=torch.randn(5, 30),
            standardize="none", taps=["0"], unit_norm=False, scale=1.0,
        )  # fmt: skip
        net = CertifiedRegressor(backbone)
        with pytest.warns(UserWarning, match=LOOKS) as said:
            trainer(UnlearningCallback()).fit(net, DataLoader(kind(X, y), 64))
        assert sum("standard deviation 1" in str(w.message) for w in said) == 1


def test_who_can_rebuild_the_data_and_who_scales_in_public_is_not_told():
    class Rebuilds(TensorDataset):
        def dataset_without(self, positions):
            raise NotImplementedError

    X, y = table()
    net = HeadNet()
    net.backbone = nn.Linear(30, 32).requires_grad_(False)
    raw = torch.tensor(load_breast_cancer(return_X_y=True)[0], dtype=torch.float32)
    half = StandardScaler().fit(raw[:100])
    public = torch.tensor(half.transform(raw[100:]), dtype=torch.float32)
    for dataset in (
        Rebuilds(X, torch.tensor(y)),
        TensorDataset(public, torch.tensor(y[100:])),
    ):  # a warning is an error here
        callback = UnlearningCallback()
        trainer(callback).fit(net, DataLoader(dataset, 64))
        assert not callback.attached.scaling_told
