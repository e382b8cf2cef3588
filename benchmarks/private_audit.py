"""The one-run audit of private trainings: honest ones, and ones with a planted fault.

    python benchmarks/private_audit.py [honest runs] [runs of each fault]

Each run is one training of `private_faults.py` with 300 canaries, put in by coins, and
one audit by the library. It is refuted where `AuditError` is raised. The second table
is of the mechanism alone, by somebody who sees more than any model shows.
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
from lightning_unlearn.guarantee.accounting.private_training import Mechanism, privacy

HONEST, PLANTED = 20, 10
SEEN = 20_000  # canaries of the mechanism alone
ALONE = [(4.0, 16, 10), (2.0, 16, 10), (1.0, 16, 10), (0.6, 100, 1), (0.4, 100, 1)]
KEPT = RESULTS / "private-audit.json"


def one(fault: str | None) -> dict[str, Any]:
    """One training with an audit: what was found, and whether it refuted."""
    begin = time.process_time()
    with faults.planted(fault):
        try:
            made = audit(faults.experiment(), calibrate=False, guesses=faults.GUESSES)
            said, refuted = str(made), False
        except AuditError as problem:
            said, refuted = str(problem), True
    numbers = r"([\d,]+) of 100 guesses.*?: ([\d.e-]+) found.*?epsilon = ([\d.]+)"
    right, lower, certified = re.search(numbers, said, re.DOTALL).groups()
    return {
        "refuted": refuted, "right": int(right), "lower": float(lower),
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


def seen(z: float, batches: int, epochs: int, shuffled: bool) -> float:
    """The largest lower bound that any of some numbers of guesses gives."""
    inside, found = ratios(z, batches, epochs, shuffled)
    order, best = found.argsort(), 0.0
    for share in (1, 2, 4, 10, 30, 100, 300):
        half = SEEN // share // 2
        right = (~inside[order[:half]]).sum() + inside[order[-half:]].sum()
        lower = one_by_one.lower(int(right), 2 * half, SEEN, faults.DELTA, 0.95)
        best = max(best, lower.epsilon)
    return best


def of_mechanism() -> list[list[str]]:
    """A row for each setting."""
    rows = []
    for z, batches, epochs in ALONE:
        made = Mechanism(z, 1 / batches, batches * epochs)
        stated = privacy(made, 1, faults.DELTA).epsilon
        found = [seen(z, batches, epochs, shuffled) for shuffled in (False, True)]
        rows.append(
            [f"{z:g}", f"{batches}", f"{epochs}", f"{stated:g}"]
            + [f"{epsilon:.2f}" for epsilon in found]
        )
    return rows


def main() -> None:
    counts = [int(n) for n in sys.argv[1:]] or [HONEST, PLANTED]
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    for fault in ("none", *faults.FAULTS):
        runs = kept.setdefault(fault, [])
        while len(runs) < counts[fault != "none"]:
            runs.append(one(None if fault == "none" else fault))
            print(fault, runs[-1], file=sys.stderr, flush=True)
            KEPT.write_text(json.dumps(kept, indent=1) + "\n")
    rows = [
        [
            fault, f"{sum(run['refuted'] for run in runs)} of {len(runs)}",
            spread((run["right"] for run in runs), 0),
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
        "and least their way; confidence 0.95, delta = 1e-5. Medians and ranges.",
        table(
            ["fault", "refuted", "right of 100", "lower bound of epsilon", "certified",
             "CPU seconds of a run"],
            rows,
        ),
        "Shuffled batches that are stated as independent draws are not found so. Below "
        "is the mechanism alone, with more to see: the noisy sum of every step at each "
        f"of {SEEN:,} canaries' own coordinates. Guesses go by the exact likelihood "
        "ratio, and the best of seven numbers of guesses counts. Guesses of many "
        "canaries show what is usual, and epsilon is about what is rare. So the draws "
        "are looked at instead: a loader whose sampler is replaced ends the training, "
        "rows are compared with the samples that the coins drew, and the library's "
        "tests hold the draws to those of coins.",
        table(
            ["noise multiplier", "batches", "epochs", "certified of Poisson draws",
             "found: Poisson", "found: shuffled"],
            of_mechanism(),
        ),
    )  # fmt: skip


if __name__ == "__main__":
    main()
