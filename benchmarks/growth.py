"""How a request grows with the samples, the weights and the forget set.

    LIGHTNING_UNLEARN_DATA=folder python benchmarks/growth.py

Seconds and added peak memory of ``trainer.unlearn`` (bare Newton step of an MLP, and a
convex head) on MNIST, one thread, each request in a process of its own; the fitted
exponent is the slope of log seconds over the logarithm of what grows.
"""

import json
import math
import subprocess
import sys

import torch
from common import MLP, Head, bars, fitted, mnist, publish, spread, table
from preflight import Peak
from torch import nn
from torch.utils.data import Subset

REPEATS = 2
MIB = 2**20


def wide(hidden):
    """The MLP with other widths."""
    net = MLP()
    net.net = nn.Sequential(
        nn.Linear(784, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(),
        nn.Linear(hidden, 10),
    )  # fmt: skip
    return net


def run(kind, n, hidden, n_forget):
    """Train for one epoch, then take one request; prints seconds, MiB, weights."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = Head(784, 10) if kind == "head" else wide(hidden)
    options = {} if kind == "head" else {"noise_std": 0.0}
    dataset = Subset(mnist("train"), range(n))
    _, trainer, _ = fitted(net, dataset, 1, **options)
    forget = torch.randperm(n)[:n_forget].tolist()
    peak = Peak()
    peak.start()
    result = trainer.unlearn(forget)
    peak.done.set()
    print(json.dumps([result.seconds, peak.grown / MIB, result.certificate.n_parameters,
                      result.solution.matvecs]))  # fmt: skip


SWEEPS = {
    "samples, MLP of 26,506 weights": [
        ("mlp", n, 32, n // 60) for n in (7_500, 15_000, 30_000, 60_000)
    ],
    "samples, convex head of 7,850 weights": [
        ("head", n, 0, n // 60) for n in (7_500, 15_000, 30_000, 60_000)
    ],
    "weights, MLP on 2,000 samples": [
        ("mlp", 2_000, h, 100) for h in (12, 128, 700, 2_800)
    ],
    "forgotten samples, MLP of 26,506 weights on 30,000": [
        ("mlp", 30_000, 32, k) for k in (1, 100, 1_000, 15_000)
    ],
    "forgotten samples, convex head on 30,000": [
        ("head", 30_000, 0, k) for k in (1, 100, 1_000, 15_000)
    ],
}


def measured(case):
    found = []
    for _ in range(REPEATS):
        out = subprocess.run(
            [sys.executable, __file__, *map(str, case)], check=True,
            capture_output=True, text=True,
        ).stdout  # fmt: skip
        found.append(json.loads(out.splitlines()[-1]))
        print(case, found[-1], file=sys.stderr, flush=True)
    return found


def exponent(sizes, seconds):
    """Least-squares slope of log seconds over log sizes."""
    x, y = [math.log(s) for s in sizes], [math.log(t) for t in seconds]
    mx, my = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True)) / sum(
        (a - mx) ** 2 for a in x
    )


def main():
    parts, panels = [], {}
    for title, cases in SWEEPS.items():
        rows, sizes, middles, taken = [], [], [], {}
        for case in cases:
            found = measured(case)
            seconds, mib, weights, passes = (
                sorted(v) for v in zip(*found, strict=True)
            )
            grows = title.split(",")[0]
            size = {"samples": case[1], "weights": weights[0]}.get(grows, case[3])
            sizes.append(size)
            middles.append(seconds[len(seconds) // 2])
            taken[f"{size:,} {grows}"] = seconds
            rows.append(
                [f"{size:,}", f"{passes[1]:.1f}", spread(seconds), spread(mib, 0)]
            )
        slope = exponent(sizes, middles)
        head = [title.split(",")[0], "passes", "seconds, median (range)", "MiB added"]
        parts += [f"## {title}: exponent {slope:.2f}", table(head, rows)]
        panels[title] = taken
    picture = bars("growth", panels, "seconds")
    publish("growth", "How a request grows", *parts, picture)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        kind, *numbers = sys.argv[1:]
        run(kind, *map(int, numbers))
    else:
        main()
