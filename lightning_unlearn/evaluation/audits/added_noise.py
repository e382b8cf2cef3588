"""The noise that was added, where the point before it is known."""

import math
from typing import NamedTuple

from scipy.stats import chi2

from lightning_unlearn._base.text import number
from lightning_unlearn.certificate.certificate import Certificate
from lightning_unlearn.errors import AuditError


class NoiseSize(NamedTuple):
    """How large the noise of a release was. Secret.

    Attributes:
        std: Root mean square over the weights of what was added.
        std_certified: The certificate's ``noise_std``.
    """

    std: float
    std_certified: float


def noise_size(
    certificate: Certificate, norm: float, rounding: float, confidence: float
) -> NoiseSize:
    """Hold the noise of a release to what is certified.

    ``|noise|^2 / noise_std^2`` follows a chi-squared law with one degree for each
    weight. The point before the noise is computed anew: it lies within the sensitivity
    of the one that was released from, and weights are cast once, so that both are
    added to the norm before it is called too small.

    Args:
        certificate: Of the release.
        norm: Of the released weights less the point before the noise.
        rounding: Bound on what the cast of the released weights moved them.
        confidence: An honest release raises with probability ``1 - confidence`` at
            most.

    Returns:
        What was found and what is certified.

    Raises:
        AuditError: If the noise was smaller than certified.
    """
    p, sigma = certificate.n_parameters, certificate.noise_std
    found = NoiseSize(norm / math.sqrt(p), sigma)
    most = norm + (certificate.sensitivity or 0.0) + rounding
    least = sigma * math.sqrt(float(chi2.ppf(1 - confidence, p)))
    if not most >= least:
        raise AuditError(
            f"expected noise of standard deviation {number(sigma)} on each of "
            f"{p:,} weights, as certified (grade {certificate.grade.value}), got "
            f"{number(found.std)}: the noise was not drawn as stated, or this is the 1 "
            f"honest release in {1 / (1 - confidence):,.0f} that looks so; release "
            "nothing, repeat the audit at a higher confidence, and report it if that "
            "says the same"
        )
    return found
