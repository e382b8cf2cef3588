"""What is agreed before the data is seen, what a claim rests on, what may be said."""

import enum
from collections.abc import Iterable
from dataclasses import dataclass

from lightning_unlearn.guarantee.constants import Constant


class Grade(str, enum.Enum):
    """What a certificate is worth (docs/theory.md section 9)."""

    EXACT = "exact"
    CERTIFIED = "certified"
    CONDITIONAL = "conditional"
    VACUOUS = "vacuous"
    NONE = "none"


def lowest(grades: Iterable[Grade]) -> Grade:
    """The grade of several claims that are made together."""
    return max(grades, key=list(Grade).index)


class Bound(str, enum.Enum):
    """Which theorem the sensitivity comes from."""

    RETRAINED = "retrained"
    REWOUND = "rewound"
    PRIVATE_TRAINING = "private_training"
    STRONGLY_CONVEX = "strongly_convex"
    SERVED_HEAD = "served_head"
    PRIVATE_BACKBONE = "private_backbone"
    NEWTON_STEP = "newton_step"
    NORM_BALL = "norm_ball"
    NO_BOUND = "no_bound"


class NoiseSource(str, enum.Enum):
    """Where the noise came from."""

    OS_ENTROPY = "os_entropy"
    SEEDED = "seeded"
    NO_NOISE = "no_noise"


#: Bounds of a training again: nothing depends on the forgotten samples.
EXACT = frozenset({Bound.RETRAINED, Bound.REWOUND})
#: Bounds of a convex head that is solved to its optimum.
CONVEX = frozenset({Bound.STRONGLY_CONVEX, Bound.SERVED_HEAD, Bound.PRIVATE_BACKBONE})


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What was agreed before the data was seen.

    Args:
        epsilon: Privacy parameter, > 0; None where none is stated.
        delta: Failure probability, in (0, 1); None likewise.
        noise_std: Chosen by hand; None to follow from epsilon and delta.
        seeded: Whether the noise can be drawn again.
        releases: T announced releases, or None.
    """

    epsilon: float | None
    delta: float | None
    noise_std: float | None = None
    seeded: bool = False
    releases: int | None = None


@dataclass(frozen=True, kw_only=True)
class Basis:
    """What a claim rests on.

    Args:
        bound: The theorem the sensitivity comes from.
        constants: Those it needs, each name once; others are for the reader.
        n_retain: Samples retained.
        public_parts_enforced: Whether every part outside the scope is known not to
            have changed in training (true if there is none).
        unscrubbed: Names of state that may still depend on the forgotten samples.
        release: Which release this is, from 1 on.
        earlier_mus: sensitivity / noise_std of the earlier ones that had a guarantee;
            0 of a retraining.
        earlier_grades: Of the earlier ones.
    """

    bound: Bound
    constants: tuple[Constant, ...]
    n_retain: int
    public_parts_enforced: bool = True
    unscrubbed: tuple[str, ...] = ()
    release: int = 1
    earlier_mus: tuple[float, ...] = ()
    earlier_grades: tuple[Grade, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What may be said; the fields are those of the certificate."""

    sensitivity: float | None
    noise_std: float
    noise_source: NoiseSource
    grade: Grade
    epsilon: float | None
    delta: float | None
    release_mus: tuple[float, ...]
    composed_epsilon: float | None
    composed_grade: Grade | None
