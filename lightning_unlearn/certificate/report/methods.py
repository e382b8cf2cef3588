"""What was done to a model, in words, by the bound of its certificate."""

from lightning_unlearn.guarantee.terms import Bound

METHODS = {
    Bound.RETRAINED: "The model was trained again from a fresh start, by the same "
    "code, on the retained samples alone.",
    Bound.REWOUND: "The model was trained again by the same code on the retained "
    "samples alone, from the end of the last stage of its training that never saw the "
    "forgotten ones.",
    Bound.STRONGLY_CONVEX: "The part of the model that was trained on private data was "
    "solved to its optimum on the retained samples alone, up to the tolerance in "
    "box 7.",
    Bound.PRIVATE_BACKBONE: "The head was solved to its optimum on the retained "
    "samples alone, up to the tolerance in box 7, on the features of a network that "
    "was trained privately.",
    Bound.SERVED_HEAD: "The head was solved to its optimum on the retained samples "
    "alone, up to the tolerance in box 7, and so was each that was served before it.",
    Bound.NEWTON_STEP: "One damped Newton step on the retained samples moved the "
    "weights towards where training without the forgotten ones would have ended; they "
    "were kept inside a ball of fixed radius.",
    Bound.NORM_BALL: "The weights were updated on the retained samples and kept inside "
    "a ball of fixed radius. The claim rests on that radius alone, not on the update.",
    Bound.NO_BOUND: "The weights were updated on the retained samples to remove the "
    "influence of the forgotten ones.",
}
