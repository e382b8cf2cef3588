r"""What a differentially private training lets anyone tell of k samples together.

One step of DP-SGD with Poisson sampling at rate q and noise z times the clip: of k
samples ``j ~ Bin(k, q)`` are drawn, and these move the sum by at most j clips. So the
pair (with them, without them) is dominated by

    sum_j Bin(k, q)(j) N(j, z^2)   against   N(0, z^2),   both directions,

and T adaptive steps by the T-fold composition (Choquette-Choo and others 2023,
arXiv 2310.15526, Corollary 4.7; Ganesh 2024, arXiv 2401.10294). The divergences of one
step are computed here; `dp_accounting` makes a distribution of the privacy loss
of them that dominates ("connect the dots", arXiv 2207.04380) and composes it. What is
rounded or cut off is put on the side of more.
"""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scipy import stats

from lightning_unlearn._base import validate
from lightning_unlearn.errors import ArgumentError, CertificateError
from lightning_unlearn.guarantee.accounting.drawn_step import (
    DrawnStep,
    gaussian_divergences,
)

#: Of delta that is kept for the rounding of sums and Fourier transforms.
_KEPT = 1e-3
_DIGITS = 4
#: The rate of false alarms of the test that strength is measured by.
_FALSE_ALARMS = 0.01
_INSTALL = (
    "the package dp-accounting; install it from your clone of this repository: pip "
    'install -e ".[private]"'
)


@dataclass(frozen=True)
class Mechanism:
    """The steps of one private training.

    Args:
        noise_multiplier: z: standard deviation of the noise, in clips, > 0.
        sampling_rate: q, with which each sample is drawn for each step, in (0, 1].
        steps: T, all of them, >= 1.

    Raises:
        ArgumentError: If a number is outside its range.
    """

    noise_multiplier: float
    sampling_rate: float
    steps: int

    def __post_init__(self) -> None:
        validate.positive(
            noise_multiplier=self.noise_multiplier, sampling_rate=self.sampling_rate
        )
        validate.count(steps=self.steps)
        if self.sampling_rate > 1:
            raise ArgumentError(
                f"expected sampling_rate in (0, 1], got {self.sampling_rate}"
            )


@dataclass(frozen=True)
class Privacy:
    """What of some samples is told: both are rounded up.

    Args:
        epsilon: At the delta that was asked for.
        most_found: The share of true cases that any test with 1% false alarms finds.
    """

    epsilon: float
    most_found: float


def privacy(
    mechanism: Mechanism, forgotten: int, delta: float, beside: float = 0.0
) -> Privacy:
    """What a private training lets anyone tell of some of its samples together.

    Args:
        mechanism: Its steps.
        forgotten: k, how many samples (or people, where these are drawn and clipped).
        delta: Failure probability, from 1e-9 on.
        beside: mu of Gaussian releases that are seen too, each made of what is known.

    Returns:
        Epsilon, and what the best test finds.

    Raises:
        ArgumentError: If a number is outside its range.
        CertificateError: If `dp_accounting` is not installed.
    """
    epsilon, found = (
        _said(raw) for raw in _numbers(mechanism, forgotten, delta, beside)[:2]
    )
    return Privacy(epsilon, found)


def epsilon_out(mechanism: Mechanism, delta: float) -> float:
    """How much likelier an output may be without a sample than with it, rounded up.

    `privacy` says the larger of both directions. This one is smaller where a sample is
    often not drawn at all: at most ``-steps ln(1 - sampling_rate)``.

    Args:
        mechanism: The steps of the training.
        delta: Failure probability.
    """
    return _said(_numbers(mechanism, 1, delta)[-1])


@functools.lru_cache(maxsize=256)
def _numbers(
    mechanism: Mechanism, k: int, delta: float, beside: float = 0.0
) -> tuple[float, float, float]:
    """Epsilon, the share that is found, and epsilon of "out": before rounding up."""
    validate.count(forgotten=k)
    validate.non_negative(beside=beside)
    validate.probability(delta=delta)
    if delta < 1e-9:
        raise ArgumentError(
            f"expected delta >= 1e-9 of a private training, got {delta}: Fourier "
            "transforms in float64 say nothing of a smaller one"
        )
    both = _composed(mechanism, k, delta, beside)
    told, out = (loss.get_epsilon_for_delta(delta * (1 - _KEPT)) for loss in both)
    epsilon = max(told, out)
    if not epsilon < math.inf:
        raise ArgumentError(
            f"expected a finite epsilon of {k} samples, got none: more noise, fewer "
            "steps, or fewer samples at once"
        )
    found = max(_power(*both), _power(*both[::-1])) * (1 + _KEPT)
    return max(epsilon, 1e-6), min(1.0, found), max(out, 1e-6)


def _said(raw: float, nudge: float = 0.0) -> float:
    """A number rounded up to a few digits, so that all machines say the same."""
    raw *= 1 + 1e-6 + nudge
    scale = 10.0 ** (_DIGITS - 1 - math.floor(math.log10(raw)))
    return math.ceil(raw * scale) / scale


def mechanism_of(values: Mapping[str, float]) -> Mechanism:
    """The steps of a training by the names of a certificate's constants.

    Raises:
        ArgumentError: If a number is outside its range, or none where it counts.
    """
    for name in ("steps", "forgotten"):
        if not float(values[name]).is_integer():
            raise ArgumentError(f"expected whole {name}, got {values[name]}")
    validate.positive(clip=values["clip"])
    return Mechanism(
        values["noise_multiplier"], values["sampling_rate"], int(values["steps"])
    )


def check(
    values: Mapping[str, float], epsilon: float, delta: float, beside: float = 0.0
) -> None:
    """Raise `CertificateError` unless a certificate states what its numbers give.

    Args:
        values: Its constants.
        epsilon: As it states it.
        delta: Failure probability.
        beside: As of `privacy`.
    """
    raw = _numbers(mechanism_of(values), int(values["forgotten"]), delta, beside)[:2]
    stated = {"epsilon": epsilon, "most_found": values["most_found"]}
    for (name, said), number in zip(stated.items(), raw, strict=True):
        # Where a number ends near a digit, another machine may say the next one.
        if said not in {_said(number, nudge) for nudge in (-5e-7, 0.0, 5e-7)}:
            raise CertificateError(
                f"the certificate states {name}={said}, its constants give "
                f"{_said(number)}: it was changed or made by another program"
            )


def least_noise(
    epsilon: float, delta: float, sampling_rate: float, steps: int
) -> float:
    """The noise multiplier with which one sample has an epsilon, rounded up.

    Args:
        epsilon: Of one sample, > 0.
        delta: Failure probability.
        sampling_rate: q.
        steps: T.
    """
    validate.positive(epsilon=epsilon)

    def fits(z: float) -> bool:
        return privacy(Mechanism(z, sampling_rate, steps), 1, delta).epsilon <= epsilon

    safe, unsafe = 1.0, 0.0
    while not fits(safe):
        safe, unsafe = 2 * safe, safe
    while unsafe == 0.0:
        half = safe / 2
        if half < 0.2 or not fits(half):
            unsafe = half
        else:
            safe = half
    while safe - unsafe > 1e-3 * safe:
        middle = (safe + unsafe) / 2
        safe, unsafe = (middle, unsafe) if fits(middle) else (safe, middle)
    return safe


def _composed(
    mechanism: Mechanism, k: int, delta: float, beside: float
) -> tuple[Any, Any]:
    """The loss of all steps, with the samples against without them, and back."""
    try:
        from dp_accounting.pld import pld_pmf
    except ModuleNotFoundError as problem:
        raise CertificateError(f"this certificate is checked with {_INSTALL}") from (
            problem
        )
    cut = max(1e-22, delta * 1e-4 / mechanism.steps)
    step = DrawnStep.of(mechanism.noise_multiplier, mechanism.sampling_rate, k, cut)

    dots = pld_pmf.create_pmf_pessimistic_connect_dots_fixed_gap
    reach = beside * (beside / 2 - float(stats.norm.ppf(step.cut)))  # of its loss

    def composed(back: bool) -> Any:
        interval, low, high = step.grid(back, 2 * reach)
        one = dots(interval, low, high, step.divergences(interval, low, high, back))
        every = one.self_compose(mechanism.steps, delta * 1e-6)
        if not beside:
            return every
        far = math.ceil(reach / interval)
        gauss = dots(interval, -far, far, gaussian_divergences(interval, far, beside))
        return pld_pmf.compose_pmfs(every, gauss, delta * 1e-6)

    return composed(False), composed(True)


def _power(forward: Any, back: Any) -> float:
    """What a test with few false alarms finds, by all (epsilon, delta) there are."""
    import numpy as np

    losses = np.linspace(0.0, 12.0, 1201)
    there, here = (
        np.asarray(loss.get_delta_for_epsilon(losses)) for loss in (forward, back)
    )
    by_one = np.exp(losses) * _FALSE_ALARMS + there
    by_other = 1 - np.exp(-losses) * (1 - _FALSE_ALARMS - here)
    return float(min(by_one.min(), by_other.min()))
