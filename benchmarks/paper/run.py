"""The paper's experiments (Zhang, Dong, Wang, Li, ICML 2024), by one command.

    LIGHTNING_UNLEARN_DATA=folder python benchmarks/paper/run.py --draw

runs MNIST with the 3-layer MLP, three seeds, and writes ``results/paper-mlp.json``,
``.md`` and the pictures. ``--model allcnn`` or ``resnet18`` takes CIFAR-10. What is
found lands in ``--cache`` row by row: an interrupted run goes on where it stopped, and
seeds can run as processes side by side; ``--draw --seeds`` then only collects.
"""

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path

import torch
from models import Setting  # puts the folder of common.py on the path

# isort: split
from common import RESULTS, machine
from convex import convex
from draw import draw
from measures import MEASURES, measured
from methods import rows
from sequence import sequences
from settings import PARTS, SETTINGS, Cache, quick
from sweeps import sweeps
from world import World

from lightning_unlearn.errors import UnlearningError

RUNS = {"e": sequences, "f": sweeps, "g": convex}


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """The command line's."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--data", choices=("mnist", "cifar10"), help="default: the model's")
    add("--model", choices=tuple(SETTINGS), help="default: mlp, for cifar10 allcnn")
    add("--seeds", type=int, nargs="*", default=[0, 1, 2])
    add("--parts", nargs="*", choices=PARTS, help="default: all; cifar10: a b c d g")
    add("--epochs", type=int)
    add("--n-train", type=int, help="fewer images; n_forget shrinks with them")
    add("--n-forget", type=int)
    add("--damping", type=float, help="of our step; default: from the spectrum")
    add("--lissa", type=int, nargs=2, metavar=("RUNS", "STEPS"))
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--threads", type=int, default=1)
    add("--quick", action="store_true", help="few samples: only tries the code")
    add("--shared", action="store_true",
        help="other work runs beside: seconds are compared with nothing")  # fmt: skip
    add("--rows", nargs="*", help="only these rows, by the start of their names")
    add("--time-limit", type=float, help="seconds after which no new row is begun")
    add("--cache", type=Path, default=RESULTS / "paper-cache")
    add("--results", type=Path, default=RESULTS)
    add("--draw", action="store_true", help="write tables and pictures at the end")
    return parser.parse_args(given)


def setting_of(options: argparse.Namespace) -> Setting:
    """The model's setting with what the command line changes."""
    model = options.model or ("allcnn" if options.data == "cifar10" else "mlp")
    setting = SETTINGS[model]
    if options.data not in (None, setting.data):
        sys.exit(f"{model} is run on {setting.data}, not on {options.data}")
    if options.quick:
        setting = quick(setting)
    changed = {}
    if options.n_train:
        share = options.n_train / setting.n_train
        changed["n_forget"] = max(100, round(setting.n_forget * share))
    for name in ("epochs", "n_train", "n_forget", "damping", "lissa"):
        given = getattr(options, name)
        if given is not None:
            changed[name] = tuple(given) if name == "lissa" else given
    return dataclasses.replace(setting, **changed)


def run_seed(seed: int, options, setting: Setting, cache: Cache, parts, late) -> None:
    """Everything of one seed that is not in the cache yet."""
    torch.manual_seed(seed)
    world = World(setting, seed, options.device, cache)
    for name, row in rows().items():
        wanted = options.rows is None or name.startswith(tuple(options.rows))
        missing = [p for p in parts if p in (*MEASURES, "d")]
        missing = [p for p in missing if p not in cache.read(seed, name)]
        if not wanted or not missing or late():
            continue
        begin = time.perf_counter()
        try:
            net, found = row(world)
        except UnlearningError as error:
            found = {"refused": f"{type(error).__name__}: {error}"}
            found |= {"seconds": time.perf_counter() - begin}
            net = None
        begin = time.perf_counter()
        kept = cache.read(seed, name) | {part: {} for part in missing}
        kept |= {} if net is None else measured(world, net, missing)
        kept["d"] = found | {"measuring": time.perf_counter() - begin}
        kept["d"] |= {"shared": True} if options.shared else {}
        kept["machine"] = stamp(options.device)
        cache.write(seed, name, kept)
        say(seed, name, kept["d"])
    for part, action in RUNS.items():
        name = f"part {part}"
        if part not in parts or cache.read(seed, name) or options.rows or late():
            continue
        if part == "g" and setting.data != "mnist":
            continue
        begin = time.perf_counter()
        found = {"found": action(world), "machine": stamp(options.device)}
        cache.write(seed, name, found)
        say(seed, name, {"seconds": time.perf_counter() - begin})


def say(seed: int, name: str, found: dict) -> None:
    """Print what took how long."""
    rest = {k: round(found[k], 1) for k in ("measuring", "passes") if k in found}
    print(f"seed {seed}: {name}: {found['seconds']:.1f} s", rest, flush=True)


def stamp(device: str) -> str:
    """Date, versions and device of what was just measured."""
    return machine() + (
        f", {torch.cuda.get_device_name()}" if device == "cuda" else ", no GPU"
    )


def main(given: list[str] | None = None) -> None:
    """Run what is missing, then draw."""
    options = arguments(given)
    torch.set_num_threads(options.threads)
    setting = setting_of(options)
    cache = Cache(options.cache, setting)
    cheap = PARTS if setting.data == "mnist" else ("a", "b", "c", "d", "g")
    parts = cheap if options.parts is None else options.parts
    begin = time.perf_counter()

    def late() -> bool:
        limit = options.time_limit
        return limit is not None and time.perf_counter() - begin > limit

    for seed in options.seeds:
        run_seed(seed, options, setting, cache, parts, late)
    if options.draw:
        draw(cache.folder, options.results)
    print(json.dumps({"seconds": round(time.perf_counter() - begin, 1)}))


if __name__ == "__main__":
    main()
