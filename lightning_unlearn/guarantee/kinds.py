"""Which guarantee a request asks for: small frozen classes a YAML file can name."""

from dataclasses import dataclass

from lightning_unlearn._base import validate
from lightning_unlearn.errors import ArgumentError


@dataclass(frozen=True)
class PrivateTraining:
    """Train privately: what is forgotten later needs no change of weights.

    Every step draws each sample by a coin of its own, clips its gradient and adds noise
    that no seed reproduces (docs/theory.md section 11). One device or ddp, 32 or 64
    bits. With ``accumulate_grad_batches=k`` a step draws k times as many, in k batches.

    Args:
        noise_multiplier: Standard deviation of a step's noise, as a multiple of
            `max_grad_norm`; give this or `epsilon`.
        epsilon: That one forgotten sample shall have, over the whole training; the
            noise is chosen for it.
        delta: Of that epsilon; None takes the callback's.
        max_grad_norm: The clip: largest norm of one sample's gradient.
        by: Attribute or column of the data with each sample's person, such as
            ``"user_id"``: whole people are drawn, the gradient of their mean loss is
            clipped, and people are counted. None draws and counts samples.
    """

    noise_multiplier: float | None = None
    epsilon: float | None = None
    delta: float | None = None
    max_grad_norm: float = 1.0
    by: str | None = None

    def __post_init__(self) -> None:
        if (self.noise_multiplier is None) == (self.epsilon is None):
            raise ArgumentError(
                "expected noise_multiplier= or epsilon= for PrivateTraining, got "
                f"{self.noise_multiplier} and {self.epsilon}: state one of them"
            )
        for name in ("noise_multiplier", "epsilon", "max_grad_norm"):
            if getattr(self, name) is not None:
                validate.positive(**{name: getattr(self, name)})
        if self.delta is not None:
            validate.probability(delta=self.delta)


class Guarantee:
    """What a request may ask for: one of the classes below."""


@dataclass(frozen=True)
class StronglyConvex(Guarantee):
    """Sensitivity ``2 tolerance / l2``: the scope is one ConvexHead.

    See docs/theory.md section 4.

    Args:
        max_steps: Newton steps before the request fails.
    """

    max_steps: int = 50

    def __post_init__(self) -> None:
        validate.count(max_steps=self.max_steps)


@dataclass(frozen=True)
class NormBall(Guarantee):
    """Sensitivity ``2 max_norm``, whatever the model: true, and useless (vacuous)."""


@dataclass(frozen=True)
class NewtonStep(Guarantee):
    """Theorem A from constants the user vouches for: grade ``conditional`` at best.

    Everything the noise depends on is fixed before the data is seen: these constants,
    a damping given as a number, and a residual the solver must reach. What the request
    measures can only refute them: a Ritz value below ``lambda_min``, a change of the
    Hessian above ``hessian_lipschitz``.

    Args:
        hessian_lipschitz: M, Lipschitz constant of the Hessian in the norm ball.
            There is none for ReLU networks.
        lambda_min: Lower bound on the smallest Hessian eigenvalue at the original
            weights, l2 included.
        retrained_gradient_norm: Bound on |grad F| at the retrained weights.
        residual: |(H + damping I) x - g| the solver must reach, or the request fails.
    """

    hessian_lipschitz: float
    lambda_min: float
    retrained_gradient_norm: float
    residual: float = 1e-3

    def __post_init__(self) -> None:
        validate.non_negative(
            hessian_lipschitz=self.hessian_lipschitz,
            retrained_gradient_norm=self.retrained_gradient_norm,
        )
        validate.finite(lambda_min=self.lambda_min)
        validate.positive(residual=self.residual)
