"""Comparing heads: what they score, what the noise costs, and what is recommended."""

import math

import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from torch.utils.data import DataLoader, TensorDataset

from lightning_unlearn import compare_heads
from lightning_unlearn.errors import (
    ArgumentError,
    DataError,
    GuaranteeError,
    SolverError,
)
from lightning_unlearn.step.head.head_choice import HeadChoice, _recommended
from tests.plugin.helpers.publics import backbone, held_out, private, solved, split


def validation():
    return TensorDataset(*held_out())


def two():
    return {"last layer": backbone(taps=["10"]), "several depths": backbone()}


def test_scores_are_those_of_scikit_learn_without_noise_and_depth_wins():
    found = compare_heads(two(), private(), validation(), l2=[1e-2, 1e-3], draws=2)
    assert [(c.backbone, c.l2) for c in found.choices] == [
        ("last layer", 1e-2), ("last layer", 1e-3),
        ("several depths", 1e-2), ("several depths", 1e-3),
    ]  # fmt: skip
    for choice in found.choices:
        made = two()[choice.backbone]
        (x, y), (xv, yv) = private().tensors, held_out()
        rows, val = (
            torch.cat([made(z), torch.ones(len(z), 1)], 1).double().numpy()
            for z in (x, xv)
        )
        own = LogisticRegression(
            C=1 / (choice.l2 * len(y)), fit_intercept=False, tol=1e-8, max_iter=5000
        ).fit(rows, y)
        assert choice.score == pytest.approx(own.score(val, yv), abs=1.01 / len(yv))
        p = choice.score_with_noise
        assert choice.standard_error == pytest.approx(
            math.sqrt(p * (1 - p) / len(yv)), rel=0.25
        )
    assert found.recommended.backbone == "several depths"
    assert found.metric == "accuracy"


def test_the_noise_is_that_of_the_certificate():
    found = compare_heads(
        backbone(), private(), validation(), l2=1e-3, releases=4, epsilon=0.5
    )
    (choice,) = found.choices
    net, own, _, _ = solved(releases=4, epsilon=0.5)
    assert net.head.weight.numel() + 5 == choice.n_parameters
    certificate = own.unlearn([3]).certificate
    assert choice.noise_std == pytest.approx(certificate.noise_std, rel=1e-6)
    assert choice.logit_noise == pytest.approx(choice.noise_std * 65**0.5, rel=1e-5)


def test_loud_noise_costs_accuracy_is_marked_and_not_recommended():
    found = compare_heads(
        backbone(), private(), validation(), l2=[1e-6, 1e-2], tolerance=1e-6
    )
    loud, quiet = found.choices
    assert loud.logit_noise > 10
    assert loud.score > 0.9
    assert loud.score_with_noise < loud.score - 0.1
    assert found.recommended is quiet
    text = " ".join(str(found).split())
    assert "! the noise moves logits by more than 0.1" in text
    assert "outside the certificate" in text
    assert "* recommended: backbone, loss cross_entropy, l2 = 0.01" in text
    assert "epsilon = 1, delta = 1e-5 for each release" in text


def test_numbers_are_scored_by_their_error():
    (_, _), (x, y) = split()
    z = (y.float() - 2) / 2
    train, val = TensorDataset(x[:500], z[:500]), TensorDataset(x[500:], z[500:])
    found = compare_heads(backbone(), train, val, loss="mse", l2=1e-2)
    made = backbone()
    rows = torch.cat([made(x), torch.ones(len(x), 1)], 1).double().numpy()
    ridge = Ridge(alpha=1e-2 * 500 / 2, fit_intercept=False).fit(rows[:500], z[:500])
    error = ((ridge.predict(rows[500:]) - z[500:].numpy()) ** 2).mean()
    assert found.choices[0].score == pytest.approx(-error, rel=1e-4)
    assert found.metric == "minus squared error"


def test_yes_or_no_and_several_labels_are_scored_by_what_is_right():
    (_, _), (x, y) = split()
    labels = torch.stack([y % 2, (y > 2).long()], 1)
    rows = backbone()(x).double().numpy()
    wanted = [
        LogisticRegression(C=1 / (1e-3 * 2 * 500), tol=1e-8, max_iter=5000)
        .fit(rows[:500], t[:500])
        .score(rows[500:], t[500:])
        for t in labels.T
    ]
    for targets in (labels, labels.float()):
        train = TensorDataset(x[:500], targets[:500])
        val = TensorDataset(x[500:], targets[500:])
        found = compare_heads(backbone(), train, val, loss="bce", l2=1e-3)
        assert found.choices[0].score == pytest.approx(sum(wanted) / 2, abs=0.01)
        assert found.metric == "accuracy"


def test_a_head_that_the_noise_destroys_is_not_recommended_without_a_word():
    loud = {"l2": 1e-7, "tolerance": 1e-6}
    found = compare_heads(backbone(), private(), validation(), **loud)
    assert found.recommended.score_with_noise < 0.5 < found.recommended.score
    assert "no head here is worth certifying so" in " ".join(str(found).split())
    fine = compare_heads(backbone(), private(), validation(), l2=1e-3)
    assert "worth certifying" not in " ".join(str(fine).split())


def test_a_loader_that_shuffles_is_read_in_step_and_nothing_is_touched():
    shuffled = DataLoader(private(), 32, shuffle=True, drop_last=True)
    made, state = backbone(), torch.get_rng_state()
    one = compare_heads(made, shuffled, validation(), l2=1e-2)
    two = compare_heads(made, private(), validation(), l2=1e-2)
    assert one.choices[0].score == two.choices[0].score
    assert torch.equal(state, torch.get_rng_state())


def test_what_cannot_be_solved_is_shown_and_never_recommended():
    with pytest.raises(SolverError, match="can be solved to its tolerance, got none"):
        compare_heads(backbone(), private(), validation(), l2=1e-2, tolerance=1e-16)


def tried(right, logit_noise, problem=""):
    """A choice with its scores of single samples."""
    each = torch.tensor(right).double()
    choice = HeadChoice(
        backbone="b", loss="mse", l2=1.0, n_parameters=1, score=float(each.mean()),
        score_with_noise=float(each.mean()), standard_error=0.01, noise_std=1.0,
        logit_noise=logit_noise, seconds=0.0, problem=problem,
    )  # fmt: skip
    return choice, each


def test_what_cannot_be_told_from_the_best_and_has_the_least_noise_is_recommended():
    best = tried([1] * 90 + [0] * 10, 0.05)
    near = tried([0, 0] + [1] * 89 + [0] * 9, 0.01)  # two worse, one better
    far = tried([0] * 4 + [1] * 86 + [0] * 10, 0.001)  # four worse: 4 +- 2
    unsolved = tried([math.nan] * 100, 1e-9, problem="rounding")
    assert _recommended([unsolved, best, near, far]) is near[0]
    assert _recommended([best, far]) is best[0]


def test_a_row_says_why_it_was_not_solved():
    text = tried([math.nan] * 3, 1e-9, problem="rounding alone")[0].row()
    assert "not solved: rounding alone" in text


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (
            {"backbones": {}},
            "expected one PublicBackbone, or several by name, got none",
        ),
        ({"backbones": {"a": torch.nn.Linear(2, 2)}}, "got Linear as 'a'"),
        ({"loss": []}, "at least one loss"),
        ({"l2": []}, "at least one loss and one l2"),
        ({"l2": [1e-3, float("nan")]}, "l2 to be a finite number > 0"),
        ({"loss": "poisson"}, "loss"),
        ({"loss": ["bce", "mse"]}, "expected loss='bce' alone"),
        ({"draws": 0}, "draws"),
        ({"tolerance": -1.0}, "tolerance"),
        ({"epsilon": 0.0}, "epsilon"),
    ],
)
def test_bad_arguments_are_refused(options, match):
    settings = {
        "backbones": backbone(), "train": private(), "val": validation(), **options
    }  # fmt: skip
    with pytest.raises(ArgumentError, match=match):
        compare_heads(**settings)


def test_other_data_are_refused():
    with pytest.raises(DataError, match="an empty dataset"):
        compare_heads(backbone(), private(0), validation())
    with pytest.raises(DataError, match=r"expected batches \(inputs, targets\)"):
        compare_heads(backbone(), TensorDataset(held_out()[0]), validation())


def test_public_samples_among_the_training_data_are_refused():
    mixed = backbone(public_data=torch.cat([split()[0][0], private().tensors[0][:1]]))
    with pytest.raises(GuaranteeError, match="public_data that are no training samp"):
        compare_heads(mixed, private(), validation())
