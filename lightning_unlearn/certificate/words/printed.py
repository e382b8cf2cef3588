"""The certificate in words: one screen, the claim in plain English first."""

import textwrap

from lightning_unlearn._base.text import number, printable
from lightning_unlearn.certificate.fields import CertificateFields, PublicPart
from lightning_unlearn.certificate.words import backbone_words
from lightning_unlearn.certificate.words.backbone_words import is_private
from lightning_unlearn.certificate.words.private_words import counts_people
from lightning_unlearn.certificate.words.standing_caveats import not_covered
from lightning_unlearn.certificate.words.strength_words import (
    Level,
    finding,
    level,
    most_in_100,
    why_vacuous,
    worth,
)
from lightning_unlearn.guarantee.claims import EXACT, Bound, Grade, NoiseSource
from lightning_unlearn.guarantee.constants import Origin

_WIDTH = 78


def headline(c: CertificateFields) -> str:
    """The claim in one sentence, as strong as it is; `epsilon` with its grade."""
    samples = f"these {c.n_forget:,} samples" if c.n_forget > 1 else "this sample"
    grade, strength = worth(c), level(c)
    if grade is Grade.NONE:
        return f"NO GUARANTEE: nothing is proved about {samples}; {_why_none(c)}"
    if grade is Grade.VACUOUS:
        called = "" if c.grade is grade else f" (though graded {c.grade.value})"
        return (
            f"VACUOUS: {_promise(c)} says nothing useful{called}: "
            f"{why_vacuous(c)}, {taking(c)}"
        )
    if grade is Grade.EXACT:
        return (
            f"{c.grade.name}: retrained by this tool on the retained samples alone"
            f"{_from_stage(c)}, without {samples}: {_promise(c)}, {taking(c)}"
        )
    name = f"{c.grade.name}, BUT WEAK" if strength is Level.WEAK else c.grade.name
    tested = ""
    if strength in (Level.MODERATE, Level.WEAK):
        tested = f" ({finding(c)})"
    if c.bound in _ALL_MODELS:
        if_true = ", ONLY IF what is marked assumed below is true"
        return (
            f"{name}: {_ALL_MODELS[c.bound]} "
            f"{_TOLD_ALL[strength]} those of a training without {samples}"
            f"{_and_earlier(c)}"
            f"{tested}, {_promise(c)}, {taking(c)}"
            f"{'' if grade is Grade.CERTIFIED else if_true}"
        )
    if grade is Grade.CERTIFIED:
        return (
            f"{name}: {_TOLD[strength]} retraining without {samples}{tested}, "
            f"{_promise(c)}, {taking(c)}"
        )
    return (
        f"{name}: {_promise(c)} against "
        f"retraining without {samples}{tested}, {taking(c)}, ONLY IF what is marked "
        "assumed or estimated below is true"
    )


def _from_stage(c: CertificateFields) -> str:
    """Where a retraining went on from, if not from the start."""
    kept = {x.name: x.value for x in c.constants}.get("stages_kept")
    if kept is None:
        return ""
    stages = "the first stage" if kept == 1 else f"the first {number(kept)} stages"
    whom = "them" if c.n_forget > 1 else "it"
    return f" from the end of {stages}, which never saw {whom}"


#: How the released model compares with retraining, by the strength of the claim.
_TOLD: dict[Level | None, str] = {
    Level.STRONG: "indistinguishable from",
    Level.MODERATE: "hard to tell from",
    Level.WEAK: "may well be told from",
}


#: The same of all models of a training.
_TOLD_ALL = {
    level: told if level is Level.WEAK else f"are {told}"
    for level, told in _TOLD.items()
}


#: What a claim speaks of that covers models from before the request.
_ALL_MODELS = {
    Bound.PRIVATE_TRAINING: "this model and all others of its private training",
    Bound.SERVED_HEAD: "this head and all others served since its training",
    Bound.PRIVATE_BACKBONE: "this head and its privately trained backbone",
}


def _forgotten(c: CertificateFields) -> int:
    """All that were forgotten so far of such a training, by its own count."""
    return int({x.name: x.value for x in c.constants}.get("forgotten", 0))


def _and_earlier(c: CertificateFields) -> str:
    if counts_people(c.constants):
        them = _forgotten(c)
        whom = "the one person" if them == 1 else f"the {them:,} people"
        return f" and all others of {whom} forgotten so far"
    earlier = _forgotten(c) - c.n_forget
    return f" and the {earlier:,} forgotten before" if earlier > 0 else ""


def _promise(c: CertificateFields) -> str:
    if c.epsilon is None or c.delta is None:
        return "no epsilon"
    return f"epsilon = {number(c.epsilon)}, delta = {number(c.delta)}"


#: What no program sees: a scaler, a vocabulary or a filter that was fitted on the data.
PREMISE = "how samples are read and preprocessed"


#: What no program sees of a training that a user's code sets up.
_START = (
    "what the training's code uses besides the retained samples (its start, its "
    "settings, and how samples are read and preprocessed)"
)

#: What is left of it once the data was rebuilt without the forgotten samples: that all
#: rows are the same shows nothing if a scaler that was fitted on them was kept.
_REST = (
    "what dataset_without() keeps from before, how batches are put together and what "
    "the module makes of them"
)


def premise(ways_checked: bool, bound: Bound = Bound.STRONGLY_CONVEX) -> str:
    """What a claim takes as public besides the public parts of the model."""
    if bound in EXACT or bound is Bound.PRIVATE_TRAINING:
        return _START
    if bound is Bound.PRIVATE_BACKBONE:
        return f"{_REST if ways_checked else PREMISE}, and {backbone_words.PREMISE}"
    return _REST if ways_checked else PREMISE


def taking(c: CertificateFields) -> str:
    """The premise in words: what is taken as public, and was not checked."""
    first = premise(c.ways_checked, c.bound)
    named = [p.name for p in c.public_parts if not is_private(c.bound, p)]
    parts = ", ".join([first, *named])
    checked = (
        " (the data was rebuilt by dataset_without(): every retained row is the same)"
    )
    found = f"taking {parts} as public{checked if c.ways_checked else ''}"
    if c.bound is Bound.REWOUND:
        found += ", and assuming that no earlier model led to this request"
    return found


def _why_none(c: CertificateFields) -> str:
    if c.unscrubbed:
        return (
            "training changed something that this request does not cover, and the "
            f"change is still there: {', '.join(c.unscrubbed)}"
        )
    if c.noise_by_hand:
        return "noise_std was chosen by hand"
    if c.noise_source is NoiseSource.SEEDED:
        return "reproducible_noise: the noise can be drawn again and subtracted"
    return "no finite sensitivity is known"


def _wrap(text: str, indent: str) -> list[str]:
    """Lines of at most `_WIDTH` columns; ``name = value`` is never torn apart."""
    glued = text.replace(" = ", "\0=\0")
    lines = textwrap.wrap(
        glued,
        _WIDTH,
        initial_indent=indent,
        subsequent_indent=indent,
        break_on_hyphens=False,
        break_long_words=False,
    )
    return [line.replace("\0", " ") for line in lines]


def _item(head: str, text: str) -> list[str]:
    """A head, then a text that goes on in its own column."""
    first, *rest = _wrap(text, " " * len(head)) or [""]
    return [head + first.lstrip(), *rest]


def facts(c: CertificateFields) -> list[tuple[str, str]]:
    """The numbers of the claim, each with its name."""
    mechanism = {
        Bound.RETRAINED: "trained on the retained samples alone",
        Bound.REWOUND: "trained on the retained samples alone",
        Bound.PRIVATE_TRAINING: "the noise is in every step of the training",
        Bound.STRONGLY_CONVEX: "2 tolerance / strong_convexity",
        Bound.PRIVATE_BACKBONE: "2 tolerance / strong_convexity",
        Bound.SERVED_HEAD: "2 tolerance / l2, and what is left to forget",
        Bound.NEWTON_STEP: "one damped Newton step, Theorem A",
        Bound.NORM_BALL: "norm ball only, 2 max_norm",
        Bound.NO_BOUND: "no bound",
    }[c.bound]
    sensitivity = "none" if c.sensitivity is None else number(c.sensitivity)
    rows = [
        ("forgotten / retained", f"{c.n_forget:,} / {c.n_retain:,} samples"),
        ("weights in scope", f"{c.n_parameters:,}"),
        ("sensitivity", f"{sensitivity}  ({mechanism})"),
        ("noise_std", f"{number(c.noise_std)} per weight{_of_request(c)}"),
        ("release", _release(c)),
    ]
    strength = level(c)
    if strength is not None and worth(c) is not Grade.VACUOUS:
        found = f"at most {most_in_100(c)} of 100 found at 1% false alarms"
        rows.append(("strength", f"{strength.value}: {found}"))
    return rows


def _of_request(c: CertificateFields) -> str:
    private = c.bound is Bound.PRIVATE_TRAINING
    return " (this request adds none)" if private else ""


def _release(c: CertificateFields) -> str:
    text = f"{c.release}" + (f" of {c.releases} announced" if c.releases else "")
    if c.epsilon is None:
        return text
    if c.bound in EXACT:
        earlier = "; for the earlier ones see their own certificates"
        return text + (earlier if c.release > 1 else "")
    if c.bound is Bound.PRIVATE_TRAINING:
        people = " people" if counts_people(c.constants) else ""
        return (
            f"{text}; epsilon is that of all {_forgotten(c):,}{people} forgotten so "
            "far, together"
        )
    if c.bound is Bound.PRIVATE_BACKBONE:
        return f"{text}; epsilon is that of the backbone and this head together"
    if c.composed_epsilon is None:
        return f"{text}; an earlier release had no guarantee, so all together have none"
    worth = composed_worth(c)
    worth = "" if worth == Grade.CERTIFIED.value else worth
    if c.bound is Bound.SERVED_HEAD:
        text += " (1 is the trained head)"
    covers = c.bound is Bound.SERVED_HEAD
    return f"{text}; {so_far(c.composed_epsilon, c.release, c.releases, worth, covers)}"


def so_far(
    epsilon: float, release: int, releases: int | None, worth: str, covers: bool = False
) -> str:
    """The epsilon of all releases so far, in words: what it is worth, and whose it is.

    Args:
        epsilon: Composed.
        release: How many there are, with this one.
        releases: Announced number of them, or None.
        worth: `composed_worth`, or nothing where that is plain.
        covers: Whether it is that of all who were forgotten, not of the first.
    """
    qualifier = f" ({worth})" if worth else ""
    which = "so far together" if releases else "all together"
    whose = ", for samples that the first of them forgot"
    if release == 1 or covers:
        whose = ""
    return f"{which} epsilon = {number(epsilon)}{qualifier}{whose}"


def composed_worth(c: CertificateFields) -> str:
    """What the epsilon of all releases so far is worth, in a word or two."""
    if c.composed_grade is not None:
        return c.composed_grade.value
    alone = c.grade.value
    return alone if c.release == 1 else f"{alone}, if the earlier releases were"


#: What a reader of an old certificate must know.
SCHEMA_1 = (
    "A certificate of schema 1: what it is compared with, the reasons below and which "
    "parts of the model are public are only what its maker wrote; they are not derived "
    "from the numbers."
)


def limits(c: CertificateFields) -> tuple[str, ...]:
    """What the claim does not reach: the standing list, said or not, then the run's."""
    standing = not_covered(c.bound)
    return (*standing, *(text for text in c.not_covered if text not in standing))


_ASSUMED = "assumed public (not derived from private data)"
#: What is known of such a part.
SEEN = {
    Origin.ENFORCED: "unchanged in the training run the callback saw",
    Origin.ASSUMED: "no training run was seen: it may have been trained",
}


def left_as_it_was(c: CertificateFields) -> str:
    """The heading of the parts of a model that no request changed."""
    covered = [p.name for p in c.public_parts if is_private(c.bound, p)]
    return f"{_ASSUMED}, but for {covered[0]}" if covered else _ASSUMED


def why_left(c: CertificateFields, part: PublicPart) -> str:
    """Why a claim allows that a part stays as it was."""
    if is_private(c.bound, part):
        return backbone_words.COVERED
    return SEEN.get(part.origin, part.origin.value)


def render(c: CertificateFields) -> str:
    """The printed form of a certificate, at most 78 columns wide."""
    lines = [*_wrap(headline(c), ""), ""]
    lines += [f"  {name:<21} {value}" for name, value in facts(c)]
    if c.schema == 1:
        lines += ["", *_wrap(SCHEMA_1, "  ")]
    if c.reference:
        lines += ["", "  compared with:", *_wrap(c.reference, "    ")]
    width = max([8, *(len(constant.name) for constant in c.constants)])
    if c.constants:
        lines += ["", f"  {'constant':<{width}} {'value':<9} {'origin':<9} why"]
    for constant in c.constants:
        head = (
            f"  {constant.name:<{width}} {number(constant.value):<9} "
            f"{constant.origin.value:<9} "
        )
        lines += _item(head, constant.reason)
    if c.public_parts:
        lines += ["", f"  {left_as_it_was(c)}:"]
        for p in c.public_parts:
            lines.append(f"    {p.name}  sha256 {p.digest[:8]}  {why_left(c, p)}")
            lines += _wrap(printable(p.note), " " * 6)
    for title, entries in (("warnings", c.warnings), ("not covered", limits(c))):
        if entries:
            lines += ["", f"  {title}:"]
        for entry in entries:
            lines += _item("    - ", entry)
    return "\n".join(printable(line) for line in lines)
