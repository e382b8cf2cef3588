"""The tables and the figure of public-backbone."""

import math
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from common import RESULTS, publish, spread, table

COLOURS = {
    "several depths": "#4477aa",
    "last layer": "#ee6677",
    "several depths, 100 releases": "#66ccee",
    "five blocks, ten views of each image": "#228833",
}


def _cells(known, net, wanted, key):
    """Group -> values of a kind of cell, one for each seed if it has seeds."""
    found = {}
    for name, cell in known.items():
        own, group, rest = name.split(" | ", 2)
        if own == net and rest.split(" | seed")[0] == wanted and key in cell:
            found.setdefault(group, []).append(cell[key])
    return found


def _mean(groups):
    """Mean over groups of means over seeds, and its standard error over groups."""
    means = [statistics.mean(values) for values in groups.values()]
    if len(means) < 2:
        return f"{means[0]:.1f}" if means else "-"
    error = statistics.stdev(means) / math.sqrt(len(means))
    return f"{statistics.mean(means):.1f} +- {error:.1f}"


def _differences(one, other):
    """Group by group, one less the other."""
    return {
        g: [statistics.mean(one[g]) - statistics.mean(other[g])]
        for g in one
        if g in other
    }


def _accuracies(known, net, kinds):
    rows = []
    tuned = _cells(known, net, "fine-tuning | True", "accuracy")
    plain = _cells(known, net, "fine-tuning | False", "accuracy")
    for kind in kinds:
        found = {
            key: _cells(known, net, kind, key)
            for key in ("weights", "retrained", "certified", "logit_noise")
        }
        if not found["certified"]:
            continue
        certified = found["certified"]
        rows.append([
            kind, f"{next(iter(found['weights'].values()))[0]:,}",
            _mean(found["retrained"]), _mean(certified),
            _mean(_differences(certified, found["retrained"])),
            _mean(_differences(certified, plain)),
            _mean(_differences(certified, tuned)),
            f"{next(iter(found['logit_noise'].values()))[0]:.2g}",
        ])  # fmt: skip
    for name, groups in (("no augmentation", plain), ("flips and shifts", tuned)):
        if groups:
            rows.append([f"whole network fine-tuned, {name}", "", _mean(groups),
                         *["-"] * 5])  # fmt: skip
    head = ["", "weights", "not noised, %", "certified, %", "certified less not noised",
            "less fine-tuning", "less augmented", "logit noise"]  # fmt: skip
    return table(head, rows)


def _distances(known):
    rows = []
    for kind in COLOURS:
        true = _cells(known, "resnet", f"curve | {kind}", "true_distance")
        most = _cells(known, "resnet", f"curve | {kind}", "certified_distance")
        moved = _cells(known, "resnet", f"curve | {kind}", "moved")
        if true:
            ratio = max(true[g][0] / most[g][0] for g in true)
            rows.append([
                kind, f"{max(v[0] for v in true.values()):.2g}",
                f"{min(v[0] for v in most.values()):.2g}", f"{ratio:.2f}",
                f"{min(v[0] for v in moved.values()):.3g}", len(true),
            ])  # fmt: skip
    return table(
        [
            "",
            "true, largest",
            "certified",
            "largest ratio",
            "norm of weights",
            "groups",
        ],
        rows,
    )


def _times(known):
    cell = known.get("resnet | 1 | timing")
    if cell is None:
        return ""
    middle = {name: statistics.median(values) for name, values in cell.items()}
    networks = "fine-tuning", "augmented"
    rows = [
        [
            name if name in networks else f"certified {name}",
            spread(values),
            *(f"{middle[n] / middle[name]:.1f}" for n in networks),
        ]
        for name, values in cell.items()
    ]
    return table(["", "s, median (range)", "quicker than fine-tuning, times",
                  "than augmented"], rows)  # fmt: skip


def _audits(known):
    cell = known.get("resnet | 1 | audit")
    if cell is None:
        return ""
    rows = [
        ["canaries, one run", *_range(cell, "one_run")],
        ["both worlds' models", *_range(cell, "two_sample")],
        ["not unlearned: canaries, one run", f"{cell['trained']:.1f}", "", "-"],
    ]
    mu = max(a["true_mu"] for a in cell["audits"])
    return (
        table(["audit", "lower bound of epsilon, largest", "least", "below 1"], rows)
        + f"\n\nTrue mu of the points before the noise: at most {mu:.3f}, certified "
        f"{cell['audits'][0]['certified_mu']:.3f}."
    )


def _noisy(known):
    cell = known.get("resnet | 1 | noisy", {})
    found = ", ".join(
        f"the weights overflowed at epsilon {e}" if v is None else f"{v:.1f}% at {e}"
        for e, v in cell.items()
    )
    return (
        "The whole network by noisy fine-tuning (Koloskova et al., 2025, 20 steps, not "
        f"tuned; group 1): {found}. Chance is 5%. {_reset(known)}"
    )


def _reset(known):
    cell = known.get("resnet | 1 | reset")
    if cell is None:
        return (
            "This leaves out the fine-tuning without noise that its authors do "
            "afterwards, which keeps epsilon: `run.py --only 'resnet | 1 | reset'`."
        )
    return (
        "Its authors then train on without noise, on what is left, which keeps epsilon "
        "(post-processing): a certified reset, then retraining. At epsilon 1, from a "
        "ball so small that the noisy weights have the size of a new network's, and "
        f"with 20 epochs of Adam, that gives {cell['accuracy']:.1f}%; the same epochs "
        f"from a new network {cell['from_new']:.1f}% (one run each, by `run.py "
        f"--only 'resnet | 1 | reset'`; {cell['machine']})."
        " The noise has reset the public weights too. Fine-tuning them again on what "
        "is left keeps them and needs no epsilon: the last two rows above."
    )


def _range(cell, key):
    found = [a[key] for a in cell["audits"]]
    below = sum(v < 1 for v in found)
    return [f"{max(found):.2f}", f"{min(found):.2f}", f"{below} of {len(found)}"]


def _figure(known):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(8, 5))
    for kind, colour in COLOURS.items():
        cells = _cells(known, "resnet", f"curve | {kind}", "curve")
        curves = [curve for values in cells.values() for curve in values]
        if not curves:
            continue
        at = [float(e) for e in curves[0]]
        means = [statistics.mean(c[e] for c in curves) for e in curves[0]]
        axis.plot(at, means, "o-", color=colour, label=f"{kind}, certified")
    lines = {
        "several depths, retrained (no noise)": ("several depths", "retrained",
                                                 "#4477aa"),
        "whole network fine-tuned, augmented": ("fine-tuning | True", "accuracy",
                                                "#222222"),
        "whole network fine-tuned": ("fine-tuning | False", "accuracy", "#999999"),
    }  # fmt: skip
    for label, (middle, key, colour) in lines.items():
        cells = _cells(known, "resnet", middle, key)
        if cells:
            mean = statistics.mean(statistics.mean(v) for v in cells.values())
            axis.axhline(mean, color=colour, linestyle="--", linewidth=1, label=label)
    noisy = known.get("resnet | 1 | noisy", {})
    shown = {float(e): v for e, v in noisy.items() if v is not None}
    if shown:
        label = "whole network, noisy fine-tuning (group 1)"
        axis.plot(list(shown), list(shown.values()), "s", color="#ccbb44", label=label)
    axis.axhline(5, color="#dddddd", linewidth=1)
    axis.annotate("chance", (0.003, 5.6), color="#999999", fontsize=8)
    axis.set(xscale="log", xlabel="epsilon (delta = 1e-5)",
             ylabel="test accuracy, %", ylim=(0, None))  # fmt: skip
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.tight_layout()
    figure.savefig(RESULTS / "public-backbone.png", dpi=110)
    plt.close(figure)
    return "![test accuracy against epsilon](public-backbone.png)"


def publish_all(known):
    """Write results/public-backbone.md and .png from what was measured."""
    kinds = [
        *COLOURS, "several depths, ten views of each image", "five blocks, 3 x 3 grid",
        "several depths, squared error",
    ]  # fmt: skip
    publish(
        "public-backbone",
        "A convex head on several depths of a public network",
        "Mean +- standard error over four groups of 20 classes of CIFAR-100 (three "
        "seeds each for the heads, one for whole networks); 2,000 training images, of "
        "which 500 are forgotten; 400 test images a group. Epsilon = 1, delta = 1e-5; "
        "tolerance 1e-6, for 100 releases and squared error 1e-8.",
        "## ResNet-20 of CIFAR-10",
        _accuracies(known, "resnet", kinds),
        _figure(known),
        _noisy(known),
        "## Distance to a model retrained by scipy, before the noise",
        _distances(known),
        "## Seconds",
        _times(known),
        "## Audit, group 1",
        _audits(known),
        "## A plain CNN of CIFAR-10",
        _accuracies(known, "cnn", kinds),
    )
