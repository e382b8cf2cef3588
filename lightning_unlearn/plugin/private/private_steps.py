"""The steps that a private training may take, fixed before the first of them."""

from torch import nn

from lightning_unlearn.errors import GuaranteeError
from lightning_unlearn.guarantee.accounting.capacity import capacity, is_at_least
from lightning_unlearn.guarantee.accounting.private_training import (
    Mechanism,
    least_noise,
    privacy,
)
from lightning_unlearn.guarantee.kinds import PrivateTraining
from lightning_unlearn.plugin.training.outside import Outside, outside_of
from lightning_unlearn.plugin.training.training_record import (
    PrivateSteps,
    TrainingRecord,
)
from lightning_unlearn.weights.digests import state_digest
from lightning_unlearn.weights.scope import Scope


def planned(
    settings: PrivateTraining,
    earlier: PrivateSteps | None,
    rate: float,
    left: int,
    names: list[str],
    people: str | None,
    terms: tuple[float, float],
) -> PrivateSteps:
    """The steps of a training, those that were taken before among them.

    Args:
        settings: What the user asked for.
        earlier: The steps of a training that goes on, or None.
        rate: With which each sample, or person, is drawn.
        left: Steps that are still to be taken.
        names: Of the weights that are trained.
        people: Digest of who they are, or None.
        terms: Epsilon and delta of the callback.

    Raises:
        GuaranteeError: If a training would go on otherwise than it began.
    """
    epsilon, delta = terms
    total = left if earlier is None else max(earlier.done + left, earlier.steps)
    z = settings.noise_multiplier
    if z is None and earlier is not None:
        z = earlier.noise_multiplier
    if z is None:
        assert settings.epsilon is not None  # or it has a noise multiplier
        z = least_noise(settings.epsilon, settings.delta or delta, rate, total)
    steps = PrivateSteps(
        clip=settings.max_grad_norm,
        noise_multiplier=z,
        sampling_rate=rate,
        steps=total,
        done=0 if earlier is None else earlier.done,
        names=names,
        by=settings.by,
        people=people,
    )
    if earlier is not None and _fixed(steps) != _fixed(earlier):
        raise GuaranteeError(
            "expected a private training to go on as it began (clip, noise, sampling "
            "rate, weights, by=), got others: the accountant composes equal steps; "
            "train a new model"
        )
    steps.capacity = capacity(mechanism_of(steps), epsilon, delta)
    return steps


def _fixed(steps: PrivateSteps) -> tuple[object, ...]:
    return (
        *(steps.clip, steps.noise_multiplier, steps.sampling_rate),
        *(steps.names, steps.by, steps.people),
    )


def mechanism_of(steps: PrivateSteps) -> Mechanism:
    """All steps of a training, as the accountant takes them."""
    return Mechanism(steps.noise_multiplier, steps.sampling_rate, steps.steps)


def in_words(counted: int, epsilon: float, gone: int = 0) -> str:
    """How many may be forgotten, which is not always counted to the end.

    Args:
        counted: The capacity, in all.
        epsilon: For which it is.
        gone: Of these that are forgotten already.
    """
    least = "at least " if is_at_least(counted, epsilon) else ""
    return f"{least}{max(0, counted - gone):,}"


def epsilon_one(steps: PrivateSteps, delta: float, done: int | None = None) -> float:
    """Epsilon of one sample, or person.

    Args:
        steps: Of the training.
        delta: Failure probability.
        done: Of the steps, those that count; None for all of them.
    """
    if done == 0:
        return 0.0
    made = Mechanism(
        steps.noise_multiplier, steps.sampling_rate, done or max(steps.steps, 1)
    )
    return privacy(made, 1, delta).epsilon


def what_it_made(
    module: nn.Module, record: TrainingRecord, instead: str
) -> tuple[Scope, Outside]:
    """What a training has made, if all of it is private: its weights, and the rest.

    Args:
        module: With the weights that the training ended with.
        record: Of the training.
        instead: What to do about a training that was not.

    Raises:
        GuaranteeError: If it is not known to have been private to its end.
    """
    steps = record.private
    problem = record.drawn_problem if steps is None else steps.problem
    if steps is None or steps.done < 1 or problem or record.drawn_problem:
        got = problem or record.drawn_problem or "one without private steps"
        raise GuaranteeError(
            "expected a training that was private from its start to its end, got "
            f"{got}: {instead}"
        )
    named = dict(module.named_parameters())
    others = sorted({*record.trained} ^ {*steps.names})
    if others or not {*steps.names} <= {*named}:
        raise GuaranteeError(
            "expected every weight that was trained to have been trained privately, "
            f"got {', '.join(others[:3]) or 'another module'}: {instead}"
        )
    if record.weights_digest not in (None, state_digest(module.state_dict())):
        raise GuaranteeError(
            "expected the weights that the private training ended with, got others: "
            "something has changed them since; take a checkpoint of that training "
            "(ckpt_path=)"
        )
    scope = Scope(module, [named[name] for name in steps.names])
    scope.check_finite()
    outside = outside_of(module, scope, record)
    if outside.unscrubbed:
        raise GuaranteeError(
            "expected nothing but the weights to change in a private training, got "
            f"{', '.join(outside.unscrubbed[:3])}: what is computed of samples without "
            f"noise is not private; keep no statistics of them. {instead}"
        )
    return scope, outside
