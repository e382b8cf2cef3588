"""What is checked before anything is claimed, and the claim that follows.

How a step is searched for is not here and need not be reviewed: a claim rests on what
these functions are given at its end, and on nothing else.
"""

from dataclasses import dataclass

from lightning_unlearn.errors import GuaranteeError, SolverError
from lightning_unlearn.guarantee.claims import Bound
from lightning_unlearn.guarantee.constants import Constant, Origin
from lightning_unlearn.guarantee.kinds import NewtonStep, NormBall


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What a step claims: known before it is taken, true once its checks have passed.

    Args:
        bound: The theorem that applies.
        constants: What it rests on.
        reference: What the step is compared with, in words.
        warnings: What the reader must know.
    """

    bound: Bound = Bound.NO_BOUND
    constants: tuple[Constant, ...] = ()
    reference: str = ""
    warnings: tuple[str, ...] = ()


def is_stationary(
    gradient_norm: float, size: int, rounding: float, tolerance: float
) -> bool:
    """The stop test of a convex head: |exact gradient| <= tolerance, proved.

    Args:
        gradient_norm: |g| of the computed gradient (size,), in float64.
        size: Its length: the norm is a sum of so many squares.
        rounding: Bound on |computed - exact gradient| (`gradient_rounding_upper`).
        tolerance: tau, fixed before the data was seen.
    """
    slack = 1 + (size + 8) * 2.0**-52
    return gradient_norm * slack + rounding <= tolerance


def strongly_convex_claim(tolerance: float, l2: float) -> Claim:
    """Of a convex head for which `is_stationary` holds.

    Args:
        tolerance: tau.
        l2: Coefficient of (l2/2)|w|^2 on every weight in scope, > 0.
    """
    return Claim(
        bound=Bound.STRONGLY_CONVEX,
        constants=(
            Constant(
                name="tolerance",
                value=tolerance,
                origin=Origin.ENFORCED,
                reason="set before the request, which fails unless |grad F| on the "
                "retained samples plus its rounding bound is below it",
            ),
            Constant(
                name="strong_convexity",
                value=l2,
                origin=Origin.PROVED,
                reason="= l2: affine head, loss convex in the logits, (l2/2)|w|^2 on "
                "every weight in scope",
            ),
        ),
        reference="the same head retrained without the forgotten samples, from any "
        "start, to the same tolerance, with the same noise, computed in the same "
        "environment and blocks",
    )


def step_claim(
    guarantee: NormBall | NewtonStep | None,
    *,
    max_norm: float | None,
    damping: float | None,
    kinks: tuple[str, ...] = (),
) -> Claim:
    """Of a damped Newton step that has been projected onto the norm ball.

    Args:
        guarantee: What is asked for; None claims nothing.
        max_norm: C, or None.
        damping: lambda, or None if it is taken from the data.
        kinks: Functions without a Lipschitz second derivative the model calls.

    Raises:
        GuaranteeError: If a hypothesis of the bound does not hold.
    """
    if guarantee is None:
        return Claim()
    if max_norm is None:
        raise GuaranteeError(
            "expected max_norm for this guarantee, got None: without a norm ball no "
            "finite distance to the retrained weights is known"
        )
    ball = Constant(
        name="max_norm",
        value=max_norm,
        origin=Origin.ENFORCED,
        reason="the weights are projected onto the ball before noise is added",
    )
    if isinstance(guarantee, NormBall):
        return Claim(
            bound=Bound.NORM_BALL,
            constants=(ball,),
            reference="any weights in the norm ball, the retrained ones among them, "
            "with the same noise",
            warnings=_kinked(kinks),
        )
    if kinks:
        raise GuaranteeError(
            "expected a network with a Lipschitz Hessian for guarantee=NewtonStep, "
            f"got {', '.join(kinks)}: use smooth activations (GELU, tanh) and average "
            "pooling, or guarantee=NormBall()"
        )
    if damping is None:
        raise GuaranteeError(
            "expected damping as a number for guarantee=NewtonStep, got 'auto': a "
            "damping taken from the data would make the noise depend on it; 0.0 is "
            "best where lambda_min > 0"
        )
    enforced = {
        "residual": "set before the request, which fails unless the solver reaches it",
        "damping": "given by the user",
    }
    return Claim(
        bound=Bound.NEWTON_STEP,
        constants=(
            ball,
            *(
                Constant(
                    name=name,
                    value=value,
                    origin=Origin.ENFORCED if name in enforced else Origin.ASSUMED,
                    reason=enforced.get(
                        name, "given by the user; sampled values did not refute it"
                    ),
                )
                for name, value in {**vars(guarantee), "damping": damping}.items()
            ),
        ),
        reference="the network retrained without the forgotten samples inside the "
        "same norm ball, with the same noise",
    )


def check_start(weight_norm: float, max_norm: float) -> None:
    """Raise `GuaranteeError` unless Theorem A may start from weights of this norm."""
    if not weight_norm <= max_norm * (1 + 1e-6):
        raise GuaranteeError(
            f"expected weights in the ball of max_norm={max_norm}, got norm "
            f"{weight_norm:.4g}: train with the same max_norm in the callback, which "
            "projects"
        )


def check_residual(measured: float, guarantee: NewtonStep) -> None:
    """Raise `SolverError` unless a solve is as good as Theorem A was told."""
    if not measured <= guarantee.residual:
        raise SolverError(
            f"expected a residual of at most {guarantee.residual} (NewtonStep), got "
            f"{measured:.3g}: lower the solver's rtol or raise residual="
        )


def _kinked(kinks: tuple[str, ...]) -> tuple[str, ...]:
    if not kinks:
        return ()
    return (
        f"the network calls {', '.join(kinks)}: its Hessian has no Lipschitz constant, "
        "so no bound better than the norm ball exists; smooth activations (GELU, tanh) "
        "and average pooling are needed for more",
    )
