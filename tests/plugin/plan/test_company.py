"""A row has the same bits whatever else is left; tolerances below the rounding."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from lightning_unlearn import ConvexHead, UnlearningCallback, prepare
from lightning_unlearn.errors import GuaranteeError
from lightning_unlearn.guarantee.claims import Grade
from lightning_unlearn.plugin.data.exact_batches import ExactBatches
from tests.helpers.nets import HeadNet, trainer

N, BLOCK = 130, 64  # the last block has two samples
FORGET = [*range(3, 64), 128]  # three are left of the first, one of the last


class Net(HeadNet):
    """A frozen network below a head, of tensors or of mappings."""

    def __init__(self, backbone, width):
        super().__init__()
        self.backbone = backbone.requires_grad_(False)
        self.head = ConvexHead(width, 10)

    def training_step(self, batch, batch_idx):
        if isinstance(batch, dict):
            x, y = batch["ids"], batch["labels"]
        else:
            x, y = batch
        return self.head.loss(self.backbone(x), y).mean()


class Encoder(nn.Module):
    """Texts of many lengths; 0 is padding."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(50, 32, padding_idx=0)
        self.layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, dropout=0)

    def forward(self, ids):
        mask = ids == 0
        out = self.layer(self.embed(ids), src_key_padding_mask=mask)
        return (out * ~mask[:, :, None]).sum(1) / (~mask).sum(1, keepdim=True)


class Texts(Dataset):
    def __len__(self):
        return N

    def __getitem__(self, i):
        return torch.arange(i, i + 4 + i % 11) % 49 + 1, i % 10


def padded(samples):
    ids, labels = zip(*samples, strict=True)
    ids = nn.utils.rnn.pad_sequence(list(ids), batch_first=True)
    return {"ids": ids, "labels": torch.tensor(labels)}


def rows_of(x, net, width):
    y = torch.arange(N) % 10
    return Net(net, width), TensorDataset(x, y), None


def narrow():
    return rows_of(torch.randn(N, 100), nn.Linear(100, 64), 64)


def images():
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 14 * 14, 32),
    )  # fmt: skip
    return rows_of(torch.rand(N, 3, 32, 32), net, 32)


def pixels():
    net = nn.Sequential(nn.Linear(784, 128), nn.Tanh(), nn.Linear(128, 32))
    return rows_of(torch.rand(N, 784), net, 32)


def texts():
    return Net(Encoder(), 32), Texts(), padded


def solved(make, batch=BLOCK, **options):
    """A short fit: (net, trainer, callback)."""
    torch.manual_seed(0)
    net, dataset, collate = make()
    callback = UnlearningCallback(**options)
    run = trainer(callback)
    run.fit(net, DataLoader(dataset, batch, shuffle=True, collate_fn=collate))
    return net, run, callback


@pytest.mark.parametrize("make", [narrow, images, pixels])
def test_a_row_has_the_same_bits_however_many_are_left(make):
    _, run, callback = solved(make)
    prepare(run)
    before = callback.bound_state.state
    assert run.unlearn(FORGET).certificate.grade is Grade.CERTIFIED
    after = callback.bound_state.state
    left = after.positions.tolist()
    assert set(before.stale(left)) == {0, 1, 2, 129}
    assert torch.equal(after.rows.features, before.of(left).features)
    assert run.unlearn([0, 1]).certificate.grade is Grade.CERTIFIED
    alone = callback.bound_state.state
    assert torch.equal(alone.of([2]).features, before.of([2]).features)


def test_without_filling_it_would_not():
    torch.manual_seed(0)
    layer, x = nn.Linear(100, 64), torch.randn(64, 100)
    assert not torch.equal(layer(x)[:3], layer(x[:3]))


def test_a_block_is_filled_by_its_own_samples_and_each_counts_once():
    data = DataLoader(TensorDataset(torch.arange(10.0)), 4)
    batches = ExactBatches(data, [1, 4, 5, 9], 4, by_position=True)
    assert batches.parts == [[0, 0, 0, 0], [1, 2, 1, 2], [3, 3, 3, 3]]
    assert batches.places.tolist() == [0, 1, 2, 3]
    found = [(weight, batch[0].tolist()) for weight, batch in batches]
    assert found == [(1, [1.0] * 4), (2, [4.0, 5.0] * 2), (1, [9.0] * 4)]
    few = ExactBatches(data, [1, 2], 1000, by_position=True)
    assert [len(part) for part in few.parts] == [10]  # no more than there are samples
    plain = ExactBatches(data, [1, 4, 5], 2)
    assert plain.parts == [[0, 1], [2]]


@pytest.mark.parametrize("make", [narrow, images, pixels, texts])
@pytest.mark.parametrize("batch", [1, 7, 64, 500])
def test_ordinary_models_stay_certified_at_any_tolerance(make, batch):
    for tolerance in (1e-6, 1e-9):
        _, run, _ = solved(make, batch, tolerance=tolerance)
        certificate = run.unlearn([2, 70]).certificate
        assert certificate.grade is Grade.CERTIFIED
        assert "computed in the same environment and blocks" in certificate.reference


class Uneven(nn.Module):
    """Rounds by the place in the batch, as some kernels do at the edge of a tile."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(100, 64)

    def forward(self, x):
        edge = torch.arange(len(x), device=x.device) % 16 == 15
        return self.layer(x) * (1 + 3e-7 * edge[:, None])


def uneven():
    return rows_of(torch.randn(N, 100), Uneven(), 64)


@pytest.mark.parametrize("prepared", [False, True])
def test_a_tolerance_below_the_rounding_is_refused_and_the_least_is_named(prepared):
    net, run, callback = solved(uneven, tolerance=1e-8)
    if prepared:
        prepare(run)
    before = net.head.weight.detach().clone()
    with pytest.raises(GuaranteeError, match="got tolerance=1e-08.*take tol") as error:
        run.unlearn([2, 70])
    assert torch.equal(before, net.head.weight)
    assert callback.record.removed == []
    text = str(error.value)
    least = float(text.split("take tolerance=")[1].split()[0])
    assert least > 1e-8
    _, run, _ = solved(uneven, tolerance=least, accept_noise=True)
    assert run.unlearn([2, 70]).certificate.grade is Grade.CERTIFIED
