"""Distances: against closed forms, scipy and the vector of all weights."""

import math

import pytest
import torch
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy
from torch import nn

from lightning_unlearn.errors import ArgumentError
from lightning_unlearn.evaluation import OutputDivergence, weight_distance


def logits(seed, scale=2.0, shape=(50, 6)):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)


def test_kl_and_js_are_scipys():
    u, r = logits(0), logits(1)
    p, q = u.softmax(1).numpy(), r.softmax(1).numpy()
    assert OutputDivergence()(u, r).item() == pytest.approx(
        entropy(p, q, axis=1).mean()
    )
    expected = (jensenshannon(p, q, axis=1) ** 2).mean()
    assert OutputDivergence("js")(u, r).item() == pytest.approx(expected)


def test_kl_of_two_coins():
    u, r = torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(3.0), 0.0]])
    expected = math.log(2 / 3**0.5)  # KL(1/2 || 3/4)
    assert OutputDivergence()(u, r).item() == pytest.approx(expected)
    assert OutputDivergence()(r, u).item() != pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("kind", ["kl", "js"])
def test_divergence_is_zero_of_itself_and_of_shifted_logits(kind):
    u = logits(0)
    assert OutputDivergence(kind)(u, u).item() == pytest.approx(0, abs=1e-15)
    assert OutputDivergence(kind)(u, u + 3).item() == pytest.approx(0, abs=1e-15)


def test_divergence_of_sure_models_that_differ_is_finite():
    u, r = torch.tensor([[3e4, -3e4]]), torch.tensor([[-3e4, 3e4]])
    assert OutputDivergence()(u, r).item() == pytest.approx(6e4)
    assert OutputDivergence("js")(u, r).item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("kind", ["kl", "js"])
def test_halves_merged_are_the_whole(kind):
    u, r = logits(0).float(), logits(1).float()
    whole = OutputDivergence(kind)(u, r)
    first, second = OutputDivergence(kind), OutputDivergence(kind)
    first.update(u[:13], r[:13])
    second.update(u[13:], r[13:])
    first.merge_state(second)
    assert first.compute().item() == pytest.approx(whole.item(), rel=1e-12)


@pytest.mark.parametrize(
    ("unlearned", "retrained", "message"),
    [
        (
            torch.zeros(2, 3),
            None,
            "retrained, the logits, of a model retrained without",
        ),
        (torch.zeros(2, 3), torch.zeros(2, 4), r"got \(2, 3\) and \(2, 4\)"),
        (torch.full((2, 3), torch.nan), torch.zeros(2, 3), "unlearned to be finite"),
        (torch.zeros(2, 3), torch.full((2, 3), torch.inf), "the logits to be finite"),
        (torch.zeros(2, 1), torch.zeros(2, 1), "at least 2 classes"),
    ],
)
def test_what_are_no_two_predictions_is_refused(unlearned, retrained, message):
    with pytest.raises(ArgumentError, match=message):
        OutputDivergence().update(unlearned, retrained)


def test_unknown_divergences_and_no_samples_are_refused():
    with pytest.raises(ArgumentError, match="one of 'kl', 'js', got 'tv'"):
        OutputDivergence("tv")
    metric = OutputDivergence()
    metric.update(torch.zeros(0, 3), torch.zeros(0, 3))
    with pytest.raises(ArgumentError, match="at least one sample, got none"):
        metric.compute()


def net(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))


def test_distance_is_that_of_the_vectors_of_all_weights():
    u, r, o = net(0), net(1), net(2)
    a, b, c = (
        nn.utils.parameters_to_vector(m.parameters()).double() for m in (u, r, o)
    )
    got = weight_distance(u, r, o)
    assert got.absolute == pytest.approx((a - b).norm().item())
    assert got.relative == pytest.approx(((a - b).norm() / b.norm()).item())
    assert got.of_original == pytest.approx(((a - b).norm() / (c - b).norm()).item())
    assert weight_distance(u, r).of_original is None
    assert weight_distance(u, dict(r.named_parameters())).absolute == got.absolute


def test_distance_at_the_edges():
    w, zero = {"w": torch.ones(2)}, {"w": torch.zeros(2)}
    assert weight_distance(w, w, w) == (0.0, 0.0, 1.0)
    assert weight_distance(w, zero, zero) == (2**0.5, math.inf, math.inf)
    big = {"w": torch.tensor([3e38])}
    assert weight_distance(big, {"w": -big["w"]}).relative == pytest.approx(2)


@pytest.mark.parametrize(
    ("unlearned", "retrained", "message"),
    [
        (net(0), None, "expected retrained to be a module.*got NoneType: retrain one"),
        (net(0), {}, "expected retrained to be a module with parameters"),
        (nn.ReLU(), net(0), "expected unlearned to be a module with parameters"),
        (net(0), nn.Linear(4, 5), r"difference in 0.bias, 0.weight, 1.bias \(8 in all"),
        ({"w": torch.zeros(2)}, {"w": torch.zeros(3)}, "difference in w"),
        ({"w": torch.tensor(torch.nan)}, {"w": torch.tensor(0.0)}, r"unlearned\['w'\]"),
        ({"w": torch.tensor(0.0)}, {"w": torch.tensor(1)}, "got torch.int64"),
        ({"w": torch.tensor(0.0)}, {"w": 1.0}, "floating tensor, got float"),
    ],
)
def test_what_are_no_two_models_is_refused(unlearned, retrained, message):
    with pytest.raises(ArgumentError, match=message):
        weight_distance(unlearned, retrained)
