"""What an audit found, beside what is certified; it can only refute.

A lower bound above what is certified raises `AuditError`. One below it proves
nothing: another attack, or more draws, may find more.
"""

from dataclasses import dataclass
from typing import NamedTuple

from lightning_unlearn._base import validate
from lightning_unlearn._base.text import number
from lightning_unlearn.certificate.certificate import Certificate
from lightning_unlearn.errors import ArgumentError, AuditError
from lightning_unlearn.evaluation.audits import worlds
from lightning_unlearn.evaluation.audits.lower_bounds import epsilon_of_mu_lower
from lightning_unlearn.guarantee.claims import Grade
from lightning_unlearn.guarantee.gaussian import gaussian_epsilon


class Lower(NamedTuple):
    """Lower bounds that hold together.

    Attributes:
        epsilon: Of epsilon, for any mechanism.
        mu: Of mu, for a Gaussian one.
    """

    epsilon: float
    mu: float


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What an attack found, beside what is certified of one release alone.

    A failed audit proves nothing: a lower bound of 0 is what a weak attack finds, or
    one with few draws (`ceiling`). It is measured with the forgotten samples' help and
    is not covered by the certificate.

    Attributes:
        epsilon_lower: Lower bound of epsilon at `delta` for any mechanism.
        mu_lower: Lower bound of mu, for the Gaussian mechanism that is claimed; holds
            together with `epsilon_lower`, at `confidence`.
        epsilon_certified: Of this release alone at `delta`, from `mu_certified`: that
            of the certificate if it is for one release. 0.0 for grade ``exact``, whose
            mu is 0; None for grade ``none``. For a private training that of one
            sample, from its constants.
        mu_certified: The last of the certificate's ``release_mus``, or None. A private
            training claims none, and `mu_lower` of it is 0.
        grade: Of the certificate.
        delta: At which the epsilons are stated; 0 for grade ``exact``, unless another
            was asked for.
        confidence: A lower bound is above the truth in at most ``1 - confidence`` of
            audits.
        attack: How the two worlds were told apart.
        tried: On what, in words.
        n: Models, or canaries, that the attack was given.
        ceiling: The largest `epsilon_lower` that so few can give: all right.
        mu_ceiling: The largest `mu_lower` that so few can give.
    """

    epsilon_lower: float
    mu_lower: float
    epsilon_certified: float | None
    mu_certified: float | None
    grade: Grade
    delta: float
    confidence: float
    attack: str
    tried: str
    n: int
    ceiling: float
    mu_ceiling: float

    @property
    def epsilon_lower_gaussian(self) -> float:
        """`mu_lower` as a lower bound of epsilon, if the noise is Gaussian as claimed.

        Never below `epsilon_lower`, up to rounding, where one run was audited. Infinite
        for a `mu_lower` above 0 at delta 0.
        """
        return epsilon_of_mu_lower(self.mu_lower, self.delta)

    def __str__(self) -> str:
        grade = f"(grade {self.grade.value})"
        lines = [
            f"audit by {self.attack}: {self.tried}, confidence {self.confidence:g}, "
            f"delta = {number(self.delta)}"
        ]
        bounds = [("", self.epsilon_lower, self.ceiling)]
        if self.mu_certified != 0 and self.mu_ceiling > 0:  # or no mu is looked for
            most = epsilon_of_mu_lower(self.mu_ceiling, self.delta)
            gaussian = ", the noise being Gaussian"
            bounds.append((gaussian, self.epsilon_lower_gaussian, most))
        for condition, found, most in bounds:
            stated = self.epsilon_certified
            claim = "nothing" if stated is None else f"epsilon = {number(stated)}"
            lines.append(
                f"  lower bound of epsilon{condition}: {number(found)} found (at most "
                f"{number(most)} can be, with so few); certified {grade}: {claim}"
            )
        too_few = self.ceiling <= (self.epsilon_certified or -1)
        if self.mu_certified is not None:
            too_few = self.mu_ceiling <= self.mu_certified
        if too_few:
            lines.append("  so few could not have refuted this certificate: take more")
        lines.append(
            "  a failed audit proves nothing: other attacks or more draws may find more"
        )
        return "\n".join(lines)


def asked_delta(certificate: Certificate, delta: float | None) -> float:
    """The delta at which to state epsilon, or `ArgumentError`.

    0 for a certificate that states 0: whatever differs refutes it. Gaussian noise
    proves no epsilon at 0, so that nothing could be compared there.
    """
    delta = certificate.delta if delta is None else delta
    if delta is None:
        raise ArgumentError(
            "expected delta= for a certificate of grade none, which states none, got "
            "None: give the delta at which a lower bound of epsilon is to be stated"
        )
    if not delta == certificate.delta == 0:
        validate.probability(delta=delta)
    return delta


def compared(
    certificate: Certificate,
    lower: Lower,
    ceiling: Lower,
    *,
    attack: str,
    tried: str,
    n: int,
    confidence: float,
    delta: float,
    epsilon: float | None = None,
) -> Audit:
    """The audit, if it refutes nothing.

    `epsilon` is what is certified where that follows from no mu.

    Raises:
        AuditError: If a lower bound is above what is certified.
    """
    mu = worlds.stated_mu(certificate)
    stated = epsilon if mu is None else mu  # mu = 0: the same law
    if mu:
        stated = gaussian_epsilon(mu, delta)
    audit = Audit(
        epsilon_lower=lower.epsilon,
        mu_lower=lower.mu,
        epsilon_certified=stated,
        mu_certified=mu,
        grade=certificate.grade,
        delta=delta,
        confidence=confidence,
        attack=attack,
        tried=tried,
        n=n,
        ceiling=ceiling.epsilon,
        mu_ceiling=ceiling.mu,
    )
    _refuse_contradiction(audit)
    return audit


def _refuse_contradiction(audit: Audit) -> None:
    mu, epsilon = audit.mu_certified, audit.epsilon_certified
    if epsilon is None:
        return
    by_mu = mu is None or audit.mu_lower <= mu * worlds.ROUNDING
    if by_mu and audit.epsilon_lower <= epsilon * worlds.ROUNDING:
        return
    what, found, stated = "mu", audit.mu_lower, mu
    if stated is None:
        what, found, stated = "epsilon", audit.epsilon_lower, epsilon
    raise AuditError(
        f"expected no lower bound above what is certified, got one: {what} of at least "
        f"{number(found)}, certified {number(stated)}. The certificate or the "
        "code is wrong: release nothing, and report it. First see that the retrained "
        "world ran the same request, noise included, or that the coins were fair and "
        "unknown to the attack, and, since an honest certificate does this in up to "
        f"{1 - audit.confidence:.2g} of audits, that fresh draws at a higher "
        f"confidence say the same.\n{audit}"
    )
