"""The one-run audit of private trainings: honest ones, and ones with a planted fault.

    python benchmarks/private_audit.py [honest runs] [runs of each fault]

Each run is one training of `private_faults.py` with 300 canaries, put in by coins, and
one audit by the library. It is refuted where `AuditError` is raised. Shuffled batches
are looked for in a training of few steps and little noise too, where it shows who was
not drawn at all. The second table is of the mechanism alone, by somebody who sees more
than any model shows.
"""

import json
import re
import sys
import time
from typing import Any

import numpy as np
import private_faults as faults
from common import RESULTS, publish, spread, table

from lightning_unlearn.errors import AuditError
from lightning_unlearn.evaluation import audit
from lightning_unlearn.evaluation.audits import one_by_one
from lightning_unlearn.guarantee.accounting.private_training import (
    Mechanism,
    epsilon_out,
    privacy,
)

HONEST, PLANTED = 20, 10
SEEN = 20_000  # canaries of the mechanism alone
ALONE = [(4.0, 16, 10), (2.0, 16, 10), (1.0, 16, 10), (0.6, 100, 1), (0.4, 100, 1)]
KEPT = RESULTS / "private-audit.json"
QUIETLY = ", little noise"  # of runs in the other setting
RUNS = ("none", *faults.FAULTS, f"none{QUIETLY}", f"shuffled batches{QUIETLY}")


def one(name: str) -> dict[str, Any]:
    """One training with an audit: what was found, and whether it refuted."""
    begin, settings = time.process_time(), {}
    if name.endswith(QUIETLY):
        name, settings = name.removesuffix(QUIETLY), faults.QUIET
    with faults.planted(None if name == "none" else name):
        try:
            experiment = faults.experiment(**settings)
            made = audit(experiment, calibrate=False, guesses=faults.GUESSES)
            said, refuted = str(made), False
        except AuditError as problem:
            said, refuted = str(problem), True
    numbers = r"(\d+) of (\d+) guesses.*?: ([\d.e-]+) found.*?epsilon = ([\d.]+)"
    right, of, lower, certified = re.search(numbers, said, re.DOTALL).groups()
    return {
        "refuted": refuted, "right": int(right), "of": int(of), "lower": float(lower),
        "certified": float(certified), "cpu": time.process_time() - begin,
    }  # fmt: skip


def ratios(z: float, batches: int, epochs: int, shuffled: bool) -> tuple[Any, Any]:
    """Coins, and log-likelihood ratios of all noisy steps at a canary's coordinate."""
    rng = np.random.default_rng(0)
    inside = rng.random(SEEN) < 0.5
    found = np.zeros(SEEN)
    for _ in range(epochs):
        seen = rng.normal(size=(SEEN, batches)) * z
        if shuffled:
            seen[np.arange(SEEN), rng.integers(batches, size=SEEN)] += inside
        else:
            seen += (rng.random(seen.shape) < 1 / batches) * inside[:, None]
        steps = (seen - 0.5) / z**2
        if shuffled:
            found += np.logaddexp.reduce(steps, axis=1) - np.log(batches)
        else:
            none = np.log1p(-1 / batches)
            found += np.logaddexp(none, steps - np.log(batches)).sum(1)
    return inside, found


def seen(z: float, batches: int, epochs: int, shuffled: bool) -> tuple[float, float]:
    """The largest lower bounds that some numbers of guesses give: of all, of "out"."""
    inside, found = ratios(z, batches, epochs, shuffled)
    order, best, best_out = found.argsort(), 0.0, 0.0
    for share in (1, 2, 4, 10, 30, 100, 300):
        half = SEEN // share // 2
        out = int((~inside[order[:half]]).sum())
        right = out + int(inside[order[-half:]].sum())
        lower = one_by_one.lower(right, 2 * half, SEEN, faults.DELTA, 0.975)
        best = max(best, lower.epsilon)
        lower = one_by_one.lower(out, half, SEEN, faults.DELTA, 0.975)
        best_out = max(best_out, lower.epsilon)
    return best, best_out


def of_mechanism() -> list[list[str]]:
    """A row for each setting."""
    rows = []
    for z, batches, epochs in ALONE:
        made = Mechanism(z, 1 / batches, batches * epochs)
        stated = privacy(made, 1, faults.DELTA).epsilon
        out = epsilon_out(made, faults.DELTA)
        found = [seen(z, batches, epochs, shuffled) for shuffled in (False, True)]
        rows.append([
            f"{z:g}", f"{batches}", f"{epochs}",
            f"{stated:g}", *(f"{epsilon:.2f}" for epsilon, _ in found),
            f"{out:g}", *(f"{epsilon:.2f}" for _, epsilon in found),
        ])  # fmt: skip
    return rows


def main() -> None:
    counts = [int(n) for n in sys.argv[1:]] or [HONEST, PLANTED]
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    for fault in RUNS:
        runs = kept.setdefault(fault, [])
        while len(runs) < counts[not fault.startswith("none")]:
            runs.append(one(fault))
            print(fault, runs[-1], file=sys.stderr, flush=True)
            KEPT.write_text(json.dumps(kept, indent=1) + "\n")
    rows = [
        [
            fault, f"{sum(run['refuted'] for run in runs)} of {len(runs)}",
            spread((100 * run["right"] / run["of"] for run in runs), 0),
            spread(run["lower"] for run in runs),
            spread(run["certified"] for run in runs),
            spread((run["cpu"] for run in runs), 1),
        ]
        for fault, runs in kept.items()
    ]  # fmt: skip
    publish(
        "private-audit",
        "The one-run audit of private trainings",
        "Command: `python benchmarks/private_audit.py`.",
        f"{faults.CANARIES} canaries, each with a coordinate of its own, in by a coin; "
        f"{faults.OTHERS} other samples; two layers; noise multiplier "
        f"{faults.NOISE:g}, {faults.EPOCHS} epochs of batches of {faults.BATCH}. "
        f"{faults.GUESSES} guesses a run, of the canaries whose own weights moved most "
        "and least their way; confidence 0.95, delta = 1e-5. Little noise: noise "
        f"multiplier {faults.QUIET['noise']:g}, one epoch of batches of "
        f"{faults.QUIET['batch']}, two steps. Medians and ranges.",
        table(
            ["fault", "refuted", "right, %", "lower bound of epsilon", "certified",
             "CPU seconds of a run"],
            rows,
        ),
        "Where an audit refutes it says by which guesses: lower bound and certified "
        "are then of those. Shuffled batches that are stated as independent draws are "
        "refuted by guesses that a canary was *out*, held to the epsilon of that "
        "direction: independent draws leave a sample out of all steps now and then, a "
        "shuffle never does. It shows where there are few steps and little noise; with "
        "the noise that makes a claim worth something it does not.",
        "Below is the mechanism alone, with more to see: the noisy sum of every step "
        f"at each of {SEEN:,} canaries' own coordinates. Guesses go by the exact "
        "likelihood ratio, and the best of seven numbers of guesses counts. Where "
        "noise hides it the draws are looked at instead: a loader whose sampler is "
        "replaced ends the training, rows are compared with the samples that the coins "
        "drew, and the library's tests hold the draws to those of coins.",
        table(
            ["noise multiplier", "batches", "epochs", "certified of Poisson draws",
             "found: Poisson", "found: shuffled", "certified of out",
             "found: Poisson", "found: shuffled"],
            of_mechanism(),
        ),
    )  # fmt: skip


if __name__ == "__main__":
    main()
