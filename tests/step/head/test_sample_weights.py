"""Weights of samples and classes: still convex, still exactly the user's loss."""

import mpmath
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lightning_unlearn.errors import ArgumentError, GuaranteeError
from lightning_unlearn.guarantee import rounding
from lightning_unlearn.step.head.convex_head import ConvexHead
from lightning_unlearn.step.head.convex_objective import ConvexObjective
from lightning_unlearn.step.head.factor import factorise
from lightning_unlearn.step.head.links import LINKS, class_weighted
from lightning_unlearn.step.head.rows.feature_data import FeatureData
from tests.step.head.test_convex_objective import captured, data_for, problem

TERMS = {
    "cross_entropy": lambda z, y: F.cross_entropy(z, y, reduction="none")[:, None],
    "mse": lambda z, y: (z - y).square(),
    "bce": lambda z, y: F.binary_cross_entropy_with_logits(z, y, reduction="none"),
    "poisson": lambda z, y: F.poisson_nll_loss(z, y, reduction="none"),
}
CASES = [(loss, "sample") for loss in LINKS] + [
    (loss, "output") for loss in LINKS if loss != "cross_entropy"
]


def weights_for(form, n=40, K=3):
    generator = torch.Generator().manual_seed(5)
    shape = (n, 1) if form == "sample" else (n, K)
    drawn = 4 * torch.rand(shape, generator=generator, dtype=torch.float64)
    drawn[:3] = 0  # left out
    return drawn


def weighted_problem(loss, form, bias=True):
    head, X, y, _ = problem(loss, bias=bias)
    W = weights_for(form)
    objective = ConvexObjective(head, FeatureData(X, y, W), 0.01)

    def value(w):
        z = X @ w[:18].view(3, 6).T + (w[18:] if bias else 0)
        return (W * TERMS[loss](z, y)).mean(1).mean() + 0.005 * w @ w

    return head, X, y, W, objective, value


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("loss", "form"), CASES)
def test_closed_forms_equal_automatic_differentiation(loss, form, bias):
    head, X, y, W, objective, value = weighted_problem(loss, form, bias)
    w = torch.cat([p.detach().reshape(-1) for p in head.parameters()])
    H = torch.func.hessian(value)(w)
    gradient, bound = objective.gradient(w)
    torch.testing.assert_close(gradient, torch.func.grad(value)(w))
    torch.testing.assert_close(objective.rough_gradient(w), gradient)
    assert 0 < bound < 1e-9
    objective.set_hessian_at(w)
    v = torch.randn(len(w), dtype=torch.float64)
    torch.testing.assert_close(objective.hvp(v), H @ v)
    assert torch.linalg.eigvalsh(H)[0] >= 0.01 - 1e-12  # mu = l2 is true
    factor = factorise(objective, 40, torch.Generator())
    eye = torch.eye(len(w), dtype=torch.float64)
    torch.testing.assert_close(factor.inverse.double() @ H, eye, rtol=0, atol=2e-4)
    generator = torch.Generator().manual_seed(0)
    drawn = sum(objective.proxy(64, generator)(v) for _ in range(300)) / 300
    assert (drawn - H @ v).norm() < 0.06 * (H @ v).norm()
    rows = sum(objective.sampled_hvp(v, 64, generator) for _ in range(400)) / 400
    assert (rows - H @ v).norm() < 0.06 * (H @ v).norm()
    hessian = objective.hessian_of(objective.data, torch.float64)
    traces = sum(hessian.times(e.expand(40, 3)) @ e for e in torch.eye(3).double())
    torch.testing.assert_close(hessian.curvatures().sum(1), traces)


@pytest.mark.parametrize(("loss", "form"), CASES)
def test_the_head_s_own_loss_is_weighted_and_its_mean_is_over_samples(loss, form):
    head, X, y, W, _, _ = weighted_problem(loss, form)
    given = W[:, 0] if form == "sample" else W
    losses = head.loss(X, y, given)
    torch.testing.assert_close(losses, (W * TERMS[loss](head(X), y)).mean(1))
    torch.testing.assert_close(head.loss(X, y, torch.ones(40)), head.loss(X, y))


def test_rounding_bound_covers_the_error_with_weights():
    """The exact gradient in mpmath; large weights make the bound work."""
    rng = np.random.default_rng(1)
    n, d, K = 60, 5, 3
    X, W = rng.normal(size=(n, d)), rng.normal(size=(K, d))
    y, weight = rng.integers(0, K, n), 10 ** rng.uniform(-3, 3, n)
    head = ConvexHead(d, K, bias=False).double()
    rows = FeatureData(*map(torch.tensor, (X, y, weight[:, None])))
    gradient, bound = ConvexObjective(head, rows, 1e-3).gradient(
        torch.tensor(W).reshape(-1)
    )
    with mpmath.workdps(50):
        G = mpmath.zeros(K, d)
        for i in range(n):
            z = mpmath.matrix(W.tolist()) * mpmath.matrix(X[i].tolist())
            e = [mpmath.exp(z[k]) for k in range(K)]
            for k in range(K):
                D = e[k] / sum(e) - (1 if k == y[i] else 0)
                row = mpmath.matrix([X[i].tolist()])
                G[k, :] += mpmath.mpf(float(weight[i])) * D * row / n
        G += mpmath.mpf(1e-3) * mpmath.matrix(W.tolist())
        off = mpmath.matrix(gradient.view(K, d).tolist()) - G
        error = float(mpmath.mnorm(off, "f"))
    assert error <= bound
    light = rounding.gradient_rounding_upper(
        n_retain=n, n_features=d, n_outputs=K, row_norm=1.0, weight_norm=1.0,
        link_residual_norm=1.0, link_lipschitz=0.5, link_norm=1.0, l2=1e-3,
    )  # fmt: skip
    assert bound > 100 * light


# -- classes -------------------------------------------------------------------


def test_weights_of_classes_are_those_of_torch():
    z, c = torch.randn(30, 3).double(), torch.tensor([0.5, 2.0, 0.0]).double()
    y = torch.arange(30) % 3
    targets, own = class_weighted("cross_entropy", y, c)
    losses = LINKS["cross_entropy"].loss(z, targets, own[:, None])
    torch.testing.assert_close(losses, F.cross_entropy(z, y, c, reduction="none"))
    soft = torch.rand(30, 3).double().softmax(1)
    soft[0] = torch.tensor([0, 0, 1.0])  # all of a class of weight 0
    targets, own = class_weighted("cross_entropy", soft, c)
    losses = LINKS["cross_entropy"].loss(z, targets, own[:, None])
    torch.testing.assert_close(losses, F.cross_entropy(z, soft, c, reduction="none"))
    labels = torch.randint(2, (30, 3)).double()
    labels[0] = 0.3
    targets, own = class_weighted("bce", labels, c)
    plain = F.binary_cross_entropy_with_logits(
        z, labels, pos_weight=c, reduction="none"
    )
    torch.testing.assert_close(LINKS["bce"].loss(z, targets, own), plain.mean(1))
    one, two = labels[:, :1], torch.tensor([3.0, 0.5]).double()
    targets, own = class_weighted("bce", one, two, torch.full((30,), 2.0))
    each = F.binary_cross_entropy_with_logits(z[:, :1], one, reduction="none")
    hard = (one == one.round())[:, 0]
    wanted = 2 * torch.where(one == 1, 0.5, 3.0) * each
    found = LINKS["bce"].loss(z[:, :1], targets, own)
    torch.testing.assert_close(found[hard], wanted[hard, 0])


# -- refused, and kept ---------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "match"),
    [
        (torch.tensor([1.0, -0.5, 2, 1]), "finite and >= 0, got -0.5: only these keep"),
        (torch.tensor([1.0, torch.nan, 2, 1]), "finite and >= 0, got nan"),
        (torch.tensor([1.0, torch.inf, 2, 1]), "finite and >= 0, got inf"),
        (torch.ones(3), r"weights of shape \(4,\) or \(4, 1\) for loss='cross_entro"),
        (torch.ones(4, 3), r"for loss='cross_entropy', got \(4, 3\)"),
    ],
)
def test_weights_that_break_convexity_are_refused(weights, match):
    head = ConvexHead(6, 3)
    with pytest.raises(ArgumentError, match=match):
        head.loss(torch.zeros(4, 6), torch.zeros(4, dtype=torch.long), weights)


def own_weight(b):
    return (1 + b[0][:, 0].abs()).float()


def test_weights_are_captured_and_a_batch_without_them_is_not_mixed_in():
    _, X, data = captured(
        lambda net, b: net.head.loss(net.body(b[0]), b[1], own_weight(b)).mean()
    )
    torch.testing.assert_close(data.weights[:, 0], own_weight((X,)))
    with pytest.raises(GuaranteeError, match="in every batch or in none"):
        captured(
            lambda net, b: net.head.loss(
                net.body(b[0]), b[1], torch.ones(len(b[0])) if len(b[0]) < 7 else None
            )
        )


@pytest.mark.parametrize(
    ("weights", "match"),
    [
        (lambda net, b: own_weight(b) / own_weight(b).sum(), "its weight, got others"),
        (
            lambda net, b: 1 - net.head(net.body(b[0])).softmax(-1).amax(1).detach(),
            "sample weights that do not depend on the head's weights",
        ),
    ],
)
def test_weights_that_are_not_a_sample_s_own_are_refused(weights, match):
    with pytest.raises(GuaranteeError, match=match):
        captured(
            lambda net, b: net.head.loss(net.body(b[0]), b[1], weights(net, b)).mean()
        )


def test_a_mean_divided_by_the_weights_is_refused_with_what_to_write():
    with pytest.raises(GuaranteeError, match="not divided by the sum of the weights"):
        captured(
            lambda net, b: (
                net.head.loss(net.body(b[0]), b[1], own_weight(b)).sum()
                / own_weight(b).sum()
            )
        )


def test_selecting_rows_selects_their_weights():
    X, y = data_for("cross_entropy")
    rows = FeatureData(X, y, weights_for("sample"))
    places = torch.tensor([5, 3, 30])
    for some in (rows.select(places, torch.device("cpu")), rows[places]):
        assert torch.equal(some.weights, rows.weights[places])
    parts = list(rows.split(16))
    assert [part.n for part in parts] == [16, 16, 8]
    assert torch.equal(torch.cat([part.weights for part in parts]), rows.weights)
