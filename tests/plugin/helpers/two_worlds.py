"""Two worlds, one without the forgotten samples: how far apart is what is released?

The answer of the second world is an oracle's: rows are read here, and solved by code
that shares none with the package.
"""

from dataclasses import dataclass

import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_unlearn import ConvexHead, UnlearnableMixin
from lightning_unlearn.certificate.certificate import Certificate
from lightning_unlearn.guarantee.claims import Grade
from lightning_unlearn.plugin.request import execution
from tests.helpers.lightning import L
from tests.helpers.oracles import retrain_softmax_head

FORGET = [3, 14, 15, 92, 65]
L2, N, D, K = 1e-2, 200, 8, 3


def toy(n=N, seed=0):
    """(X, y) of three clouds."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(K, (n,), generator=generator)
    centres = torch.randn(K, D, generator=generator)
    return centres[y] + torch.randn(n, D, generator=generator), y


def kept(n=N):
    """Positions of the second world."""
    return [i for i in range(n) if i not in FORGET]


class Net(UnlearnableMixin, L.LightningModule):
    """A head on plain features."""

    def __init__(self, d=D):
        super().__init__()
        self.head = ConvexHead(d, K)

    def training_step(self, batch, batch_idx):
        return self.head.loss(batch[0], batch[1]).mean()

    def configure_optimizers(self):
        return torch.optim.Adam(self.head.parameters(), 0.05, weight_decay=L2)


@dataclass(frozen=True)
class Outcome:
    """Of a request, against the oracle's answer in the other world."""

    certificate: Certificate
    distance: float

    @property
    def is_right(self) -> bool:
        """Whether what is certified is true of these two worlds."""
        sensitivity = self.certificate.sensitivity
        return sensitivity is not None and self.distance <= sensitivity

    @property
    def first_sentence(self) -> str:
        return " ".join(str(self.certificate).split("\n\n")[0].split())


def loader(*tensors, **options):
    return DataLoader(TensorDataset(*tensors), 32, **{"shuffle": True, **options})


def unlearn(fit_trainer, monkeypatch, **request):
    """(certificate, weights before noise)."""
    seen, release = [], execution.release

    def looks_on(step, *rest):
        seen.append(step.weights.detach().cpu().double().clone())
        return release(step, *rest)

    monkeypatch.setattr(execution, "release", looks_on)
    certificate = fit_trainer.unlearn(FORGET, **request).certificate
    return certificate, seen[-1]


@torch.no_grad()
def rows(net, *tensors):
    """What reaches the head, in eval mode, by the module's own code."""
    net.eval()
    found, own = [], net.head.loss
    net.head.loss = lambda X, y: found.append((X, y)) or own(X, y)
    net.training_step(tensors, 0)
    del net.head.loss
    ((X, y),) = found
    return X.double().numpy(), y.numpy()


def against(net, tensors, certificate, weights):
    """The outcome, with the oracle's weights on these samples of the other world."""
    X, y = rows(net, *tensors)
    exact = torch.from_numpy(retrain_softmax_head(X, y, K, L2))
    return Outcome(certificate, float((weights - exact).norm()))


def is_harmless(outcome):
    """Nothing certified, or right."""
    return outcome.certificate.grade is not Grade.CERTIFIED or outcome.is_right
