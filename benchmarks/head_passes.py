"""Passes over the rows that a solve of a convex head takes, from where it starts.

    LIGHTNING_UNLEARN_DATA=folder python benchmarks/head_passes.py [CASE ...]

mnist: 7,850 weights on 60,000 images' pixels. cifar100: 6,500 on 64 features of 50,000
images. large: 153,800 on 100,000 synthetic rows of 768 features with 200 classes. l2
1e-3, tolerance 1e-6, float32 rows, one thread, no stored factor. "k forgotten" starts
at the optimum of all rows, whose gradient without k of them is known. Passes are those
the solve counts, and torch's count of multiplications in matrix products, by those of
a pass. To compare with another version, run this file with it in PYTHONPATH.
"""

import sys
import time

import torch
from common import cifar100_features, mnist, publish, spread, table
from torch.utils.flop_counter import FlopCounterMode

from lightning_unlearn.step.head.convex_head import ConvexHead
from lightning_unlearn.step.head.convex_objective import ConvexObjective
from lightning_unlearn.step.head.minimise import minimise
from lightning_unlearn.step.head.rows.feature_data import FeatureData
from lightning_unlearn.step.step import retained_gradient

L2, TOLERANCE, ROUNDS = 1e-3, 1e-6, 3


def large(n=100_000, d=768, K=200):
    """Means of classes and noise of a falling spectrum; one label in 20 is false."""
    generator = torch.Generator().manual_seed(0)
    spectrum = torch.arange(1, d + 1).float().pow(-0.4)
    spectrum *= d**0.5 / spectrum.norm()
    turn = torch.linalg.qr(torch.randn(d, d, generator=generator))[0]
    means = torch.randn(K, d, generator=generator) * spectrum * 0.35
    y, X = torch.randint(K, (n,), generator=generator), torch.empty(n, d)
    for rows in torch.arange(n).split(10_000):
        noise = torch.randn(len(rows), d, generator=generator) * spectrum
        X[rows] = (means[y[rows]] + noise) @ turn.T
    X *= 10 / X.norm(dim=1).mean()
    false = torch.rand(n, generator=generator) < 0.05
    y[false] = torch.randint(K, (int(false.sum()),), generator=generator)
    return X, y


def pixels():
    """MNIST, flat."""
    X, y = mnist("train").tensors
    return X.flatten(1), y


CASES = {
    "mnist": pixels,
    "cifar100": lambda: cifar100_features().tensors,
    "large": large,
}


def starts(X, y):
    """(name, rows, labels, start, its gradient or None) of every solve."""
    n, K = len(X), int(y.max()) + 1
    whole = ConvexObjective(ConvexHead(X.shape[1], K), FeatureData(X, y), L2)
    zero = torch.zeros(whole.size, dtype=torch.float64)
    optimum = minimise(whole, zero, tolerance=TOLERANCE).weights
    known = whole.gradient(optimum)[0]
    del whole
    yield "from zero", X, y, zero, None
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(len(zero), generator=generator, dtype=torch.float64)
    yield "from weights with noise 0.01", X, y, optimum + 0.01 * noise, None
    for k in (1, 10, 100):
        gone = torch.randperm(n, generator=torch.Generator().manual_seed(k))[:k]
        kept = torch.ones(n, dtype=torch.bool)
        kept[gone] = False
        part = FeatureData(X[gone], y[gone])
        own = ConvexObjective(ConvexHead(X.shape[1], K), part, L2)
        g = retained_gradient(known, n, own.rough_gradient(optimum), k)
        yield f"{k} forgotten", X[kept], y[kept], optimum, g


def solved(X, y, start, known):
    """(seconds, step) of one solve, with an objective of its own."""
    head = ConvexHead(X.shape[1], int(y.max()) + 1)
    objective = ConvexObjective(head, FeatureData(X, y), L2)
    begin = time.perf_counter()
    step = minimise(objective, start, tolerance=TOLERANCE, start=known)
    return time.perf_counter() - begin, step


def main(chosen):
    torch.set_num_threads(1)
    parts = []
    for name in chosen or CASES:
        rows = []
        X, y = CASES[name]()
        for title, kept, labels, start, known in starts(X, y):
            taken = [solved(kept, labels, start, known) for _ in range(ROUNDS)]
            with FlopCounterMode(display=False) as counter:
                step = solved(kept, labels, start, known)[1]
            flops = counter.get_total_flops() / (4 * len(kept) * len(start))
            seconds = [s for s, _ in taken]
            row = [
                title,
                f"{step.solution.matvecs:.1f}",
                f"{flops:.1f}",
                spread(seconds),
            ]
            print(name, row, file=sys.stderr, flush=True)
            rows.append(row)
        head = ["start", "passes", "by multiplications", "seconds, median (range)"]
        parts += [f"## {name}", table(head, rows)]
    publish("head-passes", "Passes of a convex head", *parts)


if __name__ == "__main__":
    main(sys.argv[1:])
