"""A number a bound rests on, and why anyone should believe it."""

import enum
from dataclasses import dataclass

from lightning_unlearn._base import validate
from lightning_unlearn.errors import CertificateError


class Origin(enum.Enum):
    """Why a constant is believed (docs/theory.md section 9)."""

    ENFORCED = "enforced"  # made true by the code: a projection, a stopping test
    PROVED = "proved"  # follows from the model class; the proof is cited
    MEASURED = "measured"  # computed exactly on the data
    ESTIMATED = "estimated"  # sampled or iterated: may err on the unsafe side
    ASSUMED = "assumed"  # given by the user, not checked


#: Origins a `certified` grade may rest on.
TRUSTED = frozenset({Origin.ENFORCED, Origin.PROVED, Origin.MEASURED})


@dataclass(frozen=True, kw_only=True)
class Constant:
    """A named number with its origin and the reason to believe it.

    Args:
        name: The public name of docs/notation.md, such as ``strong_convexity``.
        value: A finite number.
        origin: Why it is believed.
        reason: One sentence for the reader of the certificate.

    Raises:
        CertificateError: If the name or the reason is empty.
        ArgumentError: If the value is not finite.
    """

    name: str
    value: float
    origin: Origin
    reason: str

    def __post_init__(self) -> None:
        if not (isinstance(self.name, str) and self.name.isidentifier()):
            raise CertificateError(
                f"expected a constant's name to be an identifier, got {self.name!r}"
            )
        validate.finite(**{self.name: self.value})
        if not isinstance(self.origin, Origin):
            raise CertificateError(
                f"expected the origin of {self.name} to be an Origin, got "
                f"{self.origin!r}"
            )
        if not (isinstance(self.reason, str) and self.reason.strip()):
            raise CertificateError(
                f"{self.name}: say where the value {self.value} comes from"
            )
