"""Certified heads: solved, unlearned, and held against an independent retraining."""

import math
from dataclasses import dataclass

import lightning as L
import numpy as np
import torch
from scipy.optimize import minimize
from torch.utils.data import DataLoader, Subset, TensorDataset
from world import DELTA, N_CLASSES, accuracy

from lightning_unlearn import CertifiedClassifier, PublicBackbone, UnlearningCallback
from lightning_unlearn.guarantee import claims

EPSILONS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
_DRAWS = 5


@dataclass(frozen=True)
class Kind:
    """One way to make a head; l2 was chosen on the tuning group."""

    taps: object = "auto"
    pool: tuple[int, int] = (2, 2)
    loss: str = "cross_entropy"
    l2: float = 3e-3
    tolerance: float = 1e-6
    releases: int | None = None
    batch_size: int | None = None
    views: bool = False

    def backbone(self, model, public):
        """Its features."""
        return PublicBackbone(model, self.taps, self.pool, public_data=public)


def solved(backbone, kind, dataset, **options):
    """(net, trainer, seconds of the fit)."""
    net = CertifiedClassifier(backbone, N_CLASSES, kind.loss, kind.l2)
    callback = UnlearningCallback(
        1.0, DELTA, tolerance=kind.tolerance, releases=kind.releases,
        batch_size=kind.batch_size, **options,
    )  # fmt: skip
    trainer = L.Trainer(
        max_epochs=-1, callbacks=[callback], accelerator="cpu", logger=False,
        limit_val_batches=0, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(net, DataLoader(dataset, 250, shuffle=True))
    return net, trainer


def rated(net, rows, y):
    """Accuracy in percent on features."""
    with torch.no_grad():
        return accuracy(net.head(rows), y)


def request(backbone, kind, train: TensorDataset, test_rows, test_y, forget):
    """What a certified request gives, and what retraining without noise gives."""
    net, trainer = solved(backbone, kind, train)
    before = rated(net, test_rows, test_y)
    result = trainer.unlearn(forget)
    c = result.certificate
    gone = set(forget)
    retained = Subset(train, [i for i in range(len(train)) if i not in gone])
    anew, _ = solved(backbone, kind, retained, noise_std=0.0)
    return {
        "before": before,
        "certified": rated(net, test_rows, test_y),
        "retrained": rated(anew, test_rows, test_y),
        "grade": c.grade.value,
        "noise_std": c.noise_std,
        "logit_noise": c.noise_std * (backbone.scale**2 + 1) ** 0.5,
        "sensitivity": c.sensitivity,
        "weights": c.n_parameters,
        "seconds": result.seconds,
    }


def without_noise(backbone, kind, train, forget):
    """(net, flat weights before noise) of the same request."""
    net, trainer = solved(backbone, kind, train, noise_std=0.0)
    start = torch.cat([p.detach().double().flatten() for p in net.head.parameters()])
    result = trainer.unlearn(forget)
    return net, start - result.solution.x


def curve(net, w, kind, rows, y):
    """Epsilon -> mean accuracy over draws of the noise."""
    sizes = [p.numel() for p in net.head.parameters()]
    found = {}
    for epsilon in EPSILONS:
        terms = claims.Terms(epsilon=epsilon, delta=DELTA, releases=kind.releases)
        std = claims.noise_std_upper(terms, 2 * kind.tolerance / kind.l2)
        values = []
        for _ in range(_DRAWS):
            weight, bias = (w + std * torch.randn_like(w)).split(sizes)
            logits = rows.double() @ weight.view(N_CLASSES, -1).T + bias
            values.append(accuracy(logits, y))
        found[str(epsilon)] = sum(values) / len(values)
    return found


def retrained_by_scipy(rows, y, l2):
    """(flat weights, |grad F|) of cross-entropy, from formulas written here."""
    n = len(rows)
    Z = np.hstack([rows.double().numpy(), np.ones((n, 1))])
    Y = np.eye(N_CLASSES)[y.numpy()]

    def value_and_gradient(w):
        W = w.reshape(N_CLASSES, -1)
        z = Z @ W.T
        z -= z.max(1, keepdims=True)
        total = np.exp(z).sum(1, keepdims=True)
        value = (np.log(total)[:, 0] - (Y * z).sum(1)).mean() + l2 / 2 * w @ w
        return value, ((np.exp(z) / total - Y).T @ Z / n + l2 * W).ravel()

    options = {"maxiter": 20_000, "maxfun": 40_000, "gtol": 1e-10, "ftol": 1e-18}
    start = np.zeros(N_CLASSES * Z.shape[1])
    w = minimize(
        value_and_gradient, start, jac=True, method="L-BFGS-B", options=options
    ).x
    W = torch.tensor(w).view(N_CLASSES, -1)
    norm = float(np.linalg.norm(value_and_gradient(w)[1]))
    return torch.cat([W[:, :-1].flatten(), W[:, -1]]), norm


def distances(backbone, kind, train, forget):
    """The certified distance before noise, and the true one to scipy's optimum."""
    net, w = without_noise(backbone, kind, train, forget)
    gone = set(forget)
    kept = [i for i in range(len(train)) if i not in gone]
    x, y = train.tensors
    exact, norm = retrained_by_scipy(backbone.features(x)[kept], y[kept], kind.l2)
    found = {
        "true_distance": float((w - exact).norm()),
        "certified_distance": (kind.tolerance + norm) / kind.l2,
        "oracle_gradient": norm,
        "moved": math.sqrt(float(w @ w)),
    }
    return net, w, found
