import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_unlearn.errors import ArgumentError, GuaranteeError, ModelError
from lightning_unlearn.step.head.capture import capture
from lightning_unlearn.step.head.convex_head import ConvexHead
from lightning_unlearn.step.head.convex_objective import ConvexObjective
from lightning_unlearn.step.head.links import LINKS
from lightning_unlearn.step.head.rows.feature_data import FeatureData
from lightning_unlearn.weights.passes import passes
from lightning_unlearn.weights.scope import Scope
from tests.helpers.problems import ListBatches

TORCH_LOSSES = {
    "cross_entropy": F.cross_entropy,
    "mse": F.mse_loss,
    "bce": F.binary_cross_entropy_with_logits,
    "poisson": lambda z, y: F.poisson_nll_loss(z, y, log_input=True, full=False),
}


def data_for(loss, n=40, d=6, K=3):
    generator = torch.Generator().manual_seed(2)
    X = torch.randn(n, d, generator=generator, dtype=torch.float64)
    if loss == "cross_entropy":
        return X, torch.randint(K, (n,), generator=generator)
    if loss == "mse":
        return X, torch.randn(n, K, generator=generator, dtype=torch.float64)
    y = torch.randint(2 if loss == "bce" else 5, (n, K), generator=generator)
    return X, y.double()


def problem(loss, l2=0.01, bias=True):
    X, y = data_for(loss)
    head = ConvexHead(6, 3, loss, bias=bias).double()
    with torch.no_grad():
        for p in head.parameters():
            p.normal_(generator=torch.Generator().manual_seed(1)).mul_(0.3)
    return head, X, y, ConvexObjective(head, FeatureData(X, y), l2)


def flat_value(head, X, y, loss, l2):
    def value(w):
        W = w[:18].view(3, 6)
        z = X @ W.T + (w[18:] if head.bias is not None else 0)
        return TORCH_LOSSES[loss](z, y) + l2 / 2 * w @ w

    return value


@pytest.mark.parametrize("loss", LINKS)
def test_the_head_has_torch_s_loss(loss):
    head, X, y, _ = problem(loss)
    losses = head.loss(X, y)
    assert losses.shape == (40,)
    torch.testing.assert_close(losses.mean(), TORCH_LOSSES[loss](head(X), y))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("loss", LINKS)
def test_closed_forms_equal_automatic_differentiation(loss, bias):
    head, X, y, objective = problem(loss, bias=bias)
    w = Scope(head, head.parameters()).flatten()
    value = flat_value(head, X, y, loss, 0.01)
    H = torch.func.hessian(value)(w)
    gradient, rounding = objective.gradient(w)
    torch.testing.assert_close(gradient, torch.func.grad(value)(w))
    assert 0 < rounding < 1e-10
    v = torch.randn(len(w), dtype=torch.float64)
    objective.set_hessian_at(w)
    torch.testing.assert_close(objective.hvp(v), H @ v)
    assert torch.linalg.eigvalsh(H)[0] >= 0.01 - 1e-12  # mu = l2 is true
    generator = torch.Generator().manual_seed(0)
    mean = sum(objective.sampled_hvp(v, 64, generator) for _ in range(400)) / 400
    assert (mean - H @ v).norm() < 0.05 * (H @ v).norm()


@pytest.mark.parametrize("loss", LINKS)
def test_the_proxy_is_the_hessian_on_average_and_positive_definite(loss):
    head, X, y, objective = problem(loss)
    objective.set_hessian_at(Scope(head, head.parameters()).flatten())
    v = torch.randn(objective.size, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    mean = 0
    for _ in range(300):
        proxy = objective.proxy(64, generator)
        mean = mean + proxy(v) / 300
        assert v @ proxy(v) >= 0.01 * v @ v * (1 - 1e-9)
    assert (mean - objective.hvp(v)).norm() < 0.05 * objective.hvp(v).norm()
    hessian = objective.link.hessian(head(X))
    traces = sum(hessian.times(e.expand(40, 3)) @ e for e in torch.eye(3).double())
    torch.testing.assert_close(hessian.curvatures().sum(1), traces)


@pytest.mark.parametrize("loss", LINKS)
def test_curvature_is_kept_where_it_was_taken(loss, monkeypatch):
    _, X, y, objective = problem(loss)
    v = torch.randn(objective.size, dtype=torch.float64)
    points = [torch.randn_like(v) * 0.3 for _ in range(2)]

    def products():
        found = []
        for w in (*points, *points):
            objective.set_hessian_at(w)
            found.append(objective.hvp(v))
            assert torch.equal(objective.hvp(v), found[-1])  # kept: the same again
        return found

    kept = products()
    assert torch.equal(kept[0], kept[2])
    assert not torch.equal(kept[0], kept[1]) or loss == "mse"
    monkeypatch.setattr(
        "lightning_unlearn.step.head.convex_objective.DOUBLE_BYTES", 0
    )  # nothing fits
    *_, objective = problem(loss)
    for one, other in zip(products(), kept, strict=True):
        torch.testing.assert_close(one, other)


def test_the_regulariser_covers_the_bias():
    # Without it the softmax head is not strongly convex: adding a constant to all
    # biases changes no probability.
    head, X, y, objective = problem("cross_entropy")
    shift = torch.zeros(objective.size, dtype=torch.float64)
    shift[18:] = 1
    objective.set_hessian_at(torch.zeros_like(shift))
    torch.testing.assert_close(objective.hvp(shift), 0.01 * shift)


@pytest.mark.parametrize("loss", LINKS)
def test_link_constants_hold_where_the_logits_lie(loss):
    link, rng = LINKS[loss], np.random.default_rng(0)
    for scale in (0.1, 1.0, 4.0):
        z = torch.tensor(rng.normal(size=(200, 3)) * scale)
        y = data_for(loss, n=200)[1]
        zmax = float(z.abs().max())
        for i in range(0, 200, 10):
            J = torch.func.jacrev(lambda u, i=i: link.residual(u[None], y[i : i + 1]))(
                z[i]
            )[0]
            norm = float(torch.linalg.matrix_norm(J, 2))
            assert norm <= link.lipschitz(zmax, 3) * (1 + 1e-9)
        nonlinear = link.residual(z, torch.zeros_like(z))
        if loss != "mse":
            assert float(nonlinear.norm(dim=1).max()) <= link.norm(zmax, 3) + 1e-12


def test_one_column_targets_and_soft_targets():
    head = ConvexHead(6, 1, "bce")
    X = torch.randn(4, 6)
    assert head.loss(X, torch.tensor([0, 1, 1, 0])).shape == (4,)
    soft = ConvexHead(6, 3)
    y = torch.full((4, 3), 1 / 3)
    assert soft.loss(X, y).shape == (4,)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ConvexHead(0, 3), "expected in_features to be an integer >= 1"),
        (lambda: ConvexHead(3, 2, "hinge"), "expected loss to be one of"),
        (
            lambda: ConvexHead(3, 2).loss(torch.zeros(4, 5), torch.zeros(4)),
            r"expected features of shape \(n, 3\), got \(4, 5\)",
        ),
        (
            lambda: ConvexHead(3, 2).loss(
                torch.zeros(4, 3), torch.zeros(5, dtype=torch.long)
            ),
            r"expected targets of shape \(4,\)",
        ),
        (
            lambda: ConvexHead(3, 2, "mse").loss(torch.zeros(4, 3), torch.zeros(4)),
            r"expected targets of shape \(4, 2\)",
        ),
    ],
)
def test_bad_heads_and_shapes(call, message):
    with pytest.raises(ArgumentError, match=message):
        call()


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 5), nn.Tanh())
        self.head = ConvexHead(5, 3)


def captured(loss, batch_size=7, y=None):
    torch.manual_seed(0)
    net = Net()
    X, labels = data_for("cross_entropy")
    batches = ListBatches(X.float(), labels if y is None else y, batch_size)
    scope = Scope(net, net.head.parameters())
    with passes(net, scope, torch.float32):
        return net, X, capture(lambda b, i: loss(net, b), net.head, batches)


def test_capture_keeps_each_row_once():
    net, X, data = captured(lambda net, b: net.head.loss(net.body(b[0]), b[1]).mean())
    assert data.n == 40
    torch.testing.assert_close(data.features, net.body(X.float()).detach())
    assert not data.features.requires_grad
    assert net.head._calls is None


def test_numbers_that_vanish_beside_a_row_s_largest_are_zero():
    def loss(net, b):
        scale = torch.tensor([1, 1e-20, 1e-36, -1e-36, 1])
        return net.head.loss(net.body(b[0]) * scale, b[1]).mean()

    net, X, data = captured(loss)
    rows = net.body(X.float()).detach()
    assert torch.equal(data.features[:, [0, 4]], rows[:, [0, 4]])
    assert torch.equal(data.features[:, 1], rows[:, 1] * 1e-20)  # it stays
    assert not data.features[:, 2:4].any()  # subnormal products are slow


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (
            lambda net, b: F.cross_entropy(net.head(net.body(b[0])), b[1]),
            "call head.loss.* exactly once, got 0 calls",
        ),
        (
            lambda net, b: (
                net.head.loss(net.body(b[0]), b[1])
                + net.head.loss(net.body(b[0]), b[1])
            ),
            "got 2 calls",
        ),
        (
            lambda net, b: net.head.loss(net.body(b[0]), b[1]).mean() * 2,
            "or its mean, got another value",
        ),
        (
            lambda net, b: -net.head.loss(net.body(b[0]), b[1]).mean(),
            "or its mean, got another value",
        ),
        (
            lambda net, b: (
                net.head.loss(net.body(b[0]), b[1]).mean()
                + 1e-3 * (net.head.weight + 1).abs().sum()
            ),
            "or its mean, got another value",
        ),
        (
            lambda net, b: net.head.loss(net.body(b[0]), b[1]).sum(),
            "or its mean, got another value",
        ),
        (
            lambda net, b: net.head.loss(
                net.body(b[0]) * (1 + net.head.weight[0]), b[1]
            ),
            "features that do not depend on the weights in scope",
        ),
        (
            lambda net, b: net.head.loss(
                net.body(b[0]) + net.head.weight.detach().mean(0), b[1]
            ),
            "do not depend on the head's weights, got others at other weights",
        ),
        (
            lambda net, b: net.head.loss(
                net.body(b[0]), net.head(net.body(b[0])).softmax(-1).detach()
            ),
            "self-distillation, pseudo-labels",
        ),
        (
            lambda net, b: net.head.loss(net.body(b[0]) - net.body(b[0]).mean(0), b[1]),
            "features of a sample to be its own",
        ),
        (
            lambda net, b: net.head.loss(net.body(b[0])[:2], b[1][:2]).mean(),
            "one loss for each of the 8 samples of a batch, got 2",
        ),
    ],
)
def test_anything_but_the_head_s_own_loss_is_refused(loss, message):
    with pytest.raises(GuaranteeError, match=message):
        captured(loss)


def test_a_reused_buffer_does_not_change_what_was_recorded():
    buffer = torch.zeros(40, 5)

    def loss(net, b):
        rows = buffer[: len(b[0])]
        rows.copy_(net.body(b[0]).detach())
        return net.head.loss(rows, b[1]).mean()

    net, X, data = captured(loss)
    torch.testing.assert_close(data.features, net.body(X.float()).detach())


def test_heads_that_are_not_plain_are_refused():
    class Scaled(ConvexHead):
        def forward(self, features):
            return 5 * super().forward(features).sin()

    def with_head(change):
        torch.manual_seed(0)
        net = Net()
        change(net)
        X, y = data_for("cross_entropy")
        scope = Scope(net, net.head.parameters())
        with passes(net, scope, torch.float32):
            return capture(
                lambda b, i: net.head.loss(net.body(b[0]), b[1]).mean(),
                net.head,
                ListBatches(X.float(), y),
            )

    with_head(lambda net: None)

    class Clamp(nn.Module):
        def forward(self, w):
            return w.clamp(-0.1, 0.1)

    for change in (
        lambda net: setattr(net, "head", Scaled(5, 3)),
        lambda net: net.head.register_forward_hook(lambda m, a, out: 5 * out.sin()),
        lambda net: nn.utils.parametrize.register_parametrization(
            net.head, "weight", Clamp()
        ),
    ):
        with pytest.raises(GuaranteeError, match="expected a plain ConvexHead"):
            with_head(change)
    with pytest.raises(GuaranteeError, match="or its mean, got another value"):
        with_head(lambda net: setattr(net.head, "forward", lambda f: f[:, :3] * 7))


def test_soft_targets_must_be_distributions():
    head = ConvexHead(6, 3)
    two = torch.tensor([[1.0, 1.0, 0.0]])
    with pytest.raises(ArgumentError, match="rows off by up to 1: normalise"):
        head.loss(torch.zeros(1, 6), two)
    with pytest.raises(ArgumentError, match="soft targets that are probabilities"):
        head.loss(torch.zeros(1, 6), torch.tensor([[2.0, -1.0, 0.0]]))
    soft = torch.tensor([[0.5, 0.3, 0.2]])
    features = torch.randn(1, 6)
    with torch.no_grad():
        head.weight.normal_()
    torch.testing.assert_close(
        head.loss(features, soft).mean(), F.cross_entropy(head(features), soft)
    )


def test_nan_features_are_refused():
    with pytest.raises(ModelError, match="expected finite features"):
        captured(
            lambda net, b: net.head.loss(
                torch.full_like(net.body(b[0]), float("nan")), b[1]
            )
        )
