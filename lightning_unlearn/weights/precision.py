"""Single precision that is: 24 bits, not the 11 of TensorFloat-32."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_OPERATORS = ("conv", "rnn", "matmul")


@contextmanager
def full_float32() -> Iterator[None]:
    """Multiply and convolve float32 in float32, whatever is set; set it back after.

    cuDNN convolves in TensorFloat-32 unless told otherwise, with relative errors of
    about 1e-3: a residual measured so is not the one that a bound needs.
    """
    cudnn = torch.backends.cudnn
    operators = _by_operator()
    kept = [operator.fp32_precision for operator in operators]
    try:
        tf32, matmul = cudnn.allow_tf32, torch.get_float32_matmul_precision()
        mixed = False
    except RuntimeError:  # set by the names of torch 2.9, which do not mix with these
        tf32, matmul, mixed = True, "highest", True
    try:
        if mixed:
            for operator in operators:
                operator.fp32_precision = "ieee"
        else:
            cudnn.allow_tf32 = False
            torch.set_float32_matmul_precision("highest")
        yield
    finally:
        if not mixed:
            cudnn.allow_tf32 = tf32
            torch.set_float32_matmul_precision(matmul)
        for operator, precision in zip(operators, kept, strict=True):
            operator.fp32_precision = precision


def _by_operator() -> list[Any]:
    """What torch 2.9 and later set one by one."""
    backends: Any = torch.backends
    places = backends.cudnn, backends.cuda, backends.mkldnn
    found = [getattr(p, name, None) for p in places for name in _OPERATORS]
    return [operator for operator in found if hasattr(operator, "fp32_precision")]
