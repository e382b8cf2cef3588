"""What every certificate must say, whatever the run: costs, limits, versions."""

from importlib import metadata

from lightning_unlearn.certificate.fields import CertificateFields
from lightning_unlearn.certificate.words import backbone_words, served_words
from lightning_unlearn.certificate.words.strength_words import (
    Level,
    finding,
    is_capped,
    level,
)
from lightning_unlearn.guarantee.claims import Bound, Grade

NOT_COVERED = (
    "models released before this request, and their difference from this one: it "
    "reveals the forgotten samples; and requests that were made because of what such a "
    "model said",
    "the raw data, extracted features, logs and backups",
    "hyper-parameters, classes and stopping rules chosen while looking at the "
    "forgotten samples",
    "statistics, vocabularies, encoders, filters, resampling and class weights that "
    "were computed with them, an l2 that depends on the number of samples, and exact "
    "copies that stay",
)


_CODE = (
    "state that the training's code keeps outside the model it makes (a file that it "
    "reads, a global variable, a cache), and samples that are made of other samples "
    "when they are read (mixtures, windows that overlap): no check sees these"
)
_CHOSEN = (
    "a request that was made because of what an earlier model of this training said: "
    "all such models were made from the kept stages, which given such a choice no "
    "longer have the distribution they would have had; retraining from the start "
    "covers such a request"
)
_FEW = (
    "changes that training made to how some samples reach the head, if they affect "
    "none of the samples compared before and after it (up to 512, spread over the data)"
)
_PRIVATE = (
    "losses and metrics that were logged in training, and what callbacks or files have "
    "kept of gradients from before they were clipped",
    "a clip, noise, sampling rate or number of steps that was chosen while looking at "
    "the forgotten samples, or changed because of what an earlier model of this "
    "training said; the number of all samples, which sets the rate, is taken as public",
    "what the weights knew at the start (about samples seen in an earlier, unwatched "
    "training); and other trainings on the same samples, including one continued twice "
    "from one checkpoint: epsilon is that of each alone, not of all together",
    "whatever was decided while looking at losses of the training samples, or of "
    "validation data that resemble them: when the training was interrupted, which of "
    "several trainings is served, a schedule's own rule",
    "rounding: the theorem is about real numbers, and the training computed in floats",
)
_MEASURED = (
    "the numbers of this certificate that are measured or estimated: they are "
    "functions of the data, and the guarantee speaks of the weights alone"
)


def not_covered(bound: Bound) -> tuple[str, ...]:
    """What no claim from this bound reaches, whatever the run."""
    if bound is Bound.REWOUND:
        return (*NOT_COVERED, _CODE, _CHOSEN)
    if bound is Bound.RETRAINED:
        return (*NOT_COVERED, _CODE)
    if bound is Bound.PRIVATE_TRAINING:  # which covers all models that were served
        return (*NOT_COVERED[1:], _CODE, *_PRIVATE)
    if bound is Bound.STRONGLY_CONVEX:
        return (*NOT_COVERED, _FEW)
    if bound is Bound.PRIVATE_BACKBONE:
        return (*NOT_COVERED, *backbone_words.NOT_COVERED, _FEW, _CODE, *_PRIVATE)
    if bound is Bound.SERVED_HEAD:  # which covers the heads that were served
        return (*served_words.NOT_COVERED, *NOT_COVERED[1:], _FEW)
    return (*NOT_COVERED, _MEASURED)


def warnings_of_noise(c: CertificateFields) -> list[str]:
    """What the size of the noise means for the model and for the claim."""
    std, found = c.noise_std, []
    values = {constant.name: constant.value for constant in c.constants}
    if "max_norm" in values:
        ratio = std * c.n_parameters**0.5 / values["max_norm"]
        found += _noise_in_ball(c.grade, c.bound, is_capped(c), ratio)
    logit_noise = std * values.get("feature_norm", 0.0)
    if logit_noise > 0.1:
        found.append(
            f"the noise moves a logit by about {logit_noise:.2g} (noise_std x "
            "feature_norm), which costs accuracy: lower the tolerance, raise l2 or "
            "scale the features down"
        )
    if c.delta is not None and not c.delta * c.n_retain < 1:
        found.append(
            f"delta = {c.delta:g} is not below 1/n_retain = {1 / c.n_retain:.2g}: "
            "a delta this large would allow publishing a sample outright; lower delta"
        )
    elif level(c) is Level.WORTHLESS and c.bound is Bound.PRIVATE_TRAINING:
        found.append(
            f"{finding(c)}: too many samples of one private training were forgotten; "
            "how='retrain' needs no epsilon"
        )
    elif level(c) is Level.WORTHLESS and c.release_mus:
        found.append(f"{finding(c)}: lower epsilon, and the tolerance with it")
    return found


def _noise_in_ball(grade: Grade, bound: Bound, capped: bool, ratio: float) -> list[str]:
    """Of noise that is `ratio` times the largest weight norm allowed."""
    times = f"{ratio:,.0f}" if ratio >= 10 else f"{ratio:.2g}"
    costs = "" if ratio < 0.1 else ": expect a large loss of accuracy"
    if ratio >= 1:
        costs = ": the released model has forgotten everything, not only the forget set"
    if capped and grade is Grade.VACUOUS:
        return [
            "Delta/(2C) = 1: no bound better than the norm ball is proved. The noise "
            f"is {times} times the largest weight norm allowed (noise_std sqrt(p) / "
            f"max_norm){costs}. For a useful guarantee train a ConvexHead on a public "
            "backbone that never saw this data; for the bare step without a claim set "
            "noise_std=0.0"
        ]
    if grade is Grade.CONDITIONAL and bound is Bound.NEWTON_STEP and ratio > 0.1:
        return [f"the noise is {times} times the largest weight norm allowed{costs}"]
    return []


def versions() -> tuple[tuple[str, str], ...]:
    """Versions of the packages that computed a certificate."""
    found = []
    for name in ("lightning_unlearn", "torch", "scipy"):
        try:
            found.append((name, metadata.version(name)))
        except metadata.PackageNotFoundError:  # run from a source tree
            found.append((name, "not installed"))
    return tuple(found)
