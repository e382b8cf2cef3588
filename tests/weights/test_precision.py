"""Whatever precision a user has set, passes multiply in float32 and set it back."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from lightning_unlearn.weights.passes import passes
from lightning_unlearn.weights.scope import Scope

STATE = """
import torch
from lightning_unlearn.weights.precision import full_float32

b = torch.backends
def state():
    names = ["cudnn.conv", "cudnn.rnn", "cuda.matmul"]
    names += ["mkldnn.conv", "mkldnn.rnn", "mkldnn.matmul"]
    found = []
    for name in names:
        backend, operator = name.split(".")
        held = getattr(getattr(b, backend), operator, None)
        found.append(getattr(held, "fp32_precision", None))
    for legacy in (lambda: b.cudnn.allow_tf32, torch.get_float32_matmul_precision):
        try:
            found.append(legacy())
        except RuntimeError:
            found.append("mixed")
    return found
"""


@pytest.mark.parametrize(
    "set_by_user",
    [
        "",
        "torch.set_float32_matmul_precision('medium')",
        "b.cudnn.allow_tf32 = False",
        "b.cuda.matmul.allow_tf32 = True",
        "b.cudnn.conv.fp32_precision = 'ieee'",
        "b.cuda.matmul.fp32_precision = 'tf32'",
    ],
)
def test_what_a_user_set_is_back_afterwards(set_by_user):
    if "fp32_precision" in set_by_user and not hasattr(torch.backends.cudnn, "conv"):
        pytest.skip("needs torch 2.9")
    check = """
before = state()
try:
    with full_float32():
        inside = state()
        raise ZeroDivisionError
except ZeroDivisionError:
    pass
assert state() == before, (before, state())
assert "tf32" not in inside and "bf16" not in inside, inside
assert inside[-2] in (False, "mixed") and inside[-1] in ("highest", "mixed"), inside
"""
    code = STATE + set_by_user + check  # the two ways of setting it do not mix
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_passes_run_in_it():
    net = nn.Linear(2, 1)
    torch.set_float32_matmul_precision("high")
    try:
        with passes(net, Scope(net, net.parameters()), torch.float32):
            assert torch.get_float32_matmul_precision() == "highest"
            assert not torch.backends.cudnn.allow_tf32
        assert torch.get_float32_matmul_precision() == "high"
        assert torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision("highest")
