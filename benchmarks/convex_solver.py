"""A convex head to tolerance 1e-6: plain against preconditioned Newton-CG.

    LIGHTNING_UNLEARN_DATA=folder python benchmarks/convex_solver.py

MNIST pixels, 7,850 weights, l2 = 1e-3, 1,000 of 60,000 forgotten, one thread, rounds
interleaved. "warm" starts from the head trained on all samples, as a request does;
"cold" from zero, as retraining does. A pass is one sweep over the retained rows.
"""

import os
import platform
import statistics
import sys
import time
from datetime import date
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
from mnist_mlp import mnist

from lightning_unlearn import ConvexHead
from lightning_unlearn.convex import ConvexObjective
from lightning_unlearn.features import FeatureData
from lightning_unlearn.minimise import minimise
from lightning_unlearn.newton import Step
from lightning_unlearn.solvers import CG

ROUNDS = 3


class AsTightAsNeeded:
    """Plain CG with the inner tolerances the default solver gets."""

    def __init__(self, tolerance):
        self.tolerance = tolerance

    def solve(self, A, b):
        norm = float(b.norm())
        rtol = max(min(0.1, norm**0.5), 0.2 * self.tolerance / norm)
        return CG(rtol=rtol).solve(A, b)


def timed(objective, start, solver) -> tuple[float, Step]:
    begin = time.perf_counter()
    step = minimise(objective, start, tolerance=1e-6, solver=solver)
    return time.perf_counter() - begin, step


def main():
    torch.set_num_threads(1)
    X, y = mnist("train").tensors
    head = ConvexHead(784, 10)
    zero = torch.zeros(7850, dtype=torch.float64)
    trained = minimise(
        ConvexObjective(head, FeatureData(X, y), 1e-3), zero, tolerance=1e-6
    ).weights
    retained = FeatureData(X[1000:], y[1000:])
    ways = {
        ("warm", "plain CG"): (trained, AsTightAsNeeded(1e-6)),
        ("warm", "preconditioned"): (trained, None),
        ("cold", "plain CG"): (zero, AsTightAsNeeded(1e-6)),
        ("cold", "preconditioned"): (zero, None),
    }
    seconds = {way: [] for way in ways}
    passes = {}
    for _ in range(ROUNDS):
        for way, (start, solver) in ways.items():
            objective = ConvexObjective(head, retained, 1e-3)
            taken, step = timed(objective, start, solver)
            seconds[way].append(taken)
            passes[way] = (step.solution.matvecs, step.solution.steps)
    base = statistics.median(seconds["cold", "plain CG"])
    print(
        f"{date.today()}, torch {torch.__version__}, {platform.machine()}, "
        f"{os.cpu_count()} cores, 1 thread, {ROUNDS} rounds\n\n"
        "| start | inner solver | passes | Newton steps | seconds, median (range) | "
        "times faster than cold plain CG |\n|---|---|---|---|---|---|"
    )
    for way, taken in seconds.items():
        middle = statistics.median(taken)
        print(
            f"| {way[0]} | {way[1]} | {passes[way][0]:.0f} | {passes[way][1]} | "
            f"{middle:.1f} ({min(taken):.1f} to {max(taken):.1f}) | "
            f"{base / middle:.1f} |"
        )


if __name__ == "__main__":
    main()
