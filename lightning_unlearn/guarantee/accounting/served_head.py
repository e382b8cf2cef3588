r"""How far a convex head moves when samples leave: so that it may be served before.

``F(w) = (1/n) sum_i loss_i(w) + (l2/2)|w|^2`` over n samples, u of them (S) leave, r
stay. At the optimum w of F the gradients g_i of the losses add up to ``-n l2 w``, so
the gradient there of the objective over those that stay is

    (1/r) sum_stay g_i + l2 w = -(1/r) (sum_S g_i + u l2 w)
                              = -(1/r) ((1 - u/n) sum_S g_i - (u/n) sum_stay g_i)

and where no g_i is longer than B R its norm is at most ``(2 u r / n) B R / r``. That
objective is l2-strongly convex: the two optima are within ``2 u B R / (n l2)``.
"""

from lightning_unlearn._base import validate

#: What float32 may add to the norm of a row, and more.
ROUNDING = 1.001


def optimum_shift_upper(
    *,
    leaving: float,
    samples: float,
    residual_norm: float,
    row_norm: float,
    strong_convexity: float,
) -> float:
    """Distance of a head's optimum on n samples to that on those that stay.

    Args:
        leaving: u, how many may leave, >= 0.
        samples: n, all of them before, >= 1.
        residual_norm: B, norm of the derivative of any loss in its logits.
        row_norm: R, of any row and the 1 of a bias, up to `ROUNDING`.
        strong_convexity: l2, on every weight.

    Returns:
        The bound, in units of the weights.

    Raises:
        ArgumentError: If a number is outside its range.
    """
    validate.non_negative(leaving=leaving)
    validate.positive(
        samples=samples,
        residual_norm=residual_norm,
        row_norm=row_norm,
        strong_convexity=strong_convexity,
    )
    gradient = 2 * leaving * residual_norm * ROUNDING * row_norm / samples
    return gradient / strong_convexity
