"""A whole request against the paper's algorithm, plain solvers, and retraining.

    LIGHTNING_UNLEARN_DATA=folder python benchmarks/unlearn_or_retrain.py [CASE ...]

mlp: 1,000 of 60,000 MNIST images, 26,506 weights, trained for 30 epochs. cnn: 200 of
10,000 CIFAR-10 images, 23,946 weights, 20 epochs. head: 1,000 samples out of a convex
head, 7,850 weights on MNIST pixels and 6,500 on 64 features of CIFAR-100, to tolerance
1e-6. One thread; every round runs every way once, and there are three of them (one for
the CNN, whose ways take minutes). Every way but the paper's goes through
``trainer.unlearn``, from the call to the result, loading and checks included.

"paper" is the published algorithm (10 runs of 1,000 steps of LiSSA with batches of 10,
scale 1,000), written here with the operations of the published code, but with our
gradient, objective and damping, and without a Trainer around it; "paper, tightened" is
the same with nothing to spare. Neither checks its residual within the time.
"""

import copy
import statistics
import sys
import time

import torch
from common import (
    CNN,
    MLP,
    Head,
    Tensors,
    bars,
    cifar10,
    cifar100_features,
    fitted,
    mnist,
    publish,
    spread,
    table,
    timed,
    trainer,
)
from torch.nn import functional as F
from torch.utils.data import DataLoader, RandomSampler, Subset

import lightning_unlearn as lu

ROUNDS = 3
L2 = 5e-4


def published(net, dataset, forget, damping):
    """(seconds, residual / |g|) of LiSSA as the paper's code does it, step by step.

    Loaders that read sample by sample, a list of tensors a vector, a graph of the
    second backward pass too, and the regulariser through autograd.
    """
    keep = torch.ones(len(dataset), dtype=torch.bool)
    keep[forget] = False
    retained = Subset(dataset, keep.nonzero()[:, 0].tolist())
    parameters = list(net.parameters())

    def regulariser(factor):
        return factor / 2 * sum(p.square().sum() for p in parameters)

    def gradient():
        total = [torch.zeros_like(p) for p in parameters]
        for X, y in DataLoader(retained, 128):
            loss = F.cross_entropy(net(X), y, reduction="sum")
            for t, g in zip(total, torch.autograd.grad(loss, parameters), strict=True):
                t += g
        own = torch.autograd.grad(regulariser(L2), parameters)
        return [t / len(retained) + g for t, g in zip(total, own, strict=True)]

    def product(loss, v):
        first = torch.autograd.grad(loss, parameters, create_graph=True)
        inner = sum((a * b).sum() for a, b in zip(first, v, strict=True))
        return torch.autograd.grad(inner, parameters, create_graph=True)

    def solve():
        g = gradient()
        x = [torch.zeros_like(p) for p in parameters]
        for _ in range(10):
            v = [t.clone() for t in g]
            sampler = RandomSampler(retained, replacement=True, num_samples=10_000)
            for X, y in DataLoader(retained, 10, sampler=sampler):
                loss = F.cross_entropy(net(X), y) + regulariser(L2 + damping)
                Hv = product(loss, v)
                with torch.no_grad():
                    v = [a + b - c / 1000 for a, b, c in zip(g, v, Hv, strict=True)]
            x = [a + b / 1000 / 10 for a, b in zip(x, v, strict=True)]
        return _flat(x), _flat(g)

    seconds, (x, g) = timed(solve)
    data = Tensors(*(t[keep] for t in dataset.tensors), batch_size=1000)
    return seconds, _residual(net, data, x, g, damping)


def tight(net, dataset, forget, damping):
    """(seconds, residual / |g|) of the same LiSSA with nothing to spare.

    Tensors in memory, flat vectors, no graph that is not needed.
    """
    keep = torch.ones(len(dataset), dtype=torch.bool)
    keep[forget] = False
    data = Tensors(*(t[keep] for t in dataset.tensors), batch_size=1000)
    parameters = list(net.parameters())

    def solve():
        w = _flat([p.detach() for p in parameters])
        g = sum(_gradient(net, batch) for _, batch in data) / data.n + L2 * w
        x = torch.zeros_like(g)
        for _ in range(10):
            v = g.clone()
            for _ in range(1000):
                rows = torch.randint(data.n, (10,))
                Hv = _product(net, (data.X[rows], data.y[rows]), v) / 10
                v = g + v - (Hv + (L2 + damping) * v) / 1000
            x += v / 1000 / 10
        return x, g

    seconds, (x, g) = timed(solve)
    return seconds, _residual(net, data, x, g, damping)


def _flat(tensors):
    return torch.cat([t.detach().reshape(-1) for t in tensors])


def _gradient(net, batch, graph=False):
    loss = F.cross_entropy(net(batch[0]), batch[1], reduction="sum")
    parts = torch.autograd.grad(loss, list(net.parameters()), create_graph=graph)
    return torch.cat([t.reshape(-1) for t in parts])


def _product(net, batch, v):
    g = _gradient(net, batch, graph=True)
    return _flat(torch.autograd.grad(g, list(net.parameters()), v))


def _residual(net, data, x, g, damping):
    Hx = sum(_product(net, batch, x) for _, batch in data) / data.n
    return float((Hx + (L2 + damping) * x - g).norm() / g.norm())


def request(make, dataset, checkpoint, forget, prepare=False, **options):
    """(seconds, result, seconds of the preparation) of one request."""
    net, run = make(), trainer(lu.UnlearningCallback(**options), 1)
    sources = {
        "model": net,
        "train_dataloaders": DataLoader(dataset, 128),
        "ckpt_path": checkpoint,
    }
    spent = 0.0
    if prepare:
        spent = lu.prepare(run, **sources).seconds
        sources = {}
    seconds, result = timed(lambda: run.unlearn(forget, **sources))
    return seconds, result, spent


class Rounds:
    """Seconds, passes and residuals of every way, over the rounds."""

    def __init__(self):
        self.seconds, self.passes, self.residual = {}, {}, {}

    def add(self, way, seconds, passes=None, residual=None):
        self.seconds.setdefault(way, []).append(seconds)
        self.passes[way], self.residual[way] = passes, residual
        print(way, round(seconds, 2), passes, residual, file=sys.stderr, flush=True)

    def rows(self, against):
        base = {way: statistics.median(self.seconds[way]) for way in against}
        for way, taken in self.seconds.items():
            middle = statistics.median(taken)
            passes, residual = self.passes[way], self.residual[way]
            yield [
                way,
                "" if passes is None else f"{passes:.1f}",
                "" if residual is None else f"{residual:.2g}",
                spread(taken),
                *(f"{base[other] / middle:.1f}" for other in against),
            ]


def network(title, make, dataset, epochs, n_forget, tolerances, repeats=ROUNDS):
    """The ways to unlearn an ordinary network, at one damping."""
    torch.manual_seed(0)
    forget = torch.randperm(len(dataset))[:n_forget]
    keep = torch.ones(len(dataset), dtype=torch.bool)
    keep[forget] = False
    net, run, _ = fitted(make(), dataset, epochs, noise_std=0.0)
    run.save_checkpoint("trained.ckpt")
    cold = {"noise_std": 0.0}
    _, result, _ = request(make, dataset, "trained.ckpt", forget, **cold)
    damping = {c.name: c.value for c in result.certificate.constants}["damping"]
    fixed = {**cold, "damping": damping}
    solvers = {
        f"{type(solver).__name__}, residual {rtol:g}": {**fixed, "solver": solver}
        for rtol in tolerances
        for solver in (
            lu.FlexibleCG(rtol=rtol), lu.CG(rtol=rtol), lu.NystromCG(rtol=rtol),
        )
    }  # fmt: skip
    rounds, retrain = Rounds(), f"retrained, {epochs} epochs"
    for _ in range(repeats):
        for way, lissa in (("paper", published), ("paper, tightened", tight)):
            seconds, residual = lissa(copy.deepcopy(net), dataset, forget, damping)
            rounds.add(way, seconds, None, residual)
        ways = {"ours, cold": cold, "ours, prepared": {**cold, "prepare": True}}
        for way, options in {**ways, **solvers}.items():
            seconds, result, spent = request(
                make, dataset, "trained.ckpt", forget, **options
            )
            norm = float(_relative(result.certificate))
            rounds.add(way, seconds, result.solution.matvecs, norm)
            if spent:
                rounds.add("(preparing)", spent)
        part = Subset(dataset, keep.nonzero()[:, 0].tolist())
        rounds.add(retrain, fitted(make(), part, epochs, noise_std=0.0)[2])
    head = [
        "way", "passes", "residual / \\|g\\|", "seconds, median (range)",
        "times faster than paper", "than paper, tightened", "than retraining",
    ]  # fmt: skip
    title = f"{title}, damping {damping:.3g}"
    return {
        title: (
            table(head, rounds.rows(("paper", "paper, tightened", retrain))),
            rounds.seconds,
        )
    }


def _relative(certificate):
    found = {c.name: c.value for c in certificate.constants}
    return f"{found['measured_relative_residual']:.2g}"


def head(title, dataset, epochs, n_forget=1000):
    """A convex head: cold, prepared, and plain Newton-CG from zero."""
    d, K = dataset.tensors[0].shape[1], int(dataset.tensors[1].max()) + 1

    def make():
        return Head(d, K)

    torch.manual_seed(0)
    forget = torch.randperm(len(dataset))[:n_forget].tolist()
    _, run, _ = fitted(make(), dataset, epochs)
    run.save_checkpoint("head.ckpt")
    zero = make()
    blank = trainer(lu.UnlearningCallback(), 0)
    blank.fit(zero, DataLoader(dataset, 128))
    blank.save_checkpoint("zero.ckpt")
    rounds, base = Rounds(), "plain Newton-CG, from zero"
    plain = {"solver": lu.CG(rtol=1e-2)}
    for _ in range(ROUNDS):
        for way, file, options in (
            (base, "zero.ckpt", plain),
            ("ours, from zero", "zero.ckpt", {}),
            ("plain Newton-CG, trained weights", "head.ckpt", plain),
            ("ours, cold", "head.ckpt", {}),
            ("ours, prepared", "head.ckpt", {"prepare": True}),
        ):
            seconds, result, spent = request(make, dataset, file, forget, **options)
            rounds.add(way, seconds, result.solution.matvecs)
            if spent:
                rounds.add("(preparing)", spent)
        few = request(make, dataset, "head.ckpt", forget[:100], prepare=True)
        rounds.add("ours, prepared, 100 forgotten", few[0], few[1].solution.matvecs)
    columns = ["way", "passes", "", "seconds, median (range)",
               "times faster than plain Newton-CG from zero"]  # fmt: skip
    return {title: (table(columns, rounds.rows((base,))), rounds.seconds)}


TIGHT = (1e-1, 2.5e-2, 1e-2, 1e-3)
CASES = {
    "mlp": lambda: network("MNIST, MLP", MLP, mnist("train"), 30, 1000, TIGHT),
    "cnn": lambda: network(
        "CIFAR-10, CNN, one round",
        CNN,
        cifar10(10_000),
        20,
        200,
        (1e-1, 1e-2),
        repeats=1,
    ),
    "head": lambda: {
        **head("Convex head on MNIST pixels", mnist("train"), 5),
        **head("Convex head on 64 features of CIFAR-100", cifar100_features(), 5),
    },
}


def main(chosen):
    torch.set_num_threads(1)
    begin = time.perf_counter()
    for name in chosen or CASES:
        file, found = f"unlearn-or-retrain-{name}", CASES[name]()
        picture = bars(file, {t: taken for t, (_, taken) in found.items()}, "seconds")
        parts = [text for t, (rows, _) in found.items() for text in (f"## {t}", rows)]
        publish(file, "Requests against retraining", *parts, picture)
    print(f"{time.perf_counter() - begin:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1:])
