"""What differs from the paper."""

from settings import Setting


def deviations(s: Setting, missing: list[str]) -> list[str]:
    """From the paper, as far as its settings are known.

    Args:
        s: What was run.
        missing: Rows that are not there for every seed.
    """
    lines = [
        f"{s.epochs} epochs (the paper: 50), {s.n_train:,} training, {s.n_test:,} test "
        f"and {s.n_forget:,} forgotten images; C = {s.max_norm:g}, enforced after "
        "every step of all trainings.",
        "Damping of our step: "
        + (
            "twice the negative curvature found"
            if s.damping is None
            else f"{s.damping:g}"
        )
        + "; the regulariser is (l2/2)|w|^2, the paper's code has unsquared norms.",
        f"LiSSA: runs x steps of batch 10: {s.lissa[0]} x {s.lissa[1]:,} (the paper: "
        "10 x 1,000), scale 1,000, damping 0.01.",
    ]
    if s.data == "cifar10":
        lines += [
            "What fits into a few minutes of one GPU, no more: few images, few epochs, "
            "high damping, a short LiSSA, and parts a, b, c, d, g only. The three "
            "seeds shared the GPU, so seconds compare only within this page.",
            "GroupNorm in place of BatchNorm, whose running statistics remember the "
            "forgotten images outside every bound; no dropout. C is larger than the "
            "paper's because these weights begin outside a ball of 20.",
            "The noise of 0.001 and 0.01 was added to the weights of the one step; "
            "epsilon = 1 is a request with damping 2,000: nothing of the step is "
            "visible under that noise.",
        ]
        if s.model == "resnet18":
            lines.append("SVHN could not be had: ResNet-18 is run on CIFAR-10 instead.")
    else:
        lines.append(
            "Seconds are of one thread on a machine of two cores that other work "
            "shared."
        )
    if missing:
        lines.append(f"Not run here, or not with every seed: {'; '.join(missing)}.")
    lines.append(
        "Not measured: attacks and scores over populations of models (U-LiRA, KLOM, "
        "forgetting quality); three seeds with three forget sets are no population."
    )
    return lines
