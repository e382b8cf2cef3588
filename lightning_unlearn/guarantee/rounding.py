"""Bounds on the rounding error of what is computed in float64."""

from lightning_unlearn._base import validate
from lightning_unlearn.errors import GuaranteeError

UNIT_ROUNDOFF = 2.0**-53  # u of IEEE double precision, round to nearest


def gamma(k: float) -> float:
    """Relative error of k roundings, ``ku/(1 - ku)`` (Higham 2002, section 3.1)."""
    ku = k * UNIT_ROUNDOFF
    if not ku < 0.01:
        raise GuaranteeError(
            f"expected sums short enough for float64 (k u < 0.01), got k u = {ku}"
        )
    return ku / (1 - ku)


def gradient_rounding_upper(
    *,
    n_retain: int,
    n_features: int,
    n_outputs: int,
    row_norm: float,
    weight_norm: float,
    link_residual_norm: float,
    link_lipschitz: float,
    link_norm: float,
    l2: float,
) -> float:
    r"""Bound on |computed - exact gradient| of an affine head in float64.

    The gradient is ``(1/n) sum_i D_i x_i^T + l2 W`` with ``D_i = s(z_i) - y_i``,
    ``z_i = W x_i`` and s the link of the loss. With ``gamma_k = ku/(1 - ku)``
    (Higham 2002, section 3.1), in any order of summation:

    * logits: ``|dz| <= gamma_{d+2} R |W|``, which moves D by at most L times that;
    * the link itself (exponentials of arguments up to R|W|, sums of K terms):
      relative error at most ``(2 R |W| + K + 10) u`` of |s|;
    * the sum over n samples: ``gamma_{n+4} B R``;
    * the regulariser and the last addition: ``4u (l2 |W| + B R)``.

    One percent is added for products of these small terms. theory.md's shorter
    ``(n + 50) u R_g`` leaves out the first item, which grows with R |W|.

    Args:
        n_retain: n, samples summed.
        n_features: d, length of a row x_i (with the 1 of the bias).
        n_outputs: K.
        row_norm: R >= |x_i| for every i.
        weight_norm: |W|.
        link_residual_norm: B >= |D_i| for every i.
        link_lipschitz: L, Lipschitz constant of s where the logits lie.
        link_norm: Bound on |s(z_i)|; 0 where the link is the identity.
        l2: Coefficient of (l2/2)|W|^2.

    Returns:
        The bound, in units of the gradient.

    Raises:
        ArgumentError: If an argument is outside its range.
        GuaranteeError: If n or d is so large that float64 sums prove nothing.
    """
    validate.count(n_retain=n_retain, n_features=n_features, n_outputs=n_outputs)
    validate.non_negative(
        row_norm=row_norm,
        weight_norm=weight_norm,
        link_residual_norm=link_residual_norm,
        link_lipschitz=link_lipschitz,
        link_norm=link_norm,
        l2=l2,
    )
    u, R, W, B = UNIT_ROUNDOFF, row_norm, weight_norm, link_residual_norm
    logits = link_lipschitz * gamma(n_features + 2) * R * W
    link = (2 * R * W + n_outputs + 10) * u * link_norm
    total = R * (logits + link + gamma(n_retain + 4) * B) + 4 * u * (l2 * W + B * R)
    return 1.01 * total
