"""What audits are given of the unlearned and of the retrained world."""

import torch
from torch import Tensor

from lightning_unlearn.certificate.certificate import Certificate
from lightning_unlearn.errors import ArgumentError
from lightning_unlearn.evaluation.metrics import arguments

ROUNDING = 1 + 1e-9
_CHUNK = 1024


def stated_mu(certificate: Certificate) -> float | None:
    """Of this release alone: earlier ones are not what is tested."""
    return certificate.release_mus[-1] if certificate.release_mus else None


def rows(unlearned: object, retrained: object) -> tuple[Tensor, Tensor]:
    """Both, (n, p) or (n,), with two models of each at least, or `ArgumentError`."""
    ndim = 2 if isinstance(unlearned, Tensor) and unlearned.ndim == 2 else 1
    r = arguments.reference("retrained", retrained, ndim)
    u = arguments.values("unlearned", unlearned, ndim)
    if u.shape[1:] != r.shape[1:]:
        raise ArgumentError(
            "expected as many columns in both worlds, got unlearned of shape "
            f"{tuple(u.shape)} and retrained of {tuple(r.shape)}"
        )
    for name, x in (("unlearned", u), ("retrained", r)):
        if not (len(x) >= 2 and x.numel()):
            raise ArgumentError(
                f"expected at least 2 {name} models, half to choose the test and half "
                f"to be tested, got shape {tuple(x.shape)}: draw more"
            )
    return u, r


def projected(u: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    """Scores along the difference of the first halves' means, a chunk at a time."""
    means = [x[: len(x) // 2].mean(0, dtype=torch.float64).cpu() for x in (u, r)]
    direction = means[0] - means[1]
    size = float(direction.norm())
    direction = direction / size if size > 0 else direction

    def along(x: Tensor) -> Tensor:
        chunks = (chunk.to("cpu", torch.float64) for chunk in x.split(_CHUNK))
        return torch.cat([(chunk - means[1]) @ direction for chunk in chunks])

    return (
        arguments.values("the projections of unlearned", along(u), 1),
        arguments.values("the projections of retrained", along(r), 1),
    )
