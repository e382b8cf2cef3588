"""The last block of a public network, linearised, against a head on several depths.

    LIGHTNING_UNLEARN_DATA=folder python benchmarks/linearised.py

The model f(x; w) = f(x; w_public) + J(x) (w - w_public) is convex in w under a convex
loss, so its certificate is that of a head (docs/theory.md section 4). Here w are the
weights of the last residual block of a ResNet-20 of CIFAR-10 and of a head for 20
classes of CIFAR-100. The head at which it is linearised must be public and not zero, or
J vanishes below it: a random one. Accuracies are the best over l2, chosen on the
test images, which flatters the linearised model.
"""

import sys
import time
from pathlib import Path

import torch
from common import folder, publish, table
from torch import nn
from torch.func import functional_call, jvp, vjp
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
from public_backbone import cifar

from lightning_unlearn import PublicBackbone
from lightning_unlearn.step.head.capture import FeatureData
from lightning_unlearn.step.head.convex_head import ConvexHead
from lightning_unlearn.step.head.convex_objective import ConvexObjective
from lightning_unlearn.step.head.factor import cheap_factor
from lightning_unlearn.step.head.minimise import minimise

STRENGTHS = (1e-3, 1e-2, 1e-1)
ITERATIONS = 60
N_CLASSES = 20


class Last(nn.Module):
    """What stands behind the second block from the end: one block, mean, head."""

    def __init__(self, block, scale):
        super().__init__()
        self.block, self.head = block, nn.Linear(64, N_CLASSES)
        own = torch.Generator().manual_seed(0)
        with torch.no_grad():
            self.head.weight.copy_(
                scale * torch.randn(N_CLASSES, 64, generator=own) / 8
            )
            self.head.bias.zero_()

    def forward(self, x):
        return self.head(self.block(x).mean((2, 3)))


@torch.no_grad()
def inputs_of_last_block(model, x):
    kept = []
    handle = model.layer3[1].register_forward_hook(lambda m, i, o: kept.append(o))
    for part in x.split(200):
        model(part)
    handle.remove()
    return torch.cat(kept)


class Linearised:
    """F and its gradient, by one jvp and one vjp a pass."""

    def __init__(self, last, x, y, l2):
        self.last, self.x, self.y, self.l2 = last, x, y, l2
        self.w0 = {k: v.detach() for k, v in last.named_parameters()}
        self.sizes = [v.numel() for v in self.w0.values()]

    def named(self, delta):
        parts = delta.split(self.sizes)
        pairs = zip(self.w0.items(), parts, strict=True)
        return {k: p.view_as(v) for (k, v), p in pairs}

    def logits(self, x, delta):
        f, change = jvp(self.at(x), (self.w0,), (self.named(delta),))
        return f + change

    def at(self, x):
        return lambda w: functional_call(self.last, w, (x,))

    @torch.no_grad()
    def value_and_gradient(self, delta):
        value, gradient = 0.0, torch.zeros_like(delta)
        for x, y in zip(self.x.split(500), self.y.split(500), strict=True):
            z = self.logits(x, delta)
            value += F.cross_entropy(z, y, reduction="sum").item()
            residual = z.softmax(1) - F.one_hot(y, N_CLASSES)
            _, back = vjp(self.at(x), self.w0)
            gradient += torch.cat([g.flatten() for g in back(residual)[0].values()])
        n = len(self.y)
        value = value / n + self.l2 / 2 * float(delta @ delta)
        return value, gradient / n + self.l2 * delta


def solved(problem):
    """(delta, |grad|, passes, seconds) of L-BFGS."""
    delta = nn.Parameter(torch.zeros(sum(problem.sizes)))
    passes, begin, norm = 0, time.perf_counter(), 0.0
    optimizer = torch.optim.LBFGS(
        [delta], max_iter=ITERATIONS, history_size=30, tolerance_grad=1e-6,
        tolerance_change=0.0, line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure():
        nonlocal passes, norm
        passes += 1
        value, delta.grad = problem.value_and_gradient(delta.detach())
        norm = float(delta.grad.norm())
        return torch.tensor(value)

    optimizer.step(closure)
    return delta.detach(), norm, passes, time.perf_counter() - begin


def linearised_rows(model, train, test):
    x, y = inputs_of_last_block(model, train.tensors[0]), train.tensors[1]
    x_test, y_test = inputs_of_last_block(model, test.tensors[0]), test.tensors[1]
    for scale in (1.0, 4.0):
        last = Last(model.layer3[2], scale).requires_grad_(False).eval()
        found = []
        for l2 in STRENGTHS:
            problem = Linearised(last, x, y, l2)
            delta, norm, passes, seconds = solved(problem)
            with torch.no_grad():
                right = (problem.logits(x_test, delta).argmax(1) == y_test).float()
            found.append((right.mean().item(), l2, norm, passes, seconds))
            print(scale, found[-1], flush=True)
        yield [f"last block linearised, random head x {scale:g}",
               f"{sum(problem.sizes):,}", *words(max(found))]  # fmt: skip


def words(found):
    accuracy, l2, norm, passes, seconds = found
    return [f"{100 * accuracy:.1f}", f"{l2:g}", f"{norm:.0e}", str(passes),
            f"{seconds:.1f}"]  # fmt: skip


def head_row(name, backbone, train, test):
    (x, y), (x_test, y_test) = train.tensors, test.tensors
    rows, found = FeatureData(backbone.features(x), y), []
    rows_test = backbone.features(x_test)
    head = ConvexHead(backbone.n_features, N_CLASSES)
    w = torch.zeros(sum(p.numel() for p in head.parameters()), dtype=torch.float64)
    for l2 in STRENGTHS:
        objective, begin = ConvexObjective(head, rows, l2), time.perf_counter()
        step = minimise(objective, w, tolerance=1e-6, refactor=cheap_factor(objective))
        seconds = time.perf_counter() - begin
        for p, part in zip(
            head.parameters(), step.weights.split([head.weight.numel(), N_CLASSES]),
            strict=True,
        ):  # fmt: skip
            p.data = part.view_as(p).float()
        with torch.no_grad():
            right = (head(rows_test).argmax(1) == y_test).float().mean().item()
        passes = round(step.solution.matvecs)
        found.append((right, l2, 1e-6, passes, seconds))
    return [name, f"{len(w):,}", *words(max(found))]


def main():
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model, public, train, test = cifar(folder("cifar100"))
    heads = {
        "head on the last layer": PublicBackbone(
            model, ["layer3.2"], (1, 1), public_data=public
        ),
        "head on several depths": PublicBackbone(model, public_data=public),
    }
    rows = [head_row(name, b, train, test) for name, b in heads.items()]
    rows += linearised_rows(model, train, test)
    head = ["model", "weights", "accuracy, %", "l2", "grad norm", "passes", "s"]
    about = (
        f"20 classes of CIFAR-100, {len(train):,} training and {len(test)} test "
        "images, one thread"
    )
    publish("linearised", about, table(head, rows))


if __name__ == "__main__":
    main()
