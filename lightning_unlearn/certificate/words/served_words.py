"""What is said of a head that was served with noise before anybody was forgotten."""

from lightning_unlearn.guarantee.constants import Origin

REFERENCE = (
    "the same heads trained from the beginning without all that were forgotten so far: "
    "the trained one that was served first and every one since, from any start, to the "
    "same tolerance, with the same noise, computed in the same environment and blocks"
)

#: Why each number is believed, besides those of a strongly convex scope.
REASONS: dict[str, tuple[tuple[Origin, str], ...]] = {
    "residual_norm": (
        (
            Origin.PROVED,
            "the derivative of a loss in its logits is never longer than this, for any "
            "logits: this follows from the kind of loss, its outputs and the largest "
            "class weight, and every sample was checked against it",
        ),
    ),
    "samples": (
        (Origin.ENFORCED, "samples retained now; their number is taken as public"),
    ),
    "covered": (
        (
            Origin.ENFORCED,
            "samples that may be forgotten in all, set before the training: every head "
            "that was served since, the trained one first, had noise for those of them "
            "that were not yet forgotten",
        ),
    ),
    "forgotten": (
        (
            Origin.ENFORCED,
            "samples forgotten so far, this request's included: epsilon is that of all "
            "of them together, for all heads that were served",
        ),
    ),
    "left": (
        (
            Origin.ENFORCED,
            "samples that may still be forgotten after this release, which has noise "
            "for them too; 0 for the last announced release",
        ),
    ),
}

#: In place of what is said of models that were served before.
NOT_COVERED = (
    "heads of other trainings on the same samples, and whatever was served from this "
    "training besides its releases: the optimum without noise is in the prepared state "
    "and in the row store",
    "the number of all samples: the size of the noise follows from it, so it is taken "
    "as public",
)
