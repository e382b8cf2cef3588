"""On a CUDA device: the same step as on a CPU, and the memory it takes there."""

import pytest
import torch
from torch import nn

from lightning_unlearn import CG, UnlearningCallback
from lightning_unlearn.guarantee.claims import Bound, Grade
from tests.helpers.nets import MLP, HeadNet, digits, loader, trainer, weights
from tests.plugin.helpers.memory_job import Deep
from tests.plugin.helpers.publics import solved

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def moved(accelerator, net, **options):
    """The weights after a request on a device, from the same start."""
    torch.manual_seed(0)
    made = net()
    callback = UnlearningCallback(noise_std=0.0, **options)
    own = trainer(callback, accelerator=accelerator, devices=1)
    result = own.unlearn(range(7), model=made, train_dataloaders=loader(digits(200)))
    return {k: v.cpu() for k, v in weights(made).items()}, result


@pytest.mark.parametrize("low_memory", [True, False])
@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
def test_a_network_takes_the_step_of_the_cpu(activation, low_memory):
    options = {"damping": 5.0, "solver": CG(1e-6), "low_memory": low_memory, "l2": 1e-4}
    here, _ = moved("cpu", lambda: MLP(activation), **options)
    there, _ = moved("cuda", lambda: MLP(activation), **options)
    for name, value in here.items():
        torch.testing.assert_close(value, there[name], rtol=1e-3, atol=1e-5)


class Convolutions(MLP):
    """Digits as images, which cuDNN convolves in TensorFloat-32 if it may."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 32, 3, padding=1), nn.Tanh(),
            nn.Conv2d(32, 32, 3, padding=1), nn.Tanh(), nn.Flatten(),
            nn.Linear(2048, 10),
        )  # fmt: skip


def test_convolutions_take_the_step_of_the_cpu():
    """Within what float32 allows, far below what TensorFloat-32 does to a gradient."""
    assert torch.backends.cudnn.allow_tf32
    options = {"damping": 5.0, "solver": CG(1e-5), "l2": 1e-4}
    here, _ = moved("cpu", Convolutions, **options)
    there, _ = moved("cuda", Convolutions, **options)
    torch.manual_seed(0)
    start = weights(Convolutions())
    moves = torch.cat([(here[k] - start[k]).flatten() for k in here])
    error = torch.cat([(here[k] - there[k]).flatten() for k in here])
    print("relative error of a step", (error.norm() / moves.norm()).item())
    assert error.norm() / moves.norm() < 1e-4


def test_a_head_is_certified_and_ends_where_it_does_on_the_cpu():
    options = {"tolerance": 1e-9, "l2": 1e-3}
    here, _ = moved("cpu", HeadNet, **options)
    there, _ = moved("cuda", HeadNet, **options)
    for name, value in here.items():
        torch.testing.assert_close(value, there[name], rtol=1e-4, atol=1e-5)
    own = trainer(UnlearningCallback(), accelerator="cuda", devices=1)
    own.fit(HeadNet(), loader(digits(200)))
    assert own.unlearn([1]).certificate.grade is Grade.CERTIFIED


@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed", "bf16-true"])
def test_precisions(precision):
    own = trainer(
        UnlearningCallback(), accelerator="cuda", devices=1, precision=precision
    )
    own.fit(HeadNet(), loader(digits(200)))
    assert own.unlearn([1]).certificate.grade is Grade.CERTIFIED


def test_a_request_adds_six_vectors_to_the_memory_of_training():
    net, data = Deep(1000, 10), digits(96)
    p = sum(q.numel() for q in net.parameters())
    net.cuda()
    X, y = (t[:32].cuda() for t in data.tensors)
    torch.cuda.reset_peak_memory_stats()
    for _ in range(2):
        nn.functional.cross_entropy(net(X), y).backward()
    training = torch.cuda.max_memory_allocated()
    callback = UnlearningCallback(
        low_memory=True, batch_size=32, max_norm=1e3, accept_noise=True
    )
    torch.cuda.reset_peak_memory_stats()
    trainer(callback, accelerator="cuda", devices=1).unlearn(
        [1, 2, 3], model=net, train_dataloaders=loader(data, 32)
    )
    extra = torch.cuda.max_memory_allocated() - training
    assert extra / 4 / p <= 6


def test_a_certified_head_on_a_public_backbone_is_that_of_the_cpu():
    """Features of cuDNN's convolutions without TensorFloat-32, solved in float64."""
    heads = []
    for accelerator in ("cpu", "cuda"):
        options = {"accelerator": accelerator, "devices": 1}
        net, own, _, _ = solved(trainer_options=options, noise_std=0.0, tolerance=1e-8)
        result = own.unlearn(range(40))
        assert result.certificate.bound is Bound.STRONGLY_CONVEX
        heads.append(net.head.weight.detach().cpu())
    error = (heads[0] - heads[1]).norm() / heads[0].norm()
    print("relative error of a head", error.item())
    assert error < 1e-3


@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed"])
def test_a_solved_head_takes_its_only_step_in_mixed_precision(precision):
    options = {"accelerator": "cuda", "devices": 1, "precision": precision}
    net, own, _, _ = solved(trainer_options=options)
    assert own.global_step == 1
    before = net.head.weight.detach().clone()
    assert float(before.abs().max()) > 0
    assert own.unlearn([1]).certificate.grade is Grade.CERTIFIED
    assert (net.head.weight - before).abs().max() < 0.1
