"""What a certificate means, for a reader who is no engineer."""

import math
import shlex
from dataclasses import dataclass, replace

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
    finding,
    in_100,
    is_capped,
    level,
    most_in_100,
    why_vacuous,
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


@dataclass(frozen=True)
class Explanation:
    """A grade in plain words.

    Args:
        name: As printed, in capitals.
        mark: A sign that goes with the colour.
        summary: One sentence.
        means: What may be concluded.
        means_not: What may not.
        tell: What can be said to the person who asked.
    """

    name: str
    mark: str
    summary: str
    means: str
    means_not: str
    tell: str


_ELSEWHERE = (
    "It does not say that the samples are gone from anywhere else, nor that the model "
    "is now wrong about them (a model that never saw them may be right too), nor "
    "anything about other samples of the same person."
)

GRADES = {
    Grade.EXACT: Explanation(
        name="EXACT",
        mark="\N{CHECK MARK}",
        summary="The model was trained again without these samples, provided that what "
        "the training's code uses besides the retained samples never depended on them.",
        means="The released model is one that never saw the samples: it was trained "
        "from a fresh start, by the code that trained the first one, on the retained "
        "samples alone; the software let it draw no others. That the start, the "
        "settings and the way samples are read and preprocessed were not made from the "
        "forgotten samples is the word of whoever ran it.",
        means_not=_ELSEWHERE,
        tell="The model was trained again from the start without your data. Say as "
        "well what happened to the other copies (box 6), the earlier model among them.",
    ),
    Grade.CERTIFIED: Explanation(
        name="CERTIFIED",
        mark="\N{CHECK MARK}",
        summary="Proved, provided that how samples are read and preprocessed never "
        "depended on these samples: the released model can hardly be told from one "
        "that was trained without them.",
        means="Within the numbers stated here, whoever holds the released weights "
        "sees what they would see had the model been trained again without the "
        "samples, read and preprocessed in the same way. That the way they are read "
        "(scaling, vocabularies, filters, what stands before the model) was not made "
        "from the samples is the word of whoever ran it. Every number the proof needs "
        "is enforced by the software or follows from the kind of model.",
        means_not=_ELSEWHERE,
        tell="If the way data are prepared was not made from yours: the model was "
        "changed so that it is, provably and within stated limits, as if your data "
        "had not been used to train it. Say as well what happened to the other copies "
        "(box 6).",
    ),
    Grade.CONDITIONAL: Explanation(
        name="CONDITIONAL",
        mark="?",
        summary="Proved only if the conditions below are true; the software did not "
        "prove them.",
        means="If every condition listed here is true, whoever holds the released "
        "weights sees what they would see had the model been trained again without the "
        "samples. If one is false, nothing is proved.",
        means_not="It is not a certified result. Somebody has to vouch for each "
        "condition, and it should be written down who did and why. " + _ELSEWHERE,
        tell="The model was changed by a method that removes the influence of your "
        "data if certain assumptions hold. Name the assumptions, and say what "
        "happened to the other copies (box 6).",
    ),
    Grade.VACUOUS: Explanation(
        name="VACUOUS",
        mark="\N{EMPTY SET}",
        summary="This guarantee is true but worthless: it would be just as true if "
        "nothing had been unlearned.",
        means="Noise was added that hides any model of the allowed size behind any "
        "other. That makes the formal claim true whatever was done before it, and "
        "usually leaves a model that can no longer do its work.",
        means_not="It is no evidence that unlearning worked. Do not present it as a "
        "certificate of unlearning.",
        tell="Do not say that the model was certifiably unlearned. If the influence "
        "of the data has to go, train again without the samples or withdraw the model.",
    ),
    Grade.NONE: Explanation(
        name="NO GUARANTEE",
        mark="\N{MULTIPLICATION X}",
        summary="Nothing is proved about what the model still knows of these samples.",
        means="The model was changed by a method that is meant to remove the samples. "
        "How well it did is not known from this certificate.",
        means_not="It is not a proof of deletion of any strength, and no privacy "
        "parameter may be quoted for it.",
        tell="Do not say that the influence of the data was provably removed. If it "
        "has to go, train again without the samples or withdraw the model.",
    ),
}

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


def _rewound(plain: Explanation) -> Explanation:
    return replace(
        plain,
        summary=f"{plain.summary[:-1]}, and that no earlier model led to this request.",
        means="The released model is one that never saw the samples: the training was "
        "taken up at the end of its last stage that had not drawn them, and all later "
        "ones were run again, by the same code, on the retained samples alone; the "
        "software let them draw no others. That the start, the settings and the way "
        "samples are read and preprocessed were not made from the forgotten samples is "
        "the word of whoever ran it.",
        tell="The model was trained again, from a point at which it had not seen your "
        "data. Say as well what happened to the other copies (box 6), the earlier "
        "model among them.",
    )


def _private(plain: Explanation) -> Explanation:
    return replace(
        plain,
        summary="Proved, provided that what the training's code uses besides these "
        "samples never depended on them: this model, and every other one that the same "
        "training made, can hardly be told from those of a training without them.",
        means="Within the numbers stated here, whoever holds any models of this "
        "training sees what they would see had it been run without the samples. "
        "Nothing was changed for it: the training was private from its first step. "
        "That the start, the settings and the way samples are read and preprocessed "
        "were not made from the samples is the word of whoever ran it.",
        tell="The model was trained in such a way that, provably and within stated "
        "limits, it is as if your data had not been used; this holds for the models "
        "that were served before as well. Say as well what happened to the other "
        "copies of your data (box 6).",
    )


def explained(c: Certificate) -> Explanation:
    """The grade of a certificate in words: as strong as it is, with its premise."""
    grade = worth(c)
    plain = GRADES[grade]
    if c.bound is Bound.REWOUND and grade is Grade.EXACT:
        return _rewound(plain)
    if c.bound in EXACT:
        return plain
    if grade is Grade.VACUOUS and not is_capped(c):
        return _worthless(c)
    if c.bound is Bound.PRIVATE_TRAINING and grade is Grade.CERTIFIED:
        plain = _private(plain)
    elif c.bound is Bound.PRIVATE_BACKBONE and grade is Grade.CERTIFIED:
        plain = _on_private(plain)
    elif grade is Grade.CERTIFIED and c.public_parts:
        plain = _with_parts(plain)
    strength = level(c)
    if strength is Level.STRONG or grade not in (Grade.CERTIFIED, Grade.CONDITIONAL):
        return plain
    if grade is Grade.CERTIFIED:
        if_public = "If what is taken as public never saw your data: a"
    else:
        if_public = "If certain assumptions hold, which you should name: a"
    tell = (
        f"{if_public}{finding(c)[1:]} of those whose data had been in the model, where "
        "guessing finds 1. Say as well what happened to the other copies (box 6)."
    )
    if strength is Level.MODERATE:
        summary = f"{plain.summary} How well: {finding(c)}."
        return replace(plain, summary=summary, tell=tell)
    return replace(
        plain,
        name=f"{plain.name}, BUT WEAK",
        mark="\N{ALMOST EQUAL TO}",
        summary=f"A weak promise: {finding(c)}, where guessing finds 1.",
        means="The released weights hide only in part whether the samples were used. "
        + plain.means,
        tell="Do not say that the model is as if your data had not been used. " + tell,
    )


def _on_private(plain: Explanation) -> Explanation:
    """A certified head on a backbone that was trained privately."""
    return replace(
        plain,
        summary="Proved, provided that what the training's code uses besides these "
        "samples never depended on them: this model, its backbone included, can hardly "
        "be told from one that was trained without them.",
        means="The backbone was trained privately, from its first step, and stays; the "
        "head was changed, and noise hides the rest. Within the numbers stated here, "
        "whoever holds both sees what they would see had neither been trained on the "
        "samples. That the start, the settings and the way samples are read and "
        "preprocessed were not made from the samples is the word of whoever ran it.",
        tell="The model was trained, and then changed, in such a way that, provably "
        "and within stated limits, it is as if your data had not been used. Say as "
        "well what happened to the other copies of your data (box 6).",
    )


def _with_parts(plain: Explanation) -> Explanation:
    """A certified model that has other parts besides the one in scope."""
    return replace(
        plain,
        summary="Proved, provided that the parts listed in box 2, and how samples are "
        "read and preprocessed, never saw these samples: the released model can hardly "
        "be told from one whose other parts were trained without them.",
        means="The parts in box 2 did not change in the training that was watched; "
        "that they had not been made from the samples before is the word of whoever "
        "ran it. " + plain.means,
        tell="If the parts in box 2, and the way data are prepared, never saw the "
        "data: the part of the model that "
        "learned from it was changed so that it is, provably and within stated limits, "
        "as if your data had not been used; the other parts never saw it. Say as well "
        "what happened to the other copies (box 6).",
    )


def _worthless(c: Certificate) -> Explanation:
    """A claim that is true, and too weak to say anything."""
    plain = GRADES[Grade.VACUOUS]
    called = "" if c.grade is Grade.VACUOUS else f" (graded {c.grade.value})"
    return replace(
        plain,
        name=f"{plain.name}{called}",
        summary=f"This guarantee is true but worthless: {why_vacuous(c)}.",
        means="The numbers of this claim allow too much: whoever looks for the samples "
        "may find them, and the claim would still be true.",
    )


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
