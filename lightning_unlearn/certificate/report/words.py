"""What a certificate means, for a reader who is no engineer."""

import math
import shlex
from dataclasses import replace

from lightning_unlearn._base.text import number
from lightning_unlearn.certificate.certificate import Certificate
from lightning_unlearn.certificate.report.evidence import Evidence
from lightning_unlearn.certificate.report.methods import METHODS
from lightning_unlearn.certificate.words.backbone_words import (
    COVERED as COVERED,
    is_private as is_private,
)
from lightning_unlearn.certificate.words.printed import headline, limits as limits
from lightning_unlearn.certificate.words.private_words import how_drawn
from lightning_unlearn.certificate.words.strength_words import (
    Level,
    in_100,
    level,
    most_in_100,
    worth,
)
from lightning_unlearn.guarantee.claims import (
    EXACT,
    REQUIRED,
    Bound,
    Grade,
    NoiseSource,
)
from lightning_unlearn.guarantee.constants import TRUSTED, Constant, Origin
from lightning_unlearn.guarantee.terms import CONVEX

ORIGINS = {
    Origin.ENFORCED: "enforced: the software made it true",
    Origin.PROVED: "proved: it follows from the kind of model",
    Origin.MEASURED: "measured: computed exactly on the data",
    Origin.ESTIMATED: "estimated: sampled, may be wrong on the unsafe side",
    Origin.ASSUMED: "assumed: somebody's word, not checked",
}

SOURCES = {
    NoiseSource.OS_ENTROPY: "the operating system's entropy; it cannot be drawn again",
    NoiseSource.SEEDED: "a seeded generator; it can be drawn again and subtracted",
    NoiseSource.NO_NOISE: "none was added",
}


def verify_command(evidence: Evidence, signed: bool) -> str:
    """The shell command that repeats the verification; unknown files in capitals."""
    lines = [f"lightning-unlearn verify {certificate_file(evidence)}"]
    if evidence.ledger is not None:
        lines.append(f"--ledger {shlex.quote(evidence.ledger_file or 'LEDGER.jsonl')}")
    checkpoint = evidence.checkpoint_file or "CHECKPOINT.ckpt"
    lines.append(f"--checkpoint {shlex.quote(checkpoint)}")
    if signed:
        lines.append("--public-key KEY")
    return " \\\n  ".join(lines)


def certificate_file(evidence: Evidence) -> str:
    """The certificate's file as a shell takes it."""
    return shlex.quote(evidence.certificate_file or "CERTIFICATE.json")


def sentence(c: Certificate) -> str:
    """The claim as the certificate prints it, with its maker's names left to the boxes.

    A name is any text, and must not read as a part of the claim.
    """
    public = tuple(
        replace(p, name="what box 2 lists")
        for p in c.public_parts
        if not is_private(c.bound, p)
    )[:1]
    unscrubbed = c.unscrubbed and ("see box 6",)
    return headline(replace(c, public_parts=public, unscrubbed=unscrubbed)) + "."


def method(c: Certificate) -> str:
    """What was done, in words."""
    if c.bound is Bound.PRIVATE_TRAINING:
        return how_drawn(c.constants)
    if c.noise_std == 0 or c.noise_source is NoiseSource.NO_NOISE:
        return f"{METHODS[c.bound]} No noise was added."
    who = "chosen by hand" if c.noise_by_hand else "computed from the numbers in box 7"
    return (
        f"{METHODS[c.bound]} Then Gaussian noise was added to each of the "
        f"{c.n_parameters:,} weights; its size was {who}."
    )


def claim_needs(c: Certificate, constant: Constant) -> bool:
    """Whether the claim rests on this constant."""
    return constant.name in REQUIRED[c.bound]


def shows_measurements(c: Certificate) -> bool:
    """Whether the certificate has numbers that may depend on the forgotten samples.

    Those of a strongly convex scope are of the retained samples alone.
    """
    data = (Origin.MEASURED, Origin.ESTIMATED)
    measured = any(constant.origin in data for constant in c.constants)
    return measured and c.bound not in CONVEX


def conditions(c: Certificate) -> tuple[str, ...]:
    """What has to be true for a conditional claim, one entry each."""
    if c.grade is not Grade.CONDITIONAL:
        return ()
    numbers = tuple(
        f"{constant.name} = {number(constant.value)} ({constant.origin.value}): "
        f"{constant.reason}"
        for constant in c.constants
        if claim_needs(c, constant) and constant.origin not in TRUSTED
    )
    parts = tuple(
        f"{part.name} was not derived from the private data: no training run was seen"
        for part in c.public_parts
        if part.origin is not Origin.ENFORCED and not is_private(c.bound, part)
    )
    return numbers + parts


def promise(c: Certificate) -> str | None:
    """What epsilon and delta say; None unless they say something."""
    claimed = worth(c) in (Grade.CERTIFIED, Grade.CONDITIONAL)
    if not claimed or c.bound in EXACT:
        return None
    if c.epsilon is None or c.delta is None:
        return None
    factor = f"{math.exp(c.epsilon):.3g}" if c.epsilon < 20 else "more than 10^8"
    return (
        f"epsilon = {number(c.epsilon)} ({c.grade.value}) means: the probability of "
        f"anything seen in the weights is at most {factor} times (e to the power of "
        "epsilon) what it is after training without the samples, plus "
        f"delta = {number(c.delta)}, and the other way round."
    )


def attacks(c: Certificate) -> tuple[str, ...]:
    """What the best attacker reaches, one sentence for each thing he may hold."""
    if promise(c) is None:
        return ()
    who = "Someone"
    if c.grade is Grade.CONDITIONAL:
        who = "If every condition above is true: someone"
    else:
        who = "If what is taken as public never saw the samples: someone"
    if c.bound in _EVERY:
        return (_attack(who, _EVERY[c.bound], most_in_100(c)),)
    this = c.release_mus[-1]
    held = [("this model's weights", this)]
    if (later := _later_mu(c)) > this:
        more = (c.releases or c.release) - c.release
        held.append((f"these weights and one day those of all {more} later", later))
    return tuple(_attack(who, what, in_100(mu)) for what, mu in held)


_EVERY = {
    Bound.PRIVATE_TRAINING: "all models of this training",
    Bound.PRIVATE_BACKBONE: "the backbone and this head",
    Bound.SERVED_HEAD: "all heads served from the training on, the later ones too,",
}


def _attack(who: str, what: str, most: str) -> str:
    return (
        f"{who} who holds {what} and looks for samples that had once been in the model "
        f"finds at most {most} of 100, with 1 false alarm in 100 for samples "
        "that never were (blind guessing finds 1 of 100)."
    )


def look(c: Certificate) -> str:
    """The classes of the page's colours: green is for what protects."""
    return f"{worth(c).value} weak" if level(c) is Level.WEAK else worth(c).value


def _later_mu(c: Certificate) -> float:
    """Of this release and those announced after it, seen together.

    Earlier ones were made while these samples were still in the model: whoever holds
    one of them can tell, and no number here says otherwise.
    """
    releases = 1 if c.releases is None else c.releases - c.release + 1
    return c.release_mus[-1] * math.sqrt(releases)
