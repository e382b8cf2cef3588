"""Where memory is short: few vectors, the same step, and what stands in the way."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lightning_unlearn import CG, LiSSA, NewtonStep, UnlearningCallback
from lightning_unlearn.errors import DataError, GuaranteeError, SolverError
from lightning_unlearn.step.network import graph_memory as memory
from lightning_unlearn.step.network.spectrum import lanczos_ends
from lightning_unlearn.weights.large_arrays import set_aside
from tests.helpers.nets import MLP, digits, fitted, loader, same, trainer, weights

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and tunes glibc")
def test_a_request_adds_six_vectors_to_the_memory_of_training():
    returned = {"MALLOC_MMAP_THRESHOLD_": "262144", "MALLOC_TRIM_THRESHOLD_": "262144"}
    ended = subprocess.run(
        [sys.executable, "-m", "tests.plugin.helpers.memory_job", "1000", "10"],
        cwd=ROOT, env=os.environ | returned, capture_output=True, text=True,
        timeout=600,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert float(ended.stdout.splitlines()[-1]) <= 6


def step(**options):
    torch.manual_seed(0)
    net, own, _, _ = fitted(MLP(), digits(200), noise_std=0.0, **options)
    before = weights(net)
    result = own.unlearn(range(5))
    return {k: v - before[k] for k, v in weights(net).items()}, result


def test_few_vectors_take_the_same_step():
    settings = {"damping": 2.0, "solver": CG(rtol=1e-6)}
    usual, _ = step(low_memory=False, **settings)
    lean, result = step(low_memory=True, **settings)
    assert result.solution.x.dtype is torch.float32
    assert result.solution.method == "conjugate gradients with few vectors"
    for name, moved in usual.items():
        torch.testing.assert_close(moved, lean[name], rtol=1e-3, atol=1e-5)


def test_few_vectors_find_the_same_damping():
    _, usual = step(low_memory=False)
    _, lean = step(low_memory=True)
    damping = [
        next(c.value for c in r.certificate.constants if c.name == "damping")
        for r in (usual, lean)
    ]
    assert damping[1] == pytest.approx(damping[0], rel=1e-2)


def test_lanczos_without_a_basis_stays_in_the_spectrum():
    generator = torch.Generator().manual_seed(0)
    values = torch.linspace(-2.0, 5.0, 300).double()
    for steps in (5, 40, 120):
        start = torch.randn(300, generator=generator, dtype=torch.float64)
        low, high, *_ = lanczos_ends(
            lambda v: values * v, start, steps, keep_basis=False
        )
        assert low >= -2.0 - 1e-10
        assert high <= 5.0 + 1e-10
    assert (low, high) == (pytest.approx(-2.0, 1e-6), pytest.approx(5.0, 1e-6))


def refused(error, match, **options):
    net, own, callback, _ = fitted(MLP(), digits(200), low_memory=True, **options)
    before, record = weights(net), callback.state_dict()
    with pytest.raises(error, match=match):
        own.unlearn(range(5))
    assert same(weights(net), before)
    assert callback.state_dict() == record


def test_what_needs_more_vectors_is_refused_by_name():
    refused(
        SolverError, "expected conjugate gradients where memory is short, got LiSSA",
        noise_std=0.0, solver=LiSSA(),
    )  # fmt: skip
    refused(
        GuaranteeError, "float64 for guarantee=NewtonStep, got low_memory",
        max_norm=20.0, accept_noise=True, damping=0.0,
        guarantee=NewtonStep(
            hessian_lipschitz=1.0, lambda_min=0.1, retrained_gradient_norm=0.1,
            residual=1e-3,
        ),
    )  # fmt: skip


def test_short_memory_is_seen(monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda device: 100_000)
    _, result = step()
    assert result.solution.x.dtype is torch.float32
    monkeypatch.undo()
    _, result = step()
    assert result.solution.x.dtype is torch.float64


def test_a_vector_set_aside_comes_back():
    for dtype in (torch.float32, torch.float64):
        vector = torch.randn(1000).to(dtype)
        again = set_aside(vector)
        assert torch.equal(again(), vector)
        assert torch.equal(again(), vector)


def test_a_full_disk_is_said(monkeypatch):
    net, own, callback, _ = fitted(MLP(), digits(200), noise_std=0.0, low_memory=True)

    class Full:
        def write(self, data):
            raise OSError(28, "No space left on device")

        def close(self):
            pass

    monkeypatch.setattr("tempfile.TemporaryFile", lambda **options: Full())
    before = weights(net)
    with pytest.raises(DataError, match="GiB of room in .*No space left.*low_memory"):
        own.unlearn([1])
    assert same(weights(net), before)


def test_noise_for_single_precision_vectors():
    callback = UnlearningCallback(max_norm=2.0, accept_noise=True, low_memory=True)
    own = trainer(callback)
    net = MLP()
    own.fit(net, loader(digits(200)))
    result = own.unlearn([1])
    assert result.certificate.noise_std > 0
    flat = torch.cat([p.detach().reshape(-1) for p in net.parameters()])
    assert float(flat.norm()) == pytest.approx(
        2.0, rel=1e-5
    )  # the noise fills the ball
