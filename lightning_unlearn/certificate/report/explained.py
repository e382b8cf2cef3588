"""What each grade means, for a reader who is no engineer."""

from dataclasses import dataclass, replace

from lightning_unlearn.certificate.certificate import Certificate
from lightning_unlearn.certificate.words.strength_words import (
    Level,
    finding,
    is_capped,
    level,
    why_vacuous,
    worth,
)
from lightning_unlearn.guarantee.claims import (
    EXACT,
    Bound,
    Grade,
)


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
        "the training's code uses besides the retained samples never depended on the "
        "forgotten ones.",
        means="The released model is one that never saw the samples: it was trained "
        "from a fresh start, by the code that trained the first one, on the retained "
        "samples alone; the software let it draw no others. That the start, the "
        "settings and the way samples are read and preprocessed were not made from the "
        "forgotten samples rests on the word of whoever ran it.",
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
        "would see the same if the model had been trained again without the samples, "
        "read and preprocessed in the same way. That the way they are read (scaling, "
        "vocabularies, filters, what stands before the model) was not made from the "
        "samples rests on the word of whoever ran it. Every number the proof needs is "
        "enforced by the software or follows from the kind of model.",
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
        "weights would see the same if the model had been trained again without the "
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


def _rewound(plain: Explanation) -> Explanation:
    return replace(
        plain,
        summary=f"{plain.summary[:-1]}, and that no earlier model led to this request.",
        means="The released model is one that never saw the samples: the training was "
        "taken up at the end of its last stage that had not drawn them, and all later "
        "ones were run again, by the same code, on the retained samples alone; the "
        "software let them draw no others. That the start, the settings and the way "
        "samples are read and preprocessed were not made from the forgotten samples "
        "rests on the word of whoever ran it.",
        tell="The model was trained again, from a point at which it had not seen your "
        "data. Say as well what happened to the other copies (box 6), the earlier "
        "model among them.",
    )


def _private(plain: Explanation) -> Explanation:
    return replace(
        plain,
        summary="Proved, provided that whatever else the training's code uses never "
        "depended on these samples: this model, and every other one that the same "
        "training made, can hardly be told from those of a training without them.",
        means="Within the numbers stated here, whoever holds any models of this "
        "training would see the same if it had been run without the samples. No weight "
        "was changed for this request: the training was private from its first step. "
        "That the start, the settings and the way samples are read and preprocessed "
        "were not made from the samples rests on the word of whoever ran it.",
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
        summary="Proved, provided that whatever else the training's code uses never "
        "depended on these samples: this model, its backbone included, can hardly be "
        "told from one that was trained without them.",
        means="The backbone was trained privately, from its first step, and stays; the "
        "head was changed, and noise hides the rest. Within the numbers stated here, "
        "whoever holds both would see the same if neither had been trained on the "
        "samples. That the start, the settings and the way samples are read and "
        "preprocessed were not made from the samples rests on the word of whoever ran "
        "it.",
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
        "that they had not been made from the samples before rests on the word of "
        "whoever ran it. " + plain.means,
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
