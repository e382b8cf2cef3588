"""Are preflight's seconds and memory within a factor 2 of what the request takes?

    LIGHTNING_UNLEARN_DATA=folder python benchmarks/preflight.py

One thread. Each row runs in a process of its own, so that peak memory is its own.
"""

import resource
import subprocess
import sys
import threading
from pathlib import Path

CASES = ["head 10000", "head 60000", "mlp 10000", "mlp 60000"]


def resident():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


class Peak(threading.Thread):
    """Samples resident memory every 2 ms."""

    def __init__(self):
        super().__init__(daemon=True)
        self.base = self.highest = resident()
        self.done = threading.Event()

    def run(self):
        while not self.done.wait(0.002):
            self.highest = max(self.highest, resident())

    @property
    def grown(self):
        return self.highest - self.base


def run(kind, n, part):
    import logging
    import warnings

    import lightning as L
    import torch
    from torch.utils.data import DataLoader, Subset

    sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
    from mnist_mlp import MLP, mnist

    import lightning_unlearn as lu

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    L.seed_everything(0, verbose=False)

    class Head(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.head = lu.ConvexHead(784, 10)

        def forward(self, x):
            return self.head(x)

        def training_step(self, batch, batch_idx):
            return self.head.loss(*batch).mean()

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), 1e-3, weight_decay=1e-3)

    net = Head() if kind == "head" else MLP()
    options = {} if kind == "head" else {"noise_std": 0.0, "batch_size": 1000}
    callback = lu.UnlearningCallback(**options)
    trainer = L.Trainer(
        max_epochs=3, callbacks=[callback], accelerator="cpu", logger=False,
        enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(net, DataLoader(Subset(mnist("train"), range(n)), 128, shuffle=True))
    forget = range(n // 60)
    if part == "predict":
        look = lu.preflight(trainer, forget)
        print(look.seconds, look.memory_bytes)
        return
    peak = Peak()
    peak.start()
    result = trainer.unlearn(forget)
    peak.done.set()
    print(result.seconds, peak.grown)


def row(kind, n):
    numbers = []
    for part in ("predict", "take"):
        out = subprocess.run(
            [sys.executable, __file__, kind, n, part], check=True,
            capture_output=True, text=True,
        ).stdout  # fmt: skip
        numbers.append([float(x) for x in out.split()[-2:]])
    (seconds, memory), (taken, grown) = numbers
    return [
        kind, n, f"{seconds:.2f}", f"{taken:.2f}", f"{seconds / taken:.2f}",
        f"{memory / 2**20:.0f}", f"{grown / 2**20:.0f}", f"{memory / grown:.2f}",
    ]  # fmt: skip


def main():
    import torch
    from common import publish, table

    torch.set_num_threads(1)  # as in every row
    head = ["model", "n", "seconds, predicted", "taken", "ratio", "MiB, predicted",
            "grown", "ratio"]  # fmt: skip
    rows = [row(*case.split()) for case in CASES]
    publish("preflight", "What preflight predicts and what is taken", table(head, rows))


if __name__ == "__main__":
    if len(sys.argv) == 4:
        run(sys.argv[1], int(sys.argv[2]), sys.argv[3])
    else:
        main()
