"""Texts as people see them, compared with files; and numbers that are not the text."""

import os
import re
from dataclasses import replace
from pathlib import Path

SNAPSHOTS = Path(__file__).parents[1] / "snapshots"


def snapshot(name, text, width=80):
    """Compare with the file; LIGHTNING_UNLEARN_SNAPSHOTS=write makes it anew."""
    path = SNAPSHOTS / f"{name}.txt"
    if os.environ.get("LIGHTNING_UNLEARN_SNAPSHOTS") == "write":
        path.write_text(text)
    assert text == path.read_text(), f"see {path}"
    assert max(map(len, text.splitlines())) <= width


def settled(look):
    """A preflight with one number for each that another run or machine would change.

    A number that is not known stays so, and the columns are as wide as they would be.
    """
    kinds = {
        "seconds": 12.3, "training_seconds": 45.6, "memory_bytes": 78 * 2**20,
        "metric_before": 0.91, "metric_after": 0.89, "noise_to_weight": 0.012,
        "logit_noise": 0.034,
    }  # fmt: skip
    same = {k: v for k, v in kinds.items() if getattr(look, k) is not None}
    ways = [
        replace(
            way,
            seconds=None if way.seconds is None else 12.3,
            memory=re.sub(r"\d[\d,]*", "78", way.memory),
            metric=re.sub(r"\d\S*", "0.9", way.metric),
        )
        for way in look.routes
    ]
    return replace(look, **same, routes=tuple(ways))
