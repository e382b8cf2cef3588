"""Membership inference: against scikit-learn, closed forms and coverage."""

import math

import pytest
import torch
from scipy.stats import binomtest, norm
from sklearn.metrics import roc_auc_score, roc_curve

from lightning_unlearn.errors import ArgumentError
from lightning_unlearn.evaluation import MembershipInference, clopper_pearson
from lightning_unlearn.evaluation.attacks.roc import attack, auc_difference


def scored(n_members, n_others, shift, seed=0, decimals=None):
    """Normal scores; rounded to few values, they tie."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(n_members + n_others, generator=generator).double()
    is_member = torch.arange(n_members + n_others) < n_members
    scores = scores + shift * is_member
    return scores if decimals is None else scores.round(decimals=decimals), is_member


def computed(scores, is_member, retrained=None, **options):
    metric = MembershipInference(**options)
    metric.update(scores, is_member, scores if retrained is None else retrained)
    return metric.compute()


@pytest.mark.parametrize("decimals", [None, 1, 0])
@pytest.mark.parametrize("shift", [-1.0, 0.0, 2.0])
def test_auc_and_rates_are_those_of_scikit_learn(shift, decimals):
    scores, is_member = scored(400, 3000, shift, decimals=decimals)
    fprs = (0.001, 0.01, 0.1, 0.5)
    found = computed(scores, is_member, fprs=fprs).unlearned
    assert found.auc == pytest.approx(roc_auc_score(is_member, scores), abs=1e-12)
    fpr, tpr, _ = roc_curve(is_member, scores, drop_intermediate=False)
    for rate in found.rates:
        allowed = fpr <= rate.target + 1e-12
        assert rate.tpr.value == pytest.approx(tpr[allowed].max(), abs=1e-12)
        assert rate.fpr.value <= rate.target
        assert rate.resolved


def test_auc_of_two_normals():
    scores, is_member = scored(100_000, 100_000, 1.0)
    result = computed(scores, is_member)
    assert result.unlearned.auc == pytest.approx(norm.cdf(1 / math.sqrt(2)), abs=4e-3)
    at = result.unlearned.rates[1]
    assert at.tpr.low < norm.sf(at.threshold - 1) < at.tpr.high
    assert at.tpr.value == pytest.approx(norm.sf(norm.isf(0.01) - 1), rel=0.05)


def test_monotone_transform_changes_nothing_but_the_threshold():
    scores, is_member = scored(300, 1200, 1.0)
    a = computed(scores, is_member).unlearned
    b = computed((3 * scores).exp() + 5, is_member).unlearned
    assert a.auc == b.auc
    assert [r.tpr for r in a.rates] == [r.tpr for r in b.rates]
    assert computed(-scores, is_member).unlearned.auc == pytest.approx(1 - a.auc)


def test_the_reference_is_the_retrained_model():
    # Forgotten samples that are easier for any model, trained on them or not.
    scores, is_member = scored(2000, 2000, 1.0)
    retrained, _ = scored(2000, 2000, 1.0, seed=1)
    result = computed(scores, is_member, retrained)
    assert result.unlearned.auc > 0.7  # an alarm against 0.5
    assert result.auc_gap.low < 0 < result.auc_gap.high
    assert max(map(abs, result.tpr_gaps)) < 0.06
    # Unlearned too much: the AUC is nearer to 0.5 than the retrained model's.
    over, _ = scored(2000, 2000, 0.2, seed=2)
    result = computed(over, is_member, retrained)
    assert result.auc_gap.high < 0
    assert result.auc_gap.value == result.unlearned.auc - result.retrained.auc
    unlearned, reference = result.unlearned.rates[1], result.retrained.rates[1]
    assert result.tpr_gaps[1] == unlearned.tpr.value - reference.tpr.value


def test_gap_has_delongs_variance():
    generator = torch.Generator().manual_seed(3)
    members = torch.randn(2, 12, generator=generator).double() + 0.5
    others = torch.randn(2, 9, generator=generator).double()
    got = auc_difference(
        (members[0], others[0]), (members[1], others[1]), confidence=0.9
    )
    kernel = (members[:, :, None] > others[:, None, :]).double()
    difference = (kernel[0] - kernel[1]).numpy()  # (12, 9), no ties
    variance = difference.mean(1).var(ddof=1) / 12 + difference.mean(0).var(ddof=1) / 9
    assert got.value == pytest.approx(difference.mean())
    assert got.high - got.value == pytest.approx(
        norm.ppf(0.95) * math.sqrt(variance), rel=1e-9
    )


def test_gap_interval_covers_as_often_as_it_says():
    """500 pairs of exchangeable models on the same samples: 95% cover 0."""
    covered = 0
    for seed in range(500):
        generator = torch.Generator().manual_seed(seed)
        hardness = torch.randn(120, generator=generator).double()
        is_member = torch.arange(120) < 50
        both = hardness + torch.randn(2, 120, generator=generator).double()
        left, right = ((s[is_member], s[~is_member]) for s in both)
        gap = auc_difference(left, right, confidence=0.95)
        covered += gap.low <= 0 <= gap.high
    assert 0.92 <= covered / 500 <= 0.98


@pytest.mark.parametrize(("k", "n"), [(0, 7), (7, 7), (3, 7), (1, 1000), (499, 1000)])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
def test_clopper_pearson_is_scipys(k, n, confidence):
    got = clopper_pearson(k, n, confidence)
    expected = binomtest(k, n).proportion_ci(confidence, method="exact")
    assert got == pytest.approx((k / n, expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize("p", [0.001, 0.05, 0.5])
def test_clopper_pearson_covers(p):
    generator = torch.Generator().manual_seed(0)
    draws = torch.rand(2000, 60, generator=generator) < p
    intervals = [clopper_pearson(int(k), 60, 0.9) for k in draws.sum(1)]
    share = sum(i.low <= p <= i.high for i in intervals) / 2000
    assert share >= 0.88  # 0.9 less three deviations
    narrow = sum(i.value * 0.9 <= p <= i.value * 1.1 for i in intervals) / 2000
    assert narrow < 0.88  # and an interval that is too short is caught


def test_false_positive_rate_on_new_samples_is_covered():
    """The threshold is chosen on the others, so their rate alone would mislead."""
    above = exceeded = 0
    for seed in range(600):
        scores, is_member = scored(1, 150, 0.0, seed=seed)
        rate = computed(scores, is_member, fprs=(0.05,)).unlearned.rates[0]
        true = norm.sf(rate.threshold)
        above += true > rate.fpr.high
        exceeded += true > rate.target
    assert above / 600 <= 0.045  # 2.5% and three deviations
    assert exceeded / 600 > 0.3  # what was asked for is often not what one gets


def test_too_few_non_members_are_said_to_be():
    scores, is_member = scored(200, 999, 3.0)
    rare, common = computed(scores, is_member).unlearned.rates
    assert not rare.resolved
    assert rare.fpr.value == 0.0
    assert rare.threshold == scores[~is_member].max()
    assert rare.fpr.high > 0.001  # nothing shows that 0.1% was met
    assert common.resolved
    scores, is_member = scored(200, 1000, 3.0)
    rare = computed(scores, is_member).unlearned.rates[0]
    assert rare.resolved
    assert rare.fpr.value == 0.001


def test_ties_do_not_help_the_attacker():
    found = attack(torch.ones(50), torch.ones(100), (0.01, 0.5), 0.95)
    assert found.auc == 0.5
    assert [rate.tpr.value for rate in found.rates] == [0.0, 0.0]


def test_one_sample_of_each_and_perfect_separation():
    result = computed(torch.tensor([1.0, 0.0]), torch.tensor([True, False]))
    assert result.unlearned.auc == 1.0
    assert result.auc_gap == (0.0, -1.0, 1.0)  # nothing is known
    assert result.unlearned.rates[0].tpr == (1.0, pytest.approx(0.025), 1.0)


def test_halves_merged_are_the_whole():
    scores, is_member = scored(300, 1100, 0.7)
    retrained, _ = scored(300, 1100, 0.1, seed=5)
    whole = computed(scores, is_member, retrained)
    halves = [MembershipInference(), MembershipInference()]
    for i, metric in enumerate(halves):
        for part in (slice(i, 700, 2), slice(700 + i, None, 2)):
            metric.update(scores[part], is_member[part], retrained[part])
    halves[0].merge_state(halves[1])
    merged = halves[0].compute()
    assert merged[:2] == whole[:2]
    assert merged.auc_gap == pytest.approx(whole.auc_gap)


def test_processes_are_gathered():
    scores, is_member = scored(30, 50, 1.0)
    alone = computed(scores, is_member)
    twice = computed(
        scores,
        is_member,
        distributed_available_fn=lambda: True,
        dist_sync_fn=lambda tensor, group=None: [tensor, tensor],
    )
    assert twice.unlearned.n_members == 60
    assert twice.unlearned.auc == pytest.approx(alone.unlearned.auc)


T, F = [True], [False]


@pytest.mark.parametrize(
    ("scores", "is_member", "retrained", "message"),
    [
        (
            [1.0],
            T,
            None,
            "expected retrained, the scores, of a model retrained without",
        ),
        ([1.0], T, None, "no constant such as 0.5 can stand for it"),
        ([float("nan")], T, [1.0], "expected scores to be finite, got 1 of 1"),
        ([1.0], T, [float("inf")], "expected retrained, the scores to be finite"),
        ([1.0], [1], [1.0], "is_member to be a bool tensor, got torch.int64"),
        ([1.0, 2.0], T, [1.0, 2.0], "scores: 2, is_member: 1, retrained: 2"),
        ([[1.0]], T, [1.0], r"scores with 1 dimension\(s\), got shape \(1, 1\)"),
        ([1.0], [T], [1.0], r"is_member of shape \(n,\), got \(1, 1\)"),
    ],
)
def test_what_cannot_be_scored_is_refused(scores, is_member, retrained, message):
    right = None if retrained is None else torch.tensor(retrained)
    with pytest.raises(ArgumentError, match=message):
        MembershipInference().update(
            torch.tensor(scores), torch.tensor(is_member), right
        )


@pytest.mark.parametrize(("is_member", "got"), [(T, "1 and 0"), (F, "0 and 1")])
def test_one_class_alone_is_refused(is_member, got):
    with pytest.raises(ArgumentError, match=f"both forgotten.*got {got}: without"):
        computed(torch.tensor([1.0]), torch.tensor(is_member))


def test_nothing_at_all_is_refused():
    metric = MembershipInference()
    with (
        pytest.warns(UserWarning, match="before the .*update"),
        pytest.raises(ArgumentError, match="got none: call update first"),
    ):
        metric.compute()


@pytest.mark.parametrize("options", [{"fprs": (0.0,)}, {"confidence": float("nan")}])
def test_rates_and_confidence_lie_between_0_and_1(options):
    with pytest.raises(ArgumentError, match="strictly between 0 and 1"):
        MembershipInference(**options)


def test_more_successes_than_trials_are_refused():
    with pytest.raises(ArgumentError, match="successes <= trials, got 3 of 2"):
        clopper_pearson(3, 2)
