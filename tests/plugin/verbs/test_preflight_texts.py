"""What ``preflight`` shows for the models that people have."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_unlearn import UnlearningCallback, preflight
from lightning_unlearn.guarantee.claims import Bound, Grade
from tests.helpers.lightning import L
from tests.helpers.nets import digits, loader, trainer
from tests.helpers.snapshots import settled, snapshot
from tests.plugin.helpers.publics import held_out, solved
from tests.plugin.stages.test_rewinding import Script


class Ordinary(L.LightningModule):
    """A network with batch normalisation and AdamW."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10)
        )

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


class Adapter(nn.Module):
    """W + BA, of which W is not trained (Hu et al. 2021)."""

    def __init__(self, inside, outside, rank=2):
        super().__init__()
        self.linear = nn.Linear(inside, outside).requires_grad_(False)
        self.A = nn.Parameter(torch.randn(rank, inside) / 8)
        self.B = nn.Parameter(torch.zeros(outside, rank))

    def forward(self, x):
        return self.linear(x) + x @ self.A.T @ self.B.T


class Adapted(Ordinary):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(Adapter(64, 32), nn.GELU(), nn.Linear(32, 10))

    def configure_optimizers(self):
        trained = [p for p in self.parameters() if p.requires_grad]
        return torch.optim.AdamW(trained, lr=1e-2)


def training(data, kind, **options):
    """What `UnlearningCallback(retrain=...)` takes."""
    own = UnlearningCallback(retrain=lambda samples: training(samples, kind), **options)
    return trainer(own, 2), kind(), loader(data)


def fitted(kind, **options):
    own, net, data = training(digits(300), kind, **options)
    own.fit(net, data)
    return own


VALIDATION = DataLoader(digits(), 200)


def test_an_ordinary_network():
    own = fitted(Ordinary)
    look = preflight(own, range(5), val_dataloaders=VALIDATION)
    snapshot("preflight_ordinary", f"{settled(look)}\n")
    certificate = own.unlearn(range(5), how="retrain").certificate
    (best,) = [route for route in look.routes if route.recommended]
    assert (best.grade, best.epsilon) == (certificate.grade, certificate.epsilon)


def test_a_network_with_a_step_that_claims_nothing():
    """The seconds of its step are known, and stand beside those of a retraining."""
    own = fitted(Adapted, noise_std=0.0, l2=1e-3)
    look = preflight(own, range(5), val_dataloaders=VALIDATION)
    snapshot("preflight_bare_step", f"{settled(look)}\n")
    assert own.unlearn(range(5)).certificate.grade is look.grade is Grade.NONE


def test_low_rank_adapters():
    own = fitted(Adapted)
    look = preflight(own, range(5), val_dataloaders=VALIDATION)
    snapshot("preflight_adapters", f"{settled(look)}\n")
    grade = own.unlearn(range(5), how="retrain").certificate.grade
    assert grade is look.routes[1].grade is Grade.EXACT


def test_adapters_of_peft():
    """As the adapters by hand, whatever `peft` calls its layers."""
    peft = pytest.importorskip("peft")

    class Peft(Ordinary):
        def __init__(self):
            super().__init__()
            layers = nn.Sequential(nn.Linear(64, 32), nn.GELU(), nn.Linear(32, 10))
            self.net = peft.get_peft_model(
                layers, peft.LoraConfig(target_modules=["0"], modules_to_save=["2"])
            )

    own = fitted(Peft)
    look = preflight(own, range(5), val_dataloaders=VALIDATION)
    assert [route.name for route in look.routes if route.recommended] == ["retraining"]
    grade = own.unlearn(range(5), how="retrain").certificate.grade
    assert grade is look.routes[1].grade is Grade.EXACT


def test_a_convex_head_on_a_public_backbone():
    _, own, _, _ = solved(releases=10)
    validation = DataLoader(torch.utils.data.TensorDataset(*held_out()), 200)
    look = preflight(own, range(5), val_dataloaders=validation)
    snapshot("preflight_convex_head", f"{settled(look)}\n", width=90)
    certificate = own.unlearn(range(5)).certificate
    (best,) = [route for route in look.routes if route.recommended]
    assert (best.grade, best.epsilon) == (certificate.grade, certificate.epsilon)


def test_a_training_in_stages(tmp_path):
    """Somebody of the second: it goes on from the end of the first."""
    script = Script(tmp_path / "stages")
    _, own, _ = script.train(digits(300), stages=3)
    look = preflight(own, range(150, 155), val_dataloaders=VALIDATION)
    snapshot("preflight_stages", f"{settled(look)}\n")
    certificate = own.unlearn(range(150, 155), how="retrain").certificate
    assert certificate.bound is Bound.REWOUND
    assert certificate.grade is look.routes[1].grade is Grade.EXACT
