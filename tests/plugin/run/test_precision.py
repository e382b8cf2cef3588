"""Whatever the Trainer's precision: passes without autocast, one cast at the end."""

import pytest
import torch
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector

from lightning_unlearn import CG, UnlearningCallback
from lightning_unlearn.guarantee.claims import Grade
from tests.helpers.nets import MLP, HeadNet, digits, fitted, loader, trainer
from tests.helpers.oracles import dense_gradient_and_hessian

PRECISIONS = ["32-true", "64-true", "bf16-mixed", "16-mixed", "bf16-true"]
HELD = {"64-true": torch.float64, "bf16-true": torch.bfloat16}


def start():
    torch.manual_seed(0)
    return MLP(hidden=4)


def dense_step(net, retained, damping):
    """The Newton step from the weights as they are held, dense, in float64."""
    X, y = (t[list(retained)] for t in digits(200).tensors)
    flat = parameters_to_vector(net.parameters()).detach().double()
    shapes = {name: p.shape for name, p in net.named_parameters()}
    plain = MLP(hidden=4).double()

    def value(w):
        parts = w.split([s.numel() for s in shapes.values()])
        named = {n: p.view(shapes[n]) for n, p in zip(shapes, parts, strict=True)}
        out = torch.func.functional_call(plain, named, (X.double(),))
        return F.cross_entropy(out, y) + 1e-4 / 2 * w @ w

    g, H = dense_gradient_and_hessian(value, flat)
    return flat, torch.linalg.solve(H + damping * torch.eye(len(flat)).double(), g)


@pytest.mark.filterwarnings("ignore:You passed.*16-mixed:UserWarning")
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_step_is_the_float64_one_of_the_weights_as_held(precision):
    callback = UnlearningCallback(noise_std=0.0, damping=2.0, solver=CG(rtol=1e-8))
    own = trainer(callback, 2, precision=precision)
    net = start()
    own.fit(net, loader(digits(200)))
    held = HELD.get(precision, torch.float32)
    assert {p.dtype for p in net.parameters()} == {held}
    w, x = dense_step(net, range(5, 200), 2.0)
    result = own.unlearn(range(5))
    rtol = 1e-7 if held is torch.float64 else 1e-5  # of the passes
    assert float((result.solution.x - x).norm()) <= rtol * float(x.norm())
    assert {p.dtype for p in net.parameters()} == {held}
    now = parameters_to_vector(net.parameters())
    assert torch.equal(now, (w - result.solution.x).to(held))  # one cast, at the end


@pytest.mark.filterwarnings("ignore:You passed.*16-mixed:UserWarning")
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_head_is_certified_in_any_precision(precision):
    torch.manual_seed(0)
    net, own, _, _ = fitted(HeadNet(), trainer_options={"precision": precision})
    result = own.unlearn([1, 2])
    assert result.certificate.grade is Grade.CERTIFIED
    held = HELD.get(precision, torch.float32)
    assert {p.dtype for p in net.parameters()} == {held}
    # Solved in float64 from rows as they were computed: the bound on rounding is part
    # of what must stay below the tolerance.
    assert result.solution.residual <= 1e-6


def test_passes_in_double_precision_for_single_precision_weights():
    callback = UnlearningCallback(
        noise_std=0.0, damping=2.0, solver=CG(rtol=1e-12), solve_precision="float64"
    )
    own, net = trainer(callback, 2), start()
    own.fit(net, loader(digits(200)))
    _, x = dense_step(net, range(5, 200), 2.0)
    result = own.unlearn(range(5))
    assert float((result.solution.x - x).norm()) <= 1e-10 * float(x.norm())
