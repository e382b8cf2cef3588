"""What a step may claim, in numbers and words: of the step and of whoever verifies.

A `Claim` is made here before the step is taken, and `check` derives its words again
from a certificate: what it is compared with, and why each number is believed.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from lightning_unlearn.certificate.words import backbone_words, served_words
from lightning_unlearn.certificate.words.private_words import PRIVATE, check_one_kind
from lightning_unlearn.errors import CertificateError, GuaranteeError
from lightning_unlearn.guarantee.claims import REQUIRED, Bound
from lightning_unlearn.guarantee.constants import Constant, Origin
from lightning_unlearn.guarantee.kinds import NewtonStep, NormBall
from lightning_unlearn.guarantee.tolerance import How, Tolerance

#: What a release of each bound is compared with.
REFERENCES = {
    Bound.RETRAINED: "a model trained by the same code on the retained samples alone, "
    "from the same kind of start, with fresh randomness: the released model is such a "
    "model",
    Bound.REWOUND: "a model trained by the same code in the same stages on the "
    "retained samples alone, with fresh randomness: the stages that are kept never saw "
    "the forgotten ones, and those after them were trained again",
    Bound.PRIVATE_TRAINING: "a model trained by the same code on the retained samples "
    "alone, from the same kind of start, with the same clip, noise, sampling rate and "
    "number of steps; and every other model of this training is compared with that "
    "training's model of the same step",
    Bound.STRONGLY_CONVEX: "the same head retrained without the forgotten samples, "
    "from any start, to the same tolerance, with the same noise, computed in the same "
    "environment and blocks",
    Bound.SERVED_HEAD: served_words.REFERENCE,
    Bound.PRIVATE_BACKBONE: backbone_words.REFERENCE,
    Bound.NEWTON_STEP: "the network retrained without the forgotten samples inside "
    "the same norm ball, with the same noise",
    Bound.NORM_BALL: "any weights in the norm ball, the retrained ones among them, "
    "with the same noise",
    Bound.NO_BOUND: "",
}

_DRAWN = (
    (
        Origin.ENFORCED,
        "positions besides the retained ones that the retraining could draw: its "
        "dataset has no others, and its loader was checked to read that dataset",
    ),
)
_BALL = (
    Origin.ENFORCED,
    "the weights are projected onto the ball before noise is added",
)
_GIVEN = (Origin.ENFORCED, "given by the user")
_LANCZOS = (
    Origin.ESTIMATED,
    "Lanczos on lanczos_samples of the retained samples; the true one may lie beyond",
)
_NOT_REFUTED = "given by the user; sampled values did not refute it"
_FAILS = (
    "fails unless |grad F| on the retained samples plus its rounding bound is below it"
)

#: Why a tolerance is what it is.
TOLERANCES: dict[How, tuple[Origin, str]] = {
    How.GIVEN: (Origin.ENFORCED, f"set before the request, which {_FAILS}"),
    How.USUAL: (
        Origin.ENFORCED,
        f"the default, a constant set before the request, which {_FAILS}",
    ),
    How.BY_NOISE: (
        Origin.ENFORCED,
        "set before the request from epsilon, delta, releases, strong_convexity and "
        "row_norm alone, so that the noise moves a logit by three hundredths at most; "
        f"the request {_FAILS}",
    ),
    How.BY_ROUNDING: (
        Origin.ENFORCED,
        "set before the request from row_norm alone, as fine as rows in float32 "
        "allow; the noise moves a logit by more than three hundredths; the request "
        f"{_FAILS}",
    ),
}

_CONVEX: dict[str, tuple[tuple[Origin, str], ...]] = {
    "tolerance": tuple(TOLERANCES.values()),
    "strong_convexity": (
        (
            Origin.PROVED,
            "= l2: affine head, loss convex in the logits, (l2/2)|w|^2 on every weight "
            "in scope",
        ),
    ),
}
_ROW_NORM = (
    (
        Origin.ENFORCED,
        "largest norm that a row of the public backbone can have, with the 1 of a "
        "bias: fixed by its options, not by data",
    ),
)

#: Why a number is believed, word for word: for each bound what it rests on ...
REASONS: dict[Bound, dict[str, tuple[tuple[Origin, str], ...]]] = {
    Bound.RETRAINED: {"drawn_besides": _DRAWN},
    Bound.REWOUND: {
        "drawn_besides": _DRAWN,
        "stages_kept": (
            (
                Origin.ENFORCED,
                "trainings that were kept: the record has what each could draw, the "
                "forgotten samples were not among it, and the model that the last of "
                "them ended with has the digest that was recorded then",
            ),
        ),
    },
    Bound.PRIVATE_TRAINING: {
        name: tuple(
            (next(iter(REQUIRED[Bound.PRIVATE_TRAINING][name])), t) for t in texts
        )
        for name, texts in PRIVATE.items()
    },
    Bound.STRONGLY_CONVEX: _CONVEX,
    Bound.SERVED_HEAD: {**_CONVEX, "row_norm": _ROW_NORM, **served_words.REASONS},
    Bound.NEWTON_STEP: {
        "max_norm": (_BALL,),
        "residual": (
            (
                Origin.ENFORCED,
                "set before the request, which fails unless the solver reaches it",
            ),
        ),
        "damping": (_GIVEN,),
    },
    Bound.NORM_BALL: {"max_norm": (_BALL,)},
    Bound.NO_BOUND: {},
}

REASONS[Bound.PRIVATE_BACKBONE] = {
    **{n: told[:1] for n, told in REASONS[Bound.PRIVATE_TRAINING].items()},  # samples
    **_CONVEX,
    **backbone_words.REASONS,
}

#: ... and beside every bound what no claim rests on. A number a reason needs is a
#: constant of its own.
REPORTED: dict[str, tuple[tuple[Origin, str], ...]] = {
    "row_norm": (*_ROW_NORM, backbone_words.ROW_NORM),
    "feature_norm": (
        (
            Origin.MEASURED,
            "largest norm of a retained row, with the 1 of a bias; the noise moves a "
            "logit by about noise_std times this",
        ),
    ),
    "damping": (
        _GIVEN,
        (Origin.ENFORCED, "twice the negative part of ritz_min"),
        (
            Origin.ENFORCED,
            "twice the negative part of ritz_min, then doubled on negative curvature",
        ),
    ),
    "ritz_min": (_LANCZOS,),
    "ritz_max": (_LANCZOS,),
    "lanczos_samples": ((Origin.MEASURED, "samples that Lanczos read"),),
    "measured_residual": (
        (
            Origin.MEASURED,
            "|(H + damping I) x - g|: one more pass over the retained samples",
        ),
    ),
    "measured_relative_residual": ((Origin.MEASURED, "measured_residual / |g|"),),
    "measured_difference_error": (
        (
            Origin.MEASURED,
            "curvature is formed by differences of gradients: |error of H x| / |H x| "
            "along the step, estimated from half the step width",
        ),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What a step claims: known before it is taken, true once its checks have passed.

    Args:
        bound: The theorem that applies.
        constants: What it rests on.
        warnings: What the reader must know.
    """

    bound: Bound = Bound.NO_BOUND
    constants: tuple[Constant, ...] = ()
    warnings: tuple[str, ...] = ()


def retrained_claim(stages_kept: int = 0) -> Claim:
    """Of a training whose loader drew from the retained samples and no others.

    Args:
        stages_kept: Earlier trainings, of none of the forgotten samples, from whose end
            it went on; 0 if it began afresh.
    """
    values = {"drawn_besides": 0.0}
    if stages_kept:
        values["stages_kept"] = float(stages_kept)
    bound = Bound.REWOUND if stages_kept else Bound.RETRAINED
    constants = tuple(_constant(bound, name, value) for name, value in values.items())
    return Claim(bound=bound, constants=constants)


def private_claim(values: Mapping[str, float], people: bool = False) -> Claim:
    """Of a training in whose every step samples were drawn, clipped and noised.

    Args:
        values: Each number that the bound needs, by its name.
        people: Whether whole people were, and are counted.
    """
    bound, place = Bound.PRIVATE_TRAINING, -1 if people else 0
    constants = []
    for name in REQUIRED[bound]:
        origin, text = REASONS[bound][name][place]
        constants.append(
            Constant(name=name, value=values[name], origin=origin, reason=text)
        )
    return Claim(bound=bound, constants=tuple(constants))


def strongly_convex_claim(
    tolerance: Tolerance,
    l2: float,
    served: Mapping[str, float] | None = None,
    bound: Bound = Bound.SERVED_HEAD,
) -> Claim:
    """Of a convex head for which `guarantee.proofs.is_stationary` holds.

    Args:
        tolerance: tau, and how it was set.
        l2: Coefficient of (l2/2)|w|^2 on every weight in scope, > 0.
        served: Where heads that were served before are covered, or the backbone was
            trained privately, what that rests on besides, by name.
        bound: Which of the two.
    """
    origin, text = TOLERANCES[tolerance.how]
    bound = Bound.STRONGLY_CONVEX if served is None else bound
    constants = [
        Constant(name="tolerance", value=tolerance.value, origin=origin, reason=text),
        _constant(bound, "strong_convexity", l2),
    ]
    if served is not None:
        constants += [_constant(bound, name, value) for name, value in served.items()]
    if tolerance.row_norm is not None and bound is not Bound.SERVED_HEAD:
        private = bound is Bound.PRIVATE_BACKBONE
        constants.append(reported("row_norm", tolerance.row_norm, int(private)))
    return Claim(bound=bound, constants=tuple(constants))


def how_set(constants: Iterable[Constant]) -> How:
    """How the tolerance among some constants was set, by its reason."""
    reasons = {text: how for how, (_, text) in TOLERANCES.items()}
    return next(reasons[c.reason] for c in constants if c.name == "tolerance")


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
    if isinstance(guarantee, NormBall):
        ball = _constant(Bound.NORM_BALL, "max_norm", max_norm)
        return Claim(bound=Bound.NORM_BALL, constants=(ball,), warnings=_kinked(kinks))
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
    values = {"max_norm": max_norm, **vars(guarantee), "damping": damping}
    return Claim(
        bound=Bound.NEWTON_STEP,
        constants=tuple(
            _constant(Bound.NEWTON_STEP, name, value) for name, value in values.items()
        ),
    )


def reported(name: str, value: float, reason: int = 0) -> Constant:
    """A number for the reader that no claim rests on.

    Args:
        name: One of `REPORTED`.
        value: Its value.
        reason: Which of its reasons holds.
    """
    origin, text = REPORTED[name][reason]
    return Constant(name=name, value=value, origin=origin, reason=text)


def check(bound: Bound, reference: str, constants: Sequence[Constant]) -> None:
    """Refuse words that are not those of the theorem.

    The reason of an assumed number is free: it says whose word it is.

    Args:
        bound: The theorem that a certificate names.
        reference: What it compares with.
        constants: What it lists.

    Raises:
        CertificateError: If it compares with anything else, or gives another reason
            for a number, or lists a number that no theorem here knows.
    """
    if reference != REFERENCES[bound]:
        raise CertificateError(
            f"expected reference={REFERENCES[bound]!r} of the bound {bound.value}, got "
            f"{reference!r}: it was changed or made by another program"
        )
    for constant in constants:
        name = constant.name
        if constant.origin is Origin.ASSUMED and name in REQUIRED[bound]:
            continue
        known = REASONS[bound].get(name, ())
        if name not in REQUIRED[bound]:
            known = REPORTED.get(name, ())
        if (constant.origin, constant.reason) not in known:
            expected = " or ".join(f"{o.value}: {text!r}" for o, text in known)
            raise CertificateError(
                f"expected for the constant {name} of the bound {bound.value} "
                f"{expected or 'no reason: no theorem here gives one'}; got "
                f"{constant.origin.value}: {constant.reason!r}"
            )
    if bound is Bound.PRIVATE_TRAINING:
        check_one_kind(constants)


def _constant(bound: Bound, name: str, value: float) -> Constant:
    """What a bound rests on; a number without a reason of its own is assumed."""
    found = REASONS[bound].get(name, ((Origin.ASSUMED, _NOT_REFUTED),))
    origin, text = found[0]
    return Constant(name=name, value=value, origin=origin, reason=text)


def _kinked(kinks: tuple[str, ...]) -> tuple[str, ...]:
    if not kinks:
        return ()
    return (
        f"the network calls {', '.join(kinks)}: its Hessian has no Lipschitz constant, "
        "so no bound better than the norm ball exists; smooth activations (GELU, tanh) "
        "and average pooling are needed for more",
    )
