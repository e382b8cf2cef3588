"""The table, the page and the figure of what was measured."""

import math
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from common import table

JOBS = {
    "images": "images",
    "texts": "texts",
    "people": "table",
    "made people": "table, made",
}
WAYS = {
    "certified": "certified head",
    "network": "whole network, retrained exactly",
    "perceptron": "perceptron, retrained exactly",
    "trees": "gradient-boosted trees, fitted again",
    "refit": "scikit-learn on the head's features, fitted again",
    "private": "private training of a linear layer",
}
#: Without a certificate, or whole networks: the best of them is what to compare with.
UNCERTIFIED = ("network", "perceptron", "trees", "refit")
COLOURS = dict(
    zip(WAYS, ("#4477aa", "#222222", "#999999", "#228833", "#ccbb44", "#ee6677"),
        strict=True)
)  # fmt: skip
AIM = 1.0  # point
#: Where else a certified head of a job was measured, said if none was here.
ELSEWHERE = {
    "texts": "[texts](texts.md) has 93.5% of the same features and default l2 with "
    "109 questions forgotten, [a stream](stream.md) 93.77% after ten requests: other "
    "runs, so no difference is stated here"
}


def runs(known, job: str, way: str, key: str = "accuracy") -> dict[str, float]:
    """Run -> what was measured of it."""
    found = {}
    for name, cell in known.items():
        own, kind, run = name.split(" | ")
        if (own, kind) == (job, way) and key in cell:
            found[run] = cell[key]
    return found


def spread(values, digits: int = 1) -> str:
    """Mean and standard deviation over runs."""
    values = list(values)
    mean = f"{statistics.mean(values):.{digits}f}"
    if len(values) < 2:
        return mean
    return f"{mean} ± {statistics.stdev(values):.{digits}f}"


def begun(known) -> list[str]:
    """The jobs of which something to hold a certified head to was measured."""
    return [job for job in JOBS if any(runs(known, job, w) for w in UNCERTIFIED)]


def done(known) -> list[str]:
    """Those with a certified head too."""
    return [job for job in begun(known) if runs(known, job, "certified")]


def best(known, job: str) -> str:
    """The uncertified way that the certified head is least ahead of."""
    ways = [w for w in UNCERTIFIED if runs(known, job, w)]
    if job not in done(known):
        return max(ways, key=lambda w: statistics.mean(runs(known, job, w).values()))
    return min(ways, key=lambda w: less(known, job, "certified", w)[0])


def missing(known) -> str:
    """Ways of a job that no run of was ended."""
    both = "certified", "refit", "private"
    planned = {
        "images": (*both, "network"), "texts": (*both, "network"),
        "people": (*both, "perceptron", "trees"),
        "made people": (*both, "perceptron", "trees"),
    }  # fmt: skip
    found = [
        f"* {JOBS[job]}: {WAYS[way]}: no run was ended."
        for job in begun(known) for way in planned[job] if not runs(known, job, way)
    ]  # fmt: skip
    return "\n".join(found)


def less(known, job: str, way: str, other: str) -> tuple[float, float | None]:
    """Mean difference of accuracies on the runs of both, and its standard error."""
    one, two = runs(known, job, way), runs(known, job, other)
    both = [one[r] - two[r] for r in one if r in two]
    error = statistics.stdev(both) / math.sqrt(len(both)) if len(both) > 1 else None
    return statistics.mean(both), error


def signed(difference: tuple[float, float | None]) -> str:
    value, error = round(difference[0], 1) + 0.0, difference[1]
    return f"{value:+.1f}" + ("" if error is None else f" ± {error:.1f}")


def seconds(values) -> str:
    middle = statistics.median(values)
    return f"{middle:.2f}" if middle < 10 else f"{middle:.0f}"


def audit(known, job: str, way: str) -> str:
    """The largest lower bound of epsilon that the library's audit found, or nothing."""
    for name, cell in known.items():
        if name.startswith(f"{job} | audit {way} |"):
            found = max(cell["one_run"], cell.get("two_sample", 0.0))
            return f"{found:.2g}"
    return ""


def row(known, job: str, way: str) -> list[str]:
    found = runs(known, job, way)
    last = next(c for n, c in known.items() if n.startswith(f"{job} | {way} |"))
    claimed, other = "grade" in last, best(known, job)
    return [
        JOBS[job], WAYS[way], spread(found.values()), str(len(found)),
        "the best" if way == other else signed(less(known, job, way, other)),
        seconds(runs(known, job, way, "seconds").values()),
        f"{max(runs(known, job, way, 'epsilon').values()):.3g}" if claimed else "-",
        f"{last['delta']:.0g}" if claimed else "-",
        last["grade"] if claimed else "no certificate", audit(known, job, way),
    ]  # fmt: skip


def first_table(known) -> str:
    """One row a job and way: what README quotes."""
    head = ["job", "way", "test accuracy, %", "runs", "less best uncertified",
            "a deletion, CPU s", "epsilon", "delta", "grade",
            "audit: epsilon at least"]  # fmt: skip
    rows = [row(known, job, way) for job in begun(known) for way in WAYS
            if runs(known, job, way)]  # fmt: skip
    return table(head, rows)


def aims(known) -> str:
    """Whether the certified head is within a point of the best uncertified way."""
    lines = []
    for job in begun(known):
        title, other = JOBS[job], best(known, job)
        if job not in done(known):
            where = ELSEWHERE.get(job, "nor elsewhere")
            lines.append(f"* {title}: **not shown**: no certified run was ended; "
                         f"{where}.")  # fmt: skip
            continue
        found = less(known, job, "certified", other)
        held = "within a point" if found[0] >= -AIM else "**missed**"
        lines.append(
            f"* {title}: {held}: {signed(found)} points beside the best uncertified "
            f"way ({WAYS[other]})."
        )
    return "\n".join(lines)


def audits(known) -> str:
    lines = []
    for name, cell in known.items():
        job, kind, _ = name.split(" | ")
        if kind == "audit not unlearned":
            found = ", ".join(
                f"the {way} {one['one_run']:.2g} (all guesses right would show "
                f"{one['ceiling']:.2g})"
                for way, one in cell.items()
            )
            lines.append(f"* {JOBS[job]}, released as trained, nothing forgotten, "
                         f"lower bound of epsilon: {found}.")  # fmt: skip
        if kind == "audit certified":
            lines.append(
                f"* {JOBS[job]}, certified: {cell['one_run']:.2g} by guessing, "
                f"{cell['two_sample']:.2g} by 1,000 draws of the noise at both points "
                f"(all guesses right would show {cell['ceiling']:.2g}); true mu before "
                f"the noise {cell['true_mu']:.2g}, certified "
                f"{cell['certified_mu']:.2g}."
            )
        if kind == "audit private":
            lines.append(
                f"* {JOBS[job]}, private training: {cell['one_run']:.2g} by guessing "
                f"(all guesses right would show {cell['ceiling']:.2g}). The canaries "
                "that were in are a group, whose epsilon is far above that of one."
            )
    return "\n".join(lines)


def chosen(known) -> str:
    lines = []
    for name, cell in known.items():
        job, kind, run = name.split(" | ")
        where = f"* {JOBS[job]}, run {run}: "
        if kind == "choice" and "l2" in cell:
            features = cell.get("head", cell.get("features"))
            lines.append(f"{where}{features}, l2 = {cell['l2']:g}.")
        if kind.endswith("choice") and "private" in cell:
            lr, epochs, batch, clip = cell["private"]
            features = cell["features"] if job in ("images", "texts") else "identity"
            lines.append(
                f"{where}private training: {features}, lr {lr:g}, {epochs} epochs, "
                f"batches of {batch} expected, clip {clip:g}."
            )
    return "\n".join(lines)


def figure(known, path: Path) -> None:
    """Accuracy against the seconds of a deletion, a panel a job."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    shown = begun(known)
    drawn, axes = plt.subplots(
        1, len(shown), figsize=(3.4 * len(shown), 3.8), squeeze=False
    )
    for axis, job in zip(axes[0], shown, strict=True):
        for way, colour in COLOURS.items():
            values = list(runs(known, job, way).values())
            if not values:
                continue
            at = statistics.median(runs(known, job, way, "seconds").values())
            error = statistics.stdev(values) if len(values) > 1 else 0.0
            axis.errorbar([at], [statistics.mean(values)], [error], fmt="o",
                          color=colour, capsize=3, label=WAYS[way])  # fmt: skip
        axis.set(xscale="log", xlabel="a deletion, CPU seconds", title=JOBS[job])
        axis.margins(x=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("test accuracy, %")
    names = dict[str, object]()
    for axis in axes[0]:
        handles, labels = axis.get_legend_handles_labels()
        names |= dict(zip(labels, handles, strict=True))
    drawn.legend(names.values(), names.keys(), loc="lower center", ncols=2, fontsize=8,
                 frameon=False)  # fmt: skip
    drawn.tight_layout(rect=(0, 0.18, 1, 1))
    drawn.savefig(path, dpi=110)
    plt.close(drawn)


NOTES = """\
A deletion forgets one person: one image, one question, one row of a table. Accuracy is
that of the model after it, mean ± standard deviation over runs; differences are means
over the runs that both ways have, ± standard error. Seconds are CPU seconds of one
thread, the median over runs: others were at work on the machine (a load of 4 to 35 on
two cores), which makes CPU seconds longer too: compare them roughly. Less best
uncertified: beside the whole network, trees or scikit-learn, whichever the certified
head is least ahead of.

* **images**: 20 classes of CIFAR-100, 2,000 training and 400 test images; a run is
  another group of classes. The head: five blocks of a ResNet-20 of CIFAR-10, ten views
  of each image; forgetting an image forgets its ten rows. The whole network: 12 epochs
  from the same public weights, flips and shifts, bfloat16; `benchmarks/public` has 20
  epochs of it in float32, on fewer images. The audit and the private
  training are of a head on one view of each image; the least of the learning rates
  that were tried was the best for it, so a smaller one may be better.
* **texts**: Banking77, 10,003 questions, 77 intents, 3,080 for the test;
  all-MiniLM-L6-v2. A run forgets another question; the test is the same, so the spread
  is that of noise and person alone. scikit-learn and private training read the same
  rows. The whole network: mean of tokens, 5 epochs of AdamW, bfloat16, its
  learning rate not tuned; one run.
* **table**: scikit-learn's breast cancer data, 569 people, 30 columns. These are the
  people with classes that it bundles; `load_diabetes` is a regression of 442. A
  run is another split: 70% train, 5% known without their class (for the scale of
  columns; trees and perceptron train on them too), 25% test.
* **table, made**: 8,000 by `make_classification`, 20 columns: 8 with four clusters a
  class, 4 mixtures of these, 8 with nothing. The bundled table is small and nearly
  linear; this one is neither. One run.

Certified: epsilon and delta as in the table, tolerance "auto", rows kept in a store
(`prepared=`), so a request reads few samples anew. Whole networks and perceptron:
`how="retrain"`; an epsilon of 0 because nothing is kept. Their accuracy before the
request is that of the same training with the person in it, which was not measured
again. scikit-learn: its solve alone, on rows in memory, with its own stopping rule; it
says and proves nothing about a deletion. Private training: by
`PrivateTraining`, epsilon 1 of one person over the whole training; a request moves no
weight, and its seconds are the accountant's. As many requests as its capacity are
possible (of these: 1, or few); after that it is trained again.

Features, l2 and settings were chosen on a split of training data, never on test
samples (images: on a group of classes that is not measured, those of the head by
`benchmarks/public`). Such a choice remembers its samples a little, which no row counts.

An audit puts canaries with wrong labels in by coins, and guesses which were in. An
empty cell was not measured: whole networks take two trainings for a run, and a model
that is fitted again without somebody has nothing to guess.
"""


def publish_all(known, results: Path) -> None:
    """Write jobs.md and jobs.png beside jobs.json."""
    if not done(known):
        return
    machines = sorted({c["machine"] for c in known.values() if "machine" in c})
    figure(known, results / "jobs.png")
    parts = [
        "# Three real jobs, measured the same way", *machines, first_table(known),
        "![accuracy against the seconds of a deletion](jobs.png)",
        "## Within one point?", aims(known), missing(known),
        "## What was measured", NOTES.strip(),
        "## Audits", audits(known), "## What was chosen", chosen(known),
    ]  # fmt: skip
    text = "\n\n".join(part for part in parts if part)
    (results / "jobs.md").write_text(text + "\n")
    print(text, flush=True)
