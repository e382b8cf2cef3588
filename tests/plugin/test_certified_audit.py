"""The audit of a certified head on a public backbone, and of one that never forgot."""

import torch
from torch.utils.data import Subset, TensorDataset

from lightning_unlearn import TrainerExperiment
from lightning_unlearn.evaluation import audit, one_run_audit
from tests.plugin.helpers.publics import private, solved

CANARIES = 60


def mislabelled():
    """The first samples get a wrong label: to know it is to remember them."""
    x, y = private(400).tensors
    wrong = (y + 1 + torch.arange(400) % 4) % 5
    return TensorDataset(x, torch.where(torch.arange(400) < CANARIES, wrong, y))


def train(given):
    return solved(dataset=given)[1]


def test_ten_audits_of_a_certified_deletion_find_less_than_is_certified():
    experiment = TrainerExperiment(
        train, mislabelled(), range(CANARIES), white_box=True
    )
    report = audit(experiment, runs=10, draws=200, confidence=0.999)
    for found in (report.one_run, report.two_sample):
        assert found.grade.value == "certified"
        assert found.epsilon_certified <= 1.0 + 1e-6
        assert found.epsilon_lower < 1
    assert report.one_run.ceiling > 10  # it could have found more
    assert report.white_box.mu_true < report.white_box.mu_certified


def test_the_same_attack_on_a_model_that_did_not_forget_finds_far_more():
    dataset = mislabelled()
    torch.manual_seed(0)
    coins = torch.rand(CANARIES) < 0.5
    inside = coins.nonzero()[:, 0].tolist()
    others = list(range(CANARIES, 400))
    net, own, _, _ = solved(dataset=Subset(dataset, inside + others), noise_std=0.0)
    never, _, _, _ = solved(dataset=Subset(dataset, others), noise_std=0.0)
    x, y = dataset[:CANARIES]
    with torch.no_grad():
        scores = [-n.unlearning_loss((x, y), 0) for n in (net, never)]
    none = own.unlearn(range(len(inside))).certificate  # of grade none: it was not used
    found = one_run_audit(none, coins, scores[0] - scores[1], delta=1e-5)
    assert found.epsilon_lower > 3
