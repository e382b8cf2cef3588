"""Are preflight's seconds of each route within a factor 2 of what it then takes?

    LIGHTNING_UNLEARN_DATA=folder python benchmarks/routes.py

Three trainings each, in processes of their own: preflight looks, then a step and a
retraining are taken, and their seconds are those of the result. One thread, and all
clocks are those of the processor: what else the machine does is not counted. The
public network of the last two models has learnt the digits 0 to 4 of MNIST; 5 to 9 are
private.
"""

import copy
import statistics
import subprocess
import sys
import time

MODELS = ("AdamW and BatchNorm", "ConvexHead on a public network", "low-rank adapters")
SIZES, REPEATS, EPOCHS = (4000, 20000), 3, 3


def run(model, n):
    """Print seconds, predicted and taken, of a step and of a retraining."""
    import lightning as L
    import torch
    from common import mnist, trainer
    from torch import nn
    from torch.nn import functional as F
    from torch.utils.data import DataLoader, TensorDataset

    import lightning_unlearn as lu

    time.perf_counter = time.process_time
    torch.set_num_threads(1)
    L.seed_everything(0, verbose=False)
    X, y = mnist("train").tensors
    public = y < 5
    data = TensorDataset(X[~public][:n], y[~public][:n] - 5)

    def learnt():
        """A network of the public digits, without its last layer."""
        net = nn.Sequential(nn.Linear(784, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU())
        last = nn.Linear(64, 5)
        optimizer = torch.optim.Adam([*net.parameters(), *last.parameters()], 1e-3)
        for part in torch.randperm(int(public.sum())).split(128):
            optimizer.zero_grad()
            F.cross_entropy(last(net(X[public][part])), y[public][part]).backward()
            optimizer.step()
        return net.requires_grad_(False)

    class Ordinary(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(
                nn.Linear(784, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 64),
                nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 5),
            )  # fmt: skip

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), 1e-3)

    class Adapter(nn.Module):
        """W + BA, of which W is not trained (Hu et al. 2021)."""

        def __init__(self, linear, rank=4):
            super().__init__()
            self.linear = linear
            self.A = nn.Parameter(torch.randn(rank, linear.in_features) / 28)
            self.B = nn.Parameter(torch.zeros(linear.out_features, rank))

        def forward(self, x):
            return self.linear(x) + x @ self.A.T @ self.B.T

    class Adapted(Ordinary):
        def __init__(self):
            super().__init__()
            known = [
                Adapter(m) if isinstance(m, nn.Linear) else m
                for m in copy.deepcopy(made)
            ]
            self.net = nn.Sequential(*known, nn.Linear(64, 5))

    class Headed(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.backbone = lu.PublicBackbone(
                copy.deepcopy(made), public_data=X[public][:5000]
            )
            self.head = lu.ConvexHead(self.backbone.n_features, 5)

        def forward(self, x):
            return self.head(self.backbone(x))

        def training_step(self, batch, batch_idx):
            return self.head.loss(self.backbone(batch[0]), batch[1]).mean()

        def configure_optimizers(self):
            return torch.optim.Adam(self.head.parameters(), 1e-2, weight_decay=1e-3)

    made = learnt()
    net = dict(zip(MODELS, (Ordinary, Headed, Adapted), strict=True))[model]
    bare = {"noise_std": 0.0, "l2": 1e-3}  # a step that claims nothing
    options = {} if net is Headed else bare

    def training(samples):
        callback = lu.UnlearningCallback(retrain=training, **options)
        return trainer(callback, EPOCHS), net(), DataLoader(samples, 128, shuffle=True)

    own, module, loader = training(data)
    own.fit(module, loader)
    forget = range(n // 100)
    look = lu.preflight(own, forget)
    step = own.unlearn(forget).seconds
    again = own.unlearn(range(n // 100, n // 50), how="retrain").seconds
    print(look.seconds, step, look.routes[1].seconds, again)


def row(model, n):
    found = []
    for _ in range(REPEATS):
        out = subprocess.run(
            [sys.executable, __file__, model, str(n)], check=True,
            capture_output=True, text=True,
        ).stdout  # fmt: skip
        found.append([float(x) for x in out.split()[-4:]])
    cells = [model, f"{n:,}"]
    for predicted, taken in ((0, 1), (2, 3)):
        pairs = [(one[predicted], one[taken]) for one in found]
        middle = [statistics.median(side) for side in zip(*pairs, strict=True)]
        ratios = sorted(p / t for p, t in pairs)
        cells += [f"{x:.2f}" for x in middle]
        cells.append(f"{ratios[1]:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")
    return cells


def main():
    import torch
    from common import publish, table

    torch.set_num_threads(1)  # as in every row
    head = ["model", "n", "step: seconds, predicted", "taken", "ratio",
            "retraining: seconds, predicted", "taken", "ratio"]  # fmt: skip
    rows = [row(model, n) for model in MODELS for n in SIZES]
    told = (
        "Seconds of the processor, one thread; medians of three, ratios with their "
        "range; `LIGHTNING_UNLEARN_DATA=folder "
        "python benchmarks/routes.py`. The steps of the first and the last model claim "
        "nothing (`noise_std=0.0`)."
    )
    title = "What preflight predicts of each route and what it takes"
    publish("routes", title, told, table(head, rows))


if __name__ == "__main__":
    if len(sys.argv) == 3:
        run(sys.argv[1], int(sys.argv[2]))
    else:
        main()
