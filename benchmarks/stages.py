"""What a request costs when the training came in five stages.

    LIGHTNING_UNLEARN_DATA=folder python benchmarks/stages.py

The MLP of `examples/mnist_mlp.py`, 12,000 MNIST images that arrive in five parts of
2,400. Each stage is 300 steps on all that has arrived. Somebody of part j asks to be
forgotten: seconds of ``trainer.unlearn(how="retrain")``, everything counted, beside
those of somebody of the first part (a whole retraining) in the same run.
"""

import shutil
import sys
import tempfile
from pathlib import Path

import lightning as L
import torch
from common import MLP, mnist, publish, spread, table
from torch.utils.data import DataLoader, Subset, SubsetRandomSampler

from lightning_unlearn import UnlearningCallback

STAGES, PART, STEPS, REPEATS = 5, 2_400, 300, 3
QUIET = {
    "accelerator": "cpu", "logger": False, "enable_checkpointing": False,
    "enable_progress_bar": False, "enable_model_summary": False,
}  # fmt: skip


def run(dataset, test, stage, folder, seed):
    """Seconds of a request of somebody who came in a stage, and accuracy after it."""
    torch.manual_seed(seed)

    def make(data):
        own = UnlearningCallback(retrain=make, stages=folder)
        trainer = L.Trainer(max_epochs=-1, max_steps=STEPS, callbacks=[own], **QUIET)
        return trainer, MLP(), DataLoader(data, 64, shuffle=True)

    own, net = UnlearningCallback(retrain=make, stages=folder), MLP()
    for k in range(STAGES):
        arrived = SubsetRandomSampler(range(PART * (k + 1)))
        trainer = L.Trainer(max_epochs=-1, max_steps=STEPS, callbacks=[own], **QUIET)
        trainer.fit(net, DataLoader(dataset, 64, sampler=arrived))
    result = trainer.unlearn(range(PART * stage, PART * stage + 10), how="retrain")
    x, y = test.tensors
    with torch.no_grad():
        right = (net.eval()(x).argmax(1) == y).float().mean()
    return result, float(right)


def main():
    torch.set_num_threads(1)
    dataset, test = Subset(mnist("train"), range(STAGES * PART)), mnist("t10k")
    seconds = {stage: [] for stage in range(STAGES)}
    right = {stage: [] for stage in range(STAGES)}
    bounds = {}
    for seed in range(REPEATS):
        for stage in range(STAGES):
            folder = Path(tempfile.mkdtemp())
            result, accuracy = run(dataset, test, stage, folder, seed)
            shutil.rmtree(folder)
            seconds[stage].append(result.seconds)
            right[stage].append(accuracy)
            bounds[stage] = result.certificate.bound.value
            print(seed, stage, result.seconds, accuracy, file=sys.stderr, flush=True)
    rows = []
    for stage in range(STAGES):
        ratios = [s / w for s, w in zip(seconds[stage], seconds[0], strict=True)]
        rows.append(
            [
                f"{stage + 1}", bounds[stage], spread(seconds[stage]),
                spread(ratios), spread([100 * r for r in right[stage]]),
            ]
        )  # fmt: skip
    head = ["came in stage", "bound", "seconds", "of a whole one", "test accuracy, %"]
    publish("stages", "Requests to a training in five stages", table(head, rows))


if __name__ == "__main__":
    main()
