"""On one GPU: a gradient, a curvature product and a request, against an epoch.

    python benchmarks/gpu.py [--small]

ResNet-18 with GroupNorm (11.2 M weights) on images of CIFAR-10's shape and a GPT of
110 M weights on sequences of 128 tokens. The data are random: time and memory do not
depend on them. Memory is the most torch's allocator held beyond the model. --small runs
small ones of both, on whatever device there is, to try the script.
"""

import statistics
import sys

import torch
from common import publish, spread, table, timed
from lightning.pytorch import LightningModule
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import lightning_unlearn as lu
from lightning_unlearn.plugin.data.exact_batches import ExactBatches
from lightning_unlearn.plugin.verbs.unlearn import Trainer
from lightning_unlearn.step.network.empirical_objective import EmpiricalObjective
from lightning_unlearn.weights.passes import passes
from lightning_unlearn.weights.scope import Scope

ROUNDS = 5
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SMALL = "--small" in sys.argv


class Net(LightningModule):
    """Cross-entropy of logits, trained by SGD without momentum."""

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-2)


def _block(inside, outside, stride):
    def layer(d, K, s):
        return [nn.Conv2d(d, K, 3, s, 1, bias=False), nn.GroupNorm(8, K)]

    return nn.ModuleDict({
        "body": nn.Sequential(
            *layer(inside, outside, stride), nn.ReLU(), *layer(outside, outside, 1)
        ),
        "short": nn.Conv2d(inside, outside, 1, stride, bias=False),
    })  # fmt: skip


class ResNet18(Net):
    def __init__(self, width=64):
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        sizes = [(width * 2**i, 1 + (i > 0)) for i in range(4)]
        inside, blocks = width, []
        for outside, stride in sizes:
            blocks += [_block(inside, outside, stride), _block(outside, outside, 1)]
            inside = outside
        self.blocks, self.head = nn.ModuleList(blocks), nn.Linear(inside, 10)

    def forward(self, x):
        x = self.first(x).relu()
        for block in self.blocks:
            x = (block["body"](x) + block["short"](x)).relu()
        return self.head(x.mean((2, 3)))


class GPT(Net):
    def __init__(self, width=768, depth=12, letters=32_000, context=128):
        super().__init__()
        self.token = nn.Embedding(letters, width)
        self.place = nn.Parameter(torch.randn(context, width) / width**0.5)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, max(2, width // 64), 4 * width, 0.0, "gelu", batch_first=True,
                norm_first=True,
            )
            for _ in range(depth)
        )  # fmt: skip
        self.norm = nn.LayerNorm(width)

    def forward(self, x):
        hidden = self.token(x) + self.place
        mask = nn.Transformer.generate_square_subsequent_mask(
            x.shape[1], hidden.device, hidden.dtype
        )
        for block in self.blocks:
            hidden = block(hidden, mask)
        return (self.norm(hidden) @ self.token.weight.T).transpose(1, 2)


def cases():
    generator = torch.Generator().manual_seed(0)

    def codes(*shape, letters):
        return torch.randint(letters, shape, generator=generator)

    n, m = (96, 48) if SMALL else (512, 32)
    images = torch.randn(n, 3, 32, 32, generator=generator)
    yield (
        "ResNet-18",
        ResNet18(8 if SMALL else 64),
        TensorDataset(images, codes(n, letters=10)),
        32 if SMALL else 128,
    )
    options = {"width": 32, "depth": 2, "letters": 50} if SMALL else {}
    net = GPT(**options)
    letters = len(net.token.weight)
    rows = codes(m, 129, letters=letters)
    yield "GPT", net, TensorDataset(rows[:, :-1], rows[:, 1:]), 8


def held(action):
    """(seconds, bytes the allocator held at most beyond what it held before)."""
    if DEVICE == "cpu":
        return timed(action)[0], 0
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()

    def awaited():
        action()
        torch.cuda.synchronize()

    seconds, _ = timed(awaited)
    return seconds, torch.cuda.max_memory_allocated() - before


def passes_of(net, dataset, batch):
    """What a gradient and a product over all samples take."""
    net = net.to(DEVICE)
    scope = Scope(net, net.parameters())
    to = lambda b: [t.to(DEVICE) for t in b]  # noqa: E731
    loader = DataLoader(dataset, batch)
    with passes(net, scope, torch.float32):
        batches = ExactBatches(loader, list(range(len(dataset))), batch, to)
        F_ = EmpiricalObjective(net.training_step, scope, batches, 0.0, lean=True)
        v = torch.randn(scope.size, device=DEVICE)
        actions = {"gradient": F_.value_and_gradient, "product": lambda: F_.hvp(v)}
        for name, action in actions.items():
            action()  # warm up, and move the data
            found = [held(action) for _ in range(ROUNDS)]
            yield name, [s for s, _ in found], max(b for _, b in found)


def request(net, dataset, batch, low_memory, **options):
    """(seconds of an epoch, its bytes, seconds of a request, its bytes, passes)."""
    callback = lu.UnlearningCallback(noise_std=0.0, low_memory=low_memory, **options)
    own = Trainer(
        max_epochs=1, callbacks=[callback], accelerator=DEVICE, devices=1, logger=False,
        enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    epoch = held(lambda: own.fit(net, DataLoader(dataset, batch, shuffle=True)))
    net.zero_grad(set_to_none=True)
    results = []
    took = held(lambda: results.append(own.unlearn(list(range(10)))))
    return *epoch, *took, results[0].solution.matvecs


def main():
    device = torch.cuda.get_device_name() if DEVICE == "cuda" else "no GPU"
    for title, net, dataset, batch in cases():
        p = sum(q.numel() for q in net.parameters())
        vector, rows = 4 * p, []
        request(net, dataset, batch, True, damping=1e4)  # warm up in a few passes
        for low_memory in (True, False):
            epoch, most, seconds, more, products = request(
                net, dataset, batch, low_memory
            )
            if low_memory:
                rows.append(["epoch", f"{epoch:.2f}", "1", f"{most / vector:.1f}"])
            name = f"request, {products:.0f} passes, low_memory={low_memory}"
            line = [name, f"{seconds:.2f}", f"{seconds / epoch:.2f}"]
            rows.append([*line, f"{more / vector:.1f}"])
        for name, seconds, most in passes_of(net, dataset, batch):
            ratio = statistics.median(seconds) / epoch
            rows.append([name, spread(seconds), f"{ratio:.2f}", f"{most / vector:.1f}"])
        head = ["", "s", "/ epoch", "memory / weights"]
        named = f"{title}, {p:,} weights, n = {len(dataset):,}, on one {device}"
        if SMALL:
            print(named, table(head, rows), sep="\n\n")
        else:  # each as soon as it is known: a lease may end
            publish(f"gpu-{title.lower()}", named, table(head, rows))


if __name__ == "__main__":
    main()
