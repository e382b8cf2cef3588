"""What the numbers show, in sentences whose every number is read from the results."""

from typing import Any

from means import LISSA, RESET, STEP, STEP_RESET, Numbers
from reading_runs import convex, sequence, sweeps

Found = dict[str, Any]


def findings(found: Found) -> list[str]:
    """As many as there are numbers for."""
    of, lines = Numbers(found), []
    for write in (
        _training, _step, _gradient, _again, _attack, _relearn, _time, _noise,
        _baselines, _reset, sequence, sweeps, convex,
    ):  # fmt: skip
        try:
            lines += [write(of, found)]
        except LookupError:
            continue
    return lines


def _training(of: Numbers, found: Found) -> str:
    test, epochs = of("original", "a", "test"), found["setting"]["epochs"]
    if test > 0.8:
        raise LookupError
    return (
        f"**These networks are barely trained**: F1 on test {test:.2f} after {epochs} "
        f"epochs on {found['setting']['n_train']:,} images. They memorise little, so "
        "there is little to forget: this shows that the method runs and what it costs, "
        "and reproduces none of the paper's results on CIFAR-10."
    )


def _step(of: Numbers, found: Found) -> str:
    old, new, aim = (of(n, "a", "forget") for n in ("original", STEP, "retrained"))
    again = of("retrained again", "a", "forget")
    closer = abs(new - aim) < abs(old - aim)
    moved = [
        s["rows"][STEP]["a"]["forget"] - s["rows"]["original"]["a"]["forget"]
        for s in of.seeds
        if STEP in s["rows"]
    ]
    retain, kept = of("original", "a", "retain"), of(STEP, "a", "retain")
    return (
        f"**One damped Newton step.** F1 on the forgotten: {old:.3f} before, {new:.3f} "
        f"after, {aim:.3f} retrained ({again:.3f} with another seed). The step moves "
        f"it by {min(moved):+.3f} to {max(moved):+.3f}, on average "
        + ("towards" if closer else "*away from*")
        + f" the retrained model's; on the retained it goes from {retain:.3f} to "
        f"{kept:.3f}: up on both, as training on would do."
        if kept > retain and new > old
        else f"**One damped Newton step hardly moves anything.** F1 on the forgotten: "
        f"{old:.3f} before, {new:.3f} after, {aim:.3f} retrained ({again:.3f} with "
        "another seed)."
    )


def _gradient(of: Numbers, found: Found) -> str:
    g, change = (of("original", "d", f"gradient_{k}") for k in ("norm", "change"))
    moved, to = of(STEP, "g", "to_original"), of("original", "g", "to_retrained")
    return (
        f"Why: the training ends with a gradient of norm {g:.3g}; deleting the "
        f"forgotten changes it by {change:.2g}, {change / g:.1%} of it. Nearly all of "
        f"the step finishes the training. It moves the weights by {moved:.2g} where "
        f"the retrained ones are {to:.3g} away, and leaves "
        f"{of(STEP, 'g', 'of_original'):.1%} of that distance."
    )


def _again(of: Numbers, found: Found) -> str:
    ratio = of("retrained again", "g", "of_original")
    return (
        "The distance to one retrained model is no measure of forgetting: a second "
        f"retraining, with another seed, lies {ratio:.2g} times as far from the first "
        "as the original does, which at least began at the same initial weights."
    )


def _attack(of: Numbers, found: Found) -> str:
    auc, gap = of("original", "b", "auc"), of("original", "b", "auc_gap")
    after, other = of(STEP, "b", "auc_gap"), of("retrained again", "b", "auc_gap")
    base = abs(other)
    if abs(gap) <= 2 * base + 0.01:
        verdict = (
            "the attack finds nothing in the original, so it cannot show that anything "
            "was forgotten"
        )
    else:
        verdict = "the original gives its members away"
        verdict += (
            ", and so does the model after the step"
            if abs(after) > max(0.5 * abs(gap), base)
            else ", the model after the step less so"
        )
    return (
        f"Membership by the loss: AUC {auc:.3f} of the original, {gap:+.3f} against "
        f"the retrained model, {after:+.3f} after the step, {other:+.3f} for the "
        f"second retraining: {verdict}."
    )


def _relearn(of: Numbers, found: Found) -> str:
    names = ("retrained", "retrained again", STEP)
    a, b, c = (of(n, "c", "steps") for n in names)
    if max(a, b) < 1:
        return (
            "Relearn time says nothing here: the retrained models' loss on the "
            "forgotten is the original's from the start."
        )
    return (
        f"Relearning takes {a:.1f} steps from the retrained model, {b:.1f} from the "
        f"second, {c:.1f} after the Newton step: "
        + ("nothing" if c < 0.5 else "something")
        + " was forgotten by this measure."
    )


def _time(of: Numbers, found: Found) -> str:
    step, again = (of(n, "d", "seconds") for n in (STEP, "retrained"))
    if step < again:
        line = f"The step is fast, {again / step:.0f} times faster than retraining"
    else:
        line = (
            f"**The step is slower than retraining**: {step:.1f} s against {again:.1f} "
            "s. On so few images and epochs retraining costs little, and the passes of "
            "a step run in full float32 where training convolves in TensorFloat-32"
        )
    if of.mean(LISSA, "d", "residual_of_gradient") is not None:
        line += (
            f"; LiSSA takes {of(LISSA, 'd', 'seconds'):.1f} s and leaves a residual of "
            f"{of(LISSA, 'd', 'residual_of_gradient'):.0%} of the gradient, where ours "
            f"leaves {of(STEP, 'd', 'residual_of_gradient'):.1%} at another damping"
        )
    return line + "." + (" That speed buys no forgetting here." if step < again else "")


def _noise(of: Numbers, found: Found) -> str:
    a, b = (of(f"step + noise {k} by hand", "a", "test") for k in ("0.001", "0.01"))
    full, std = (
        of("step, epsilon 1", "a", "test"),
        of("step, epsilon 1", "d", "noise_std"),
    )
    return (
        f"**Noise.** F1 on test is {of(STEP, 'a', 'test'):.3f} without, {a:.3f} and "
        f"{b:.3f} with the paper's 0.001 and 0.01, which prove nothing (grade none). "
        f"Epsilon = 1 asks for a noise of {std:.4g} on every weight, because no better "
        f"bound than 2C is true: F1 {full:.3f}, the model is gone. The certificate "
        "calls it vacuous."
    )


def _baselines(of: Numbers, found: Found) -> str:
    names = [n for n in ("fine-tuning", "gradient ascent", "NegGrad+",
                         "noisy fine-tuning, epsilon 1") if of.has(n)]  # fmt: skip
    if not names:
        raise LookupError
    each = [f"{n} {of.span(n, 'forget')} / {of.span(n, 'test')}" for n in names]
    aim = " / ".join(of.span("retrained", split) for split in ("forget", "test"))
    return (
        f"Baselines, F1 forgotten / test, lowest to highest: {'; '.join(each)}; "
        f"retrained {aim}. Their few settings are usual ones, not tuned for this "
        "comparison."
    )


def _reset(of: Numbers, found: Found) -> str:
    own, step, aim = (
        " / ".join(of.span(name, split) for split in ("forget", "test"))
        for name in (RESET, STEP_RESET, "retrained")
    )
    if not of.has(RESET, STEP_RESET):
        raise LookupError
    return (
        '**A certified reset, then retraining.** "noisy fine-tuning, epsilon 1" leaves '
        "out what its authors do once epsilon is reached: train on without noise, on "
        "the retained alone, which is post-processing and keeps epsilon. With as many "
        f"epochs of that as retraining has, F1 forgotten / test is {own}; after our "
        f'"step, epsilon 1" likewise {step}; retrained {aim}. The work is that of '
        "retraining."
    )
