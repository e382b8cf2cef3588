"""Audits: what is found of a certificate's epsilon, which can only refute it.

A lower bound above what is certified raises `AuditError`. One below it proves
nothing: another attack, or more draws, may find more.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_unlearn import _validate
from lightning_unlearn._text import number
from lightning_unlearn.certificate.claims import Grade
from lightning_unlearn.certificate.gaussian import gaussian_epsilon
from lightning_unlearn.certificate.record import Certificate
from lightning_unlearn.errors import ArgumentError, AuditError
from lightning_unlearn.evaluation import _worlds
from lightning_unlearn.evaluation.lower import (
    best_cut,
    epsilon_lower_bound,
    epsilon_of_mu_lower,
    mu_lower_bound,
)


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What an attack found, beside what is certified of this release alone.

    A failed audit proves nothing: a lower bound of 0 is what a weak attack finds, or
    one with few draws (`ceiling`). It is measured with the forgotten samples' help and
    is not covered by the certificate.

    Attributes:
        epsilon_lower: Lower bound of epsilon at `delta` for any mechanism.
        mu_lower: Lower bound of mu, for the Gaussian mechanism that is claimed; holds
            together with `epsilon_lower`, at `confidence`.
        epsilon_certified: Of this release alone at `delta`, from `mu_certified`: that
            of the certificate if it is for one release. None for grade ``none``.
        mu_certified: The last of the certificate's ``release_mus``, or None.
        grade: Of the certificate.
        delta: At which the epsilons are stated.
        confidence: A lower bound is above the truth in at most ``1 - confidence`` of
            audits.
        attack: How the two worlds were told apart.
        n_unlearned: Unlearned models given; the second half was tested.
        n_retrained: Retrained models given; the second half was tested.
        ceiling: The largest `epsilon_lower` so many models can show: all right.
        mu_ceiling: The largest `mu_lower` so many models can show.
    """

    epsilon_lower: float
    mu_lower: float
    epsilon_certified: float | None
    mu_certified: float | None
    grade: Grade
    delta: float
    confidence: float
    attack: str
    n_unlearned: int
    n_retrained: int
    ceiling: float
    mu_ceiling: float

    @property
    def epsilon_lower_gaussian(self) -> float:
        """`mu_lower` as a lower bound of epsilon, if the noise is Gaussian as claimed.

        Never below `epsilon_lower`, up to rounding.
        """
        return epsilon_of_mu_lower(self.mu_lower, self.delta)

    def __str__(self) -> str:
        grade = f"(grade {self.grade.value})"
        lines = [
            f"audit by {self.attack}: {self.n_unlearned:,} unlearned and "
            f"{self.n_retrained:,} retrained models, half of them held out, confidence "
            f"{self.confidence:g}, delta = {number(self.delta)}"
        ]
        for condition, found, most, stated in (
            ("", self.epsilon_lower, self.ceiling, self.epsilon_certified),
            (
                ", the noise being Gaussian",
                self.epsilon_lower_gaussian,
                epsilon_of_mu_lower(self.mu_ceiling, self.delta),
                self.epsilon_certified,
            ),
        ):
            claim = "nothing" if stated is None else f"epsilon = {number(stated)}"
            lines.append(
                f"  lower bound of epsilon{condition}: {number(found)}, at most "
                f"{number(most)} with so many models; certified {grade}: {claim}"
            )
        if self.mu_certified is not None and self.mu_ceiling <= self.mu_certified:
            lines.append(
                "  so few models could not have refuted this certificate: draw more"
            )
        lines.append(
            "  a failed audit proves nothing: other attacks or more draws may find more"
        )
        return "\n".join(lines)


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
    _validate.probability(confidence=confidence)
    delta = _delta(certificate, delta)
    u, r = _worlds.rows(unlearned, retrained)
    n_u, n_r = len(u), len(r)
    attack = "scores given"
    if u.ndim == 2:
        u, r = _worlds.projected(u, r)
        attack = "projection on the difference of the means"
    u, r = (x.to("cpu", torch.float64) for x in (u, r))
    sign, cut = best_cut(u[: n_u // 2], r[: n_r // 2], confidence)
    tested_u, tested_r = sign * u[n_u // 2 :], sign * r[n_r // 2 :]
    tp, fp = int((tested_u > cut).sum()), int((tested_r > cut).sum())
    counts, perfect = [
        (wrong, len(tested_r), right, len(tested_u))
        for wrong, right in ((fp, tp), (0, len(tested_u)))
    ]
    mu = _worlds.stated_mu(certificate)
    audit = Audit(
        epsilon_lower=epsilon_lower_bound(*counts, delta, confidence),
        mu_lower=mu_lower_bound(*counts, confidence),
        epsilon_certified=None if mu is None else gaussian_epsilon(mu, delta),
        mu_certified=mu,
        grade=certificate.grade,
        delta=delta,
        confidence=confidence,
        attack=attack,
        n_unlearned=n_u,
        n_retrained=n_r,
        ceiling=epsilon_lower_bound(*perfect, delta, confidence),
        mu_ceiling=mu_lower_bound(*perfect, confidence),
    )
    _compare(audit)
    return audit


def _delta(certificate: Certificate, delta: float | None) -> float:
    delta = certificate.delta if delta is None else delta
    if delta is None:
        raise ArgumentError(
            "expected delta= for a certificate of grade none, which states none, got "
            "None: give the delta at which a lower bound of epsilon is to be stated"
        )
    _validate.probability(delta=delta)
    return delta


def _compare(audit: Audit) -> None:
    mu, epsilon = audit.mu_certified, audit.epsilon_certified
    if mu is None or epsilon is None:
        return
    by_mu = audit.mu_lower <= mu * _worlds.ROUNDING
    if by_mu and audit.epsilon_lower <= epsilon * _worlds.ROUNDING:
        return
    raise AuditError(
        "expected no lower bound above what is certified, got one: mu of at least "
        f"{number(audit.mu_lower)}, certified {number(mu)}. The certificate or the "
        "code is wrong: release nothing, and report it. First see that the retrained "
        "world ran the same request, noise included, and, since an honest certificate "
        f"does this in up to {1 - audit.confidence:.2g} of audits, that fresh draws at "
        f"a higher confidence say the same.\n{audit}"
    )
