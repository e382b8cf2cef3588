"""The tables of the parts that are runs of their own: e, f and the head of g."""

import statistics
from collections.abc import Iterable
from typing import Any

from common import table

Found = dict[str, Any]


def spread(numbers: Iterable[float], digits: int = 3, unit: str = "f") -> str:
    """Mean ± standard deviation."""
    numbers = [float(x) for x in numbers]
    if not numbers:
        return ""
    middle = f"{statistics.fmean(numbers):.{digits}{unit}}"
    if len(numbers) == 1:
        return middle
    return f"{middle} ± {statistics.stdev(numbers):.{digits}{unit}}"


def sequence(found: Found) -> list[str]:
    """A table for each way, a line for each request."""
    every = [s["e"] for s in found["seeds"].values() if "e" in s]
    parts: list[str] = []
    for way in every[0] if every else ():
        lines = []
        for states in zip(*(e[way] for e in every), strict=True):
            of = {k: _of(states, k) for k in ("theorem_3_4", "gradient_norm")}
            lines.append([
                states[0]["request"],
                spread(of["gradient_norm"], 4),
                spread(of["theorem_3_4"], 0),
                spread(_of(states, "trivial"), 0).split(" ")[0],
                *(spread(_of(states, k)) for k in ("forget", "retain", "test")),
                spread(_of(states, "to_retrained"), 2),
            ])  # fmt: skip
        head = ["request", "gradient norm", "Theorem 3.4, M = 1", "2C", "F1 forgotten",
                "retained", "test", "distance to retrained"]  # fmt: skip
        parts += [f"### {way}", table(head, lines)]
    if parts:
        parts.insert(
            0,
            "The gradient is that of the objective over all images retained after the "
            "last request. M = 1 is assumed: networks with ReLU have none.",
        )
    return parts


def _of(states: Iterable[Found], key: str) -> list[float]:
    return [s[key] for s in states if s.get(key) is not None]


def swept(found: Found) -> list[str]:
    """A table for each thing swept."""
    every = [s["f"] for s in found["seeds"].values() if "f" in s]
    parts: list[str] = []
    for name in every[0] if every else ():
        lines = []
        for states in zip(*(f[name] for f in every), strict=True):
            refused = sum("refused" in s for s in states)
            cells = [
                f"{states[0]['value']:g}",
                spread(_of(states, "noise_std"), 3, "g"),
            ]
            cells += [spread(_of(states, k)) for k in ("forget", "retain", "test")]
            cells += [spread(_of(states, "to_original"), 3, "g")]
            cells += [spread(_of(states, "passes"), 1)]
            cells += [f"refused with {refused} of {len(states)}" if refused else ""]
            cells += [spread(_of(states, "epsilon_at_2C"), 1, "e")]
            lines.append(cells)
        head = [name, "noise_std", "F1 forgotten", "retained", "test",
                "distance moved", "passes", "", "epsilon at 2C"]  # fmt: skip
        # The noise is a column of its own only where it follows from something else.
        empty = {1} if name in ("damping", "noise_std") else set()
        keep = [
            i
            for i in range(len(head))
            if i not in empty and any(line[i] for line in lines)
        ]
        lines = [[line[i] for i in keep] for line in lines]
        parts += [f"### {name}", table([head[i] for i in keep], lines)]
    return parts


def convex(found: Found) -> list[str]:
    """A line for each tolerance."""
    every = [s["g"] for s in found["seeds"].values() if "g" in s]
    lines = []
    for states in zip(*every, strict=True):
        tolerance = states[0]["tolerance"]
        lines.append([
            "as trained" if tolerance is None else f"{tolerance:g}",
            *(spread(_of(states, k), 2, "g")
              for k in ("certified", "measured_bound", "true_distance", "noise_std")),
            spread(_of(states, "test")),
            spread(_of(states, "seconds"), 1),
        ])  # fmt: skip
    head = ["tolerance", "certified distance", "\\|grad\\| / l2", "true distance",
            "noise_std at epsilon 1", "F1 on test after noise", "seconds"]  # fmt: skip
    title = "### Where a bound means something: a convex head on the pixels"
    note = (
        "`ConvexHead`, l2 = 1e-3: distance to the exact minimiser over the retained "
        "images, certified before the request (tolerance / l2), measured after it, and "
        "true (against a solve to 1e-9, itself within 1e-6 of the minimiser). "
        '"As trained" is before any request and without noise.'
    )
    return [title, note, table(head, lines)] if lines else []
