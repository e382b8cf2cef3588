"""Scores from logits: against softmax in high precision and at the extremes."""

import mpmath
import pytest
import torch

from lightning_unlearn.errors import ArgumentError
from lightning_unlearn.evaluation import (
    confidence,
    entropy,
    logit_scaled_confidence,
    loss,
    membership_score,
    modified_entropy,
)

ALL = {
    "loss": loss,
    "confidence": confidence,
    "entropy": entropy,
    "modified_entropy": modified_entropy,
    "lira": logit_scaled_confidence,
}


def by_definition(name, logits, y):
    """The definition, on probabilities of 200 digits."""
    with mpmath.workdps(200):
        weights = [mpmath.exp(mpmath.mpf(z)) for z in logits]
        p = [w / mpmath.fsum(weights) for w in weights]
        others = mpmath.fsum(q for i, q in enumerate(p) if i != y)
        value = {
            "loss": lambda: -mpmath.log(p[y]),
            "confidence": lambda: p[y],
            "entropy": lambda: -mpmath.fsum(q * mpmath.log(q) for q in p),
            "modified_entropy": lambda: (
                -others * mpmath.log(p[y])
                - mpmath.fsum(
                    p[i] * mpmath.log(mpmath.fsum(q for j, q in enumerate(p) if j != i))
                    for i in range(len(p))
                    if i != y
                )
            ),
            "lira": lambda: mpmath.log(p[y]) - mpmath.log(others),
        }[name]()
        return float(value)


CASES = [
    ([0.0, 0.0, 0.0], 1),
    ([1.0, -2.0, 0.5], 0),
    ([30.0, 0.0, 1.0], 0),  # 1 - p is 1e-13: three digits are left if taken from p
    ([40.0, 0.0, 1.0], 0),  # 1e-17: none
    ([40.0, 0.0, 1.0], 2),
    ([300.0, 0.0], 0),
    ([300.0, 0.0], 1),
    ([5.0, 5.0, -300.0], 2),
]


@pytest.mark.parametrize(("logits", "y"), CASES)
@pytest.mark.parametrize("name", ALL)
def test_score_is_its_definition(name, logits, y):
    got = ALL[name](torch.tensor([logits], dtype=torch.float64), torch.tensor([y]))
    assert got.dtype == torch.float64
    assert got.shape == (1,)
    expected = by_definition(name, logits, y)
    assert got.item() == pytest.approx(expected, rel=1e-11, abs=1e-300)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", ALL)
def test_extreme_logits_stay_finite_and_are_not_changed(name, dtype):
    logits = torch.tensor([[3e4, -3e4], [-3e4, 3e4]]).to(dtype)
    before = logits.clone()
    got = ALL[name](logits, torch.tensor([0, 0]))
    assert torch.isfinite(got).all()
    assert torch.equal(logits, before)


@pytest.mark.parametrize("name", ALL)
def test_adding_a_constant_to_all_logits_changes_nothing(name):
    logits = torch.randn(20, 5, dtype=torch.float64)
    y = torch.randint(5, (20,))
    torch.testing.assert_close(ALL[name](logits, y), ALL[name](logits + 7, y))


@pytest.mark.parametrize("name", ALL)
def test_membership_score_is_higher_for_what_the_model_is_sure_of(name):
    logits = torch.tensor([[5.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    sure, unsure = membership_score(name, logits, torch.tensor([0, 0]))
    assert sure > unsure


def test_entropy_needs_no_targets():
    assert entropy(torch.zeros(1, 8)).item() == pytest.approx(3 * 0.6931471805599453)


@pytest.mark.parametrize(
    ("logits", "targets", "message"),
    [
        (torch.tensor([[torch.nan, 0.0]]), torch.tensor([0]), "1 of 2 values NaN"),
        (
            torch.tensor([[torch.inf, 0.0]]),
            torch.tensor([0]),
            "expected logits to be f",
        ),
        (torch.zeros(2, 1), torch.tensor([0, 0]), "the two columns"),
        (torch.zeros(2), torch.tensor([0, 0]), r"2 dimension\(s\), got shape \(2,\)"),
        (torch.zeros(2, 3).long(), torch.tensor([0, 0]), "got torch.int64"),
        ([[0.0, 1.0]], torch.tensor([0]), "floating tensor, got list"),
        (torch.zeros(2, 3), torch.tensor([0, 3]), r"in 0..2, got values from 0 to 3"),
        (torch.zeros(2, 3), torch.tensor([-1, 0]), r"got values from -1 to 0"),
        (torch.zeros(2, 3), torch.tensor([0]), r"2 class indices.*shape \(1,\)"),
        (torch.zeros(2, 3), torch.zeros(2), "integer tensor.*got torch.float32"),
        (torch.zeros(2, 3), torch.zeros(2).bool(), "got torch.bool"),
        (torch.zeros(2, 3), [0, 0], "got list"),
    ],
)
def test_what_is_no_logit_or_class_is_refused(logits, targets, message):
    for score in ALL.values():
        with pytest.raises(ArgumentError, match=message):
            score(logits, targets)


def test_unknown_score_is_refused():
    with pytest.raises(ArgumentError, match="one of 'loss'.*'lira', got 'margin'"):
        membership_score("margin", torch.zeros(1, 2), torch.tensor([0]))
