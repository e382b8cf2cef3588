"""Means over the seeds, by row, part and key."""

import statistics
from typing import Any

Found = dict[str, Any]
STEP, LISSA = "Newton step", "LiSSA, the paper's"
RESET = "certified reset, then retraining"
STEP_RESET = "step, epsilon 1, then retraining"


class Numbers:
    """Means over the seeds of one experiment."""

    def __init__(self, found: Found) -> None:
        self.seeds = list(found["seeds"].values())

    def mean(self, name: str, part: str, key: str) -> float | None:
        """Of one row, or None where it is not there."""
        each = [s["rows"].get(name, {}).get(part, {}).get(key) for s in self.seeds]
        each = [x for x in each if x is not None]
        return statistics.fmean(each) if each else None

    def span(self, name: str, split: str) -> str:
        """Lowest and highest F1 of a row."""
        each = [s["rows"].get(name, {}).get("a", {}).get(split) for s in self.seeds]
        each = [x for x in each if x is not None]
        return f"{min(each):.3f} to {max(each):.3f}" if each else "none"

    def has(self, *names: str) -> bool:
        """Whether these rows are there."""
        return all(self.mean(n, "d", "seconds") is not None for n in names)

    def __call__(self, name: str, part: str, key: str) -> float:
        found = self.mean(name, part, key)
        if found is None:
            raise LookupError(f"no {key} of {name}")
        return found
