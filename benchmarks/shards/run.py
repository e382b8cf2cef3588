"""Shards: what an ensemble costs in accuracy, and what a deletion then takes.

    LIGHTNING_UNLEARN_DATA=folder python benchmarks/shards/run.py images
    LIGHTNING_UNLEARN_DATA=folder python benchmarks/shards/run.py texts
    python benchmarks/shards/run.py --draw

S networks are trained on disjoint shards; one person is forgotten by retraining one of
them. Beside it: a certified head on all data, on the shards' own features and on public
ones. Images: groups of 20 classes of CIFAR-100, the last stage of a ResNet-20 of
CIFAR-10 is fine-tuned. Texts: Banking77, a network from random weights. An hour on one
thread; what is measured is kept in results/shards-*.json, and only what is missing run.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent))
from common import RESULTS, machine, trainer
from report import publish_all
from tasks import Task, images, persons, shards, texts

from lightning_unlearn import CertifiedClassifier, PublicBackbone, UnlearningCallback

TASKS = {"images": (images, (1, 2, 3)), "texts": (texts, (0, 1, 2))}
SHARDS, DELTA = (1, 4, 8), 1e-5


def timed(action):
    """(result, seconds of this process: one thread, whatever else is at work)."""
    begin = time.process_time()
    result = action()
    return result, time.process_time() - begin


@torch.no_grad()
def outputs(net: nn.Module, x: Tensor) -> Tensor:
    return torch.cat([net(part) for part in x.split(256)])


def percent(scores: Tensor, y: Tensor) -> float:
    return 100 * (scores.argmax(1) == y).float().mean().item()


def headed(backbone, x, y, x_test, y_test, gone, l2):
    """A certified head on all data, from which a person is unlearned."""
    net = CertifiedClassifier(backbone, int(y.max()) + 1, l2=l2)
    own = trainer(UnlearningCallback(epsilon=1.0, delta=DELTA), -1)
    loader = DataLoader(TensorDataset(x, y), 256, shuffle=True)
    _, solve = timed(lambda: own.fit(net, loader))
    result, request = timed(lambda: own.unlearn(gone))
    kept = torch.ones(len(y), dtype=torch.bool)
    kept[gone] = False
    return {
        "grade": result.certificate.grade.value, "l2": l2,
        "weights": result.certificate.n_parameters,
        "test": percent(outputs(net, x_test), y_test),
        "train": percent(outputs(net, x[kept]), y[kept]),
        "solve": solve, "request": request,
    }  # fmt: skip


def heads(strengths, *of):
    """One for each strength."""
    return [headed(*of, l2) for l2 in strengths]


def of_shards(task: Task, S: int, seed: int, gone: list[int], owner: Tensor):
    """The ensemble, what it takes to forget, and heads on its features."""
    x, y = task.train.tensors
    x_test, y_test = task.test.tensors
    at, training, nets = shards(owner, S), [], []
    for j in range(S):
        mine = (at == j).nonzero()[:, 0]
        net, seconds = timed(lambda m=mine, j=j: task.train_on(m, 100 * seed + j))
        nets.append(net)
        training.append(seconds)
        print(S, j, round(seconds, 1), flush=True)
    found = {"training": training}
    every = torch.stack([outputs(net, x_test).softmax(1) for net in nets])
    found["single"] = sum(percent(p, y_test) for p in every) / S
    found["before"] = percent(every.mean(0), y_test)
    if S > 1:  # with one it is the training once more, without five samples
        touched = int(at[gone[0]])
        left = torch.ones(len(y), dtype=torch.bool)
        left[gone] = False
        mine = ((at == touched) & left).nonzero()[:, 0]
        nets[touched], found["deletion"] = timed(
            lambda: task.train_on(mine, 100 * seed + 50)
        )
        every[touched] = outputs(nets[touched], x_test).softmax(1)
    else:
        touched, found["deletion"] = 0, training[0]
    found["test"] = percent(every.mean(0), y_test)
    own = torch.stack([outputs(net, x).softmax(1) for net in nets])
    found["train"] = percent(own.mean(0), y)
    features = [net[0] for net in nets]
    _, found["read"] = timed(lambda: outputs(features[touched], x))
    join = lambda z: torch.cat([outputs(f, z) for f in features], 1)  # noqa: E731
    rows, rows_test = join(x), join(x_test)
    public = rows[:1] if task.public is None else join(task.public)
    how = "none" if task.public is None else "public"
    backbone = PublicBackbone(
        nn.Sequential(nn.Identity()), ["0"], standardize=how, public_data=public
    )
    found["heads"] = heads(task.strengths, backbone, rows, y, rows_test, y_test, gone)
    return found


def cell(name: str, task: Task, seed: int):
    """One part of a run, by name."""
    owner = persons(len(task.train))
    person = int(owner[seed])
    gone = (owner == person).nonzero()[:, 0].tolist()
    if name in task.plain:
        kind, y_test = task.plain[name], task.test.tensors[1]
        rows = [kind.views * i + k for i in gone for k in range(kind.views)]
        of = kind.backbone, *kind.train.tensors, kind.x_test, y_test, rows
        found = heads(kind.strengths, *of)
        return {"gone": len(gone), "heads": found}
    found = of_shards(task, int(name), seed, gone, owner)
    return {"gone": len(gone), "machine": machine(), **found}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("task", nargs="?", choices=TASKS)
    parser.add_argument("--seeds", type=int, nargs="*")
    parser.add_argument("--draw", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.task:
        make, seeds = TASKS[asked.task]
        file = RESULTS / f"shards-{asked.task}.json"
        known = json.loads(file.read_text()) if file.exists() else {}
        for seed in seeds if asked.seeds is None else asked.seeds:
            task = make(seed)
            for name in (*task.plain, *map(str, SHARDS)):
                key = f"{name} | {seed}"
                if key not in known:
                    known[key] = cell(name, task, seed)
                    file.write_text(json.dumps(known, indent=1) + "\n")
                    print(key, known[key], flush=True)
    if asked.draw:
        publish_all({
            name: json.loads((RESULTS / f"shards-{name}.json").read_text())
            for name in TASKS
        })  # fmt: skip


if __name__ == "__main__":
    main()
