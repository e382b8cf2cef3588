"""A deletion from a head with squared error: from a Gram matrix, and from the rows.

    python benchmarks/quadratic.py

Drawn rows of 64 numbers in single precision and 10 targets, one thread. "Gram matrix"
is what a request costs besides reading and keeping rows: the rows that go are
subtracted, the head is solved and the end is proved. (Rows that are read again in their
blocks are other rows only where kernels round by the company.) "Step" is that with what
is kept of the rows for the next request, and the norm of the longest row for the
certificate; beside it the same step by the ordinary way, from the optimum and a factor
that `prepare` stored. "Request" is all of ``trainer.unlearn`` after `prepare`. Medians
and ranges of 5, each of other samples.
"""

import sys
import time
from unittest import mock

import lightning as L
import torch
from common import publish, spread, table, trainer
from torch.utils.data import DataLoader, TensorDataset

import lightning_unlearn as lu
from lightning_unlearn.step.head import prepared_head
from lightning_unlearn.step.head.prepared_head import PreparedHead
from lightning_unlearn.step.head.quadratic.ridge import Ridge
from lightning_unlearn.step.head.rows.feature_data import FeatureData

D, K, BLOCK, REPEATS = 64, 10, 256, 5
L2, TOLERANCE = 1e-3, 1e-6
SIZES = {"tolerance": TOLERANCE, "max_steps": 50}


class Squares(L.LightningModule):
    """A head with squared error on the data as they are."""

    def __init__(self):
        super().__init__()
        self.head = lu.ConvexHead(D, K, "mse")

    def training_step(self, batch, batch_idx):
        return self.head.loss(*batch).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 1e-3, weight_decay=L2)


def draw(n):
    """Rows and targets of a linear model with noise."""
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(n, D, generator=generator)
    W = torch.randn(D, K, generator=generator)
    return X, X @ W + torch.randn(n, K, generator=generator)


def seconds(action):
    """(seconds, result)."""
    begin = time.perf_counter()
    found = action()
    return time.perf_counter() - begin, found


def without_gram():
    """A block in which no head has a Gram matrix."""
    return mock.patch.object(prepared_head, "gram_of", return_value=None)


def chosen(n):
    """Of 1 and of 100 samples: those of each request, spread over the data."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(1))
    parts = order[: 101 * REPEATS].split([1] * REPEATS + [100] * REPEATS)
    asked = [sorted(part.tolist()) for part in parts]
    return {1: asked[:REPEATS], 100: asked[REPEATS:]}


def known(head, state, left, fresh):
    """What is known of the rows that are left, and the step to it."""
    begin = torch.zeros(K * (D + 1), dtype=torch.float64)
    rest = state.on(left, fresh, len(left)).with_gram(head, state)
    objective = rest.objective(head, L2)
    step = rest.step(objective, head, begin, state, **SIZES)
    return step, rest.at_optimum(step), objective


def steps(n):
    """Of the parts of a request: seconds by what, and of `prepare`."""
    X, Y = draw(n)
    rows, positions = FeatureData(X, Y), list(range(n))
    head = lu.ConvexHead(D, K, "mse")

    def prepared():
        _, state, objective = known(head, PreparedHead.nothing(BLOCK), positions, rows)
        return state.with_factor(objective)

    made, fast = seconds(prepared)
    with without_gram():
        made_before, slow = seconds(prepared)
    found = {"prepare": [[made], [made_before]]}
    for forget, asked in chosen(n).items():
        alone, by_gram, ordinary = [], [], []
        for gone in asked:
            left = sorted(set(positions).difference(gone))
            fresh = fast.of(fast.stale(left))
            old = fast.of(gone)

            def solve(old=old):
                return Ridge(fast.gram.without(old), L2).minimised(TOLERANCE)

            def step(state, left=left, fresh=fresh):
                return known(head, state, left, fresh)[0]

            solve()  # to warm up
            alone.append(seconds(solve)[0])
            took, one = seconds(lambda step=step: step(fast))
            by_gram.append(took)
            took, other = seconds(lambda step=step: step(slow))
            ordinary.append(took)
            assert "Gram" in one.solution.method
            assert "factor" in other.solution.method
            assert float((one.weights - other.weights).norm()) <= 2 * TOLERANCE / L2
        found[forget] = [alone, by_gram, ordinary]
    return found


def requests(n, by_gram):
    """Seconds of whole requests, by samples forgotten."""
    callback = lu.UnlearningCallback(l2=L2, tolerance=TOLERANCE, noise_std=0.0)
    own, net = trainer(callback, 1), Squares()
    data = DataLoader(TensorDataset(*draw(n)), BLOCK)
    lu.prepare(own, model=net, train_dataloaders=data)
    found = {}
    for forget, asked in chosen(n).items():
        found[forget] = []
        for gone in asked:
            if not by_gram:  # what it knows besides the rows serves one request
                lu.prepare(own)
            result = own.unlearn(gone)
            assert ("Gram" in result.solution.method) is by_gram
            found[forget].append(result.seconds)
    return found


def main():
    torch.set_num_threads(1)
    parts, whole, prepares = [], [], []
    for n in (10_000, 100_000, 1_000_000):
        found = steps(n)
        prepares.append([f"{n:,}", *(f"{t[0]:.2f}" for t in found.pop("prepare"))])
        parts += [
            [f"{n:,}", forget, *(spread(values, 4) for values in ways)]
            for forget, ways in found.items()
        ]
        print(parts, file=sys.stderr, flush=True)
        fast = requests(n, True)
        with without_gram():
            slow = requests(n, False)
        whole += [
            [f"{n:,}", forget, spread(fast[forget], 3), spread(slow[forget], 3)]
            for forget in fast
        ]
        print(whole, file=sys.stderr, flush=True)
    publish(
        "quadratic",
        "A deletion from a head with squared error",
        "Seconds. The ordinary way is that of other losses: before every request it "
        "needs a `prepare` of its own, which is not counted. A Gram matrix needs one.",
        table(["samples", "forgotten", "Gram matrix", "step", "ordinary step"], parts),
        table(["samples", "forgotten", "request", "ordinary request"], whole),
        table(["samples", "`prepare`, s", "the ordinary one, s"], prepares),
        "What still grows with the samples is not the solve: rows are copied without "
        "those that go, and the longest is looked for (step); all samples are compared "
        "with those that were prepared, and the rest gets a fingerprint (request).",
    )


if __name__ == "__main__":
    main()
