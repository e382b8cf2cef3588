"""The gradient norm a convex head is solved to: set before any data is seen."""

import enum
from dataclasses import dataclass

from lightning_unlearn._base import validate
from lightning_unlearn.guarantee.claims import Terms, noise_std_upper

#: What the noise may move a logit by, where the norm of the rows is fixed.
LOGIT_NOISE = 0.03
#: Where the norm of the rows is not known before the data is, and nowhere exceeded
#: but for `FINEST`.
USUAL = 1e-6
#: Times the norm of a row: a 32nd of what float32 rounds a row to. Rows computed by
#: two kernels moved the optimum by a few percent of the sensitivity there
#: (docs/theory.md section 4).
FINEST = 2.0**-29


class How(enum.Enum):
    """How a tolerance was set."""

    GIVEN = "given"  # by the user
    USUAL = "usual"  # a constant
    BY_NOISE = "by_noise"  # so that the noise moves a logit by `LOGIT_NOISE`
    BY_ROUNDING = "by_rounding"  # no finer than float32 rows can be told apart


@dataclass(frozen=True)
class Tolerance:
    """tau, and how it was set.

    Args:
        value: tau.
        how: What it was set from.
        row_norm: R, if it was set from that.
    """

    value: float
    how: How = How.GIVEN
    row_norm: float | None = None


def usual_tolerance(terms: Terms, l2: float, row_norm: float | None) -> Tolerance:
    """Such that the noise moves a logit by at most `LOGIT_NOISE`, if that can be.

    ``tau = LOGIT_NOISE l2 mu / (2 R sqrt(T))``, at most `USUAL`, at least `FINEST` R.
    None of these depends on a sample: the noise is known before the data is.

    Args:
        terms: epsilon, delta and T.
        l2: Coefficient of the regulariser, > 0.
        row_norm: R, the 1 of the bias included; None if only data would tell.

    Returns:
        The tolerance.

    Raises:
        ArgumentError: If a number is outside its range.
    """
    validate.positive(l2=l2)
    if row_norm is None:
        return Tolerance(USUAL, How.USUAL)
    validate.positive(row_norm=row_norm)
    wanted = LOGIT_NOISE / (row_norm * noise_std_upper(terms, 2 / l2))
    least = FINEST * row_norm
    value, how = max(
        (least, How.BY_ROUNDING),
        min((USUAL, How.USUAL), (wanted, How.BY_NOISE), key=lambda pair: pair[0]),
        key=lambda pair: pair[0],
    )
    return Tolerance(value, how, row_norm)
