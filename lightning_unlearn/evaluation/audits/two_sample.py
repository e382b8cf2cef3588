"""Tell two worlds apart by many released models of each."""

import torch
from torch import Tensor

from lightning_unlearn._base import validate
from lightning_unlearn.certificate.certificate import Certificate
from lightning_unlearn.evaluation.audits import worlds
from lightning_unlearn.evaluation.audits.finding import (
    Audit,
    Lower,
    asked_delta,
    compared,
)
from lightning_unlearn.evaluation.audits.lower_bounds import (
    best_cut,
    epsilon_lower_bound,
    mu_lower_bound,
)


def two_sample_audit(
    certificate: Certificate,
    unlearned: Tensor,
    retrained: Tensor | None,
    confidence: float = 0.95,
    *,
    delta: float | None = None,
) -> Audit:
    """Tell released models of the two worlds apart, and compare with the certificate.

    One solve gives many unlearned models: draw the noise anew for each. The retrained
    world is the same request on a model trained without the forgotten samples, **its
    noise included**: the claim compares two outputs of the request, and bare retrained
    models differ from it by more than is claimed.

    With the first half of the rows of each world a direction is chosen (the
    difference of their means, best for Gaussian noise of one size in both) and a
    threshold (the one with the largest `mu_lower_bound` there); the second half alone
    is tested. With many more weights than draws the direction is hardly known: who
    knows the distance of the points before noise gives its inner products as scores.

    Args:
        certificate: Of the request; it must verify.
        unlearned: Floating, (N, p) released weights or any function of them, or (N,)
            scores, a row for each of N >= 2 independent noise draws.
        retrained: The same of M >= 2 draws in the retrained world.
        confidence: In (0, 1). An honest certificate raises in at most ``1 -
            confidence`` of audits: take a larger one where many are run.
        delta: At which to state epsilon; by default the certificate's. Grade ``none``
            has none: give it.

    Returns:
        The lower bounds, the ceiling, and what is certified. A failed audit proves
        nothing.

    Raises:
        AuditError: If a lower bound is above what is certified of this release.
        CertificateError: If the certificate does not verify.
        ArgumentError: If shapes or dtypes differ from these, a value is NaN or
            infinite, `retrained` is None, or there is no delta.
    """
    certificate.verify()
    validate.probability(confidence=confidence)
    delta = asked_delta(certificate, delta)
    u, r = worlds.rows(unlearned, retrained)
    n_u, n_r = len(u), len(r)
    attack = "scores given"
    if u.ndim == 2:
        u, r = worlds.projected(u, r)
        attack = "projection on the difference of the means"
    u, r = (x.to("cpu", torch.float64) for x in (u, r))
    sign, cut = best_cut(u[: n_u // 2], r[: n_r // 2], confidence)
    tested_u, tested_r = sign * u[n_u // 2 :], sign * r[n_r // 2 :]
    tp, fp = int((tested_u > cut).sum()), int((tested_r > cut).sum())
    counts, perfect = [
        (wrong, len(tested_r), right, len(tested_u))
        for wrong, right in ((fp, tp), (0, len(tested_u)))
    ]
    lower, ceiling = [
        Lower(
            epsilon_lower_bound(*errors, delta, confidence),
            mu_lower_bound(*errors, confidence),
        )
        for errors in (counts, perfect)
    ]
    return compared(
        certificate,
        lower,
        ceiling,
        attack=attack,
        tried=f"{n_u:,} unlearned and {n_r:,} retrained models, half of them held out",
        n=n_u + n_r,
        confidence=confidence,
        delta=delta,
    )
