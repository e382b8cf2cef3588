"""The library's audit, on the certified head and on one that is not unlearned."""

import sys
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import Subset, TensorDataset

sys.path.insert(0, str(Path(__file__).parent))
from heads import Kind, solved
from world import DELTA, N_CLASSES

from lightning_unlearn import PublicBackbone, TrainerExperiment
from lightning_unlearn.evaluation import audit, one_run_audit

RUNS, CANARIES = 10, 100


def _read_before(public_rows):
    """A backbone for rows that were computed already: it changes nothing."""
    return PublicBackbone(
        nn.Sequential(nn.Identity()), ["0"], standardize="none", unit_norm=False,
        scale=1.0, public_data=public_rows[:1],
    )  # fmt: skip


def _with_wrong_labels(dataset):
    """The first samples become canaries: remembered if anything is."""
    rows, y = dataset.tensors
    y = y.clone()
    shift = torch.randint(1, N_CLASSES, (CANARIES,))
    y[:CANARIES] = (y[:CANARIES] + shift) % N_CLASSES
    return TensorDataset(rows, y)


def _not_unlearned(reader, kind, rows):
    """Lower bound of epsilon of a model that is released as it was trained.

    Its certificate is that of a request without noise (grade none): the audit needs
    one to know how many were to be forgotten.
    """
    coins = torch.rand(CANARIES) < 0.5
    others = list(range(CANARIES, len(rows)))
    inside = coins.nonzero()[:, 0].tolist()
    net, trainer = solved(reader, kind, Subset(rows, inside + others), noise_std=0.0)
    never, _ = solved(reader, kind, Subset(rows, others), noise_std=0.0)
    x, y = rows[list(range(CANARIES))]
    with torch.no_grad():
        scores = never.head.loss(x, y) - net.head.loss(x, y)
    result = trainer.unlearn(range(len(inside)))
    return one_run_audit(result.certificate, coins, scores, delta=DELTA).epsilon_lower


def audited(backbone, kind: Kind, dataset, public):
    """(epsilon lower bounds of ten separate audits, that of the trained model)."""
    torch.manual_seed(0)
    rows = TensorDataset(backbone.features(dataset.tensors[0]), dataset.tensors[1])
    rows = _with_wrong_labels(rows)
    reader = _read_before(backbone.features(public[:1]))

    def train(given):
        return solved(reader, kind, given)[1]

    canaries = range(CANARIES)
    found = []
    for _ in range(RUNS):
        report = audit(
            TrainerExperiment(train, rows, canaries, white_box=True), draws=2000
        )
        one, two = report.one_run, report.two_sample
        found.append({
            "one_run": one.epsilon_lower, "two_sample": two.epsilon_lower,
            "true_mu": report.white_box.mu_true,
            "certified_mu": report.white_box.mu_certified,
        })  # fmt: skip
        print("audit", found[-1], flush=True)
    return found, _not_unlearned(reader, kind, rows)
