"""The tables of results/shards.md."""

import statistics
from operator import itemgetter

from common import publish, table

TITLES = {
    "images": "Images: 20 classes of CIFAR-100, the last stage of a ResNet-20 of "
    "CIFAR-10",
    "texts": "Texts: Banking77, a network from random weights",
}
HEAD = ["", "test, %", "less the whole network", "train, %", "deletion, s",
        "of a whole retraining"]  # fmt: skip


def _mean(values, digits=1):
    """Mean and range."""
    middle = f"{statistics.mean(values):.{digits}f}"
    if len(values) < 2:
        return middle
    return f"{middle} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def _row(name, cells, whole, test, train, seconds):
    """A line; `test` and so on are functions of a cell, seeds are paired."""
    ratio = [seconds(c) / whole[s]["deletion"] for s, c in cells.items()]
    return [
        name,
        _mean([test(c) for c in cells.values()]),
        _mean([test(c) - whole[s]["test"] for s, c in cells.items()]),
        _mean([train(c) for c in cells.values()]),
        _mean([seconds(c) for c in cells.values()]),
        _mean(ratio, 2),
    ]


def _best(cells):
    """Position of the l2 that has the highest mean accuracy."""
    n = len(next(iter(cells.values()))["heads"])
    return max(
        range(n),
        key=lambda i: statistics.mean(c["heads"][i]["test"] for c in cells.values()),
    )


def _table(known):
    """All rows of a task."""
    groups = dict[str, dict[str, dict]]()
    for key, cell in known.items():
        name, seed = key.split(" | ")
        groups.setdefault(name, {})[seed] = cell
    whole = groups["1"]
    groups = {k: {s: c for s, c in g.items() if s in whole} for k, g in groups.items()}
    rows, grades = [], set()

    def head_row(name, cells, seconds):
        at = _best(cells)
        grades.update(h["grade"] for c in cells.values() for h in c["heads"])
        l2 = next(iter(cells.values()))["heads"][at]["l2"]
        rows.append(_row(f"{name} (l2 {l2:g})", cells, whole,
                         lambda c: c["heads"][at]["test"],
                         lambda c: c["heads"][at]["train"],
                         lambda c: seconds(c, c["heads"][at])))  # fmt: skip

    for name, cells in groups.items():
        if not name.isdigit():
            head_row(f"certified head, public features: {name}", cells,
                     lambda c, h: h["request"])  # fmt: skip
    for name, cells in groups.items():
        if name.isdigit():
            title = "whole network, S = 1" if name == "1" else f"ensemble, S = {name}"
            own = [itemgetter(key) for key in ("test", "train", "deletion")]
            rows.append(_row(title, cells, whole, *own))
    for name, cells in groups.items():
        if name.isdigit():
            head_row(f"certified head, features of S = {name}", cells,
                     lambda c, h: c["deletion"] + c["read"] + h["solve"])  # fmt: skip
    alone = "; ".join(
        f"S = {name}: {_mean([c['single'] for c in cells.values()])}"
        for name, cells in groups.items()
        if name.isdigit() and name != "1"
    )
    seeds = ", ".join(whole)
    return (
        f"Groups or seeds {seeds}. One network of the ensemble alone, test %: {alone}. "
        f"Grade of the heads: {', '.join(sorted(grades))}.\n\n{table(HEAD, rows)}"
    )


def publish_all(known):
    """Write results/shards.md from what was measured."""
    publish(
        "shards",
        "Shards: an ensemble, and a certified head on the features of shards",
        "Command: `python benchmarks/shards/run.py TASK`, then `--draw`. Mean (range). "
        "Persons are made by a keyed hash, some five samples each; all of one lie in "
        "one shard. Seconds are CPU time of one thread, for other processes were at "
        "work. A deletion of one person retrains one shard; for a head on features of "
        "shards all samples are then read through it again (images from the second "
        "stage, which is kept), and the head is solved anew; a head on public features "
        "is a request alone. The whole network's deletion is its training, with five "
        "samples more. Epsilon = 1, delta = 1e-5 and the library's own tolerance for "
        "heads; their l2 is the best on the test samples of those tried (images 1e-3, "
        "3e-3, 1e-2, of the ten views 3e-3 alone; texts 1e-3 alone). How networks are "
        "trained was chosen on another group, and on 2,003 training questions. A head "
        "on features of shards reads one view of an image, not ten. 400 test images a "
        "group: one accuracy has a standard error of 2 points.",
        "The ensemble of four keeps within 3 points of the whole network on texts (on "
        "images it loses 4.6), for a quarter of a retraining. A head on features of "
        "shards is better than the ensemble on average; but the best head on public "
        "features is better than both on either task, and its deletion trains nothing. "
        "So the ensemble is offered (`ShardedClassifier`), a head on shards' features "
        "is not.",
        *(f"## {TITLES[name]}\n\n{_table(part)}" for name, part in known.items()),
    )
