"""The true mu of a release, where both points before the noise are known."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_unlearn._base.text import number
from lightning_unlearn.certificate.certificate import Certificate
from lightning_unlearn.errors import ArgumentError, AuditError
from lightning_unlearn.evaluation.audits import worlds
from lightning_unlearn.evaluation.metrics import arguments


class WhiteBox(NamedTuple):
    """The mu of a release whose two points before noise are known. Secret.

    Attributes:
        mu_true: Their distance over the certificate's ``noise_std``; infinite if they
            differ and there is no noise.
        mu_certified: What the certificate states, or None for grade ``none``.
        ratio: ``mu_true / mu_certified``, 1 if the bound is attained; or None.
    """

    mu_true: float
    mu_certified: float | None
    ratio: float | None


def white_box_mu(
    certificate: Certificate, w_unlearned: Tensor, w_retrained: Tensor
) -> WhiteBox:
    """The true mu of a release, where both worlds' points before noise are known.

    ``|w_u - w_r| / noise_std`` exactly (two Gaussians of one size differ along one
    line only: Balle & Wang 2018, Theorem 8). For a convex head `w_retrained` is where
    the request ends from weights that were trained without the forgotten samples, or
    the exact minimiser over the retained ones. It audits the sensitivity, not the
    noise that was drawn: `two_sample_audit` sees that.

    **Secret**: no noise protects these vectors, nor what is returned, which depends on
    the forgotten samples. Write neither down beside the released model.

    Args:
        certificate: Of the request; it must verify.
        w_unlearned: Weights in scope before the noise (``n_parameters``,), float64.
        w_retrained: The same in the retrained world.

    Returns:
        The true mu, the certified one and their ratio: how loose the bound is here.

    Raises:
        AuditError: If the true mu is above the certified one, by more than rounding.
        CertificateError: If the certificate does not verify.
        ArgumentError: If a vector is not of that shape and dtype, or not finite.
    """
    return held_to(certificate, *apart(certificate, w_unlearned, w_retrained)[2:])


def apart(
    certificate: Certificate, w_unlearned: Tensor, w_retrained: Tensor
) -> tuple[Tensor, Tensor, float, float]:
    """Both points on the CPU, their distance and the sum of their norms.

    Raises:
        CertificateError: If the certificate does not verify.
        ArgumentError: If a vector is not of that shape and dtype, or not finite.
    """
    certificate.verify()
    r = arguments.reference("w_retrained", w_retrained, 1).cpu()
    u = arguments.values("w_unlearned", w_unlearned, 1).cpu()
    p = certificate.n_parameters
    for name, w in (("w_unlearned", u), ("w_retrained", r)):
        if w.dtype != torch.float64 or len(w) != p:
            raise ArgumentError(
                f"expected {name} to be the {p} weights in scope in float64, before "
                f"the noise and any cast, got {w.dtype} of shape {tuple(w.shape)}"
            )
    return u, r, float((u - r).norm()), float(u.norm() + r.norm())


def held_to(certificate: Certificate, distance: float, norms: float) -> WhiteBox:
    """As `white_box_mu`, of the distance and the sum of both norms, which rounds it."""
    sigma = certificate.noise_std
    true = distance / sigma if sigma > 0 else (math.inf if distance > 0 else 0.0)
    stated = worlds.stated_mu(certificate)
    if stated is None:
        return WhiteBox(true, None, None)
    rounding = 2.0**-52 * norms / sigma
    if not true <= stated * worlds.ROUNDING + rounding:
        raise AuditError(
            f"expected mu of at most {number(stated)}, as certified (grade "
            f"{certificate.grade.value}), got {number(true)} from the distance before "
            "noise: the certificate or the code is wrong, or these are not the two "
            "ends of the same request; release nothing, and report it"
        )
    return WhiteBox(true, stated, true / stated)
